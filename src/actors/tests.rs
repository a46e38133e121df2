//! The engine with a shadow executor: flow, faults, shutdown.

mod objectives;
mod recovery;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::messages::DrafterMessage;
use super::*;
use crate::executor::{Drafter, Executor, ShadowExecutor, ShadowOptions, Target};
use crate::pacing::Pacer;
use crate::policy::{Fixed, Learner, Policy, Scratch, Static};
use crate::protocol::{
    AdmissionError, Compaction, DraftForest, DraftSeed, DrafterNeeds, ExecutorError, ExecutorInfo,
    FinishReason, Generation, Micros, ModelRole, MonotonicClock, NodeId, RequestFailure, SamplingParams,
    SequenceInput, Slo, StepDecision, StepView, Submission, Termination, TokenEvent, TokenId, Verdict,
    VerifyRow,
};
use crate::scheduler::SchedulerLimits;
use crate::telemetry::MetricsConfig;
use crate::timing::profile::tests::gpu_like;

const LONG: Duration = Duration::from_secs(20);

fn options() -> EngineOptions {
    EngineOptions {
        limits: SchedulerLimits {
            running_requests_max: 8,
            prefill_chunk_tokens_max: 64,
            batch_tokens_max: 128,
            draft_tokens_max: 8,
            sampled_rows_max: u32::MAX,
            target_blocks: 64,
            drafter: Some(DrafterNeeds::kv_cache(64)),
        },
        queue_requests_max: 16,
        queue_prompt_tokens_max: 4096,
        refusals: AdmissionPolicy::default(),
        metrics: MetricsConfig::default(),
        clock: Arc::new(MonotonicClock::start()),
        step_timeout: Micros::from_millis(5_000),
        queue_wait_max: Micros::from_millis(60_000),
        polling: Polling::NONE,
    }
}

fn shadow() -> ShadowOptions {
    ShadowOptions::small(64, 64)
}

fn start(shadow: ShadowOptions, options: EngineOptions) -> Engine {
    start_with(ShadowExecutor::new(shadow), Box::new(Static::new(Fixed { draft_tokens: 4 })), options)
}

fn start_with(
    executor: impl Executor + 'static,
    learner: Box<dyn Learner>,
    options: EngineOptions,
) -> Engine {
    let build = move || Ok(EngineParts { executor: Box::new(executor), learner, pacer: None });
    Engine::start(build, options).expect("starts")
}

fn submission(seed: u32, prompt_tokens: u32, max_tokens: u32) -> Submission {
    Submission {
        prompt: (0..prompt_tokens).map(|i| (i * 3 + seed * 97) % 1000).collect(),
        max_tokens,
        sampling: Arc::new(SamplingParams::greedy()),
        stop_tokens: Arc::from([]),
        slo: Slo::default(),
        class: 0,
        weight: 1.0,
        arrival: Micros::ZERO,
    }
}

fn expected(submission: &Submission) -> Vec<TokenId> {
    let shadow = ShadowExecutor::new(shadow());
    shadow.expect(&submission.prompt, &submission.sampling, submission.max_tokens as usize)
}

/// Drafts four tokens, and says how well it is calibrated.
#[derive(Debug)]
struct Calibrated;

impl Learner for Calibrated {
    fn observe(&mut self, _: &crate::protocol::StepReport) {}

    fn snapshot(&self) -> Arc<dyn Policy> {
        Arc::new(Fixed { draft_tokens: 4 })
    }

    fn calibration_error(&self) -> Option<f64> {
        Some(0.0625)
    }
}

/// All tokens and the terminal event; fails if anything follows that.
async fn listen(mut generation: Generation) -> (Vec<TokenId>, TokenEvent) {
    let mut said = Vec::new();
    let end = loop {
        match tokio::time::timeout(LONG, generation.events.recv()).await.expect("an event in time") {
            Some(TokenEvent::Tokens(tokens)) => said.extend(tokens),
            Some(end) => break end,
            None => panic!("the stream ended without a terminal event"),
        }
    };
    assert_eq!(generation.events.recv().await, None, "nothing may follow the terminal event");
    (said, end)
}

