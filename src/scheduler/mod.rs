//! Continuous batching: which sequences a step runs, and with how many tokens each.
//!
//! Pure: a [`Scheduler`] takes arrivals, the time and the outcome of a step, and returns the next
//! [`StepPlan`] and the events to deliver. At most one step is in flight. Between
//! [`Scheduler::plan`] and [`Scheduler::commit`] the running set does not change, and
//! cancellations wait for the commit.
//!
//! Order of urgency: lower class first, then earlier arrival. It is the order of service unless a
//! pacer ranks the prompts. When KV blocks run short, drafts get shorter first; then the last
//! running request in that order is preempted and recomputed later. The first in the order can
//! always run, because any admitted request fits the pool alone.
//!
//! May import: protocol, kv, pacing, policy, step.
#![forbid(unsafe_code)]

mod commit;
mod drafts;
mod paced;
mod plan;
mod queue;
mod rows;
mod sequence;

#[cfg(test)]
mod tests;

use self::drafts::Drafts;
use self::paced::Pacing;
use self::plan::InFlight;
use self::queue::Queue;
use self::rows::RowPool;
use self::sequence::Sequence;
use crate::kv::{BlockPool, PoolUsage};
use crate::pacing::{Pacer, ServiceOrder};
use crate::policy::Scratch;
use crate::protocol::{
    DrafterNeeds, ExecutorInfo, GenerationRequest, Micros, RequestFailure, RequestId, StepReport,
    Termination, TokenEvent, blocks_for,
};
use crate::step::{Delivery, StepPlan};

/// Bounds of the scheduler.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SchedulerLimits {
    /// Most sequences in a step.
    pub running_requests_max: u32,
    /// Most prefill tokens in a step.
    pub prefill_chunk_tokens_max: u32,
    /// Most input tokens in a step.
    pub batch_tokens_max: u32,
    /// Most drafts of one sequence in a step.
    pub draft_tokens_max: u32,
    /// Most rows of a step behind which the target samples: sequences and verified drafts.
    pub sampled_rows_max: u32,
    /// Blocks of the target's pool.
    pub target_blocks: u32,
    /// What the drafter needs to be given; `None` without one.
    pub drafter: Option<DrafterNeeds>,
}

impl SchedulerLimits {
    /// The configured limits, held to what the executor can take.
    pub fn within(self, executor: &ExecutorInfo) -> SchedulerLimits {
        SchedulerLimits {
            running_requests_max: self.running_requests_max.min(executor.batch_sequences_max),
            prefill_chunk_tokens_max: self.prefill_chunk_tokens_max.min(executor.batch_tokens_max),
            batch_tokens_max: self.batch_tokens_max.min(executor.batch_tokens_max),
            draft_tokens_max: if executor.drafter.is_some() {
                self.draft_tokens_max.min(executor.draft_tokens_max)
            } else {
                0
            },
            sampled_rows_max: self.sampled_rows_max.min(executor.sampled_rows_max),
            target_blocks: executor.target_blocks,
            drafter: executor.drafter.clone(),
        }
    }

    /// Whether a request of this size can ever be served.
    ///
    /// # Errors
    /// [`TooLarge`] when prompt and output do not fit an empty KV pool.
    pub fn check_size(&self, prompt_tokens: u32, max_tokens: u32) -> Result<(), TooLarge> {
        let needed = blocks_for(prompt_tokens.saturating_add(max_tokens));
        if needed > self.target_blocks {
            return Err(TooLarge { needed: needed.into(), total: self.target_blocks.into() });
        }
        Ok(())
    }
}

/// How full the scheduler is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SchedulerGauges {
    /// Requests in the running set.
    pub running: u32,
    /// Requests that wait.
    pub waiting: u32,
    /// Prompt and output tokens of those that wait.
    pub waiting_tokens: u64,
    /// The target's KV pool.
    pub target_kv: PoolUsage,
    /// The draft's KV pool.
    pub draft_kv: PoolUsage,
    /// Preemptions since the start.
    pub preemptions: u64,
    /// Tokens of sequences when they started or resumed, since the start: what was looked up in
    /// the prefix cache.
    pub prefix_query_tokens: u64,
    /// Those of them that the prefix cache held.
    pub prefix_hit_tokens: u64,
}

