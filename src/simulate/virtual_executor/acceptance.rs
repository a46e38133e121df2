//! Which drafts would be accepted, and how sure the draft model is of them.
//!
//! For request `r` and absolute position `t`, with `z` an AR(1) process along positions:
//!
//! ```text
//! logit p(r,t) = logit m_r + s_r·n_r + s_t·z(r,t)      z(t) = ρ·z(t−1) + √(1−ρ²)·ε(t)
//! ```
//!
//! `m_r` is the request's median (by its kind of task), `n_r` and `ε` are standard normal.
//! A [`Confidence`] turns `p` into what the draft reports, `q`, and into the chance that
//! its token is right. Everything is a pure function of seed, request and position: what a
//! policy does can't change what would be accepted. The AR(1) process starts afresh every
//! [`SEGMENT_TOKENS`] positions, so that any position can be computed without all before it.

use std::sync::Arc;

use super::playback::{Playback, Position};
use crate::protocol::RequestId;
use crate::random::Draw;

/// Positions between two fresh starts of the AR(1) process.
pub const SEGMENT_TOKENS: u32 = 64;
/// Segments that are remembered, each in the one place that is its own; what is pushed out
/// is computed again when it is asked for.
const REMEMBERED_SEGMENTS: usize = 2048;
/// Stream of the requests' own quality.
const REQUEST_STREAM: u32 = 0x21;
/// Stream of a segment's start.
const SEGMENT_STREAM: u32 = 0x22;
/// Stream of positions.
const POSITION_STREAM: u32 = 0x23;
/// Stream of the runner-ups of positions.
const RUNNER_UP_STREAM: u32 = 0x25;

/// How the draft's reported probability relates to acceptance.
#[derive(Clone, Debug, PartialEq)]
pub enum Confidence {
    /// A token reported with probability `q` is right with probability `q`.
    Calibrated,
    /// It is right with probability `curve(q)`: points `(q, acceptance)`, ascending in `q`,
    /// read by linear interpolation; a curve below the diagonal is over-confident.
    Curve(Vec<(f64, f64)>),
    /// The report's logit is off by logistic noise of this standard deviation.
    Noisy {
        /// In units of the logit.
        logit_sd: f64,
    },
    /// The draft is as sure as ever, and right only this often: a model trained for another
    /// target, or at random.
    Misaligned {
        /// Share of tokens that are right anyway.
        acceptance: f64,
    },
}

/// Parameters of the process.
#[derive(Clone, Debug, PartialEq)]
pub struct AcceptanceOptions {
    /// Median acceptance of each request, by its number; above 0 and below 1.
    pub medians: Arc<[f64]>,
    /// Median acceptance of requests beyond those.
    pub median: f64,
    /// Spread between requests, `s_r`, in units of the logit.
    pub request_sd: f64,
    /// Spread between the positions of a request, `s_t`, in units of the logit.
    pub position_sd: f64,
    /// Correlation between neighbouring positions, `ρ`, 0 to 1.
    pub correlation: f64,
    /// What the draft reports.
    pub confidence: Confidence,
    /// Share of wrong drafts whose runner-up is right.
    pub runner_up: f64,
    /// A recording instead of all this.
    pub playback: Option<Playback>,
}

impl AcceptanceOptions {
    /// Every draft of every request is right with the same probability, independently: the
    /// acceptance length is geometric.
    pub fn geometric(acceptance: f64) -> AcceptanceOptions {
        AcceptanceOptions {
            medians: Arc::new([]),
            median: acceptance,
            request_sd: 0.0,
            position_sd: 0.0,
            correlation: 0.0,
            confidence: Confidence::Calibrated,
            runner_up: 0.0,
            playback: None,
        }
    }
}

/// A stretch of positions of one request.
#[derive(Clone, Debug)]
struct Segment {
    request: RequestId,
    index: u32,
    positions: [Position; SEGMENT_TOKENS as usize],
}

/// The process. See the module's documentation.
#[derive(Clone, Debug)]
pub struct AcceptanceProcess {
    options: AcceptanceOptions,
    seed: u64,
    remembered: Vec<Option<Segment>>,
}

impl AcceptanceProcess {
    /// The process of these parameters and this seed.
    pub fn new(options: AcceptanceOptions, seed: u64) -> AcceptanceProcess {
        AcceptanceProcess { options, seed, remembered: vec![None; REMEMBERED_SEGMENTS] }
    }

    /// What becomes of draft `depth`, from 0, of a round whose first draft is for the position `start`
    /// of `request`. `None` where a draft head that was recorded drafts no further.
    pub fn draft(&mut self, request: RequestId, start: u32, depth: u32) -> Option<Position> {
        match &self.options.playback {
            Some(playback) => playback.draft(self.seed, request, start, depth),
            None => Some(self.drawn(request, start.saturating_add(depth))),
        }
    }

