//! Who is next: the largest set of prompts that can all be in time.
//!
//! Minimizing the number of late jobs on one machine is Moore and Hodgson's problem (1968): take
//! jobs by deadline; whenever one would be late, drop the longest taken so far. Dropped prompts
//! come last, by class and deadline, so that one long prompt does not ruin the short ones
//! around it. Lest the dropped starve, the oldest of them comes first after [`LATE_PERIOD`] steps
//! in which none made progress. Where late prompts keep their turn ([`LateAction::Queue`]), they
//! stay in the order of deadlines. How those in time are ordered is in `shortest.rs`.

use std::collections::BinaryHeap;

use super::{LateAction, Pacer};
use crate::protocol::{DecodeView, Micros};
use crate::timing::cost_model::prefill_attended;

/// After so many steps in which no late prompt made progress, the oldest comes first.
pub const LATE_PERIOD: u32 = 16;
/// Share of a TTFT objective that is kept in reserve: a prompt waits for the end of its step, and
/// its first token for the host and the way to the client.
const RESERVE: f64 = 0.05;
/// Share of the time left that is planned with.
const DEADLINE_AIM: f64 = 0.8;

/// A prompt that is prefilled or waits for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prompt {
    /// Index of the request's class; lower is more urgent.
    pub class: u8,
    /// Arrival at the socket.
    pub arrival: Micros,
    /// Tokens in the cache.
    pub done_tokens: u32,
    /// Tokens left to prefill.
    pub remaining_tokens: u32,
    /// When its first token is due; `None` without a TTFT objective.
    pub deadline: Option<Micros>,
    /// Whether it was preempted after its first token: its stream stands still.
    pub resumes: bool,
}

impl Prompt {
    /// Microseconds from `now` until it has to be prefilled.
    pub(super) fn left_us(&self, now: Micros) -> f64 {
        let Some(deadline) = self.deadline else { return f64::INFINITY };
        let reserve_us = RESERVE * deadline.saturating_sub(self.arrival).0 as f64;
        (deadline.saturating_sub(now).0 as f64 - reserve_us).max(0.0)
    }
}

/// Where a prompt stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It resumes a stream.
    Resumes,
    /// Its first token can be in time.
    OnTime,
    /// It has no deadline.
    #[default]
    Open,
    /// Its first token cannot be in time.
    Late,
}

/// One prompt in the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// Index into the prompts.
    pub index: u32,
    /// Where it stands.
    pub standing: Standing,
}

/// The order of service.
#[derive(Clone, Debug, Default)]
pub struct Ranking {
    /// All prompts, the next one first.
    pub order: Vec<Ranked>,
    /// Prefill tokens per step at which each prompt on time stays so, in order.
    pub paces: Vec<u32>,
}

/// What prefill takes beside the requests that decode, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct PrefillCosts {
    /// The decode part of a step.
    decode_us: f64,
    /// A step with next to no prefill; every step of prefill has a cost of its own.
    step_us: f64,
    /// Each token, in a step with as many as are allowed: prompts share steps.
    token_us: f64,
    /// Tokens that a step takes at most.
    chunk: f64,
}

/// Working memory of [`Pacer::rank`].
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers {
    /// Prompts taken, longest first: work in nanoseconds, index into the order of deadlines.
    taken: BinaryHeap<(u64, u32)>,
    late: Vec<bool>,
    moved: Vec<Ranked>,
}

impl Pacer {
    /// Ranks `prompts` at `now`, while `decoding` requests decode and a step takes at most
    /// `chunk_max` prefill tokens. `late_turn`: the oldest late prompt comes first.
    pub fn rank(
        &mut self,
        now: Micros,
        prompts: &[Prompt],
        decoding: &[DecodeView],
        chunk_max: u32,
        late_turn: bool,
        ranking: &mut Ranking,
    ) {
        let costs = self.prefill_costs(decoding, chunk_max);
        let Ranking { order, paces } = ranking;
        order.clear();
        order.extend(
            (0..prompts.len() as u32)
                .map(|index| Ranked { index, standing: first_standing(&prompts[index as usize]) }),
        );
        let keeps_turn = self.late == LateAction::Queue;
        let key = |ranked: &Ranked| {
            let prompt = &prompts[ranked.index as usize];
            let standing = match ranked.standing {
                Standing::Late if keeps_turn => Standing::OnTime,
                standing => standing,
            };
            let class = if standing == Standing::Resumes { 0 } else { prompt.class };
            // A deadline that is missed says nothing about who waited longest.
            let deadline = prompt.deadline.filter(|_| standing != Standing::Late);
            (
                standing == Standing::Late,
                standing != Standing::Resumes,
                class,
                standing,
                deadline,
                prompt.arrival,
                ranked.index,
            )
        };
        order.sort_unstable_by_key(key);
        self.drop_late(now, prompts, costs, order);
        if !keeps_turn {
            let late = self.put_late_last(order);
            order[late..].sort_unstable_by_key(key);
            self.put_shortest_first(now, prompts, costs, order);
        }
        if late_turn && !keeps_turn {
            let late = order.iter().enumerate().filter(|(_, ranked)| ranked.standing == Standing::Late);
            let oldest = late.min_by_key(|(_, ranked)| prompts[ranked.index as usize].arrival);
            if let Some((position, _)) = oldest {
                order[..=position].rotate_right(1);
            }
        }
        self.find_paces(now, prompts, costs, order, paces);
    }

