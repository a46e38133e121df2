//! A scheduler, an executor that notices any mistake, and a record of all that was delivered.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::*;
use crate::engine::EngineCore;
use crate::executor::{Executor, ShadowExecutor, ShadowOptions};
use crate::policy::{Fixed, Learner, Scratch, Static};
use crate::protocol::{
    Clock, DrafterNeeds, ExecutorInfo, FinishReason, Micros, RequestSummary, SamplingParams, Slo, TokenId,
};
use crate::step::{self, StepPlan};

struct Standstill;

impl Clock for Standstill {
    fn now(&self) -> Micros {
        Micros::ZERO
    }
}

/// A scheduler, an executor, and a record of all that was delivered.
pub(super) struct Game {
    pub(super) core: EngineCore,
    pub(super) executor: Box<dyn Executor>,
    /// Knows what the executor's target says.
    oracle: ShadowExecutor,
    pub(super) now: Micros,
    pub(super) outputs: BTreeMap<RequestId, Vec<TokenId>>,
    pub(super) ends: BTreeMap<RequestId, TokenEvent>,
    /// Whether the row buffers of a step are reused for the next.
    pub(super) recycles: bool,
    /// Whether new blocks are inserted into the prefix cache after each step, or only when the
    /// scheduler depends on them.
    pub(super) settles: bool,
}

pub(super) fn limits(target_blocks: u32) -> SchedulerLimits {
    SchedulerLimits {
        running_requests_max: 8,
        prefill_chunk_tokens_max: 64,
        batch_tokens_max: 128,
        draft_tokens_max: 8,
        sampled_rows_max: u32::MAX,
        target_blocks,
        drafter: Some(DrafterNeeds::kv_cache(target_blocks)),
    }
}

impl Game {
    pub(super) fn new(target_blocks: u32, draft_tokens: u32) -> Game {
        Game::with(limits(target_blocks), ShadowOptions::small(target_blocks, target_blocks), draft_tokens)
    }

    pub(super) fn with(limits: SchedulerLimits, options: ShadowOptions, draft_tokens: u32) -> Game {
        Game::led_by(Box::new(Static::new(Fixed { draft_tokens })), limits, options)
    }

    /// A game whose executor takes no larger batches than the scheduler may plan.
    pub(super) fn led_by(learner: Box<dyn Learner>, limits: SchedulerLimits, options: ShadowOptions) -> Game {
        let info = ExecutorInfo {
            batch_tokens_max: limits.batch_tokens_max,
            batch_sequences_max: limits.running_requests_max,
            draft_tokens_max: limits.draft_tokens_max,
            sampled_rows_max: limits.sampled_rows_max,
            ..options.info
        };
        let options = ShadowOptions { info, ..options };
        Game {
            core: EngineCore::new(Scheduler::new(limits), learner),
            executor: Box::new(ShadowExecutor::new(options.clone())),
            oracle: ShadowExecutor::new(options),
            now: Micros::ZERO,
            outputs: BTreeMap::new(),
            ends: BTreeMap::new(),
            recycles: true,
            settles: true,
        }
    }

    pub(super) fn arrive(&mut self, request: GenerationRequest) -> RequestId {
        let id = request.id;
        self.core.enqueue(request);
        id
    }

    pub(super) fn plan(&mut self) -> Option<StepPlan> {
        self.now += Micros(1000);
        let plan = self.core.begin(self.now);
        self.core.scheduler().assert_conserved();
        if let Some(plan) = &plan {
            self.assert_chunked(plan);
        }
        plan
    }

    /// Neither model is fed more than a chunk at once: a bound that no executor knows of.
    fn assert_chunked(&self, plan: &StepPlan) {
        let most = self.core.scheduler().limits.prefill_chunk_tokens_max;
        assert!(plan.prefill_tokens() <= most, "{} prefill tokens, at most {most}", plan.prefill_tokens());
        for seed in &plan.seeds {
            let tokens = seed.input.tokens.len() as u32;
            assert!(tokens <= most, "a seed of {tokens} tokens, at most {most}");
        }
    }

    pub(super) fn finish(&mut self, plan: StepPlan) {
        let result =
            step::run(self.executor.as_mut(), plan, &mut Scratch::default(), &Standstill).expect("verifies");
        assert_eq!(result.fault, None, "the shadow drafts as it should");
        result.check(self.executor.info().vocab_size).expect("a result that makes sense");
        let finished = self.core.finish(result, self.now).expect("the step is in flight");
        if !self.recycles {
            self.core.scheduler_mut().forget_rows();
        }
        if self.settles {
            assert_eq!(self.core.settle(&finished.report).fault, None);
        }
        self.record(finished.deliveries);
        self.core.scheduler().assert_conserved();
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
                assert!(self.core.scheduler().is_idle(), "nothing to do, yet not idle");
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
        let delivery = self.core.end(id, Termination::Failed(RequestFailure::Cancelled));
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
            TokenEvent::Finished { summary, .. } => summary.clone(),
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
        weight: 1.0,
        arrival: Micros(id),
    }
}

pub(super) fn expect(game: &Game, request: &GenerationRequest) -> Vec<TokenId> {
    game.oracle.expect(&request.prompt, &request.sampling, request.max_tokens as usize)
}