/// A request that even an empty pool could not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Blocks that prompt and output need.
    pub needed: u64,
    /// Blocks there are.
    pub total: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    waiting: Queue,
    /// Most urgent first.
    running: Vec<Sequence>,
    target_pool: BlockPool,
    drafts: Drafts,
    in_flight: Option<InFlight>,
    target_rows: RowPool,
    policy_scratch: Scratch,
    /// Serves by slack; `None`: first come, first served.
    pacing: Option<Pacing>,
    is_paced: bool,
    /// How long a request may wait for the first step that includes it; `None`: forever.
    queue_wait_max: Option<Micros>,
    /// Terminal events of requests that planning refused.
    refused: Vec<Delivery>,
    /// Whether there may be full blocks that the last commit left to be published.
    unpublished: bool,
    steps: u64,
    preemptions: u64,
    prefix_query_tokens: u64,
    prefix_hit_tokens: u64,
}

impl Scheduler {
    /// An idle scheduler.
    ///
    /// # Panics
    /// When a limit that must be positive is zero: the config was not validated.
    pub fn new(limits: SchedulerLimits) -> Scheduler {
        assert!(limits.running_requests_max > 0 && limits.prefill_chunk_tokens_max > 0);
        assert!(
            limits.batch_tokens_max > limits.running_requests_max,
            "decoding alone would fill every step"
        );
        Scheduler {
            target_pool: BlockPool::new(limits.target_blocks),
            drafts: Drafts::new(limits.drafter.clone()),
            limits,
            waiting: Queue::default(),
            running: Vec::new(),
            in_flight: None,
            target_rows: RowPool::default(),
            policy_scratch: Scratch::default(),
            pacing: None,
            is_paced: false,
            queue_wait_max: None,
            refused: Vec::new(),
            unpublished: false,
            steps: 0,
            preemptions: 0,
            prefix_query_tokens: 0,
            prefix_hit_tokens: 0,
        }
    }

    /// Serves by slack, as `pacer` ranks and limits, instead of first come, first served.
    #[must_use]
    pub fn paced(self, pacer: Pacer) -> Scheduler {
        Scheduler { pacing: Some(Pacing::new(pacer)), is_paced: true, ..self }
    }

    /// Refuses requests that no step has included so long after their arrival.
    #[must_use]
    pub fn with_queue_wait(self, most: Micros) -> Scheduler {
        Scheduler { queue_wait_max: Some(most), ..self }
    }

    /// Learns what steps cost, if there is a pacer.
    pub fn observe(&mut self, report: &StepReport) {
        if let Some(pacing) = &mut self.pacing {
            pacing.pacer.observe(report);
        }
    }

    /// In which order requests are served.
    pub fn order(&self) -> ServiceOrder {
        if self.is_paced { ServiceOrder::Slo } else { ServiceOrder::Fifo }
    }

    /// What the pacer has learned, for `/v1/engine/state`; `None` without one.
    pub fn pacer_state(&self) -> Option<serde_json::Value> {
        self.pacing.as_ref().map(|pacing| pacing.pacer.state())
    }

    /// See [`SchedulerLimits::check_size`].
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn check_size(&self, prompt_tokens: u32, max_tokens: u32) -> Result<(), TooLarge> {
        self.limits.check_size(prompt_tokens, max_tokens)
    }

    /// Takes a request into the queue. Admission control bounds the queue's length.
    ///
    /// # Panics
    /// When the request breaks [`GenerationRequest`]'s rules or fails
    /// [`check_size`](Self::check_size): intake let it pass.
    pub fn enqueue(&mut self, request: GenerationRequest) {
        assert!(!request.prompt.is_empty() && request.max_tokens > 0, "an empty request was admitted");
        assert_eq!(self.check_size(request.prompt.len() as u32, request.max_tokens), Ok(()));
        if let Some(pacing) = &mut self.pacing {
            pacing.pacer.observe_arrival(request.arrival);
        }
        self.waiting.push(Sequence::new(request));
    }

    /// Ends a request. If it runs in the step in flight it ends at that step's commit;
    /// else at once, and the terminal event is returned. Unknown ids (already ended) are ignored.
    pub fn end(&mut self, id: RequestId, ending: Termination) -> Option<Delivery> {
        self.publish_computed();
        if let Some(mut sequence) = self.waiting.remove(id) {
            self.release(&mut sequence);
            return Some((id, sequence.ended(ending)));
        }
        let position = self.running.iter().position(|sequence| sequence.request.id == id)?;
        if self.in_flight.is_some() {
            self.running[position].pending_end.get_or_insert(ending);
            return None;
        }
        let mut sequence = self.running.remove(position);
        self.release(&mut sequence);
        Some((id, sequence.ended(ending)))
    }

