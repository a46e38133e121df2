//! Planning a step.

use std::sync::Arc;

use super::Scheduler;
use super::sequence::Sequence;
use crate::drafting::propose;
use crate::policy::Policy;
use crate::protocol::{
    BLOCK_TOKENS, DraftRow, DraftedRow, Micros, StepDecision, StepView, VerifyRow, blocks_for,
};
use crate::step::{Drafting, StepPlan};

/// What the commit must know of the plan; indices are places in the running set, which
/// stands still meanwhile.
#[derive(Debug)]
pub(super) struct InFlight {
    pub number: u64,
    /// One per row of the plan.
    pub rows: Vec<PlannedRow>,
    /// One per draft row: where its input ends, and whether it proposes.
    pub drafts: Vec<PlannedDraft>,
}

/// A target row of the plan in flight.
#[derive(Debug)]
pub(super) struct PlannedRow {
    /// Place in the running set.
    pub place: usize,
    /// Committed tokens that are in the cache once the step is done.
    pub computed: u32,
}

/// A draft row of the plan in flight.
#[derive(Debug)]
pub(super) struct PlannedDraft {
    /// Place in the running set.
    pub place: usize,
    /// Committed tokens that the draft's cache holds once the step is done.
    pub computed: u32,
    /// Index among the decoding sequences, if it proposes.
    pub decoding: Option<u32>,
}

impl Scheduler {
    /// The next step, or `None` when there is nothing to run.
    ///
    /// # Panics
    /// When a step is in flight already.
    pub fn plan(&mut self, now: Micros, policy: &Arc<dyn Policy>) -> Option<StepPlan> {
        assert!(self.in_flight.is_none(), "a second step was planned before the first was committed");
        self.admit();
        self.reserve_minimum();
        if self.running.is_empty() {
            return None;
        }
        let (decoding, prefilling) = self.roles();
        let view = self.view(now, &decoding, &prefilling);
        let mut decision = policy.plan(&view, &mut self.policy_scratch);
        self.hold_to_bounds(&mut decision, &view);

        let mut step = StepBuilder::new(self.steps, view, policy.clone(), self.draft_rows_of(&decision));
        for (index, &place) in decoding.iter().enumerate() {
            self.plan_decode(&mut step, index, place, decision.drafts[index]);
        }
        self.plan_prefill(&mut step, &prefilling, &decision);
        let mut plan = step.plan;
        plan.granted.prefill_tokens = plan.prefill_tokens();
        plan.granted.warm_draft = decision.warm_draft;
        plan.granted.intent = decision.intent;
        assert!(!plan.rows.is_empty(), "a step without work was planned");
        for row in &step.in_flight.rows {
            let sequence = &mut self.running[row.place];
            if sequence.mark_scheduled(now) {
                plan.started.push(sequence.request.id);
            }
        }
        self.in_flight = Some(step.in_flight);
        self.steps += 1;
        Some(plan)
    }

    /// Moves waiting sequences into the running set while their whole prefill fits beside
    /// what the running prefills still need. The head of the queue is never overtaken.
    fn admit(&mut self) {
        while self.running.len() < self.limits.running_requests_max as usize && self.waiting.len() > 0 {
            self.publish_computed();
            let Some(next) = self.waiting.peek() else { return };
            let (cached, unheld) = self.target_pool.peek_prefix(&next.tokens[..next.tokens.len() - 1]);
            let reserved: u32 = self.running.iter().map(Sequence::prefill_blocks_lacking).sum();
            let wanted = blocks_for(next.len() + 1) - cached + unheld + reserved;
            // alone it always fits: `check_size`
            if wanted > self.target_pool.available() && !self.running.is_empty() {
                return;
            }
            let mut sequence = self.waiting.pop().expect("peeked above");
            let adopted = sequence.target.table.adopt_prefix(&mut self.target_pool, &sequence.tokens);
            sequence.target.computed = adopted;
            self.prefix_hit_tokens += u64::from(adopted);
            let place = self.running.partition_point(|other| other.urgency() < sequence.urgency());
            self.running.insert(place, sequence);
        }
    }

    /// Makes sure that each running sequence can take one step, the most urgent first,
    /// by preempting from the end of the order.
    fn reserve_minimum(&mut self) {
        let mut place = 0;
        while place < self.running.len() {
            let sequence = &mut self.running[place];
            let minimum = sequence.minimum_tokens();
            if sequence.target.table.grow(&mut self.target_pool, minimum) {
                place += 1;
            } else {
                self.preempt_last();
            }
        }
    }

