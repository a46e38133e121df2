//! How long requests last: what it may cost to let the draft model read a prompt.
//!
//! The draft model has to process a request's context before its first draft. That pays if
//! speculation saves more time over the output that is still to come. Outputs end without notice,
//! so at any time the mean output is what is expected to come.

use crate::protocol::StepReport;
use crate::stats::mean::RunningMean;

/// Output that is expected before any request finished, in tokens.
const FIRST_OUTPUT_TOKENS: f64 = 64.0;
/// Requests that the first guess counts as.
const FIRST_REQUESTS: u32 = 4;
/// Requests that the mean remembers.
const REQUESTS: f64 = 64.0;

/// The mean output of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime(RunningMean);

impl Default for Lifetime {
    fn default() -> Lifetime {
        Lifetime(RunningMean::guess(FIRST_OUTPUT_TOKENS, FIRST_REQUESTS))
    }
}

impl Lifetime {
    /// Learns from the requests that a step finished.
    pub(super) fn observe(&mut self, report: &StepReport) {
        report.finished.iter().for_each(|summary| self.0.add(f64::from(summary.output_tokens), REQUESTS));
    }

    /// Output tokens that a request is expected to have still to come.
    pub(super) fn output_tokens(&self) -> f64 {
        self.0.get().unwrap_or(FIRST_OUTPUT_TOKENS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::RequestSummary;

    #[test]
    fn the_mean_output_follows_what_finishes() {
        let mut lifetime = Lifetime::default();
        lifetime.observe(&StepReport::default());
        assert_eq!(lifetime.output_tokens(), FIRST_OUTPUT_TOKENS);
        let finished = vec![RequestSummary { output_tokens: 200, ..RequestSummary::default() }; 2];
        let report = StepReport { finished, ..StepReport::default() };
        lifetime.observe(&report);
        assert!((64.0..200.0).contains(&lifetime.output_tokens()), "{lifetime:?}");
        (0..200).for_each(|_| lifetime.observe(&report));
        assert!((lifetime.output_tokens() - 200.0).abs() < 1.0);
    }
}