    /// What the process says of `position`, whatever the depth.
    fn drawn(&mut self, request: RequestId, position: u32) -> Position {
        let (index, offset) = (position / SEGMENT_TOKENS, (position % SEGMENT_TOKENS) as usize);
        // a request's neighbouring segments lie side by side: drafts may reach into the next
        let place = (request.0 as usize * 2 + index as usize % 2) % REMEMBERED_SEGMENTS;
        let known = self.remembered[place].as_ref();
        if let Some(known) = known.filter(|known| known.request == request && known.index == index) {
            return known.positions[offset];
        }
        let positions = self.segment(request, index);
        self.remembered[place] = Some(Segment { request, index, positions });
        positions[offset]
    }

    fn segment(&self, request: RequestId, index: u32) -> [Position; SEGMENT_TOKENS as usize] {
        let options = &self.options;
        let median = options.medians.get(request.0 as usize).copied().unwrap_or(options.median);
        let quality = Draw::new(self.seed, REQUEST_STREAM, request.0, 0).normal();
        let centre = logit(median) + options.request_sd * quality;
        let innovation = (1.0 - options.correlation * options.correlation).max(0.0).sqrt();
        let mut z = Draw::new(self.seed, SEGMENT_STREAM, request.0, index).normal();
        std::array::from_fn(|offset| {
            let position = index * SEGMENT_TOKENS + offset as u32;
            let draw = |stream| Draw::new(self.seed, stream, request.0, position);
            let of_position = draw(POSITION_STREAM);
            z = options.correlation * z + innovation * of_position.normal();
            let drawn = options.confidence.position(centre + options.position_sd * z, of_position);
            let runner_up_accepted = !drawn.accepted && draw(RUNNER_UP_STREAM).uniform(0) < options.runner_up;
            Position { runner_up_accepted, ..drawn }
        })
    }
}

impl Confidence {
    /// `draw` lends its words 2 and 3.
    fn position(&self, logit: f64, draw: Draw) -> Position {
        let p = sigmoid(logit);
        let (reported, acceptance) = match self {
            Confidence::Calibrated => (p, p),
            Confidence::Curve(points) => (p, interpolate(points, p)),
            Confidence::Noisy { logit_sd } => {
                let u = draw.uniform(3);
                // a standard logistic variate has standard deviation π/√3
                let noise = (u / (1.0 - u)).ln() * 3f64.sqrt() / std::f64::consts::PI;
                (sigmoid(logit + logit_sd * noise), p)
            }
            Confidence::Misaligned { acceptance } => (p, *acceptance),
        };
        let accepted = draw.uniform(2) < acceptance;
        Position { probability: reported as f32, accepted, runner_up_accepted: false }
    }
}