    fn preempt_last(&mut self) {
        self.publish_computed();
        let mut sequence = self.running.pop().expect("called with a running sequence");
        assert!(!self.running.is_empty(), "a request that fits the pool alone ran out of blocks");
        self.release(&mut sequence);
        sequence.preemptions += 1;
        self.preemptions += 1;
        self.waiting.push_front(sequence);
    }

    /// Places of the sequences that decode and of those that prefill, most urgent first.
    fn roles(&self) -> (Vec<usize>, Vec<usize>) {
        let (mut decoding, mut prefilling) = (Vec::with_capacity(self.running.len()), Vec::new());
        for (place, sequence) in self.running.iter().enumerate() {
            if sequence.decodes() { decoding.push(place) } else { prefilling.push(place) }
        }
        (decoding, prefilling)
    }

    fn view(&self, now: Micros, decoding: &[usize], prefilling: &[usize]) -> StepView {
        let drafts_max = |sequence: &Sequence| sequence.drafts_useful().min(self.limits.draft_tokens_max);
        let lookup = self.limits.lookup.is_some();
        StepView {
            now,
            decoding: decoding
                .iter()
                .map(|&place| &self.running[place])
                .map(|sequence| {
                    let lag = if lookup { 1 } else { sequence.len() - sequence.draft.computed };
                    sequence.decode_view(now, drafts_max(sequence), lag)
                })
                .collect(),
            prefilling: prefilling.iter().map(|&place| self.running[place].prefill_view(now)).collect(),
            waiting: self.waiting.len() as u32,
            prefill_tokens_max: (self.limits.batch_tokens_max - decoding.len() as u32)
                .min(self.limits.prefill_chunk_tokens_max),
        }
    }

    /// A policy may not exceed the bounds it was shown, nor stop a step that has no decoding
    /// sequence to protect; drafts give way to a full prefill chunk.
    fn hold_to_bounds(&self, decision: &mut StepDecision, view: &StepView) {
        let decoding = view.decoding.len();
        decision.drafts.resize(decoding, 0);
        decision.prefill_tokens = decision.prefill_tokens.min(view.prefill_tokens_max);
        if decoding == 0 {
            decision.prefill_tokens = decision.prefill_tokens.max(BLOCK_TOKENS.min(view.prefill_tokens_max));
        }
        let wanted: u64 = view.prefilling.iter().map(|row| u64::from(row.remaining_tokens)).sum();
        let prefill = wanted.min(decision.prefill_tokens.into()) as u32;
        let mut room = self.limits.batch_tokens_max - decoding as u32 - prefill;
        for (drafts, row) in decision.drafts.iter_mut().zip(&view.decoding) {
            *drafts = (*drafts).min(row.drafts_max).min(room);
            room -= *drafts;
        }
    }

    fn plan_decode(&mut self, step: &mut StepBuilder, index: usize, place: usize, drafts: u32) {
        let drafts = self.reserve_drafts(place, drafts);
        let sequence = &self.running[place];
        let len = sequence.len();
        let input = sequence.target_input(&mut self.target_rows, len - 1, len, drafts);
        step.target_row(place, len, VerifyRow { input, drafts: 0, tree: None, sample: true });
        if drafts > 0
            && let Some(options) = &self.limits.lookup
        {
            let mut proposals = Vec::new();
            propose(&sequence.tokens, drafts, options, &mut proposals);
            step.plan.granted.drafts[index] = drafts;
            if !proposals.is_empty() {
                step.plan.lookups.push(DraftedRow { decoding: index as u32, proposals });
            }
        } else if drafts > 0 {
            let chunk_end = len.min(sequence.draft.computed + self.limits.prefill_chunk_tokens_max);
            let decoding = (chunk_end == len).then_some(index as u32);
            let limit = if decoding.is_some() { drafts } else { 0 };
            self.plan_draft(step, place, chunk_end, decoding, limit);
        }
    }

    /// Grows both caches for `drafts` drafts; returns how many there is room for.
    fn reserve_drafts(&mut self, place: usize, drafts: u32) -> u32 {
        if drafts == 0 {
            return 0;
        }
        let sequence = &mut self.running[place];
        let len = sequence.len();
        let drafts = if sequence.target.table.grow(&mut self.target_pool, len + drafts) {
            drafts
        } else {
            sequence.target.table.capacity_tokens().saturating_sub(len)
        };
        if drafts == 0 || self.limits.lookup.is_some() {
            return drafts;
        }
        self.adopt_draft(place);
        let draft = &mut self.running[place].draft;
        // the last draft is proposed but never fed to the draft model
        if draft.table.grow(&mut self.draft_pool, len + drafts - 1) {
            drafts
        } else {
            (draft.table.capacity_tokens() + 1).saturating_sub(len)
        }
    }

