//! Planning a step.

use std::sync::Arc;

use super::sequence::Sequence;
use super::{Scheduler, SchedulerLimits};
use crate::kv::BlockPool;
use crate::policy::{Fixed, Policy, Scratch};
use crate::protocol::{
    BLOCK_TOKENS, DraftSeed, Micros, RequestId, RowRole, StepDecision, StepView, VerifyRow, blocks_for,
};
use crate::step::{SpeculationFault, StepPlan};

/// What the commit must know of the plan; indices are into the running set, which
/// does not change meanwhile.
#[derive(Debug)]
pub(super) struct InFlight {
    pub number: u64,
    /// One per row of the plan.
    pub rows: Vec<PlannedRow>,
    /// One per seed of the plan.
    pub drafts: Vec<PlannedDraft>,
}

/// A target row of the plan in flight.
#[derive(Debug)]
pub(super) struct PlannedRow {
    /// Index in the running set.
    pub running_index: usize,
    pub role: RowRole,
    /// Committed tokens that are in the cache once the step is done.
    pub computed: u32,
}

/// A seed of the plan in flight.
#[derive(Debug)]
pub(super) struct PlannedDraft {
    /// Index in the running set.
    pub running_index: usize,
    /// Index of the plan's row that it drafts for.
    pub row: u32,
    /// Committed tokens that the draft's cache holds once the step is done.
    pub computed: u32,
}

impl Scheduler {
    /// The next step, or `None` when there is nothing to run. A policy that panics is replaced by
    /// plain decoding for this step.
    ///
    /// # Panics
    /// When a step is in flight already.
    pub fn plan(&mut self, now: Micros, policy: &Arc<dyn Policy>) -> Option<StepPlan> {
        assert!(self.in_flight.is_none(), "a second step was planned before the first was committed");
        self.refuse_overdue(now);
        let mut pacing = self.pacing.take();
        match &mut pacing {
            None => self.admit(),
            Some(pacing) => self.admit_by_rank(now, pacing),
        }
        self.reserve_minimum();
        self.pacing = pacing;
        if self.running.is_empty() {
            return None;
        }
        let (decoding, prefilling) = self.roles();
        let view = self.view(now, &decoding, &prefilling);
        let (policy, mut decision, fault) = decide(policy, &view, &mut self.policy_scratch);
        self.hold_to_bounds(&mut decision, &view);

        let seeds = decision.drafts.iter().filter(|&&drafts| drafts > 0).count();
        let mut step = StepBuilder::new(self.steps, view, policy, fault, seeds);
        for (index, &running_index) in decoding.iter().enumerate() {
            self.plan_decode(&mut step, index, running_index, decision.drafts[index]);
        }
        self.plan_prefill(&mut step, &prefilling, &decision);
        if let Some(pacing) = &mut self.pacing {
            let rows = step.in_flight.rows.iter().zip(&step.plan.rows);
            let prefills = rows.filter(|(row, _)| row.role == RowRole::Prefill);
            pacing.count_late(prefills.map(|(planned, row)| {
                (self.running[planned.running_index].standing, row.input.tokens.len() as u32)
            }));
        }
        let mut plan = step.plan;
        plan.granted.prefill_tokens = plan.prefill_tokens();
        plan.granted.warm_draft = decision.warm_draft;
        plan.granted.intent = decision.intent;
        plan.granted.shape = decision.shape;
        plan.granted.rate = decision.rate;
        assert!(!plan.rows.is_empty(), "a step without work was planned");
        for row in &step.in_flight.rows {
            let sequence = &mut self.running[row.running_index];
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
            if !self.fits(next) {
                return;
            }
            let sequence = self.waiting.pop().expect("peeked above");
            self.start(sequence);
        }
    }

    /// Whether a sequence's whole prefill fits beside what the running prefills still need.
    fn fits(&self, next: &Sequence) -> bool {
        let (cached, unheld) = self.target_pool.peek_prefix(&next.tokens[..next.tokens.len() - 1]);
        let reserved: u32 = self.running.iter().map(Sequence::prefill_blocks_lacking).sum();
        let wanted = blocks_for(next.len() + 1) - cached + unheld + reserved;
        // alone it always fits: `check_size`
        wanted <= self.target_pool.available() || self.running.is_empty()
    }

    /// Whether a waiting sequence [`fits`](Self::fits).
    pub(super) fn fits_waiting(&self, id: RequestId) -> bool {
        self.waiting.get(id).is_some_and(|sequence| self.fits(sequence))
    }

    /// Takes a sequence into the running set, with what is cached of its tokens.
    pub(super) fn start(&mut self, mut sequence: Sequence) {
        let adopted = sequence.target.table.adopt_prefix(&mut self.target_pool, &sequence.tokens);
        sequence.target.computed = adopted;
        sequence.cached_tokens.get_or_insert(adopted);
        self.prefix_query_tokens += u64::from(sequence.len());
        self.prefix_hit_tokens += u64::from(adopted);
        let running_index = self.running.partition_point(|other| other.urgency() < sequence.urgency());
        self.running.insert(running_index, sequence);
    }

