//! Survival of draft tokens: measured where drafted, forecast where not.
//!
//! `S(r,i) = Π_{j≤i} c(q_{r,j}, j)`. For a position that has no draft yet, `c` is forecast
//! as (mean calibrated confidence at that position) × (the request's recent confidence relative
//! to that mean). Every drafted token is a sample, accepted or not: the forecast predicts
//! confidence, which is known as soon as a token is drafted. docs/policy.md, section "Survival".

use super::calibration::Calibration;
use crate::protocol::{RequestId, StepReport};

/// Positions with a mean of their own; deeper ones share the last.
pub const POSITIONS_MAX: usize = 32;
/// Confidence expected before anything has been drafted. An optimistic prior: overestimating
/// wastes a few drafts, underestimating disables speculation and starves the estimator.
const PRIOR_CONFIDENCE: f64 = 0.85;
/// Weight of the prior at the first position, in drafts. It decays like any other evidence: a prior
/// that stayed would keep promising what a useless draft never delivers.
const FIRST_PRIOR_DRAFTS: f64 = 16.0;
/// Weight of the preceding position's mean as the prior of a deeper one, in drafts.
const PRIOR_DRAFTS: f64 = 2.0;
/// Half-life of a position's observations, in drafts at that position.
const POSITION_HALF_LIFE: f64 = 512.0;
/// Decay of a position's evidence per step, so that a few probes after a long pause outweigh
/// older observations.
const STEP_FADE: f64 = 1.0 - 1.0 / 128.0;
/// Evidence below which steps no longer decay it: knowledge stays until it is contradicted.
const EVIDENCE_MIN: f64 = 32.0;
/// Decay of a request's evidence per draft.
const REQUEST_FADE: f32 = 0.92;
/// Decay of a request's evidence per step, so that one that is no longer drafted gets another try.
const REQUEST_STEP_FADE: f32 = 0.97;
/// Weight of the mean over all requests as the prior of one, in drafts.
const REQUEST_PRIOR: f32 = 4.0;
/// Range of a single draft's ratio.
const RATIO_RANGE: (f32, f32) = (0.1, 2.0);
/// Highest forecast of one position.
const CONFIDENCE_MAX: f32 = 0.98;
/// Most requests tracked at once; more than the largest batch.
const REQUESTS_MAX: usize = 1024;
/// Variance of a draft's confidence around its forecast before anything has been drafted.
const PRIOR_VARIANCE: f64 = 0.04;
/// Weight of this first guess, in drafts; it decays like observations.
const PRIOR_VARIANCE_DRAFTS: f64 = 16.0;
/// Steps after which an absent request is forgotten (a preempted one comes back sooner).
const ABSENT_STEPS_MAX: u64 = 256;

/// A request's recent confidence relative to the mean.
#[derive(Clone, Copy, Debug)]
struct RequestRatio {
    request: RequestId,
    weight: f32,
    weighted: f32,
    seen_step: u64,
}

/// Predicts the confidence of drafts that do not exist yet.
#[derive(Clone, Debug)]
pub struct Forecast {
    positions: [(f64, f64); POSITIONS_MAX],
    /// Squared deviations of drafts from their forecasts, over all positions: weight and sum.
    deviations: (f64, f64),
    requests: Vec<RequestRatio>,
    step: u64,
}

impl Default for Forecast {
    fn default() -> Forecast {
        let mut positions = [(0.0, 0.0); POSITIONS_MAX];
        positions[0] = (FIRST_PRIOR_DRAFTS, PRIOR_CONFIDENCE * FIRST_PRIOR_DRAFTS);
        let deviations = (PRIOR_VARIANCE_DRAFTS, PRIOR_VARIANCE * PRIOR_VARIANCE_DRAFTS);
        Forecast { positions, deviations, requests: Vec::new(), step: 0 }
    }
}

