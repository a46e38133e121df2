//! A scheduler, an executor that notices any mistake, and a record of all that was delivered.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::*;
use crate::executor::{ShadowExecutor, ShadowOptions};
use crate::policy::{Fixed, Policy};
use crate::protocol::{Clock, FinishReason, Micros, RequestSummary, SamplingParams, Slo, TokenId};
use crate::step::{StepPlan, draft_round, verify_round};

struct Standstill;

impl Clock for Standstill {
    fn now(&self) -> Micros {
        Micros::ZERO
    }
}

/// A scheduler, an executor, and a record of all that was delivered.
pub(super) struct Game {
    pub(super) scheduler: Scheduler,
    pub(super) executor: ShadowExecutor,
    pub(super) policy: Arc<dyn Policy>,
    pub(super) now: Micros,
    pub(super) outputs: BTreeMap<RequestId, Vec<TokenId>>,
    pub(super) ends: BTreeMap<RequestId, TokenEvent>,
    /// Whether the rows of a step are given back to be filled anew.
    pub(super) recycles: bool,
}

pub(super) fn limits(target_blocks: u32) -> SchedulerLimits {
    SchedulerLimits {
        running_requests_max: 8,
        prefill_chunk_tokens_max: 64,
        batch_tokens_max: 128,
        draft_tokens_max: 8,
        target_blocks,
        draft_blocks: target_blocks,
        lookup: None,
    }
}

impl Game {
    pub(super) fn new(target_blocks: u32, draft_tokens: u32) -> Game {
        Game::with(limits(target_blocks), ShadowOptions::small(target_blocks, target_blocks), draft_tokens)
    }

    pub(super) fn with(limits: SchedulerLimits, options: ShadowOptions, draft_tokens: u32) -> Game {
        Game {
            scheduler: Scheduler::new(limits),
            executor: ShadowExecutor::new(options),
            policy: Arc::new(Fixed { draft_tokens }),
            now: Micros::ZERO,
            outputs: BTreeMap::new(),
            ends: BTreeMap::new(),
            recycles: true,
        }
    }

    pub(super) fn arrive(&mut self, request: GenerationRequest) -> RequestId {
        let id = request.id;
        self.scheduler.enqueue(request);
        id
    }

    pub(super) fn plan(&mut self) -> Option<StepPlan> {
        self.now += Micros(1000);
        let plan = self.scheduler.plan(self.now, &self.policy);
        self.scheduler.assert_conserved();
        plan
    }

    pub(super) fn finish(&mut self, plan: StepPlan) {
        let mut drafted = draft_round(&mut self.executor, plan, &Standstill).expect("drafts");
        let verified = drafted.select();
        let stepped = verify_round(&mut self.executor, drafted, verified, &Standstill).expect("verifies");
        let mut spent = stepped.plan;
        let deliveries = self.scheduler.commit(stepped.outcome, self.now);
        if self.recycles {
            self.scheduler.recycle(&mut spent);
        }
        self.record(deliveries);
        self.scheduler.assert_conserved();
    }

    pub(super) fn step(&mut self) -> bool {
        match self.plan() {
            Some(plan) => {
                self.finish(plan);
                true
            }
            None => false,
        }
    }

    pub(super) fn play_out(&mut self) {
        for _ in 0..20_000 {
            if !self.step() {
                assert!(self.scheduler.is_idle(), "nothing to do, yet not idle");
                return;
            }
        }
        panic!("no progress");
    }

    pub(super) fn record(&mut self, deliveries: Vec<Delivery>) {
        for (id, event) in deliveries {
            assert!(!self.ends.contains_key(&id), "request {id} got an event after its end");
            match event {
                TokenEvent::Tokens(tokens) => {
                    assert!(!tokens.is_empty());
                    self.outputs.entry(id).or_default().extend(tokens);
                }
                end => {
                    self.ends.insert(id, end);
                }
            }
        }
    }

    pub(super) fn cancel(&mut self, id: RequestId) {
        let delivery = self.scheduler.end(id, Termination::Failed(RequestFailure::Cancelled));
        self.record(delivery.into_iter().collect());
    }

    pub(super) fn finish_reason(&self, id: RequestId) -> Option<FinishReason> {
        match self.ends.get(&id)? {
            TokenEvent::Finished { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    pub(super) fn summary(&self, id: RequestId) -> RequestSummary {
        match &self.ends[&id] {
            TokenEvent::Finished { summary, .. } => *summary,
            other => panic!("request {id} ended with {other:?}"),
        }
    }
}

pub(super) fn request(id: u64, prompt_tokens: u32, max_tokens: u32) -> GenerationRequest {
    GenerationRequest {
        id: RequestId(id),
        prompt: (0..prompt_tokens).map(|i| (i * 7 + id as u32 * 131) % 1000).collect(),
        max_tokens,
        sampling: Arc::new(SamplingParams::greedy()),
        stop_tokens: Arc::from([]),
        slo: Slo::default(),
        class: 0,
        arrival: Micros(id),
    }
}

pub(super) fn expect(game: &Game, request: &GenerationRequest) -> Vec<TokenId> {
    game.executor.expect(&request.prompt, &request.sampling, request.max_tokens as usize)
}
