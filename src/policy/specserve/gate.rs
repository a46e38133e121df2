//! Whether to speculate at all: hysteresis, and probing while speculation is off. The inputs are a
//! plan's predicted gain and the reports of steps; docs/policy.md, "One step".

use crate::protocol::{Intent, StepReport};

/// Predicted gain over plain decoding that turns speculation on.
const ENTER_GAIN: f64 = 1.03;
/// Predicted gain below which speculation goes off.
const STAY_GAIN: f64 = 1.0;
/// Fraction of the time since the last draft that a probe may cost.
const PROBE_SHARE: f64 = 0.005;
/// Drafts of a probe.
pub(super) const PROBE_DRAFTS: u32 = 2;

/// Whether speculation is on, and the time saved up for probes.
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

    /// Whether to speculate at a predicted rate of `gain` times that of plain decoding.
    pub(super) fn opens_for(&self, gain: f64) -> bool {
        gain > if self.on { STAY_GAIN } else { ENTER_GAIN }
    }

    /// Whether enough time has passed for a probe that lengthens the step by `cost_us`.
    pub(super) fn probe_is_due(&self, cost_us: f64) -> bool {
        !self.on && cost_us <= PROBE_SHARE * self.idle_us
    }

    /// Row of the next probe among `rows` decoding requests: round robin.
    pub(super) fn probe_row(&self, rows: usize) -> usize {
        (self.probes % rows.max(1) as u64) as usize
    }

    /// Follows a step by what it drafted: a probe that was granted no draft has measured nothing,
    /// so the same request is probed again and the time saved up is kept.
    pub(super) fn observe(&mut self, report: &StepReport) {
        if report.view.decoding.is_empty() {
            return;
        }
        if report.drafted.iter().all(|row| row.proposals.is_empty()) {
            self.switches += u64::from(self.on);
            self.on = false;
            self.idle_us += report.step_time.max(report.target_time).0 as f64;
            return;
        }
        self.idle_us = 0.0;
        match report.granted.intent {
            Intent::Probe => self.probes += 1,
            Intent::Draft => {
                self.switches += u64::from(!self.on);
                self.on = true;
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{DecodeView, DraftedRow, Micros, Proposal, StepDecision, StepView};

    /// A step of one request that took 1 ms and made `drafted` proposals.
    fn step(intent: Intent, drafted: usize) -> StepReport {
        let row = DecodeView::example();
        let proposals = vec![Proposal { finite: true, ..Proposal::default() }; drafted];
        StepReport {
            view: StepView { decoding: vec![row], ..StepView::default() },
            granted: StepDecision { intent, drafts: vec![drafted as u32], ..StepDecision::default() },
            drafted: if drafted > 0 { vec![DraftedRow::chain(0, proposals)] } else { Vec::new() },
            step_time: Micros(1000),
            ..StepReport::default()
        }
    }

    /// Off, after one step without drafts.
    fn closed() -> Gate {
        let mut gate = Gate::default();
        gate.observe(&step(Intent::Draft, 0));
        assert!(!gate.is_on());
        gate
    }

    #[test]
    fn a_probe_is_counted_spends_the_time_earned_and_leaves_speculation_off() {
        let mut gate = closed();
        assert!(gate.probe_is_due(5.0) && !gate.probe_is_due(5.1), "0.5 % of 1 ms");
        gate.observe(&step(Intent::Probe, 2));
        assert!(!gate.is_on() && !gate.probe_is_due(0.1));
        assert_eq!((gate.probes, gate.probe_row(3)), (1, 1));
    }

    #[test]
    fn a_probe_that_was_granted_no_draft_is_not_counted_as_one() {
        let mut gate = closed();
        gate.observe(&step(Intent::Probe, 0));
        assert_eq!((gate.probes, gate.probe_row(3)), (0, 0));
        assert!(gate.probe_is_due(10.0), "the time earned is kept, and this step adds to it");
    }

    #[test]
    fn short_drafts_of_one_request_are_no_probe_unless_they_were_meant_as_one() {
        let mut gate = closed();
        gate.observe(&step(Intent::Draft, 1));
        assert!(gate.is_on());
        assert_eq!((gate.probes, gate.switches), (0, 2));
    }
}
