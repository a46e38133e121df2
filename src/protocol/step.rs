//! Data of one step for policies, scheduler and telemetry: the view it is planned from, the
//! decision, the drafts, and the report that policies learn from.

use super::{DraftOutcome, DraftShape, DraftedRow, Micros, Proposal, RequestId, RequestSummary, WrongChoice};

/// A decoding sequence, as shown to policies.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeView {
    /// Id of the request.
    pub request: RequestId,
    /// Committed tokens of prompt and output; the last one is this step's input.
    pub context_tokens: u32,
    /// Output tokens so far, including the first one: `n_r + 1` in docs/policy.md.
    pub output_tokens: u32,
    /// Time since the first token, `a_r` in docs/policy.md.
    pub since_first_token: Micros,
    /// TPOT objective, if any.
    pub tpot: Option<Micros>,
    /// What its tokens are worth beside those of other requests; 0: nothing, yet it is served.
    pub weight: f32,
    /// Catch-up: committed tokens that the draft model has not seen; at least 1, the last token.
    pub draft_lag_tokens: u32,
    /// Most useful draft tokens, limited by KV blocks, context, remaining output and executor.
    pub drafts_max: u32,
    /// Sampling temperature.
    pub temperature: f32,
}

#[cfg(test)]
impl DecodeView {
    /// A greedy request without an objective, for tests that name what matters to them.
    pub fn example() -> DecodeView {
        DecodeView {
            request: RequestId(1),
            context_tokens: 10,
            output_tokens: 1,
            since_first_token: Micros::ZERO,
            tpot: None,
            weight: 1.0,
            draft_lag_tokens: 1,
            drafts_max: 8,
            temperature: 0.0,
        }
    }
}

/// A prefilling sequence, whose prompt or recomputed prefix is not fully in the cache.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefillView {
    /// Id of the request.
    pub request: RequestId,
    /// Tokens in the cache.
    pub done_tokens: u32,
    /// Tokens left to prefill.
    pub remaining_tokens: u32,
    /// Time since arrival.
    pub since_arrival: Micros,
    /// TTFT objective, if any; `None` also once the first token is out.
    pub ttft: Option<Micros>,
}

/// The input of a policy's plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepView {
    /// When the step is planned.
    pub now: Micros,
    /// Sequences that decode, in the order of the step's rows.
    pub decoding: Vec<DecodeView>,
    /// Sequences that prefill, most urgent first.
    pub prefilling: Vec<PrefillView>,
    /// Requests waiting for admission to the running set.
    pub waiting: u32,
    /// Most prefill tokens that the scheduler allows in this step.
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
    /// How its drafts may stand to each other.
    pub shape: DraftShape,
    /// Most draft tokens for each decoding sequence, in the view's order; 0: don't draft. A tree has
    /// at most so many drafts verified, and as many answers of the drafter.
    pub drafts: Vec<u32>,
    /// Most prefill tokens in this step, up to the view's limit.
    pub prefill_tokens: u32,
    /// Whether the draft model prefills as well, so that it can propose from the first decode
    /// step on. Costs draft time now; later catch-up costs the same or more.
    pub warm_draft: bool,
    /// The rate that the policy expects of the step, in weighted tokens per microsecond; 0 where it
    /// expects nothing.
    pub rate: f64,
}

/// A step in progress: the view and the granted decision.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The view that was planned from.
    pub view: &'a StepView,
    /// The decision as granted: the scheduler may reduce drafts and prefill tokens.
    pub granted: &'a StepDecision,
}

/// Drafts of one decoding sequence in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// Drafts that the target verified.
    pub verified: u32,
    /// Of them, accepted.
    pub accepted: u32,
}

impl DraftCounts {
    /// Drafts that say something about acceptance: the accepted ones and the first rejected one.
    /// The target never saw the text that later ones stand in (censoring).
    pub fn judged(self) -> u32 {
        self.verified.min(self.accepted + 1)
    }
}

/// Outcome of a step, which policies learn from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// The view that was planned from.
    pub view: StepView,
    /// The decision as carried out.
    pub granted: StepDecision,
    /// Every row that drafted, with all its proposals.
    pub drafted: Vec<DraftedRow>,
    /// What became of each of them.
    pub outcomes: Vec<DraftOutcome>,
    /// What became of the drafts of each decoding sequence, in the view's order.
    pub counts: Vec<DraftCounts>,
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
    /// Step period while busy: end of one step to the end of the next, as clients experience it.
    pub step_time: Micros,
    /// Device idle time; `None` if the backend does not report it.
    pub device_idle: Option<DeviceIdle>,
    /// Requests whose output the step completed.
    pub finished: Vec<RequestSummary>,
}

