//! Running figures on acceptance, and on what the drafter's probabilities are worth.

use serde::Serialize;

use crate::protocol::{ExaminedDraft, StepReport};

/// Draft positions that have a figure of their own; later ones count for the last.
const POSITIONS: usize = 8;
/// Equal bins of draft probability.
const BINS: usize = 10;

/// Counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AcceptanceStats {
    /// Steps in which something was verified.
    pub steps: u64,
    /// Per draft position, from the first.
    pub positions: [Share; POSITIONS],
    /// Per bin of draft probability.
    calibration: [Bin; BINS],
}

/// How many of what was verified were accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Drafts that the target verified behind accepted ones.
    pub verified: u64,
    /// Of them, accepted.
    pub accepted: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Bin {
    share: Share,
    /// Sum of the probabilities that the drafter gave them.
    promised: f64,
}

impl AcceptanceStats {
    /// Counts a step. A draft behind a rejected one says nothing: the target never saw the text
    /// that it stands in (censoring).
    pub fn record(&mut self, report: &StepReport) {
        let mut counted = false;
        for ExaminedDraft { position, proposal, is_accepted, .. } in report.examined() {
            counted = true;
            self.positions[(position as usize - 1).min(POSITIONS - 1)].add(is_accepted);
            let bin = ((proposal.probability.clamp(0.0, 1.0) * BINS as f32) as usize).min(BINS - 1);
            self.calibration[bin].share.add(is_accepted);
            self.calibration[bin].promised += f64::from(proposal.probability);
        }
        self.steps += u64::from(counted);
    }

    /// Expected calibration error of the drafter's own probabilities since the start: the mean gap between
    /// promised and accepted share over the bins, weighted by use; `None` before the first draft.
    pub fn calibration_error(&self) -> Option<f64> {
        let seen: u64 = self.calibration.iter().map(|bin| bin.share.verified).sum();
        let gap = |bin: &Bin| (bin.promised - bin.share.accepted as f64).abs();
        (seen > 0).then(|| self.calibration.iter().map(gap).sum::<f64>() / seen as f64)
    }
}

impl Share {
    fn add(&mut self, accepted: bool) {
        self.verified += 1;
        self.accepted += u64::from(accepted);
    }
}