impl Forecast {
    /// Mean calibrated confidence at each position (the first at index 0). A position with
    /// few drafts is pulled towards the one before it.
    pub fn position_means(&self) -> [f32; POSITIONS_MAX] {
        let mut means = [0.0; POSITIONS_MAX];
        let (mut prior, mut strength) = (PRIOR_CONFIDENCE, 0.0);
        for (mean, (weight, weighted)) in means.iter_mut().zip(&self.positions) {
            prior = (weighted + prior * strength) / (weight + strength);
            strength = PRIOR_DRAFTS;
            *mean = prior as f32;
        }
        means
    }

    /// Standard deviation of a draft's confidence around its forecast.
    pub fn spread(&self) -> f32 {
        let (weight, sum) = self.deviations;
        (sum / weight).sqrt() as f32
    }

    /// The request's recent confidence relative to the mean; 1 for an unknown request.
    pub fn request_ratio(&self, request: RequestId) -> f32 {
        match self.requests.binary_search_by_key(&request, |entry| entry.request) {
            Ok(index) => {
                let entry = &self.requests[index];
                (entry.weighted + REQUEST_PRIOR) / (entry.weight + REQUEST_PRIOR)
            }
            Err(_) => 1.0,
        }
    }

    /// Learns the confidence of every draft of a step.
    pub fn observe(&mut self, report: &StepReport, calibration: &Calibration) {
        self.step += 1;
        self.forget_absent(report);
        for (weight, weighted) in self.positions.iter_mut().filter(|(weight, _)| *weight > EVIDENCE_MIN) {
            *weight *= STEP_FADE;
            *weighted *= STEP_FADE;
        }
        let means = self.position_means();
        let mean_ratio = self.mean_ratio(report);
        for row in &report.drafted {
            let Some(view) = report.view.decoding.get(row.decoding as usize) else { continue };
            for (depth, proposal) in row.choices() {
                let greedy = view.temperature == 0.0;
                let confidence = calibration.acceptance(proposal.probability, depth as u32 + 1, greedy);
                let index = depth.min(POSITIONS_MAX - 1);
                let ratio = self.request_ratio(view.request);
                let forecast = forecast_confidence(&means, ratio, index);
                self.learn_deviation(f64::from(confidence - forecast));
                // Requests that are drafted further are better than the mean of all.
                self.learn_position(index, f64::from(confidence * mean_ratio / ratio));
                self.learn_request(view.request, confidence / means[index]);
            }
        }
    }

    /// Mean ratio of the decoding requests; 1 without any.
    fn mean_ratio(&self, report: &StepReport) -> f32 {
        let requests = report.view.decoding.len();
        let ratios = report.view.decoding.iter().map(|view| self.request_ratio(view.request));
        if requests > 0 { ratios.sum::<f32>() / requests as f32 } else { 1.0 }
    }

    fn learn_position(&mut self, index: usize, confidence: f64) {
        let (weight, weighted) = &mut self.positions[index];
        let fade = (-1.0 / POSITION_HALF_LIFE).exp2();
        *weight = *weight * fade + 1.0;
        *weighted = *weighted * fade + confidence;
    }

    fn learn_deviation(&mut self, deviation: f64) {
        let (weight, sum) = &mut self.deviations;
        let fade = (-1.0 / POSITION_HALF_LIFE).exp2();
        *weight = *weight * fade + 1.0;
        *sum = *sum * fade + deviation * deviation;
    }

    fn learn_request(&mut self, request: RequestId, ratio: f32) {
        let fresh = RequestRatio { request, weight: 0.0, weighted: 0.0, seen_step: self.step };
        let index = match self.requests.binary_search_by_key(&request, |entry| entry.request) {
            Ok(index) => index,
            Err(_) if self.requests.len() >= REQUESTS_MAX => return,
            Err(index) => {
                self.requests.insert(index, fresh);
                index
            }
        };
        let entry = &mut self.requests[index];
        entry.weight = entry.weight * REQUEST_FADE + 1.0;
        entry.weighted = entry.weighted * REQUEST_FADE + ratio.clamp(RATIO_RANGE.0, RATIO_RANGE.1);
    }