    /// Marks prompts as late, as few as possible.
    fn drop_late(&mut self, now: Micros, prompts: &[Prompt], costs: PrefillCosts, order: &mut [Ranked]) {
        let mut buffers = std::mem::take(&mut self.buffers.order);
        buffers.taken.clear();
        buffers.late.clear();
        buffers.late.resize(order.len(), false);
        let mut total_us = 0.0;
        for (position, ranked) in order.iter().enumerate() {
            let prompt = &prompts[ranked.index as usize];
            let work_us = self.work_us(prompt, costs);
            total_us += work_us;
            if ranked.standing != Standing::OnTime {
                continue;
            }
            buffers.taken.push(((work_us * 1e3) as u64, position as u32));
            let left_us = prompt.left_us(now);
            while total_us > left_us {
                let Some((dropped_ns, dropped)) = buffers.taken.pop() else { break };
                total_us -= dropped_ns as f64 * 1e-3;
                buffers.late[dropped as usize] = true;
                if dropped as usize == position {
                    break;
                }
            }
        }
        for (ranked, _) in order.iter_mut().zip(&buffers.late).filter(|(_, late)| **late) {
            ranked.standing = Standing::Late;
        }
        self.buffers.order = buffers;
    }

    /// Moves late prompts behind the others, whose order stays; returns the position of the first.
    fn put_late_last(&mut self, order: &mut [Ranked]) -> usize {
        let late = &mut self.buffers.order.moved;
        late.clear();
        let mut kept = 0;
        for position in 0..order.len() {
            let ranked = order[position];
            if ranked.standing == Standing::Late {
                late.push(ranked);
            } else {
                order[kept] = ranked;
                kept += 1;
            }
        }
        order[kept..].copy_from_slice(late);
        kept
    }

    fn prefill_costs(&self, decoding: &[DecodeView], chunk_max: u32) -> PrefillCosts {
        let (rows, chunk) = (self.verify_rows(decoding.len()), chunk_max.max(1));
        let decode_us = if decoding.is_empty() { 0.0 } else { self.decode_us(decoding) };
        PrefillCosts {
            decode_us,
            step_us: decode_us + self.time.prefill_us(rows, 1, 0),
            token_us: self.time.prefill_us(rows, chunk, 0) / f64::from(chunk),
            chunk: f64::from(chunk),
        }
    }

    /// What the rest of a prompt adds to steps that are full of prefill.
    fn prefill_us(&self, prompt: &Prompt, costs: PrefillCosts) -> f64 {
        let tokens = prompt.remaining_tokens;
        let attended_us = self.time.prefill_attended_us(prefill_attended(prompt.done_tokens, tokens));
        f64::from(tokens) * costs.token_us + attended_us
    }

    /// Time to prefill the rest of a prompt at full pace beside the decoding requests.
    pub(super) fn work_us(&self, prompt: &Prompt, costs: PrefillCosts) -> f64 {
        let steps = f64::from(prompt.remaining_tokens) / costs.chunk;
        self.prefill_us(prompt, costs) + steps * costs.decode_us
    }

    /// The first `i` prompts have `C` tokens to go and `L` left, of which [`DEADLINE_AIM`] is
    /// planned with. Steps of `T + c·p` that prefill `p` tokens each are done in time iff
    /// `(C/p)·(T + c·p) ≤ L`, that is `p ≥ C·T/(L − c·C)`.
    fn find_paces(
        &self,
        now: Micros,
        prompts: &[Prompt],
        costs: PrefillCosts,
        order: &[Ranked],
        paces: &mut Vec<u32>,
    ) {
        paces.clear();
        let (mut tokens, mut prefill_us) = (0.0, 0.0);
        let step_us = costs.step_us;
        for ranked in order {
            let prompt = &prompts[ranked.index as usize];
            let remaining = prompt.remaining_tokens;
            tokens += f64::from(remaining);
            prefill_us += self.prefill_us(prompt, costs);
            if ranked.standing != Standing::OnTime {
                continue;
            }
            let left_us = prompt.left_us(now);
            let room_us = (DEADLINE_AIM * left_us - prefill_us).max(step_us.max(1.0));
            paces.push((tokens * step_us / room_us).min(tokens).ceil() as u32);
        }
    }
}

fn first_standing(prompt: &Prompt) -> Standing {
    match (prompt.resumes, prompt.deadline) {
        (true, _) => Standing::Resumes,
        (false, Some(_)) => Standing::OnTime,
        (false, None) => Standing::Open,
    }
}
