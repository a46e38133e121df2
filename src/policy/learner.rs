//! Learning: the mutable half of a policy.
//!
//! One owner holds the [`Learner`], feeds it the report of every step, and hands out immutable
//! [`Policy`] snapshots for the steps to come. The input is the [`StepReport`]; nothing else
//! changes what a learner knows.

use std::fmt::Debug;
use std::sync::Arc;

use super::Policy;
use crate::protocol::{Micros, StepReport};

/// Learns from finished steps and publishes what it knows as [`Policy`] snapshots.
///
/// A snapshot is taken for every step, so it should cost little. Large tables belong behind an
/// [`Arc`] that [`observe`](Learner::observe) updates with [`Arc::make_mut`]: they are copied
/// only while an older snapshot is still in use.
pub trait Learner: Send + Debug {
    /// Learns from a step.
    fn observe(&mut self, report: &StepReport);

    /// The policy that decides with what is known now.
    fn snapshot(&self) -> Arc<dyn Policy>;

    /// The policy's name as the config spells it, `fixed:4` for example.
    fn name(&self) -> String {
        self.snapshot().name()
    }

    /// The predicted duration of a step that did the work in `report`. Call it before
    /// [`observe`](Learner::observe), or the prediction has seen the answer. `None` if the
    /// policy has no time model.
    fn predict(&self, report: &StepReport) -> Option<Micros> {
        let _ = report;
        None
    }

    /// Expected calibration error, 0 to 1, of the acceptance probabilities that the policy worked
    /// with, each predicted before its outcome was learned. `None` if the policy takes the drafter's
    /// confidence as it is or needs none, and before the first outcome.
    fn calibration_error(&self) -> Option<f64> {
        None
    }

    /// What has been learned, for `/v1/engine/state`.
    fn state(&self) -> serde_json::Value {
        serde_json::json!({ "policy": self.name() })
    }
}

/// The learner of a policy that learns nothing: every snapshot is the same policy.
#[derive(Clone, Debug)]
pub struct Static<P>(Arc<P>);

impl<P: Policy> Static<P> {
    /// Always decides with `policy`.
    pub fn new(policy: P) -> Static<P> {
        Static(Arc::new(policy))
    }
}

impl<P: Policy + 'static> Learner for Static<P> {
    fn observe(&mut self, _: &StepReport) {}

    fn snapshot(&self) -> Arc<dyn Policy> {
        self.0.clone()
    }
}