    /// Makes sure that each running sequence can take one step, the most urgent first,
    /// by preempting from the end of the order.
    fn reserve_minimum(&mut self) {
        let mut running_index = 0;
        while running_index < self.running.len() {
            let sequence = &mut self.running[running_index];
            let minimum = sequence.minimum_tokens();
            if sequence.target.table.grow(&mut self.target_pool, minimum) {
                running_index += 1;
            } else {
                self.preempt_last();
            }
        }
    }

    pub(super) fn preempt_last(&mut self) {
        self.publish_computed();
        let mut sequence = self.running.pop().expect("called with a running sequence");
        assert!(!self.running.is_empty(), "a request that fits the pool alone ran out of blocks");
        self.release(&mut sequence);
        sequence.preemptions += 1;
        self.preemptions += 1;
        self.waiting.push_front(sequence);
    }

    /// Indices of the sequences that decode, most urgent first, and of those that prefill, in the
    /// order of service.
    fn roles(&self) -> (Vec<usize>, Vec<usize>) {
        let (mut decoding, mut prefilling) = (Vec::with_capacity(self.running.len()), Vec::new());
        for (running_index, sequence) in self.running.iter().enumerate() {
            if sequence.decodes() { decoding.push(running_index) } else { prefilling.push(running_index) }
        }
        // without a pacer all ranks are equal
        prefilling.sort_by_key(|&running_index| self.running[running_index].rank);
        (decoding, prefilling)
    }

    /// Most prefill tokens of a step that decodes `decoding` sequences. With a pacer the configured
    /// chunk may be exceeded where the batch has room for it beside all drafts.
    pub(super) fn prefill_tokens_max(&self, decoding: usize) -> u32 {
        let SchedulerLimits { batch_tokens_max, prefill_chunk_tokens_max, draft_tokens_max, .. } =
            self.limits;
        let decoding = decoding as u32;
        let beside_drafts = match self.is_paced {
            true => batch_tokens_max.saturating_sub(decoding * (1 + draft_tokens_max)),
            false => 0,
        };
        prefill_chunk_tokens_max.max(beside_drafts).min(batch_tokens_max - decoding)
    }

    fn view(&mut self, now: Micros, decoding: &[usize], prefilling: &[usize]) -> StepView {
        let drafts_max = |sequence: &Sequence| sequence.drafts_useful().min(self.limits.draft_tokens_max);
        let mut view = StepView {
            now,
            decoding: decoding
                .iter()
                .map(|&running_index| &self.running[running_index])
                .map(|sequence| sequence.decode_view(now, drafts_max(sequence), self.drafts.lag(sequence)))
                .collect(),
            prefilling: prefilling
                .iter()
                .map(|&running_index| self.running[running_index].prefill_view(now))
                .collect(),
            waiting: self.waiting.len() as u32,
            prefill_tokens_max: self.prefill_tokens_max(decoding.len()),
        };
        if let Some(pacing) = &mut self.pacing {
            view.prefill_tokens_max = pacing.chunk(&view.decoding, &view.prefilling, view.prefill_tokens_max);
        }
        view
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
        let sampling = (decoding + view.prefilling.len()) as u32;
        share_evenly(&mut decision.drafts, self.limits.sampled_rows_max.saturating_sub(sampling));
    }

    fn plan_decode(&mut self, step: &mut StepBuilder, index: usize, running_index: usize, drafts: u32) {
        let drafts = self.reserve_drafts(running_index, drafts);
        let sequence = &self.running[running_index];
        let len = sequence.len();
        let input = sequence.target_input(&mut self.target_rows, len - 1, len, drafts);
        step.target_row(running_index, len, VerifyRow::decode(input));
        if drafts > 0 {
            let end = self.drafts.catch_up_end(sequence, self.limits.prefill_chunk_tokens_max);
            let limit = if end == len { drafts } else { 0 };
            if self.plan_draft(step, running_index, end, limit) {
                step.plan.granted.drafts[index] = limit;
            }
        }
    }

    /// Grows both caches for `drafts` drafts; returns how many there is room for.
    fn reserve_drafts(&mut self, running_index: usize, drafts: u32) -> u32 {
        if drafts == 0 {
            return 0;
        }
        let sequence = &mut self.running[running_index];
        let drafts = grow_for_drafts(&mut self.target_pool, sequence, drafts);
        if drafts == 0 {
            return 0;
        }
        self.publish_before_adopting(running_index);
        self.drafts.reserve(&mut self.running[running_index], drafts)
    }

    /// A draft cache that is about to adopt a cached prefix must see the latest blocks.
    fn publish_before_adopting(&mut self, running_index: usize) {
        if self.drafts.has_cache() && self.running[running_index].draft.computed == 0 {
            self.publish_computed();
        }
    }