async fn eventually(engine: &EngineHandle, what: &str, holds: impl Fn(&serde_json::Value) -> bool) {
    for _ in 0..2000 {
        if holds(&engine.state().await) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}: {}", engine.state().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_show_the_executors_memory() {
    let mut shadow = shadow();
    shadow.info.memory.draft_kv = 12_345;
    let engine = start(shadow, options());
    let page = engine.handle().metrics().await;
    assert!(page.contains("\nspecserve_memory_bytes{part=\"draft_kv\"} 12345\n"), "{page}");
    assert!(engine.shutdown(LONG).await, "nothing was left to do");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_show_what_the_learner_says_of_its_calibration() {
    let engine = start_with(ShadowExecutor::new(shadow()), Box::new(Calibrated), options());
    let submission = submission(1, 20, 40);
    listen(engine.handle().submit(submission).await.expect("admitted")).await;
    eventually(engine.handle(), "a calibration error", |state| {
        let errors = &state["metrics"]["calibration_error"];
        errors["calibrated"] == 0.0625 && errors["draft"].as_f64().is_some()
    })
    .await;
    let page = engine.handle().metrics().await;
    let line = "\nspecserve_confidence_calibration_error{confidence=\"calibrated\"} 0.0625\n";
    assert!(page.contains(line), "{page}");
    assert!(engine.shutdown(LONG).await, "nothing was left to do");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_get_their_own_tokens_in_order_and_one_end_each() {
    let engine = start(shadow(), options());
    let mut tasks = Vec::new();
    for seed in 0..12 {
        let handle = engine.handle().clone();
        tasks.push(tokio::spawn(async move {
            let submission = submission(seed, 20 + seed, 40);
            let wanted = expected(&submission);
            let (said, end) = listen(handle.submit(submission).await.expect("admitted")).await;
            assert_eq!(said, wanted);
            assert!(matches!(end, TokenEvent::Finished { reason: FinishReason::Length, .. }), "{end:?}");
        }));
    }
    for task in tasks {
        task.await.expect("gets its tokens");
    }
    assert!(engine.shutdown(LONG).await, "nothing was left to do");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engines_state_shows_the_order_of_service_and_what_the_pacer_learned() {
    let learner = || Box::new(Static::new(Fixed::NONE));
    let cost = gpu_like().cost_model().expect("valid");
    for (pacer, order) in [(None, "fifo"), (Some(Pacer::new(cost)), "slo")] {
        let paced = pacer.is_some();
        let executor = Box::new(ShadowExecutor::new(shadow()));
        let build = move || Ok(EngineParts { executor, learner: learner(), pacer });
        let engine = Engine::start(build, options()).expect("starts");
        let (said, _) = listen(engine.handle().submit(submission(1, 20, 7)).await.expect("admitted")).await;
        assert_eq!(said, expected(&submission(1, 20, 7)));
        let state = engine.handle().state().await;
        assert_eq!(state["scheduler"]["order"], order);
        let output_tokens = paced.then_some(7.0);
        assert_eq!(state["scheduler"]["pacer"]["output_tokens"].as_f64(), output_tokens, "{state}");
        engine.shutdown(LONG).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_drops_its_stream_frees_its_blocks() {
    let engine = start(shadow(), options());
    let generation = engine.handle().submit(submission(1, 30, 900)).await.expect("admitted");
    drop(generation);
    eventually(engine.handle(), "blocks come back", |state| {
        state["scheduler"]["target_kv"]["held"] == 0 && state["metrics"]["counters"]["failed"] == 1
    })
    .await;
    engine.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_a_request_from_outside_gives_it_its_terminal_event() {
    let engine = start(shadow(), options());
    for (ending, wanted) in [
        (Termination::Failed(RequestFailure::Cancelled), None),
        (Termination::Stopped, Some(FinishReason::Stop)),
    ] {
        let generation = engine.handle().submit(submission(1, 30, 900)).await.expect("admitted");
        engine.handle().end(generation.id, ending);
        let (_, end) = listen(generation).await;
        match (end, wanted) {
            (TokenEvent::Failed(RequestFailure::Cancelled), None) => {}
            (TokenEvent::Finished { reason, .. }, Some(wanted)) => assert_eq!(reason, wanted),
            other => panic!("{other:?}"),
        }
    }
    engine.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_never_be_served_is_refused_with_numbers() {
    let engine = start(shadow(), options());
    let refusal = engine.handle().submit(submission(1, 1000, 100)).await.expect_err("69 blocks of 64");
    assert_eq!(refusal, AdmissionError::TooLarge { needed: 69, total: 64 });
    engine.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_takes_again_when_it_moved() {
    let mut options = options();
    options.limits.running_requests_max = 1;
    options.queue_requests_max = 2;
    // slow enough that nothing ends while the queue fills
    let engine = start_slow(Duration::from_millis(5), options);
    let mut taken = Vec::new();
    let mut refused = 0;
    for seed in 0..20 {
        match engine.handle().submit(submission(seed, 30, 60)).await {
            Ok(generation) => taken.push(generation),
            Err(AdmissionError::QueueFull { what: "requests", limit: 2, .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 0 && taken.len() >= 2, "{refused} refused");
    for generation in taken {
        listen(generation).await;
    }
    engine.handle().submit(submission(1, 30, 5)).await.expect("there is room again");
    engine.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_error_ends_every_request_and_the_engine_says_why() {
    let engine = start(ShadowOptions { fails_at_call: Some(5), ..shadow() }, options());
    let mut listeners = Vec::new();
    for seed in 0..4 {
        let generation = engine.handle().submit(submission(seed, 30, 500)).await.expect("admitted");
        listeners.push(tokio::spawn(listen(generation)));
    }
    for listener in listeners {
        let (_, end) = listener.await.expect("ends");
        assert!(
            matches!(&end, TokenEvent::Failed(RequestFailure::Engine(why)) if why.contains("call 5")),
            "{end:?}"
        );
    }
    assert!(engine.handle().health().failed().await.contains("told to fail"));
    let refusal = engine.handle().submit(submission(1, 30, 5)).await.expect_err("not serving");
    assert_eq!(refusal, AdmissionError::Unavailable);
    engine.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_drafter_costs_drafts_for_a_while_and_no_token() {
    let engine = start(shadow(), options());
    let one = submission(1, 30, 900);
    let wanted = expected(&one);
    let listener = tokio::spawn(listen(engine.handle().submit(one).await.expect("admitted")));
    let drafter = engine
        .supervisor
        .get_children()
        .into_iter()
        .find(|child| child.is_message_type_of::<DrafterMessage>() == Some(true))
        .expect("the drafter is a child");
    drafter.kill();
    let (said, _) = listener.await.expect("ends");
    assert_eq!(said, wanted);
    let before = engine.handle().state().await["metrics"]["counters"]["drafted"].as_u64();
    let two = submission(2, 30, 100);
    let wanted = expected(&two);
    for _ in 0..2000 {
        assert_eq!(listen(engine.handle().submit(two.clone()).await.expect("admitted")).await.0, wanted);
        if engine.handle().state().await["metrics"]["counters"]["drafted"].as_u64() > before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    eventually(engine.handle(), "it drafts again", |state| {
        state["drafter_alive"] == true && state["metrics"]["counters"]["drafted"].as_u64() > before
    })
    .await;
    assert!(engine.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_finishes_what_runs_and_refuses_what_comes() {
    let engine = start(shadow(), options());
    let handle = engine.handle().clone();
    let one = submission(1, 30, 300);
    let wanted = expected(&one);
    let listener = tokio::spawn(listen(handle.submit(one).await.expect("admitted")));
    assert!(engine.shutdown(LONG).await);
    assert_eq!(listener.await.expect("ends").0, wanted);
    assert_eq!(handle.submit(submission(2, 3, 3)).await.expect_err("gone"), AdmissionError::Unavailable);
}

/// A shadow whose target takes its time.
struct Slow {
    shadow: ShadowExecutor,
    step: Duration,
}

impl Executor for Slow {
    fn info(&self) -> &ExecutorInfo {
        self.shadow.info()
    }
    fn target(&mut self) -> &mut dyn Target {
        self
    }
    fn drafter(&mut self) -> Option<&mut dyn Drafter> {
        self.shadow.drafter()
    }
    fn logits(&mut self, model: ModelRole, input: &SequenceInput) -> Result<Vec<f32>, ExecutorError> {
        self.shadow.logits(model, input)
    }
}

impl Target for Slow {
    fn verify(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError> {
        std::thread::sleep(self.step);
        self.shadow.verify(rows, out)
    }
    fn compact(&mut self, moves: &[Compaction]) -> Result<(), ExecutorError> {
        self.shadow.compact(moves)
    }
}

fn start_slow(step: Duration, options: EngineOptions) -> Engine {
    let executor = Slow { shadow: ShadowExecutor::new(shadow()), step };
    start_with(executor, Box::new(Static::new(Fixed { draft_tokens: 4 })), options)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_finished_by_the_drain_time_gets_a_terminal_error() {
    let engine = start_slow(Duration::from_millis(20), options());
    let generation = engine.handle().submit(submission(1, 30, 900)).await.expect("admitted");
    assert!(!engine.shutdown(Duration::from_millis(60)).await, "900 tokens take longer");
    assert_eq!(listen(generation).await.1, TokenEvent::Failed(RequestFailure::ShuttingDown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_hangs_is_a_device_error() {
    let mut options = options();
    options.step_timeout = Micros::from_millis(100);
    let engine = start_slow(Duration::from_millis(1500), options);
    let generation = engine.handle().submit(submission(1, 30, 5)).await.expect("admitted");
    let (_, end) = listen(generation).await;
    assert!(
        matches!(&end, TokenEvent::Failed(RequestFailure::Engine(why)) if why.contains("hangs")),
        "{end:?}"
    );
}

#[test]
fn an_executor_that_cannot_be_built_says_why() {
    let error = Engine::start(|| Err("no such model".to_owned()), options()).err();
    assert_eq!(error.as_deref(), Some("no such model"));
}

/// Fails in the way that a bug does.
struct Panics(ShadowExecutor);

impl Executor for Panics {
    fn info(&self) -> &ExecutorInfo {
        self.0.info()
    }
    fn target(&mut self) -> &mut dyn Target {
        self
    }
    fn drafter(&mut self) -> Option<&mut dyn Drafter> {
        Some(self)
    }
    fn logits(&mut self, _: ModelRole, _: &SequenceInput) -> Result<Vec<f32>, ExecutorError> {
        Ok(Vec::new())
    }
}

impl Target for Panics {
    fn verify(&mut self, _: &[VerifyRow], _: &mut Vec<Verdict>) -> Result<(), ExecutorError> {
        panic!("a bug in the executor")
    }
    fn compact(&mut self, _: &[Compaction]) -> Result<(), ExecutorError> {
        Ok(())
    }
}

impl Drafter for Panics {
    fn start(&mut self, _: &[DraftSeed], _: &mut DraftForest) -> Result<(), ExecutorError> {
        panic!("a bug in the executor")
    }
    fn extend(&mut self, _: &[NodeId], _: &mut DraftForest) -> Result<(), ExecutorError> {
        panic!("a bug in the executor")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_the_executor_is_a_device_error() {
    let executor = Panics(ShadowExecutor::new(shadow()));
    let engine = start_with(executor, Box::new(Static::new(Fixed { draft_tokens: 4 })), options());
    let generation = engine.handle().submit(submission(1, 30, 5)).await.expect("admitted");
    let (_, end) = listen(generation).await;
    assert!(
        matches!(&end, TokenEvent::Failed(RequestFailure::Engine(why)) if why.contains("a bug")),
        "{end:?}"
    );
    engine.shutdown(LONG).await;
}

/// A shadow whose verdicts are tampered with.
struct Lies {
    shadow: ShadowExecutor,
    lie: fn(&mut [Verdict]),
}

impl Executor for Lies {
    fn info(&self) -> &ExecutorInfo {
        self.shadow.info()
    }
    fn target(&mut self) -> &mut dyn Target {
        self
    }
    fn drafter(&mut self) -> Option<&mut dyn Drafter> {
        self.shadow.drafter()
    }
    fn logits(&mut self, model: ModelRole, input: &SequenceInput) -> Result<Vec<f32>, ExecutorError> {
        self.shadow.logits(model, input)
    }
}

impl Target for Lies {
    fn verify(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError> {
        self.shadow.verify(rows, out)?;
        (self.lie)(out);
        Ok(())
    }
    fn compact(&mut self, moves: &[Compaction]) -> Result<(), ExecutorError> {
        self.shadow.compact(moves)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_outside_the_vocabulary_is_a_device_error_and_is_not_delivered() {
    let lie = |verdicts: &mut [Verdict]| {
        // the shadow's vocabulary is 1000 tokens
        verdicts.iter_mut().flat_map(|verdict| &mut verdict.tokens).for_each(|token| *token = 1000);
    };
    let executor = Lies { shadow: ShadowExecutor::new(shadow()), lie };
    let engine = start_with(executor, Box::new(Static::new(Fixed { draft_tokens: 4 })), options());
    let generation = engine.handle().submit(submission(1, 30, 5)).await.expect("admitted");
    let (tokens, end) = listen(generation).await;
    assert!(tokens.is_empty());
    assert!(
        matches!(&end, TokenEvent::Failed(RequestFailure::Engine(why)) if why.contains("vocabulary")),
        "{end:?}"
    );
    engine.shutdown(LONG).await;
}
