//! The engine under a virtual clock.
//!
//! Engine core, step functions and policy are the daemon's own. Arrivals come from a workload
//! instead of a socket, and a [`VirtualExecutor`](virtual_executor::VirtualExecutor) stands in for
//! the device. A run is a pure function of workload, settings and policy. docs/simulator.md says
//! how to use it and what it does not model.
//!
//! May import: protocol, stats, sampling, random, timing, pacing, replay, policy, executor, step,
//! scheduler, engine, telemetry.
#![forbid(unsafe_code)]

mod capacity;
mod classes;
mod collect;
mod driver;
pub mod matrix;
mod parallel;
mod report;
mod sweep;
pub mod virtual_executor;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

pub use capacity::{CAPACITY_ATTAINMENTS, Capacity, SeedCapacity, Trial, capacities};
pub use classes::SimulatedClass;
pub use driver::{SimulationError, simulate};
pub use report::{Bin, ClassReport, Report};
pub use sweep::{Contender, Job, SATURATED_ATTAINMENT, at_load, saturation_load, sweep};

use crate::pacing::{LateAction, ServiceOrder};
use crate::protocol::{BLOCK_TOKENS, ExecutorInfo, ExecutorMemory};
use crate::replay::{Arrival, Recording};
use crate::scheduler::SchedulerLimits;
use crate::simulate::virtual_executor::{AcceptanceOptions, Confidence, TimeError};
use crate::timing::cost_model::CostModel;
use virtual_executor::Playback;

/// Everything but workload and policy.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The profile's times: what the machine takes, unless `error` says otherwise.
    pub cost: CostModel,
    /// How the machine differs from its profile.
    pub error: TimeError,
    /// How the draft does.
    pub draft: DraftQuality,
    /// Bounds of the scheduler.
    pub limits: SchedulerLimits,
    /// Most requests that wait; a request that finds them waiting is refused.
    pub queue_requests_max: u32,
    /// Longest prompt and output together; a longer request is refused.
    pub context_tokens_max: u32,
    /// In which order requests are served.
    pub order: ServiceOrder,
    /// What becomes of late requests in the order slo.
    pub late: LateAction,
    /// The classes of requests, most urgent first; 1 to 256.
    pub classes: Vec<SimulatedClass>,
    /// Sampling temperature, which policies are told.
    pub temperature: f32,
    /// Of all that is drawn.
    pub seed: u64,
}

/// How acceptance varies, and what the draft model says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct DraftQuality {
    /// Median acceptance of every request; `None`: by its task.
    pub median: Option<f64>,
    /// Spread between requests, in units of the logit.
    pub request_sd: f64,
    /// Spread between positions, in units of the logit.
    pub position_sd: f64,
    /// Correlation between neighbouring positions.
    pub correlation: f64,
    /// What the draft reports.
    pub confidence: Confidence,
    /// Share of wrong drafts whose runner-up under the same noise is right.
    pub runner_up: f64,
    /// What a real pair did, instead of all this.
    pub recording: Option<Arc<Recording>>,
    /// Whether requests play it in its order, instead of what is drawn for each.
    pub recording_in_order: bool,
}

impl DraftQuality {
    /// A small draft model as the literature describes them: by task, with wide spread
    /// between positions, sure and unsure in runs, and calibrated. Its runner-ups are right as often as
    /// the embedded pair's at temperature 0.6.
    pub fn typical() -> DraftQuality {
        DraftQuality {
            median: None,
            request_sd: 0.4,
            position_sd: 1.5,
            correlation: 0.5,
            confidence: Confidence::Calibrated,
            runner_up: 0.47,
            recording: None,
            recording_in_order: false,
        }
    }

    /// Most drafts of a round: those of the longest chain that was recorded of a draft head.
    fn drafts_max(&self) -> u32 {
        let recording = self.recording.as_ref();
        recording.and_then(|recording| recording.chain_drafts_max()).unwrap_or(u32::MAX)
    }

    pub(crate) fn options(&self, workload: &[Arrival]) -> AcceptanceOptions {
        let of_task = |arrival: &Arrival| self.median.unwrap_or(arrival.task.acceptance());
        let medians: Arc<[f64]> = workload.iter().map(of_task).collect();
        AcceptanceOptions {
            median: medians.first().copied().unwrap_or(0.5),
            medians,
            request_sd: self.request_sd,
            position_sd: self.position_sd,
            correlation: self.correlation,
            confidence: self.confidence.clone(),
            runner_up: self.runner_up,
            playback: self.recording.clone().map(|recording| Playback {
                recording,
                prompts: workload.iter().map(|arrival| arrival.prompt_tokens).collect(),
                in_order: self.recording_in_order,
            }),
        }
    }
}

impl Settings {
    /// What the virtual executor says of itself.
    pub(crate) fn executor_info(&self) -> ExecutorInfo {
        ExecutorInfo {
            backend: "virtual".to_owned(),
            device: "a cost model".to_owned(),
            vocab_size: virtual_executor::VOCAB_SIZE,
            context_tokens_max: self.context_tokens_max,
            block_tokens: BLOCK_TOKENS,
            target_blocks: self.limits.target_blocks,
            drafter: self.limits.drafter.clone(),
            batch_tokens_max: self.limits.batch_tokens_max,
            batch_sequences_max: self.limits.running_requests_max,
            draft_tokens_max: self.limits.draft_tokens_max.min(self.draft.drafts_max()),
            sampled_rows_max: u32::MAX,
            memory: ExecutorMemory::default(),
        }
    }
}