    /// Adds a seed that feeds committed tokens up to `end` for the row added last, if the round
    /// has room for it; whether it was added.
    fn plan_draft(&mut self, step: &mut StepBuilder, running_index: usize, end: u32, limit: u32) -> bool {
        let sequence = &self.running[running_index];
        let start = self.drafts.start(sequence);
        if start >= end || step.draft_tokens + (end - start) > self.limits.batch_tokens_max {
            return false;
        }
        step.draft_tokens += end - start;
        let row = step.plan.rows.len() as u32 - 1;
        step.in_flight.drafts.push(PlannedDraft { running_index, row, computed: end });
        let input = self.drafts.input(sequence, start, end);
        step.plan.seeds.push(DraftSeed { row, input, limit, mask: None });
        true
    }

    fn plan_prefill(&mut self, step: &mut StepBuilder, prefilling: &[usize], decision: &StepDecision) {
        let mut budget = decision.prefill_tokens;
        for &running_index in prefilling {
            let sequence = &mut self.running[running_index];
            let computed = sequence.target.computed;
            let wanted = sequence.remaining().min(budget);
            sequence.target.table.grow(&mut self.target_pool, computed + wanted);
            let chunk = wanted.min(sequence.target.table.capacity_tokens() - computed);
            if chunk == 0 {
                continue;
            }
            budget -= chunk;
            let end = computed + chunk;
            let next = sequence.tokens.get(end as usize).copied();
            let input = sequence.target_input(&mut self.target_rows, computed, end, 0);
            step.target_row(running_index, end, VerifyRow::prefill(input, next));
            if decision.warm_draft {
                self.warm_draft(step, running_index, end);
            }
        }
    }

    /// Feeds the drafter what the target prefills, so that drafting starts with the first decode
    /// step.
    fn warm_draft(&mut self, step: &mut StepBuilder, running_index: usize, end: u32) {
        self.publish_before_adopting(running_index);
        let chunk_max = self.prefill_tokens_max(0);
        let sequence = &mut self.running[running_index];
        if let Some(end) = self.drafts.follow_prefill(sequence, end, chunk_max) {
            self.plan_draft(step, running_index, end, 0);
        }
    }
}

/// The policy's decision, or plain decoding's where the policy panics.
fn decide(
    policy: &Arc<dyn Policy>,
    view: &StepView,
    scratch: &mut Scratch,
) -> (Arc<dyn Policy>, StepDecision, Option<SpeculationFault>) {
    match SpeculationFault::guard_policy("plan", || policy.plan(view, scratch)) {
        Ok(decision) => (policy.clone(), decision, None),
        Err(fault) => {
            let plain: Arc<dyn Policy> = Arc::new(Fixed::NONE);
            let decision = plain.plan(view, &mut Scratch::default());
            (plain, decision, Some(fault))
        }
    }
}

/// Cuts the longest until all of them together are at most `room`.
fn share_evenly(drafts: &mut [u32], room: u32) {
    let cut_to = |most: u32| drafts.iter().map(|&drafts| u64::from(drafts.min(most))).sum::<u64>();
    let longest = drafts.iter().copied().max().unwrap_or(0);
    let most = (0..=longest).rev().find(|&most| cut_to(most) <= room.into()).unwrap_or(0);
    drafts.iter_mut().for_each(|drafts| *drafts = most.min(*drafts));
}

/// Grows the target's cache for `drafts` drafts; returns how many there is room for.
fn grow_for_drafts(pool: &mut BlockPool, sequence: &mut Sequence, drafts: u32) -> u32 {
    let len = sequence.len();
    if sequence.target.table.grow(pool, len + drafts) {
        drafts
    } else {
        sequence.target.table.capacity_tokens().saturating_sub(len)
    }
}

/// A plan while it grows.
struct StepBuilder {
    plan: StepPlan,
    in_flight: InFlight,
    draft_tokens: u32,
}

impl StepBuilder {
    fn new(
        number: u64,
        view: StepView,
        policy: Arc<dyn Policy>,
        fault: Option<SpeculationFault>,
        seeds: usize,
    ) -> StepBuilder {
        let rows = view.decoding.len() + view.prefilling.len();
        StepBuilder {
            plan: StepPlan {
                number,
                policy,
                rows: Vec::with_capacity(rows),
                seeds: Vec::with_capacity(seeds),
                started: Vec::new(),
                granted: StepDecision { drafts: vec![0; view.decoding.len()], ..StepDecision::default() },
                view,
                fault,
            },
            in_flight: InFlight { number, rows: Vec::with_capacity(rows), drafts: Vec::with_capacity(seeds) },
            draft_tokens: 0,
        }
    }

    fn target_row(&mut self, running_index: usize, computed: u32, row: VerifyRow) {
        self.in_flight.rows.push(PlannedRow { running_index, role: row.role, computed });
        self.plan.rows.push(row);
    }
}