/// A draft that says something about acceptance: see [`DraftCounts::judged`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExaminedDraft<'a> {
    /// The sequence that it was made for.
    pub row: &'a DecodeView,
    /// Its position behind the committed tokens, from 1.
    pub position: u32,
    /// The draft.
    pub proposal: &'a Proposal,
    /// Whether the target accepted it.
    pub is_accepted: bool,
}

impl StepReport {
    /// The drafter's choices that the target verified behind accepted drafts, row by row and in order.
    /// Rows that the view or the counts do not know are left out.
    pub fn examined(&self) -> impl Iterator<Item = ExaminedDraft<'_>> {
        self.drafted.iter().enumerate().flat_map(|(number, drafted)| {
            let index = drafted.decoding as usize;
            let known = self.view.decoding.get(index).zip(self.counts.get(index));
            let outcome = self.outcomes.get(number).copied().unwrap_or_default();
            known.into_iter().flat_map(move |(row, &counts)| {
                drafted.proposals.iter().enumerate().filter_map(move |(draft, proposal)| {
                    let place = drafted.place(draft);
                    let (is_examined, is_accepted) = match drafted.is_tree() {
                        true => (outcome.examined(draft, place), outcome.accepted.contains(draft)),
                        false => (place.depth < counts.judged(), place.depth < counts.accepted),
                    };
                    let draft = ExaminedDraft { row, position: place.depth + 1, proposal, is_accepted };
                    is_examined.then_some(draft)
                })
            })
        })
    }

    /// Where the drafter's choice turned out wrong, with the sequence that it was drafted for.
    pub fn wrong_choices(&self) -> impl Iterator<Item = (&DecodeView, WrongChoice<'_>)> {
        self.drafted.iter().zip(&self.outcomes).flat_map(|(drafted, &outcome)| {
            let row = self.view.decoding.get(drafted.decoding as usize);
            row.into_iter().flat_map(move |row| drafted.wrong_choices(outcome).map(move |wrong| (row, wrong)))
        })
    }

    /// The drafter's confidence in each [examined](Self::examined) draft, and whether it was accepted.
    pub fn examined_confidences(&self) -> impl Iterator<Item = (f32, bool)> {
        self.examined().map(|draft| (draft.proposal.probability, draft.is_accepted))
    }
}

/// Idle times of the device around and within a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIdle {
    /// Between the last work of the previous step and the first of this one; zero if the engine
    /// was idle as well.
    pub before: Micros,
    /// Within this step, after each draft call.
    pub within: Micros,
}

impl DeviceIdle {
    /// Creates the idle times of a step whose first work started after `before`.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(temperature: f32) -> DecodeView {
        DecodeView { temperature, ..DecodeView::example() }
    }

    fn drafts(decoding: u32, probabilities: &[f32]) -> DraftedRow {
        let proposal = |&probability: &f32| Proposal { probability, ..Proposal::default() };
        DraftedRow::chain(decoding, probabilities.iter().map(proposal).collect())
    }

    #[test]
    fn drafts_are_examined_up_to_the_first_rejected_one_and_as_far_as_they_were_verified() {
        let report = StepReport {
            view: StepView { decoding: vec![row(0.0), row(0.8), row(0.0)], ..StepView::default() },
            // two of four accepted; one of one verified; a row that the view does not know
            drafted: vec![drafts(0, &[0.9, 0.8, 0.7, 0.6]), drafts(1, &[0.5, 0.4]), drafts(9, &[0.3])],
            counts: vec![
                DraftCounts { verified: 4, accepted: 2 },
                DraftCounts { verified: 1, accepted: 1 },
                DraftCounts::default(),
            ],
            ..StepReport::default()
        };
        let seen: Vec<_> = report
            .examined()
            .map(|draft| {
                (draft.row.temperature, draft.position, draft.proposal.probability, draft.is_accepted)
            })
            .collect();
        let expected = [(0.0, 1, 0.9, true), (0.0, 2, 0.8, true), (0.0, 3, 0.7, false), (0.8, 1, 0.5, true)];
        assert_eq!(seen, expected);
        let confidences: Vec<_> = report.examined_confidences().collect();
        assert_eq!(confidences, [(0.9, true), (0.8, true), (0.7, false), (0.5, true)]);
    }
}