    /// The terminal events of requests that the last [`plan`](Self::plan) refused: their first
    /// token cannot be in time any more, or they have waited too long.
    pub fn take_refused(&mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.refused)
    }

    /// Ends every request now, the step in flight included: its outcome must not be committed.
    pub fn abort_all(&mut self, failure: &RequestFailure) -> Vec<Delivery> {
        self.in_flight = None;
        self.publish_computed();
        let mut all = std::mem::take(&mut self.running);
        all.extend(self.waiting.drain());
        for sequence in &mut all {
            self.release(sequence);
        }
        all.into_iter().map(|sequence| (sequence.request.id, TokenEvent::Failed(failure.clone()))).collect()
    }

    /// Forgets the step in flight, whose outcome will never come; its work is planned again.
    /// Returns the terminal events of requests that were ended meanwhile.
    pub fn abandon_step(&mut self) -> Vec<Delivery> {
        self.in_flight = None;
        self.publish_computed();
        self.remove_pending_ends()
    }

    /// Reclaims the row buffers of a finished plan for reuse. An optimization only: plans are
    /// identical without it.
    pub fn recycle(&mut self, plan: &mut StepPlan) {
        self.target_rows.refill(plan.rows.drain(..).map(|row| row.input));
        self.drafts.rows.refill(plan.seeds.drain(..).map(|seed| seed.input));
    }

    /// Whether this step is in flight.
    pub fn is_in_flight(&self, number: u64) -> bool {
        self.in_flight.as_ref().is_some_and(|step| step.number == number)
    }

    /// Whether a step is in flight.
    pub fn has_step_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether there is nothing to do and nothing in flight.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.len() == 0
    }

    /// How full it is.
    pub fn gauges(&self) -> SchedulerGauges {
        SchedulerGauges {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            waiting_tokens: self.waiting.iter().map(|sequence| u64::from(sequence.len())).sum(),
            target_kv: self.target_pool.usage(),
            draft_kv: self.drafts.usage(),
            preemptions: self.preemptions,
            prefix_query_tokens: self.prefix_query_tokens,
            prefix_hit_tokens: self.prefix_hit_tokens,
        }
    }

    /// Checks the books of both pools against all sequences (invariant 3).
    ///
    /// # Panics
    /// When a block leaked or is held twice.
    pub fn assert_conserved(&self) {
        let sequences = || self.running.iter().chain(self.waiting.iter());
        self.target_pool.assert_conserved(sequences().map(|sequence| &sequence.target.table));
        self.drafts.pool.assert_conserved(sequences().map(|sequence| &sequence.draft.table));
    }

    /// Ends the requests that no step has included within the longest wait. One that has started
    /// and was preempted keeps its turn: its caller has tokens already.
    fn refuse_overdue(&mut self, now: Micros) {
        let Some(wait_max) = self.queue_wait_max else { return };
        let overdue = |sequence: &&Sequence| {
            !sequence.has_started() && now.saturating_sub(sequence.request.arrival) >= wait_max
        };
        let ids: Vec<RequestId> =
            self.waiting.iter().filter(overdue).map(|sequence| sequence.request.id).collect();
        for id in ids {
            let refusal = self.end(id, Termination::Failed(RequestFailure::Overdue { wait_max }));
            self.refused.extend(refusal);
        }
    }

    /// Drops the row buffers, so that the next plan is made from scratch.
    #[cfg(test)]
    pub(crate) fn forget_rows(&mut self) {
        self.target_rows = RowPool::default();
        self.drafts.rows = RowPool::default();
    }

    fn release(&mut self, sequence: &mut Sequence) {
        sequence.target.release(&mut self.target_pool);
        self.drafts.release(sequence);
    }

    /// Removes sequences that were ended while a step was in flight.
    fn remove_pending_ends(&mut self) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        let mut position = 0;
        while position < self.running.len() {
            match self.running[position].pending_end.take() {
                None => position += 1,
                Some(ending) => {
                    let mut sequence = self.running.remove(position);
                    self.release(&mut sequence);
                    deliveries.push((sequence.request.id, sequence.ended(ending)));
                }
            }
        }
        deliveries
    }
}
