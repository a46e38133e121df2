//! After a step: its report updates the time model, the calibration, the confidence forecast and
//! the gate.
//!
//! The policy itself is the knowledge. It is shared with the snapshots and copied on write, so a
//! learner whose snapshots are all gone (the simulator's between steps) updates it in place.

use std::sync::Arc;

use super::SpecServe;
use super::workspace::Costs;
use crate::policy::slo::{SloState, tpot_bound};
use crate::policy::specserve::SpecServeOptions;
use crate::policy::{Learner, Policy};
use crate::protocol::{Micros, StepReport};
use crate::timing::Reliability;
use crate::timing::cost_model::CostModel;

/// Row-steps seen so far by the request's state before the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
struct SloStateCounts {
    unconstrained: u64,
    on_track: u64,
    recovering: u64,
    needs_speculation: u64,
}

/// Learns for [`SpecServe`].
#[derive(Debug)]
pub struct SpecServeLearner {
    policy: Arc<SpecServe>,
    slo_states: SloStateCounts,
}

impl SpecServeLearner {
    /// Starts as [`SpecServe::new`] does.
    pub fn new(
        cost: CostModel,
        warm_start: Option<Reliability>,
        options: SpecServeOptions,
    ) -> SpecServeLearner {
        SpecServeLearner {
            policy: Arc::new(SpecServe::new(cost, warm_start, options)),
            slo_states: SloStateCounts::default(),
        }
    }

    fn count_slo_states(&mut self, report: &StepReport) {
        let time = &self.policy.time;
        let plain_us = Costs::of(time, &report.view).plain_us() * (1.0 + time.margin());
        for row in &report.view.decoding {
            let count = match tpot_bound(row, plain_us).0 {
                SloState::Unconstrained => &mut self.slo_states.unconstrained,
                SloState::OnTrack => &mut self.slo_states.on_track,
                SloState::Recovering => &mut self.slo_states.recovering,
                SloState::NeedsSpeculation => &mut self.slo_states.needs_speculation,
            };
            *count += 1;
        }
    }
}

impl Learner for SpecServeLearner {
    fn observe(&mut self, report: &StepReport) {
        self.count_slo_states(report);
        let known = Arc::make_mut(&mut self.policy);
        known.time.observe(report);
        known.calibration.observe(report);
        known.forecast.observe(report, &known.calibration);
        known.gate.observe(report);
    }

    fn snapshot(&self) -> Arc<dyn Policy> {
        self.policy.clone()
    }

    fn predict(&self, report: &StepReport) -> Option<Micros> {
        Some(Micros(self.policy.time.step_us(report) as u64))
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({
            "policy": self.name(),
            "time": self.policy.time.state(),
            "calibration": self.policy.calibration.state(),
            "confidence_forecast": self.policy.forecast.position_means(),
            "speculation": self.policy.gate.state(),
            "row_steps_by_slo_state": self.slo_states,
        })
    }
}