fn logit(p: f64) -> f64 {
    (p / (1.0 - p)).ln()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Reads a curve between its points; flat beyond its ends, 0 without points.
fn interpolate(points: &[(f64, f64)], x: f64) -> f64 {
    let next = points.partition_point(|&(at, _)| at < x);
    let (Some(right), Some(left)) = (points.get(next), points.get(next.wrapping_sub(1))) else {
        return points.get(next.min(points.len().saturating_sub(1))).map_or(0.0, |&(_, y)| y);
    };
    left.1 + (right.1 - left.1) * (x - left.0) / (right.0 - left.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(confidence: Confidence) -> AcceptanceOptions {
        AcceptanceOptions {
            medians: Arc::new([0.3, 0.9]),
            median: 0.7,
            request_sd: 0.5,
            position_sd: 1.2,
            correlation: 0.6,
            confidence,
            runner_up: 0.4,
            playback: None,
        }
    }

    /// `(reported, accepted)` of many positions of many requests.
    fn positions(confidence: Confidence) -> Vec<Position> {
        let mut process = AcceptanceProcess::new(options(confidence), 3);
        (10..60)
            .flat_map(|request| (0..600).map(move |t| (RequestId(request), t)))
            .map(|(request, t)| process.drawn(request, t))
            .collect()
    }

    /// Mean report and accepted share of the positions reported within `range`.
    fn reliability(positions: &[Position], range: std::ops::Range<f32>) -> (f64, f64) {
        let chosen: Vec<_> = positions.iter().filter(|one| range.contains(&one.probability)).collect();
        let count = chosen.len() as f64;
        let reported = chosen.iter().map(|one| f64::from(one.probability)).sum::<f64>() / count;
        (reported, chosen.iter().filter(|one| one.accepted).count() as f64 / count)
    }

    #[test]
    fn a_position_does_not_depend_on_the_order_of_questions() {
        let mut forward = AcceptanceProcess::new(options(Confidence::Calibrated), 3);
        let mut backward = AcceptanceProcess::new(options(Confidence::Calibrated), 3);
        let asked: Vec<Position> = (0..500).map(|t| forward.drawn(RequestId(1), t)).collect();
        for t in (0..500).rev() {
            backward.drawn(RequestId(u64::from(t) + 5), t);
            assert_eq!(backward.drawn(RequestId(1), t), asked[t as usize]);
        }
        let mut other = AcceptanceProcess::new(options(Confidence::Calibrated), 4);
        assert_ne!((0..500).map(|t| other.drawn(RequestId(1), t)).collect::<Vec<_>>(), asked);
    }

    #[test]
    fn a_forgotten_request_is_the_same_when_it_comes_back() {
        let mut process = AcceptanceProcess::new(options(Confidence::Calibrated), 3);
        let first = process.drawn(RequestId(0), 5);
        (1..=REMEMBERED_SEGMENTS as u64).for_each(|request| {
            process.drawn(RequestId(request), 0);
        });
        assert_eq!(process.drawn(RequestId(0), 5), first);
    }

    #[test]
    fn calibrated_reports_are_accepted_as_often_as_they_say() {
        let all = positions(Confidence::Calibrated);
        for range in [0.2..0.4, 0.4..0.6, 0.6..0.8, 0.8..1.0] {
            let (reported, accepted) = reliability(&all, range.clone());
            assert!((reported - accepted).abs() < 0.03, "{range:?}: {reported} {accepted}");
        }
    }

    #[test]
    fn an_over_confident_draft_follows_its_curve() {
        let all = positions(Confidence::Curve(vec![(0.0, 0.0), (1.0, 0.5)]));
        let (reported, accepted) = reliability(&all, 0.8..1.0);
        assert!((accepted - reported / 2.0).abs() < 0.03, "{reported} {accepted}");
    }

    #[test]
    fn noise_makes_high_reports_too_high_and_low_ones_too_low() {
        let all = positions(Confidence::Noisy { logit_sd: 2.0 });
        let (high, accepted_high) = reliability(&all, 0.9..1.0);
        let (low, accepted_low) = reliability(&all, 0.0..0.2);
        assert!(accepted_high < high - 0.05 && accepted_low > low + 0.05);
    }

    #[test]
    fn a_misaligned_draft_is_sure_and_wrong() {
        let (reported, accepted) =
            reliability(&positions(Confidence::Misaligned { acceptance: 0.02 }), 0.8..1.0);
        assert!(reported > 0.8 && accepted < 0.04);
    }

    #[test]
    fn neighbours_are_correlated_and_medians_hold() {
        let mut process = AcceptanceProcess::new(
            AcceptanceOptions { request_sd: 0.0, ..options(Confidence::Calibrated) },
            3,
        );
        let logits: Vec<f64> =
            (0..6400).map(|t| logit(f64::from(process.drawn(RequestId(1), t).probability))).collect();
        let mean = logits.iter().sum::<f64>() / logits.len() as f64;
        assert!((mean - logit(0.9)).abs() < 0.1, "{mean}");
        let covariance: f64 = logits.windows(2).map(|w| (w[0] - mean) * (w[1] - mean)).sum();
        let variance: f64 = logits.iter().map(|x| (x - mean).powi(2)).sum();
        assert!((covariance / variance - 0.6).abs() < 0.05, "{}", covariance / variance);
    }

    #[test]
    fn the_runner_up_is_right_in_its_share_of_the_wrong_drafts_and_in_no_other() {
        let all = positions(Confidence::Calibrated);
        let wrong: Vec<_> = all.iter().filter(|one| !one.accepted).collect();
        let right = wrong.iter().filter(|one| one.runner_up_accepted).count() as f64;
        assert!((right / wrong.len() as f64 - 0.4).abs() < 0.02, "{right} of {}", wrong.len());
        assert!(!all.iter().any(|one| one.accepted && one.runner_up_accepted));
    }

    #[test]
    fn curves_are_flat_beyond_their_ends() {
        let points = [(0.2, 0.1), (0.8, 0.7)];
        assert_eq!(interpolate(&points, 0.1), 0.1);
        assert!((interpolate(&points, 0.5) - 0.4).abs() < 1e-12);
        assert_eq!(interpolate(&points, 0.9), 0.7);
        assert_eq!(interpolate(&[], 0.9), 0.0);
    }
}