    /// Begins an empty draft cache with what is cached already of the sequence's tokens.
    fn adopt_draft(&mut self, place: usize) {
        if self.running[place].draft.computed > 0 {
            return;
        }
        self.publish_computed();
        let sequence = &mut self.running[place];
        let draft = &mut sequence.draft;
        draft.table.release(&mut self.draft_pool);
        draft.computed = draft.table.adopt_prefix(&mut self.draft_pool, &sequence.tokens);
    }

    /// Sequences that are to be drafted for by the draft model.
    fn draft_rows_of(&self, decision: &StepDecision) -> usize {
        match self.limits.lookup {
            Some(_) => 0,
            None => decision.drafts.iter().filter(|&&drafts| drafts > 0).count(),
        }
    }

    /// Adds a draft row that feeds committed tokens up to `end`, if the round has room for it.
    fn plan_draft(
        &mut self,
        step: &mut StepBuilder,
        place: usize,
        end: u32,
        decoding: Option<u32>,
        limit: u32,
    ) {
        let sequence = &self.running[place];
        let start = sequence.draft.computed;
        if start >= end || step.draft_tokens + (end - start) > self.limits.batch_tokens_max {
            return;
        }
        step.draft_tokens += end - start;
        if let Some(decoding) = decoding {
            step.plan.granted.drafts[decoding as usize] = limit;
        }
        step.in_flight.drafts.push(PlannedDraft { place, computed: end, decoding });
        let input = sequence.draft_input(&mut self.draft_rows, start, end);
        step.plan.draft_rows.push(DraftRow { input, propose: limit > 0 });
        step.plan.drafting.push(Drafting { decoding, limit });
    }

    fn plan_prefill(&mut self, step: &mut StepBuilder, prefilling: &[usize], decision: &StepDecision) {
        let mut budget = decision.prefill_tokens;
        for &place in prefilling {
            let sequence = &mut self.running[place];
            let computed = sequence.target.computed;
            let wanted = sequence.remaining().min(budget);
            sequence.target.table.grow(&mut self.target_pool, computed + wanted);
            let chunk = wanted.min(sequence.target.table.capacity_tokens() - computed);
            if chunk == 0 {
                continue;
            }
            budget -= chunk;
            let end = computed + chunk;
            let sample = end == sequence.len();
            let input = sequence.target_input(&mut self.target_rows, computed, end, 0);
            step.target_row(place, end, VerifyRow { input, drafts: 0, tree: None, sample });
            if decision.warm_draft && self.limits.lookup.is_none() {
                self.warm_draft(step, place, end);
            }
        }
    }

    /// Lets the draft model see what the target prefills, so that drafting starts with the
    /// first decode step.
    fn warm_draft(&mut self, step: &mut StepBuilder, place: usize, end: u32) {
        self.adopt_draft(place);
        let draft = &mut self.running[place].draft;
        let end = end.min(draft.computed + self.limits.prefill_chunk_tokens_max);
        if draft.table.grow(&mut self.draft_pool, end) {
            self.plan_draft(step, place, end, None, 0);
        }
    }
}

/// A plan while it grows.
struct StepBuilder {
    plan: StepPlan,
    in_flight: InFlight,
    draft_tokens: u32,
}

impl StepBuilder {
    fn new(number: u64, view: StepView, policy: Arc<dyn Policy>, draft_rows: usize) -> StepBuilder {
        let rows = view.decoding.len() + view.prefilling.len();
        StepBuilder {
            plan: StepPlan {
                number,
                policy,
                rows: Vec::with_capacity(rows),
                draft_rows: Vec::with_capacity(draft_rows),
                drafting: Vec::with_capacity(draft_rows),
                lookups: Vec::new(),
                started: Vec::new(),
                granted: StepDecision { drafts: vec![0; view.decoding.len()], ..StepDecision::default() },
                view,
            },
            in_flight: InFlight {
                number,
                rows: Vec::with_capacity(rows),
                drafts: Vec::with_capacity(draft_rows),
            },
            draft_tokens: 0,
        }
    }

    fn target_row(&mut self, place: usize, computed: u32, row: VerifyRow) {
        self.in_flight.rows.push(PlannedRow { place, computed });
        self.plan.rows.push(row);
    }
}