    fn forget_absent(&mut self, report: &StepReport) {
        for view in &report.view.decoding {
            if let Ok(index) = self.requests.binary_search_by_key(&view.request, |entry| entry.request) {
                let entry = &mut self.requests[index];
                entry.seen_step = self.step;
                entry.weight *= REQUEST_STEP_FADE;
                entry.weighted *= REQUEST_STEP_FADE;
            }
        }
        let step = self.step;
        self.requests.retain(|entry| step - entry.seen_step <= ABSENT_STEPS_MAX);
    }
}

/// Forecast of the confidence at a position (0-based) of a request with this ratio.
pub fn forecast_confidence(means: &[f32; POSITIONS_MAX], ratio: f32, position: usize) -> f32 {
    (means[position.min(POSITIONS_MAX - 1)] * ratio).min(CONFIDENCE_MAX)
}

/// Writes the survival of positions `from..to` (0-based) behind a prefix that survives with
/// probability `alive`, where the confidence at position `i` is forecast as `means[i] × ratio`.
pub fn forecast_survival(
    means: &[f32; POSITIONS_MAX],
    ratio: f32,
    alive: f32,
    from: usize,
    to: usize,
    mut write: impl FnMut(usize, f32),
) {
    let mut survival = alive;
    for position in from..to {
        survival *= forecast_confidence(means, ratio, position);
        write(position, survival);
    }
}

#[cfg(test)]
mod tests {
    use super::super::calibration::CalibrationMode;
    use super::*;
    use crate::protocol::{DecodeView, DraftCounts, DraftedRow, Proposal, StepView};

    fn report(rows: &[(u64, &[f32])]) -> StepReport {
        let view = |&(request, _): &(u64, &[f32])| DecodeView {
            request: RequestId(request),
            ..DecodeView::example()
        };
        let proposal = |&probability: &f32| Proposal { probability, finite: true, ..Proposal::default() };
        let drafted = rows.iter().enumerate().map(|(index, (_, drafts))| {
            DraftedRow::chain(index as u32, drafts.iter().map(proposal).collect())
        });
        StepReport {
            view: StepView { decoding: rows.iter().map(view).collect(), ..StepView::default() },
            drafted: drafted.collect(),
            counts: vec![DraftCounts::default(); rows.len()],
            ..StepReport::default()
        }
    }

    #[test]
    fn positions_and_requests_have_their_own_forecasts() {
        let raw = Calibration::new(CalibrationMode::Raw, None);
        let mut forecast = Forecast::default();
        for _ in 0..200 {
            forecast.observe(&report(&[(1, &[0.95, 0.8]), (2, &[0.65, 0.4])]), &raw);
        }
        let means = forecast.position_means();
        assert!((means[0] - 0.8).abs() < 0.02 && (means[1] - 0.6).abs() < 0.02, "{means:?}");
        assert!(means[5] > 0.55 && means[5] < 0.65, "unseen positions lean on the last seen");
        assert!(forecast.request_ratio(RequestId(1)) > 1.15);
        assert!(forecast.request_ratio(RequestId(2)) < 0.85);
        assert_eq!(forecast.request_ratio(RequestId(3)), 1.0);
    }

    #[test]
    fn the_prior_gives_way_even_to_one_draft_a_step() {
        let raw = Calibration::new(CalibrationMode::Raw, None);
        let mut forecast = Forecast::default();
        (0..600).for_each(|_| forecast.observe(&report(&[(1, &[0.02])]), &raw));
        assert!(forecast.position_means()[0] < 0.03, "{:?}", forecast.position_means());
        (0..600).for_each(|_| forecast.observe(&report(&[(1, &[])]), &raw));
        assert!(forecast.position_means()[0] < 0.03, "nor does it come back while nothing is drafted");
    }

