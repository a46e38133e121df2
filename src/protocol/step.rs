//! One step as policies, the scheduler and telemetry see it: the view that is planned from, the
//! decision, the drafts, and the report that is learned from.

use super::{Micros, Proposal, RequestId};

/// A sequence that decodes in this step, as a policy sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeView {
    /// Whose it is.
    pub request: RequestId,
    /// Committed tokens of prompt and output; the last one is this step's input.
    pub context_tokens: u32,
    /// Output tokens so far, including the first: `n_r + 1` in docs/policy.md.
    pub output_tokens: u32,
    /// Time since the first token, `a_r`.
    pub since_first_token: Micros,
    /// TPOT objective, if any.
    pub tpot: Option<Micros>,
    /// Committed tokens that the draft model has not seen; at least 1 (the last token).
    pub draft_lag_tokens: u32,
    /// Most draft tokens that make sense: bounded by KV blocks, context, output left, executor.
    pub drafts_max: u32,
    /// Sampling temperature.
    pub temperature: f32,
}

/// A sequence whose prompt (or recomputed prefix) is not fully in the cache yet.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefillView {
    /// Whose it is.
    pub request: RequestId,
    /// Tokens in the cache.
    pub done_tokens: u32,
    /// Tokens to go.
    pub remaining_tokens: u32,
    /// Time since arrival.
    pub since_arrival: Micros,
    /// TTFT objective, if any; `None` also once the first token is out.
    pub ttft: Option<Micros>,
}

/// All that a policy may look at when it plans a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepView {
    /// When the step is planned.
    pub now: Micros,
    /// Sequences that decode, in the order of the step's rows.
    pub decoding: Vec<DecodeView>,
    /// Sequences that prefill, most urgent first.
    pub prefilling: Vec<PrefillView>,
    /// Requests that wait for a place in the running set.
    pub waiting: u32,
    /// Most prefill tokens that the scheduler would put into this step.
    pub prefill_tokens_max: u32,
}

/// Why a step drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Intent {
    /// To emit more tokens: the policy keeps weighing drafts against their cost.
    #[default]
    Draft,
    /// To measure acceptance while speculation is off: all drafts that were granted are made and
    /// verified, whatever they promise.
    Probe,
}

/// A policy's answer to a [`StepView`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepDecision {
    /// Why the step drafts; without meaning in a step without drafts.
    pub intent: Intent,
    /// Most draft tokens for each decoding sequence, in the view's order; 0: don't draft.
    pub drafts: Vec<u32>,
    /// Most prefill tokens in this step, at most the view's bound.
    pub prefill_tokens: u32,
    /// Whether the draft model sees prefill chunks, too, so that it can propose from the
    /// first decode step on. Costs draft time now; later catch-up costs the same or more.
    pub warm_draft: bool,
}

/// A step under way: what was shown and what was granted.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// What the plan saw.
    pub view: &'a StepView,
    /// The decision as carried out: the scheduler may have granted fewer drafts or prefill
    /// tokens than the policy asked for. The intent is the policy's.
    pub granted: &'a StepDecision,
}

/// Drafts of one decoding sequence so far in this step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DraftedRow {
    /// Index into [`StepView::decoding`].
    pub decoding: u32,
    /// Proposals in order.
    pub proposals: Vec<Proposal>,
}

/// What one step did, for learning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// What the plan saw.
    pub view: StepView,
    /// The decision as carried out.
    pub granted: StepDecision,
    /// Every row that drafted, with all its proposals.
    pub drafted: Vec<DraftedRow>,
    /// For each decoding sequence: drafts that the target verified.
    pub verified: Vec<u32>,
    /// For each decoding sequence: drafts accepted.
    pub accepted: Vec<u32>,
    /// Rows and catch-up tokens of each draft call, in order: `(rows, input tokens)`.
    pub draft_calls: Vec<(u32, u32)>,
    /// Prefill tokens that the target ran.
    pub prefill_tokens: u32,
    /// Sum over prefill tokens of the context they attended to.
    pub prefill_attended_tokens: u64,
    /// Time on the draft model.
    pub draft_time: Micros,
    /// Time on the target model.
    pub target_time: Micros,
    /// End of one step to the end of the next, when the engine was busy: what a caller feels.
    pub step_time: Micros,
    /// How long the device had nothing to do; `None` where the backend can't tell.
    pub device_idle: Option<DeviceIdle>,
}

/// Times at which a device that serves a step had nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIdle {
    /// Between the last work of the step before and the first of this one; zero when the
    /// engine had nothing to do either.
    pub before: Micros,
    /// Between the works of this step: after each draft call.
    pub within: Micros,
}

impl DeviceIdle {
    /// A step whose first work came after so long.
    pub fn starting_with(before: Micros) -> DeviceIdle {
        DeviceIdle { before, within: Micros::ZERO }
    }

    /// Counts what went before one more work of the step, which may be its first.
    pub fn add(idle: &mut Option<DeviceIdle>, before_work: Option<Micros>) {
        let Some(time) = before_work else { return };
        match idle {
            Some(idle) => idle.within += time,
            None => *idle = Some(DeviceIdle::starting_with(time)),
        }
    }
}
