//! Counts and measures during a run.

use std::sync::Arc;

use super::classes::{ClassTally, SimulatedClass};
use super::report::{Bin, Report};
use crate::engine::EngineCore;
use crate::pacing::ServiceOrder;
use crate::protocol::{Micros, RequestFailure, RequestId, RequestSummary, StepReport, TokenEvent};
use crate::stats::calibration_error::CalibrationError;
use crate::stats::quantile::nearest_rank;
use crate::step::Delivery;
use crate::telemetry::{ConfidenceErrors, LatencyHistogram, LatencyStats};

/// Intervals into which the time of the arrivals is divided.
const BINS: u64 = 60;
/// Shortest interval.
const BIN_MIN: Micros = Micros::from_millis(1000);

/// Sums of one interval.
#[derive(Clone, Copy, Debug, Default)]
struct BinSums {
    arrivals: u64,
    steps: u64,
    decoding: u64,
    waiting: u64,
    drafted: u64,
    accepted: u64,
    tokens: u64,
}

/// Everything that a report is made of.
#[derive(Debug)]
pub(super) struct Collector {
    classes: Vec<ClassTally>,
    /// The index of each request's class.
    class_of: Arc<[u8]>,
    requests: u64,
    refused: u64,
    refused_late: u64,
    finished: u64,
    output_tokens: u64,
    steps: u64,
    sequence_steps: u64,
    drafted: u64,
    verified: u64,
    accepted: u64,
    switches: u64,
    /// Whether most sequences drafted in the last step that decoded.
    speculating: Option<bool>,
    ttft: LatencyHistogram,
    tpot: LatencyHistogram,
    itl: LatencyHistogram,
    /// Each request's last output so far.
    last_output: Vec<Option<Micros>>,
    /// |observed − predicted| / observed of each step that the policy predicted.
    step_errors: Vec<f32>,
    /// Of the drafter's confidences.
    draft_error: CalibrationError,
    bin: Micros,
    bins: Vec<BinSums>,
}

impl Collector {
    pub fn new(classes: &[SimulatedClass], class_of: Arc<[u8]>, last_arrival: Micros) -> Collector {
        Collector {
            classes: classes.iter().cloned().map(ClassTally::new).collect(),
            requests: class_of.len() as u64,
            refused: 0,
            refused_late: 0,
            finished: 0,
            output_tokens: 0,
            steps: 0,
            sequence_steps: 0,
            drafted: 0,
            verified: 0,
            accepted: 0,
            switches: 0,
            speculating: None,
            ttft: LatencyHistogram::new([]),
            tpot: LatencyHistogram::new([]),
            itl: LatencyHistogram::new([]),
            last_output: vec![None; class_of.len()],
            class_of,
            step_errors: Vec::new(),
            draft_error: CalibrationError::default(),
            bin: Micros(last_arrival.0.div_ceil(BINS)).max(BIN_MIN),
            bins: Vec::new(),
        }
    }

    pub fn arrival(&mut self, id: RequestId, at: Micros, admitted: bool) {
        self.class(id).arrival(admitted);
        self.refused += u64::from(!admitted);
        self.bin_at(at).arrivals += 1;
    }

    pub fn step(&mut self, report: &StepReport, predicted: Option<Micros>, now: Micros) {
        if let Some(predicted) = predicted {
            let observed = report.step_time.0 as f32;
            self.step_errors.push((observed - predicted.0 as f32).abs() / observed);
        }
        self.draft_error.observe(report.examined_confidences());
        let decoding = report.view.decoding.len() as u64;
        let drafted: u64 = report.drafted.iter().map(|row| row.proposals.len() as u64).sum();
        let accepted: u64 = report.counts.iter().map(|counts| u64::from(counts.accepted)).sum();
        self.steps += 1;
        self.sequence_steps += decoding;
        self.drafted += drafted;
        self.verified += report.counts.iter().map(|counts| u64::from(counts.verified)).sum::<u64>();
        self.accepted += accepted;
        if decoding > 0 {
            let speculating = 2 * report.drafted.len() as u64 >= decoding;
            self.switches += u64::from(self.speculating.is_some_and(|before| before != speculating));
            self.speculating = Some(speculating);
        }
        let waiting = u64::from(report.view.waiting);
        let bin = self.bin_at(now);
        bin.steps += 1;
        bin.decoding += decoding;
        bin.waiting += waiting;
        bin.drafted += drafted;
        bin.accepted += accepted;
    }

