//! Which requests are served now: order of prefill, size of the running set, prefill per step.
//!
//! A [`Pacer`] belongs to the scheduler and works with every speculation policy. It learns what
//! steps cost and what requests are like, and answers three questions before each step:
//!
//! - *Who is next?* [`Pacer::rank`]: the largest set of prompts whose first tokens can all be in
//!   time (Moore and Hodgson 1968), shortest first as long as none becomes late by it (Smith 1956),
//!   then those without an objective, then those that are late ([`LateAction`]).
//! - *How many may run?* [`Pacer::running_limit`]: as many as give the most requests per second
//!   within their TPOT objectives.
//! - *How much prefill now?* [`Pacer::chunk`]: all there is, unless that costs a running request
//!   its TPOT objective and the prompts can wait.
//!
//! It is pure: no clock, no random numbers. docs/policy.md, "Scheduling", has the derivations.
//!
//! May import: protocol, stats, timing.
#![forbid(unsafe_code)]

mod chunk;
mod late;
mod limit;
mod order;
mod shortest;
mod workload;

#[cfg(test)]
mod tests;

pub use late::{LateAction, UnknownAction};
pub use limit::Demand;
pub use order::{LATE_PERIOD, Prompt, Ranked, Ranking, Standing};

use self::workload::Workload;
use crate::protocol::{DecodeView, Micros, StepReport};
use crate::timing::correction::TimeModel;
use crate::timing::cost_model::{CostModel, prefill_attended};

/// In which order requests are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceOrder {
    /// First come, first served; everything that fits runs, and all prefill that is allowed.
    Fifo,
    /// By slack, as a [`Pacer`] ranks and limits.
    #[default]
    Slo,
}

impl ServiceOrder {
    /// The name that the configuration and the command line use.
    pub fn name(self) -> &'static str {
        match self {
            ServiceOrder::Fifo => "fifo",
            ServiceOrder::Slo => "slo",
        }
    }
}

/// An unknown order of service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown order {0:?}; known are fifo and slo")]
pub struct UnknownOrder(String);

impl std::str::FromStr for ServiceOrder {
    type Err = UnknownOrder;

    fn from_str(text: &str) -> Result<ServiceOrder, UnknownOrder> {
        match text {
            "fifo" => Ok(ServiceOrder::Fifo),
            "slo" => Ok(ServiceOrder::Slo),
            _ => Err(UnknownOrder(text.to_owned())),
        }
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Pacer {
    time: TimeModel,
    load: Workload,
    late: LateAction,
    buffers: Buffers,
}

/// Working memory; holds no information between calls.
#[derive(Clone, Debug, Default)]
struct Buffers {
    debts: Vec<chunk::Debt>,
    order: order::Buffers,
    shortest: shortest::Buffers,
    objectives: Vec<limit::Objective>,
}

impl Pacer {
    /// Starts from the times of a profile.
    pub fn new(cost: CostModel) -> Pacer {
        Pacer {
            time: TimeModel::new(cost),
            load: Workload::default(),
            late: LateAction::default(),
            buffers: Buffers::default(),
        }
    }

    /// What it does with late prompts; [`LateAction::Demote`] unless told otherwise.
    #[must_use]
    pub fn with_late(self, late: LateAction) -> Pacer {
        Pacer { late, ..self }
    }

    /// Learns from a step.
    pub fn observe(&mut self, report: &StepReport) {
        self.time.observe(report);
        self.load.observe_step(&self.time, report);
        for summary in &report.finished {
            self.load.observe_finished(&self.time, summary);
        }
    }

    /// Learns from an arrival; they come in order.
    pub fn observe_arrival(&mut self, arrival: Micros) {
        self.load.observe_arrival(arrival);
    }

    /// The decode part of the next step, drafts included, in microseconds.
    fn decode_us(&self, decoding: &[DecodeView]) -> f64 {
        let context_tokens = decoding.iter().map(|row| u64::from(row.context_tokens)).sum();
        self.time.plain_step_us(decoding.len() as u32, context_tokens) * self.load.stretch()
    }

    /// Decode and verification rows of the next step, with `decoding` requests.
    fn verify_rows(&self, decoding: usize) -> u32 {
        (decoding as f64 * self.load.rows()).round() as u32
    }

    /// Whether a late prompt that was not begun is to be refused. One whose objective is too tight
    /// even for an idle machine is not: admission decided to serve it as well as may be.
    pub fn refuses(&self, prompt: &Prompt) -> bool {
        let Some(deadline) = prompt.deadline.filter(|_| self.late == LateAction::Reject) else {
            return false;
        };
        let tokens = prompt.remaining_tokens;
        let alone_us = self.time.prefill_us(1, tokens, prefill_attended(prompt.done_tokens, tokens));
        alone_us <= deadline.saturating_sub(prompt.arrival).0 as f64
    }

    /// What has been learned, for `/v1/engine/state`.
    pub fn state(&self) -> serde_json::Value {
        self.load.state()
    }
}