    #[test]
    fn a_request_that_changes_is_followed_within_a_few_steps() {
        let raw = Calibration::new(CalibrationMode::Raw, None);
        let mut forecast = Forecast::default();
        (0..50).for_each(|_| forecast.observe(&report(&[(1, &[0.9]), (2, &[0.9])]), &raw));
        (0..10).for_each(|_| forecast.observe(&report(&[(1, &[0.2, 0.2]), (2, &[0.9])]), &raw));
        assert!(forecast.request_ratio(RequestId(1)) < 0.7);
    }

    #[test]
    fn a_position_that_only_good_requests_reach_is_not_taken_for_an_easy_one() {
        let raw = Calibration::new(CalibrationMode::Raw, None);
        let mut forecast = Forecast::default();
        for _ in 0..600 {
            forecast.observe(&report(&[(1, &[0.8, 0.8]), (2, &[0.4])]), &raw);
        }
        let means = forecast.position_means();
        let second = |request| forecast_confidence(&means, forecast.request_ratio(RequestId(request)), 1);
        assert!((second(1) - 0.8).abs() < 0.1, "{}", second(1));
        assert!(second(2) < 0.55, "{}: it would be 0.6 by the drafts of the other", second(2));
    }

    #[test]
    fn a_request_that_is_no_longer_drafted_is_taken_for_an_average_one_again() {
        let raw = Calibration::new(CalibrationMode::Raw, None);
        let mut forecast = Forecast::default();
        (0..50).for_each(|_| forecast.observe(&report(&[(1, &[0.2]), (2, &[0.9])]), &raw));
        let poor = forecast.request_ratio(RequestId(1));
        (0..100).for_each(|_| forecast.observe(&report(&[(1, &[]), (2, &[0.9])]), &raw));
        assert!(poor < 0.6 && forecast.request_ratio(RequestId(1)) > 0.9, "{poor}");
    }

    #[test]
    fn the_spread_follows_how_far_drafts_are_from_their_forecasts() {
        let raw = Calibration::new(CalibrationMode::Raw, None);
        let spread = |drafts: [f32; 2]| {
            let mut forecast = Forecast::default();
            (0..2000).for_each(|step| forecast.observe(&report(&[(1, &[drafts[step % 2]])]), &raw));
            forecast.spread()
        };
        assert_eq!(Forecast::default().spread(), 0.2);
        assert!(spread([0.6, 0.6]) < 0.05);
        assert!((spread([0.9, 0.3]) - 0.3).abs() < 0.05);
    }

    #[test]
    fn absent_requests_are_forgotten_and_memory_is_bounded() {
        let raw = Calibration::new(CalibrationMode::Raw, None);
        let mut forecast = Forecast::default();
        for request in 0..2 * REQUESTS_MAX as u64 {
            forecast.observe(&report(&[(request, &[0.5])]), &raw);
            assert!(forecast.requests.len() as u64 <= ABSENT_STEPS_MAX + 1);
        }
        let many: Vec<(u64, &[f32])> = (0..3000).map(|request| (10_000 + request, &[0.5f32][..])).collect();
        forecast.observe(&report(&many), &raw);
        assert_eq!(forecast.requests.len(), REQUESTS_MAX);
    }

    #[test]
    fn forecast_survival_falls_with_depth_and_goes_on_from_the_known_prefix() {
        let mut values = vec![0.0; 4];
        forecast_survival(&[0.5; POSITIONS_MAX], 1.0, 0.8, 1, 4, |position, value| values[position] = value);
        assert_eq!(values, [0.0, 0.4, 0.2, 0.1]);
        forecast_survival(&[0.9; POSITIONS_MAX], 5.0, 1.0, 0, 1, |_, value| {
            assert_eq!(value, CONFIDENCE_MAX)
        });
    }
}
