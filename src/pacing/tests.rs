//! The pacer, asked by hand.

mod chunk;
mod limit;
mod order;
mod workload;

use super::{LateAction, Pacer};
use crate::protocol::{
    DecodeView, DraftCounts, Micros, RequestId, RequestSummary, RequestTimes, StepReport, StepView,
};
use crate::timing::cost_model::{Between, CostModel, LatencyModel, LatencyTerms};
use crate::timing::profile::tests::with_even_rows;

/// Prefill takes 25 µs a token, a small step of decoding about 7 ms.
fn pacer() -> Pacer {
    Pacer::new(with_even_rows().cost_model().expect("valid")).with_late(LateAction::Demote)
}

/// A step takes 5 ms up to 256 rows, prefill included, and 20 µs more for each row above.
fn bound_by_memory_up_to_256_rows() -> Pacer {
    let terms = LatencyTerms::staircase(Between::Interpolate, &[1, 256, 1256], &[5000.0, 5000.0, 25_000.0]);
    Pacer::new(CostModel { target: LatencyModel::new(terms).expect("valid"), draft: None, host_us: 0.0 })
}

/// A request that emitted so many tokens and has had so long for all but the first of them.
fn row(output_tokens: u32, since_first_us: u64, tpot_us: Option<u64>) -> DecodeView {
    DecodeView {
        request: RequestId(0),
        context_tokens: 500,
        output_tokens,
        since_first_token: Micros(since_first_us),
        tpot: tpot_us.map(Micros),
        weight: 1.0,
        draft_lag_tokens: 1,
        drafts_max: 0,
        temperature: 0.0,
    }
}

/// A step that ran `decoding` with so many accepted drafts each, at `stretch` times what the step
/// takes without drafts.
fn step(pacer: &Pacer, decoding: Vec<DecodeView>, accepted: u32, stretch: f64) -> StepReport {
    let context_tokens = decoding.iter().map(|row| u64::from(row.context_tokens)).sum();
    let plain_us = pacer.time.plain_step_us(decoding.len() as u32, context_tokens);
    StepReport {
        counts: vec![DraftCounts { verified: accepted, accepted }; decoding.len()],
        view: StepView { decoding, ..StepView::default() },
        step_time: Micros((plain_us * stretch) as u64),
        ..StepReport::default()
    }
}

/// The report of a request that is done.
fn finished(prompt_tokens: u32, output_tokens: u32, tpot_us: u64) -> StepReport {
    let last_token = Micros(tpot_us * u64::from(output_tokens - 1));
    let times = RequestTimes { last_token, ..RequestTimes::default() };
    let summary = RequestSummary { prompt_tokens, output_tokens, times, ..RequestSummary::default() };
    StepReport { finished: vec![summary], ..StepReport::default() }
}

/// A pacer that has seen many requests alike, one every so many microseconds: 400 prompt tokens,
/// 10.2 ms of prefill, and 100 output tokens.
fn experienced(interarrival_us: u64) -> Pacer {
    let mut pacer = pacer();
    for count in 0..200 {
        pacer.observe_arrival(Micros(count * interarrival_us));
        pacer.observe(&finished(400, 100, 8000));
        pacer.observe(&step(&pacer.clone(), vec![row(10, 0, None); 4], 0, 1.0));
    }
    pacer
}
