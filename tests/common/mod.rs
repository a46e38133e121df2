//! Shared by the integration tests: runs requests through scheduler, step and executor,
//! without actors, on any executor.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod tree_policies;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use specserve::engine::EngineCore;
use specserve::executor::Executor;
use specserve::executor::cpu::{CpuExecutor, CpuOptions};
use specserve::model::{DraftHead, DraftWeights, LoadedModel, ModelSource, load};
use specserve::policy::{Learner, Scratch};
use specserve::protocol::{
    Clock, ConstraintState, GenerationRequest, Micros, ModelRole, RequestId, RequestSummary, SamplingParams,
    Slo, TokenConstraint, TokenEvent, TokenId, TokenMask,
};
use specserve::scheduler::{Scheduler, SchedulerLimits};
use specserve::step;

/// Prompts that the embedded pair was trained for.
pub const PROMPTS: [&str; 8] = [
    "Tell me a story about a brave mouse.",
    "What is a river?",
    "Write a Python function that checks if a number is prime.",
    "Give me three tips to cook.",
    "Why do people sing?",
    "Tell me a story about a lighthouse and a storm.",
    "Write a Python function that reverses a list.",
    "What is a friend?",
];

struct Standstill;

impl Clock for Standstill {
    fn now(&self) -> Micros {
        Micros::ZERO
    }
}

/// One model of the embedded pair.
pub fn embedded(role: ModelRole) -> LoadedModel {
    load(&ModelSource::EmbeddedTiny, role).expect("the embedded pair loads").loaded
}

/// A head of the embedded target: `eagle3` or `dspark`.
pub fn head(directory: &str) -> DraftWeights {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny").join(directory);
    let target = embedded(ModelRole::Target).spec;
    let head = DraftHead::load(&ModelSource::Directory(path), Some(&target)).expect("the head loads");
    head.expect("it is a head").into()
}

/// Everything that drafts for the embedded target, with a name.
pub fn drafters() -> [(&'static str, DraftWeights); 3] {
    [
        ("the draft model", embedded(ModelRole::Draft).into()),
        ("the EAGLE-3 head", head("eagle3")),
        ("the DSpark head", head("dspark")),
    ]
}

/// Chat prompt `number`, tokenized; prompts repeat with a varying prefix.
pub fn prompt(number: usize) -> Arc<[TokenId]> {
    let model = load(&ModelSource::EmbeddedTiny, ModelRole::Target).expect("the embedded pair loads");
    let extra = if number < PROMPTS.len() { String::new() } else { format!(" Use the number {number}.") };
    let text = format!(
        "<|endoftext|><|im_start|>user\n{}{extra}<|im_end|>\n<|im_start|>assistant\n",
        PROMPTS[number % PROMPTS.len()]
    );
    model.tokenizer.encode(&text, false).expect("encodes").into()
}

/// Most drafts of a step.
const DRAFT_TOKENS_MAX: u32 = 8;

/// A CPU executor for the given models.
pub fn cpu(target: LoadedModel, draft: Option<DraftWeights>, target_blocks: u32) -> CpuExecutor {
    cpu_for(DRAFT_TOKENS_MAX, target, draft, target_blocks)
}

/// A [`cpu`] executor that verifies up to so many drafts of a sequence.
pub fn cpu_for(
    draft_tokens_max: u32,
    target: LoadedModel,
    draft: Option<DraftWeights>,
    target_blocks: u32,
) -> CpuExecutor {
    let options = CpuOptions {
        threads: 2,
        target_blocks,
        draft_blocks: 512,
        block_tokens: 16,
        batch_tokens_max: 512,
        batch_sequences_max: 32,
        draft_tokens_max,
    };
    CpuExecutor::new(options, target, draft).expect("the models fit the executor")
}

/// Outcome of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Played {
    /// Output tokens.
    pub tokens: Vec<TokenId>,
    /// Final statistics.
    pub summary: RequestSummary,
}

/// Runs `requests` to completion, at most `batch` at a time; checks the KV invariants after every step.
pub fn play(
    executor: &mut dyn Executor,
    learner: Box<dyn Learner>,
    batch: u32,
    requests: &[GenerationRequest],
) -> BTreeMap<RequestId, Played> {
    let limits = SchedulerLimits {
        running_requests_max: batch,
        prefill_chunk_tokens_max: 64,
        batch_tokens_max: 512,
        draft_tokens_max: executor.info().draft_tokens_max,
        sampled_rows_max: u32::MAX,
        target_blocks: 0,
        drafter: None,
    };
    let mut core = EngineCore::new(Scheduler::new(limits.within(executor.info())), learner);
    let mut played: BTreeMap<RequestId, Played> = BTreeMap::new();
    for request in requests {
        core.enqueue(request.clone());
    }
    let (mut now, mut scratch) = (Micros::ZERO, Scratch::default());
    while let Some(plan) = core.begin(now) {
        let result = step::run(executor, plan, &mut scratch, &Standstill).expect("verifies");
        assert_eq!(result.fault, None);
        result.check(executor.info().vocab_size).expect("a result that makes sense");
        now += Micros::from_millis(1);
        let finished = core.finish(result, now).expect("the step is in flight");
        assert_eq!(core.settle(&finished.report).fault, None);
        for (id, event) in finished.deliveries {
            let entry = played.entry(id).or_default();
            match event {
                TokenEvent::Tokens(tokens) => entry.tokens.extend(tokens),
                TokenEvent::Finished { summary, .. } => entry.summary = summary,
                TokenEvent::Failed(failure) => panic!("request {id}: {failure}"),
            }
        }
        core.scheduler().assert_conserved();
    }
    assert!(core.scheduler().is_idle());
    played
}

/// Request `number`: with `temperature` if even, else greedy, and its own seed.
pub fn request(number: usize, max_tokens: u32, sampling: SamplingParams) -> GenerationRequest {
    GenerationRequest {
        id: RequestId(number as u64),
        prompt: prompt(number),
        max_tokens,
        sampling: Arc::new(SamplingParams { seed: 1000 + number as u64, ..sampling }),
        stop_tokens: Arc::from([0, 2]),
        slo: Slo::default(),
        class: 0,
        weight: 1.0,
        arrival: Micros(number as u64),
    }
}

/// Even tokens at even indices of the output, any token elsewhere.
#[derive(Debug)]
pub struct EvenAtEven {
    /// Vocabulary size.
    pub vocab_size: u32,
}

impl TokenConstraint for EvenAtEven {
    fn state(&self, output: &[TokenId]) -> Box<dyn ConstraintState> {
        Box::new(EvenNow { vocab_size: self.vocab_size, now: output.len().is_multiple_of(2) })
    }
}

/// Whether the next token must be even.
#[derive(Clone, Debug)]
struct EvenNow {
    vocab_size: u32,
    now: bool,
}

impl ConstraintState for EvenNow {
    fn mask(&mut self) -> Option<Arc<TokenMask>> {
        self.now.then(|| Arc::new(TokenMask::from_fn(self.vocab_size, |token| token.is_multiple_of(2))))
    }

    fn advance(&mut self, _: TokenId) {
        self.now = !self.now;
    }

    fn fork(&self) -> Box<dyn ConstraintState> {
        Box::new(self.clone())
    }
}
