//! What the scheduler and a step's functions do between a device's answer and its next work,
//! part by part, on one thread and without actors. See `engine_overhead` for the whole.
//!
//! `cargo bench --bench engine_parts`. 64 requests decode at contexts of 1,000 to 3,000 tokens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use specserve::engine::EngineCore;
use specserve::executor::{ShadowExecutor, ShadowOptions};
use specserve::policy::{Fixed, Scratch, Static};
use specserve::protocol::{
    Clock, DrafterNeeds, ExecutorInfo, GenerationRequest, MonotonicClock, RequestId, SamplingParams, Slo,
};
use specserve::scheduler::{Scheduler, SchedulerLimits};
use specserve::step::{StepPlan, draft, verify};

/// The program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const REQUESTS: u32 = 64;
const PROMPT_TOKENS: u32 = 1000;
const OUTPUT_TOKENS: u32 = 2000;
const BLOCKS: u32 = 16_384;
/// Timed steps of one figure; the median counts.
const STEPS: usize = 480;
const PARTS: [&str; 5] = ["commit", "plan", "select", "settle", "drop"];

fn main() {
    for draft_tokens in [0, 4] {
        let mut times = PARTS.map(|_| Vec::with_capacity(STEPS));
        run(draft_tokens, &mut times);
        print!("{REQUESTS} running, {draft_tokens} drafts, us a step, median (mean):");
        for (part, mut times) in PARTS.into_iter().zip(times) {
            times.sort_unstable();
            let mean = times.iter().sum::<Duration>().as_secs_f64() / times.len() as f64;
            print!(" {part} {:.2} ({:.2}),", times[times.len() / 2].as_secs_f64() * 1e6, mean * 1e6);
        }
        println!();
    }
}

fn run(draft_tokens: u32, times: &mut [Vec<Duration>; 5]) {
    let small = ShadowOptions::small(BLOCKS, BLOCKS);
    let info = ExecutorInfo { batch_tokens_max: 1024, ..small.info };
    let mut executor = ShadowExecutor::new(ShadowOptions { info, ..small });
    let clock = MonotonicClock::start();
    let mut core = EngineCore::new(scheduler(), Box::new(Static::new(Fixed { draft_tokens })));
    let mut scratch = Scratch::default();
    let mut plan = core.begin(clock.now());
    while let Some(current) = plan.take() {
        let timed = times[0].len() < STEPS && is_steady(&current);
        let drafted = draft(&mut executor, current, &mut scratch, &clock);
        let (selected, select) = time(|| drafted.select(&mut scratch));
        let result = verify(&mut executor, selected, &clock).expect("verifies");
        let (finished, commit) = time(|| core.finish(result, clock.now()).expect("in flight"));
        let (next, planning) = time(|| core.begin(clock.now()));
        let (_, settle) = time(|| core.settle(&finished.report));
        let ((), dropping) = time(|| drop(finished));
        if timed {
            for (times, time) in times.iter_mut().zip([commit, planning, select, settle, dropping]) {
                times.push(time);
            }
        }
        plan = next;
    }
}

/// Whether everybody decodes.
fn is_steady(plan: &StepPlan) -> bool {
    plan.view.decoding.len() == REQUESTS as usize
}

#[expect(clippy::disallowed_methods, reason = "measures the host in nanoseconds")]
fn time<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

fn scheduler() -> Scheduler {
    let mut scheduler = Scheduler::new(SchedulerLimits {
        running_requests_max: REQUESTS,
        prefill_chunk_tokens_max: 256,
        batch_tokens_max: 1024,
        draft_tokens_max: 8,
        sampled_rows_max: u32::MAX,
        target_blocks: BLOCKS,
        drafter: Some(DrafterNeeds::kv_cache(BLOCKS)),
    });
    let sampling = Arc::new(SamplingParams::greedy());
    for id in 0..REQUESTS {
        scheduler.enqueue(GenerationRequest {
            id: RequestId(id.into()),
            prompt: (0..PROMPT_TOKENS).map(|token| (token * 3 + id * 97) % 1000).collect(),
            max_tokens: OUTPUT_TOKENS,
            sampling: sampling.clone(),
            stop_tokens: Arc::from([]),
            slo: Slo::default(),
            class: 0,
            weight: 1.0,
            arrival: specserve::protocol::Micros::ZERO,
        });
    }
    scheduler
}
