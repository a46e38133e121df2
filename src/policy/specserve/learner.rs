//! After a step: its report updates the time model, the calibration, the confidence forecast and
//! the gate.
//!
//! The policy itself is the knowledge. It is shared with the snapshots and copied on write, so a
//! learner whose snapshots are all gone (the simulator's between steps) updates it in place.

use std::sync::Arc;

use super::SpecServe;
use crate::policy::specserve::SpecServeOptions;
use crate::policy::{Learner, Policy};
use crate::protocol::{Micros, StepReport};
use crate::timing::Reliability;
use crate::timing::cost_model::CostModel;

/// Learns for [`SpecServe`].
#[derive(Debug)]
pub struct SpecServeLearner {
    policy: Arc<SpecServe>,
}

impl SpecServeLearner {
    /// Starts as [`SpecServe::new`] does.
    pub fn new(
        cost: CostModel,
        warm_start: Option<Reliability>,
        options: SpecServeOptions,
    ) -> SpecServeLearner {
        SpecServeLearner { policy: Arc::new(SpecServe::new(cost, warm_start, options)) }
    }
}

impl Learner for SpecServeLearner {
    fn observe(&mut self, report: &StepReport) {
        let known = Arc::make_mut(&mut self.policy);
        known.time.observe(report);
        known.calibration.observe(report);
        known.runner_ups.observe(report);
        known.forecast.observe(report, &known.calibration);
        known.observe_realized(report);
        known.gate.observe(report);
        known.pace.observe(report);
        known.lifetime.observe(report);
    }

    fn snapshot(&self) -> Arc<dyn Policy> {
        self.policy.clone()
    }

    fn predict(&self, report: &StepReport) -> Option<Micros> {
        Some(Micros(self.policy.time.step_us(report) as u64))
    }

    fn calibration_error(&self) -> Option<f64> {
        self.policy.calibration.expected_error()
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({
            "policy": self.name(),
            "time": self.policy.time.state(),
            "calibration": self.policy.calibration.state(),
            "runner_up_acceptance": self.policy.runner_ups.state(),
            "confidence_forecast": self.policy.forecast.position_means(),
            "speculation": self.policy.gate.state(),
            "realized_over_planned": self.policy.realized.state(),
        })
    }
}