    pub fn deliveries(&mut self, deliveries: &[Delivery], now: Micros) {
        let mut tokens = 0;
        for (id, event) in deliveries {
            match event {
                TokenEvent::Tokens(sent) => {
                    tokens += sent.len() as u64;
                    if let Some(last) = self.last_output[id.0 as usize].replace(now) {
                        self.itl.record(now - last);
                    }
                }
                TokenEvent::Finished { summary, .. } => self.finish(*id, summary),
                TokenEvent::Failed(RequestFailure::Late { .. }) => self.refuse_late(*id),
                // nothing in a simulation cancels a request or bounds its wait, and its logits are
                // always finite
                TokenEvent::Failed(failure) => unreachable!("request {id} failed: {failure}"),
            }
        }
        self.bin_at(now).tokens += tokens;
    }

    /// A request that had been admitted to the queue.
    fn refuse_late(&mut self, id: RequestId) {
        self.class(id).refuse_late();
        self.refused += 1;
        self.refused_late += 1;
    }

    fn finish(&mut self, id: RequestId, summary: &RequestSummary) {
        self.class(id).finish(summary);
        self.finished += 1;
        self.output_tokens += u64::from(summary.output_tokens);
        self.ttft.record(summary.ttft());
        if let Some(tpot) = summary.tpot() {
            self.tpot.record(tpot);
        }
    }

    /// The class of a request.
    fn class(&mut self, id: RequestId) -> &mut ClassTally {
        &mut self.classes[usize::from(self.class_of[id.0 as usize])]
    }

    fn bin_at(&mut self, time: Micros) -> &mut BinSums {
        let place = (time.0 / self.bin.0) as usize;
        if self.bins.len() <= place {
            self.bins.resize(place + 1, BinSums::default());
        }
        &mut self.bins[place]
    }

    /// Closes the books at `end`.
    pub fn into_report(mut self, order: ServiceOrder, core: &EngineCore, end: Micros) -> Report {
        let (learner, gauges) = (core.learner(), core.scheduler().gauges());
        let seconds = end.as_secs_f64();
        let per = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let mut error = |share| nearest_rank(&mut self.step_errors, share, f32::total_cmp).map(f64::from);
        let (step_time_error_p50, step_time_error_p99) = (error(0.5), error(0.99));
        let attained = self.classes.iter().map(ClassTally::attained).sum();
        Report {
            policy: learner.name(),
            scheduler: order,
            load: 1.0,
            rate_multiple: 1.0,
            offered_rps: 0.0,
            requests: self.requests,
            finished: self.finished,
            refused: self.refused,
            refused_late: self.refused_late,
            attainment: per(attained, self.requests),
            goodput_rps: per_second(attained),
            tokens_per_second: per_second(self.output_tokens),
            ttft_ms: LatencyStats::of_histogram(&self.ttft),
            tpot_ms: LatencyStats::of_histogram(&self.tpot),
            itl_ms: LatencyStats::of_histogram(&self.itl),
            mean_draft_tokens: per(self.drafted, self.sequence_steps),
            mean_verified_tokens: per(self.verified, self.sequence_steps),
            mean_accepted_tokens: per(self.accepted, self.sequence_steps),
            acceptance_rate: per(self.accepted, self.drafted),
            mean_batch: per(self.sequence_steps, self.steps),
            steps: self.steps,
            switches_per_second: per_second(self.switches),
            preemptions: gauges.preemptions,
            step_time_error_p50,
            step_time_error_p99,
            calibration_error: ConfidenceErrors {
                draft: self.draft_error.get(),
                calibrated: learner.calibration_error(),
            },
            simulated_seconds: seconds,
            wall_seconds: None,
            classes: self.classes.iter().map(|class| class.report(seconds)).collect(),
            timeline: self.timeline(),
            policy_state: learner.state(),
        }
    }

    fn timeline(&self) -> Vec<Bin> {
        let width_s = self.bin.as_secs_f64();
        let bins = self.bins.iter().enumerate();
        let per = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        bins.map(|(place, sums)| Bin {
            start_s: place as f64 * width_s,
            arrivals: sums.arrivals,
            steps: sums.steps,
            batch: per(sums.decoding, sums.steps),
            waiting: per(sums.waiting, sums.steps),
            draft_tokens: per(sums.drafted, sums.decoding),
            accepted_tokens: per(sums.accepted, sums.decoding),
            tokens_per_second: sums.tokens as f64 / width_s,
        })
        .collect()
    }
}
