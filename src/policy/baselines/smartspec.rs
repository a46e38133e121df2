//! SmartSpec (Liu et al., arXiv 2406.14066): one length for the batch from a mean acceptance.
//!
//! Goodput of length `k` is `B · (1 − α^{k+1}) / (1 − α) / T(k)` with one acceptance rate
//! `α` for everything, smoothed with weights 0.85 and 0.15 per step; the length is decided
//! again every 20 steps, 0 allowed. At length 0 nothing is learned, so that it stays there
//! until the batch changes: upstream has the same trap.

use std::sync::Arc;

use super::{draft_everywhere, symmetric_us};
use crate::policy::{Learner, Policy, Scratch};
use crate::protocol::{StepDecision, StepReport, StepView};
use crate::timing::cost_model::CostModel;

/// Weight of the past in the smoothed acceptance rate.
const PAST_WEIGHT: f64 = 0.85;
/// Steps between two decisions.
const DECISION_STEPS: u32 = 20;
/// Acceptance rate assumed before anything was verified.
const FIRST_RATE: f64 = 0.7;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct SmartSpec {
    cost: Arc<CostModel>,
    draft_tokens_max: u32,
    rate: f64,
    chosen: Option<u32>,
    steps: u32,
}

impl SmartSpec {
    /// Starts from the profile's times.
    pub fn new(cost: CostModel, draft_tokens_max: u32) -> SmartSpec {
        SmartSpec { cost: Arc::new(cost), draft_tokens_max, rate: FIRST_RATE, chosen: None, steps: 0 }
    }

    fn best_length(&self, view: &StepView) -> u32 {
        if self.cost.draft.is_none() || view.decoding.is_empty() {
            return 0;
        }
        let batch = view.decoding.len() as u32;
        let goodput = |length: u32| {
            let tokens: f64 = (0..=length).map(|position| self.rate.powi(position as i32)).sum();
            f64::from(batch) * tokens / symmetric_us(&self.cost, view, length, batch * (length + 1))
        };
        let better = |best: u32, length: u32| if goodput(length) > goodput(best) { length } else { best };
        (0..=self.draft_tokens_max).fold(0, better)
    }
}

impl Policy for SmartSpec {
    fn name(&self) -> String {
        "smartspec".to_owned()
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        draft_everywhere(view, self.chosen.unwrap_or_else(|| self.best_length(view)))
    }
}

impl Learner for SmartSpec {
    fn observe(&mut self, report: &StepReport) {
        let counts = report.counts.iter();
        let taught = counts.map(|counts| (f64::from(counts.accepted), f64::from(counts.judged())));
        let (accepted, seen) = taught.fold((0.0, 0.0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
        if seen > 0.0 {
            self.rate = PAST_WEIGHT * self.rate + (1.0 - PAST_WEIGHT) * accepted / seen;
        }
        self.steps += 1;
        if self.chosen.is_none() || self.steps >= DECISION_STEPS {
            self.chosen = Some(self.best_length(&report.view));
            self.steps = 0;
        }
    }

    fn snapshot(&self) -> Arc<dyn Policy> {
        Arc::new(self.clone())
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({
            "policy": Policy::name(self),
            "acceptance_rate": self.rate,
            "draft_tokens": self.chosen,
        })
    }
}
