//! Whether to speculate at all: hysteresis, and probing while speculation is off.

use crate::protocol::{StepDecision, StepReport};

/// While off, speculation must promise this much more than plain decoding to come on.
const ENTER_GAIN: f64 = 1.03;
/// While on, it stays on as long as it promises anything.
const STAY_GAIN: f64 = 1.0;
/// Share of the time since the last draft that a probe may cost.
const PROBE_SHARE: f64 = 0.005;
/// Drafts of a probe.
pub(super) const PROBE_DRAFTS: u32 = 2;

/// Remembers whether speculation is on.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    on: bool,
    idle_us: f64,
    probes: u64,
    switches: u64,
}

impl Default for Gate {
    /// On: the first steps learn.
    fn default() -> Gate {
        Gate { on: true, idle_us: 0.0, probes: 0, switches: 0 }
    }
}

impl Gate {
    /// Whether speculation was on in the last step that decoded.
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// Whether speculation that promises `gain` times the rate of plain decoding is taken up.
    pub(super) fn opens_for(&self, gain: f64) -> bool {
        gain > if self.on { STAY_GAIN } else { ENTER_GAIN }
    }

    /// Whether a probe that lengthens the step by `cost_us` has been earned.
    pub(super) fn probe_is_due(&self, cost_us: f64) -> bool {
        !self.on && cost_us <= PROBE_SHARE * self.idle_us
    }

    /// Which of `rows` requests the next probe drafts for: each in turn.
    pub(super) fn probe_row(&self, rows: usize) -> usize {
        (self.probes % rows.max(1) as u64) as usize
    }

    /// Whether a step with these grants is a probe: everything that it drafts is verified.
    pub(super) fn is_probe(&self, granted: &StepDecision) -> bool {
        let mut drafting = granted.drafts.iter().filter(|&&drafts| drafts > 0);
        let short = drafting.next().is_some_and(|&drafts| drafts <= PROBE_DRAFTS);
        !self.on && short && drafting.next().is_none()
    }

    pub(super) fn observe(&mut self, report: &StepReport) {
        if report.view.decoding.is_empty() {
            return;
        }
        let drafting = report.drafted.iter().filter(|row| !row.proposals.is_empty()).count();
        if drafting == 0 {
            self.switches += u64::from(self.on);
            self.on = false;
            self.idle_us += report.step_time.max(report.target_time).0 as f64;
            return;
        }
        self.idle_us = 0.0;
        let longest = report.drafted.iter().map(|row| row.proposals.len()).max().unwrap_or(0);
        if !self.on && drafting == 1 && longest <= PROBE_DRAFTS as usize {
            self.probes += 1;
            return;
        }
        self.switches += u64::from(!self.on);
        self.on = true;
    }

    pub(super) fn state(&self) -> serde_json::Value {
        serde_json::json!({
            "on": self.on,
            "idle_us": self.idle_us,
            "probes": self.probes,
            "switches": self.switches,
        })
    }
}
