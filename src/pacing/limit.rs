//! How many requests may run: the most requests per second within their TPOT objectives.
//!
//! With `B` requests in the running set, each gets `E` tokens in a step whose decode part takes
//! `T(B)`. Prefill takes a share `ρ` of the time at the present rate of arrivals, which makes a
//! request's time per token `t(B) = T(B)/E / (1 − ρ)`; but no more than `T(B)/E + B·w`, where `w`
//! is the prefill that comes with each output token when every request that ends is followed by
//! another one. So requests of `N` tokens are served at the rate `B/(N·t(B))`, or as they arrive
//! if that is slower, and a share of them within their objectives. The limit is the `B` at which
//! the product is largest.
//!
//! A limit holds requests back, which cannot pay once `B` requests are served as fast as they
//! arrive: more are then seldom running. If the product is largest there, there is no limit.
//!
//! TPOT differs between requests, so the share falls smoothly where `t(B)` passes an objective:
//! how much headroom that leaves follows from the spread that was observed. Objectives that no `B`
//! can meet do not count, and without any other all may run.

use super::Pacer;
use crate::stats::logistic;

/// A limit makes requests wait, which may cost them their TTFT objectives. With such objectives it
/// must promise this much more than none does, and arrivals must exceed what is served by this
/// much, as both are means of few requests.
const WAITING_GAIN: f64 = 1.15;

/// Share of requests within an objective, one at a time, below which no batch can meet it.
const SHARE_MIN: f64 = 0.05;

/// What one request asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demand {
    /// TPOT objective, in microseconds.
    pub tpot_us: Option<u64>,
    /// Whether it has a TTFT objective.
    pub ttft: bool,
    /// What attaining its objectives is worth.
    pub weight: f32,
}

/// An objective and the weight of all requests that have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Objective {
    tpot_us: u64,
    weight: f64,
}

impl Objective {
    /// Whether an objective is so close that one entry stands for both: callers choose their own,
    /// and the list must stay short.
    fn is_like(&self, tpot_us: u64) -> bool {
        self.tpot_us.abs_diff(tpot_us) <= self.tpot_us / 16
    }

    /// Share of requests that are within it, where their mean time per token is `token_us` and the
    /// standard deviation of its logarithm `spread`.
    fn share(&self, token_us: f64, spread: f64) -> f64 {
        let headroom = (self.tpot_us.max(1) as f64 / token_us).ln() / spread;
        logistic::chance(headroom)
    }
}

impl Pacer {
    /// Most requests in the running set, 1 to `most`, given what those that run and wait ask for.
    pub fn running_limit(&mut self, demands: impl Iterator<Item = Demand>, most: u32) -> u32 {
        let Some(_) = self.load.output_tokens() else { return most };
        let mut objectives = std::mem::take(&mut self.buffers.objectives);
        objectives.clear();
        let (mut free_weight, mut hurried_weight, mut weights) = (0.0, 0.0, 0.0);
        for demand in demands {
            let weight = f64::from(demand.weight);
            weights += weight;
            hurried_weight += if demand.ttft { weight } else { 0.0 };
            match demand.tpot_us {
                None => free_weight += weight,
                Some(tpot_us) => match objectives.iter_mut().find(|objective| objective.is_like(tpot_us)) {
                    Some(objective) => objective.weight += weight,
                    None => objectives.push(Objective { tpot_us, weight }),
                },
            }
        }
        let (alone_us, spread) = (self.token_us(1), self.load.spread());
        objectives.retain(|objective| objective.share(alone_us, spread) >= SHARE_MIN);
        let limit = match objectives.is_empty() {
            true => most,
            false => {
                let hurried = if weights > 0.0 { hurried_weight / weights } else { 0.0 };
                let gain_min = 1.0 + (WAITING_GAIN - 1.0) * hurried;
                self.best_limit(&objectives, free_weight, gain_min, most)
            }
        };
        self.buffers.objectives = objectives;
        limit
    }

    fn best_limit(&self, objectives: &[Objective], free_weight: f64, gain_min: f64, most: u32) -> u32 {
        let spread = self.load.spread();
        let output_tokens = self.load.output_tokens().unwrap_or(1.0).max(1.0);
        let mut best = (0.0, most);
        for batch in 1..=most {
            let token_us = self.token_us(batch);
            let within = |objective: &Objective| objective.weight * objective.share(token_us, spread);
            let attained = free_weight + objectives.iter().map(within).sum::<f64>();
            let served_us = output_tokens * token_us / f64::from(batch);
            let is_enough = served_us <= gain_min * self.load.interarrival_us();
            let rate = attained / served_us.max(self.load.interarrival_us());
            if is_enough {
                return if rate * gain_min >= best.0 { most } else { best.1 };
            }
            if rate >= best.0 {
                best = (rate, batch);
            }
        }
        best.1
    }

    /// `t(B)`: a request's time per token in the long run, in microseconds.
    pub(super) fn token_us(&self, batch: u32) -> f64 {
        let context_tokens = (self.load.context_tokens() * f64::from(batch)) as u64;
        let decode_us = self.time.plain_step_us(batch, context_tokens) * self.load.stretch();
        let token_us = decode_us / self.load.tokens();
        let replaced_us = f64::from(batch) * self.load.prefill_us_per_token();
        let share = self.load.prefill_share();
        if share >= 1.0 {
            return token_us + replaced_us;
        }
        token_us + replaced_us.min(token_us * share / (1.0 - share))
    }
}
