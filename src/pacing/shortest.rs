//! Shortest first, as long as no prompt becomes late because of it.
//!
//! Of all orders that keep every deadline, the one with the least mean waiting time is found from
//! its end (Smith 1956): of the prompts that may be the last, which are those with a deadline that
//! the whole work does not exceed, the longest is; and so on with the rest. Serving by deadline
//! would let every prompt wait as long as the one that waits longest.
//!
//! The work is known only of the prompts at hand. Others will arrive and go ahead of the long ones,
//! and steps prefill less than they could where running requests need it. So a prompt lets shorter
//! ones go first for a share of its objective only; after that, deadlines decide.

use std::collections::BinaryHeap;

use super::order::{PrefillCosts, Prompt, Ranked, Standing};
use super::{Micros, Pacer};

/// Share of its TTFT objective that a prompt may wait for shorter ones.
const PATIENCE: f64 = 0.3;

/// Working memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers {
    /// Prompts that may be the last: work in nanoseconds, place in the order by deadline.
    last: BinaryHeap<(u64, usize)>,
    order: Vec<Ranked>,
}

impl Pacer {
    /// Reorders prompts on time within each class; `order` has them by deadline.
    pub(super) fn put_shortest_first(
        &mut self,
        now: Micros,
        prompts: &[Prompt],
        costs: PrefillCosts,
        order: &mut [Ranked],
    ) {
        let mut buffers = std::mem::take(&mut self.buffers.shortest);
        let is_alike = |one: &Ranked, other: &Ranked| {
            let class = |ranked: &Ranked| prompts[ranked.index as usize].class;
            one.standing == other.standing && class(one) == class(other)
        };
        let mut before_us = 0.0;
        for alike in order.chunk_by_mut(is_alike) {
            let work_us = alike.iter().map(|ranked| self.work_us(&prompts[ranked.index as usize], costs));
            let end_us = before_us + work_us.sum::<f64>();
            if alike[0].standing == Standing::OnTime {
                self.put_longest_last(now, prompts, costs, end_us, alike, &mut buffers);
            }
            before_us = end_us;
        }
        self.buffers.shortest = buffers;
    }

    /// Orders prompts of one class, whose work ends at `end_us` from `now`.
    fn put_longest_last(
        &self,
        now: Micros,
        prompts: &[Prompt],
        costs: PrefillCosts,
        mut end_us: f64,
        alike: &mut [Ranked],
        buffers: &mut Buffers,
    ) {
        let Buffers { last, order } = buffers;
        order.clear();
        order.extend_from_slice(alike);
        let mut waiting = order.len();
        for place in alike.iter_mut().rev() {
            while let Some(next) = waiting.checked_sub(1) {
                let prompt = &prompts[order[next].index as usize];
                if !last.is_empty() && patience_us(prompt, now) < end_us {
                    break;
                }
                last.push(((self.work_us(prompt, costs) * 1e3) as u64, next));
                waiting = next;
            }
            let Some((work_ns, longest)) = last.pop() else { break };
            *place = order[longest];
            end_us -= work_ns as f64 * 1e-3;
        }
    }
}

/// Microseconds for which a prompt may still wait for shorter ones.
fn patience_us(prompt: &Prompt, now: Micros) -> f64 {
    let Some(deadline) = prompt.deadline else { return f64::INFINITY };
    let objective_us = deadline.saturating_sub(prompt.arrival).0 as f64;
    PATIENCE * objective_us - now.saturating_sub(prompt.arrival).0 as f64
}
