//! A scheduler under a virtual clock, and a record of what was delivered.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::*;
use crate::engine::EngineCore;
use crate::policy::{Fixed, Scratch, Static};
use crate::protocol::{Clock, ExecutorInfo, Micros, RequestId, RequestSummary, SamplingParams, Slo, TokenId};
use crate::simulate::DraftQuality;
use crate::simulate::virtual_executor::{
    TimeError, VOCAB_SIZE, VirtualClock, VirtualExecutor, VirtualOptions,
};
use crate::step::{self, StepPlan};
use crate::timing::profile::tests::gpu_like;

/// A scheduler whose steps take the time of [`gpu_like`], without drafts.
pub(super) struct Timed {
    pub(super) core: EngineCore,
    executor: VirtualExecutor,
    clock: Arc<VirtualClock>,
    pub(super) outputs: BTreeMap<RequestId, Vec<TokenId>>,
    /// Terminal events, in order.
    pub(super) ends: Vec<Delivery>,
}

/// So many slots, prefill in chunks of 256 tokens, and blocks for 4096 · 16 tokens.
pub(super) fn limits(slots: u32) -> SchedulerLimits {
    SchedulerLimits {
        running_requests_max: slots,
        prefill_chunk_tokens_max: 256,
        batch_tokens_max: 512,
        draft_tokens_max: 0,
        sampled_rows_max: u32::MAX,
        target_blocks: 4096,
        drafter: None,
    }
}

/// A request that arrives at once, has no objectives and outputs 40 tokens.
pub(super) fn request(id: u64, prompt_tokens: u32) -> GenerationRequest {
    GenerationRequest {
        id: RequestId(id),
        prompt: VirtualExecutor::prompt(RequestId(id), prompt_tokens),
        max_tokens: 40,
        sampling: Arc::new(SamplingParams::greedy()),
        stop_tokens: Arc::from([]),
        slo: Slo::default(),
        class: 0,
        weight: 1.0,
        arrival: Micros::ZERO,
    }
}

/// A pacer that knows what steps take.
pub(super) fn pacer() -> Pacer {
    Pacer::new(gpu_like().cost_model().expect("valid"))
}

fn executor(limits: &SchedulerLimits, clock: Arc<VirtualClock>) -> VirtualExecutor {
    let info = ExecutorInfo {
        backend: "virtual".to_owned(),
        device: "a test".to_owned(),
        vocab_size: VOCAB_SIZE,
        context_tokens_max: limits.target_blocks * 16,
        block_tokens: 16,
        target_blocks: limits.target_blocks,
        drafter: None,
        batch_tokens_max: limits.batch_tokens_max,
        batch_sequences_max: limits.running_requests_max,
        draft_tokens_max: 0,
        sampled_rows_max: u32::MAX,
        memory: crate::protocol::ExecutorMemory::default(),
    };
    let options = VirtualOptions {
        info,
        cost: gpu_like().cost_model().expect("valid"),
        error: TimeError::NONE,
        acceptance: DraftQuality::typical().options(&[]),
        seed: 1,
    };
    VirtualExecutor::new(options, clock)
}

impl Timed {
    /// Serves by slack with a pacer, else first come, first served.
    pub(super) fn new(limits: SchedulerLimits, pacer: Option<Pacer>) -> Timed {
        let clock = Arc::new(VirtualClock::default());
        let executor = executor(&limits, clock.clone());
        let scheduler = Scheduler::new(limits);
        let scheduler = match pacer {
            Some(pacer) => scheduler.paced(pacer),
            None => scheduler,
        };
        Timed {
            core: EngineCore::new(scheduler, Box::new(Static::new(Fixed::NONE))),
            executor,
            clock,
            outputs: BTreeMap::new(),
            ends: Vec::new(),
        }
    }

    pub(super) fn now(&self) -> Micros {
        self.clock.now()
    }

    pub(super) fn plan(&mut self) -> Option<StepPlan> {
        let plan = self.core.begin(self.clock.now());
        self.ends.extend(self.core.take_refused());
        self.core.scheduler().assert_conserved();
        plan
    }

    pub(super) fn finish(&mut self, plan: StepPlan) {
        let result =
            step::run(&mut self.executor, plan, &mut Scratch::default(), &*self.clock).expect("runs");
        self.executor.spend_host_time();
        let finished = self.core.finish(result, self.clock.now()).expect("it is in flight");
        self.core.settle(&finished.report);
        for (id, event) in finished.deliveries {
            match event {
                TokenEvent::Tokens(tokens) => self.outputs.entry(id).or_default().extend(tokens),
                end => self.ends.push((id, end)),
            }
        }
    }

    /// Runs a step; whether there was anything to do.
    pub(super) fn step(&mut self) -> bool {
        let plan = self.plan();
        let has_work = plan.is_some();
        if let Some(plan) = plan {
            self.finish(plan);
        }
        has_work
    }

    /// Serves requests in the order of their arrival until all have ended.
    pub(super) fn serve(&mut self, requests: Vec<GenerationRequest>) {
        let mut arrivals = requests.into_iter().peekable();
        loop {
            while let Some(request) = arrivals.next_if(|request| request.arrival <= self.clock.now()) {
                self.core.enqueue(request);
            }
            if !self.step() {
                let Some(next) = arrivals.peek() else { break };
                self.clock.advance_to(next.arrival);
            }
        }
        assert!(self.core.scheduler().is_idle());
    }

    /// Of a request that finished.
    pub(super) fn summary(&self, id: u64) -> RequestSummary {
        match self.ends.iter().find(|(ended, _)| ended.0 == id) {
            Some((_, TokenEvent::Finished { summary, .. })) => summary.clone(),
            other => panic!("request {id} did not finish: {other:?}"),
        }
    }
}
