//! What a step costs outside the executors: scheduler, actors, thread hops, token streams.
//!
//! The executor is the shadow one, whose own time is measured and taken off. Run with
//! `cargo bench --bench engine_overhead [-- sleeping|polling]`; docs/benchmarks.md holds the figures.

use std::sync::Arc;
use std::time::Duration;

use specserve::actors::{AdmissionPolicy, Engine, EngineOptions, EngineParts, Polling};
use specserve::executor::{ShadowExecutor, ShadowOptions};
use specserve::policy::{Fixed, Static};
use specserve::protocol::{
    DrafterNeeds, ExecutorInfo, Micros, MonotonicClock, SamplingParams, Slo, Submission, TokenEvent,
};
use specserve::scheduler::SchedulerLimits;
use specserve::telemetry::MetricsConfig;

/// The program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BLOCKS: u32 = 8192;
const OUTPUT_TOKENS: u32 = 1500;
/// As around a GPU: needs a core each for the engine, the device and this program.
const POLLING: Polling = Polling { job: Duration::from_micros(500), answer: Duration::from_millis(50) };

fn options(polling: Polling) -> EngineOptions {
    EngineOptions {
        limits: SchedulerLimits {
            running_requests_max: 64,
            prefill_chunk_tokens_max: 256,
            batch_tokens_max: 1024,
            draft_tokens_max: 8,
            sampled_rows_max: u32::MAX,
            target_blocks: BLOCKS,
            drafter: Some(DrafterNeeds::kv_cache(BLOCKS)),
        },
        queue_requests_max: 256,
        queue_prompt_tokens_max: 1 << 20,
        refusals: AdmissionPolicy::default(),
        metrics: MetricsConfig::default(),
        clock: Arc::new(MonotonicClock::start()),
        step_timeout: Micros::from_millis(10_000),
        queue_wait_max: Micros::from_millis(600_000),
        polling,
    }
}

fn shadow() -> ShadowOptions {
    let small = ShadowOptions::small(BLOCKS, BLOCKS);
    let info = ExecutorInfo { batch_tokens_max: 1024, ..small.info };
    ShadowOptions { info, ..small }
}

fn submission(seed: u32) -> Submission {
    Submission {
        prompt: (0..200).map(|i| (i * 3 + seed * 97) % 1000).collect(),
        max_tokens: OUTPUT_TOKENS,
        sampling: Arc::new(SamplingParams::greedy()),
        stop_tokens: Arc::from([]),
        slo: Slo::default(),
        class: 0,
        weight: 1.0,
        arrival: Micros::ZERO,
    }
}

async fn measure(requests: u32, draft_tokens: u32, polling: Polling) {
    let build = move || {
        Ok(EngineParts {
            executor: Box::new(ShadowExecutor::new(shadow())),
            learner: Box::new(Static::new(Fixed { draft_tokens })),
            pacer: None,
        })
    };
    let engine = Engine::start(build, options(polling)).expect("starts");
    let mut tasks = Vec::new();
    for seed in 0..requests {
        let mut generation = engine.handle().submit(submission(seed)).await.expect("admitted");
        tasks.push(tokio::spawn(async move {
            while let Some(event) = generation.events.recv().await {
                if event.is_terminal() {
                    assert!(matches!(event, TokenEvent::Finished { .. }));
                }
            }
        }));
    }
    for task in tasks {
        task.await.expect("finishes");
    }
    let state = engine.handle().state().await;
    let host = &state["metrics"]["host"];
    let micros = |quantile: &str| host[quantile].as_f64().unwrap_or(f64::NAN) * 1000.0;
    println!(
        "{requests:>3} running, {draft_tokens} drafts, {:>8}: host time a step p50 {:>6.1} us, p90 {:>6.1} us, p99 {:>7.1} us",
        name_of(polling),
        micros("p50_ms"),
        micros("p90_ms"),
        micros("p99_ms"),
    );
    engine.shutdown(Duration::from_secs(10)).await;
}

fn name_of(polling: Polling) -> &'static str {
    if polling == Polling::NONE { "sleeping" } else { "polling" }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
        for polling in [Polling::NONE, POLLING] {
            if filter.as_deref().is_some_and(|wanted| wanted != name_of(polling)) {
                continue;
            }
            for (requests, draft_tokens) in [(1, 0), (1, 4), (32, 0), (32, 4), (64, 0), (64, 4)] {
                measure(requests, draft_tokens, polling).await;
            }
        }
    });
}
