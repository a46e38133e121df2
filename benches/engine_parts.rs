//! What the scheduler and a step's functions do between a device's answer and its next work,
//! part by part, on one thread and without actors. See `engine_overhead` for the whole.
//!
//! `cargo bench --bench engine_parts`. 64 requests decode at contexts of 1,000 to 3,000 tokens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use specserve::executor::{ShadowExecutor, ShadowOptions};
use specserve::policy::{Fixed, Policy, Scratch};
use specserve::protocol::{
    Clock, ExecutorInfo, GenerationRequest, MonotonicClock, RequestId, SamplingParams, Slo,
};
use specserve::scheduler::{Scheduler, SchedulerLimits};
use specserve::step::{StepPlan, draft_round, verify_round};

/// The program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const REQUESTS: u32 = 64;
const PROMPT_TOKENS: u32 = 1000;
const OUTPUT_TOKENS: u32 = 2000;
const BLOCKS: u32 = 16_384;
/// Timed steps of one figure; the median counts.
const STEPS: usize = 480;
const PARTS: [&str; 5] = ["commit", "plan", "select", "publish", "drop"];

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
    let policy: Arc<dyn Policy> = Arc::new(Fixed { draft_tokens });
    let clock = MonotonicClock::start();
    let (mut scheduler, mut scratch) = (scheduler(), Scratch::default());
    let mut plan = scheduler.plan(clock.now(), &policy);
    while let Some(current) = plan.take() {
        let timed = times[0].len() < STEPS && is_steady(&current);
        let mut drafted = draft_round(&mut executor, current, &mut scratch, &clock).expect("drafts");
        let (verified, select) = time(|| drafted.select(&mut scratch));
        let mut stepped = verify_round(&mut executor, drafted, verified, &clock).expect("verifies");
        let (deliveries, commit) = time(|| {
            let deliveries = scheduler.commit(stepped.outcome, clock.now());
            scheduler.recycle(&mut stepped.plan);
            deliveries
        });
        let (next, planning) = time(|| scheduler.plan(clock.now(), &policy));
        let ((), publish) = time(|| scheduler.publish_computed());
        let ((), dropping) = time(|| drop((stepped.plan, stepped.report, deliveries)));
        if timed {
            for (times, time) in times.iter_mut().zip([commit, planning, select, publish, dropping]) {
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
        target_blocks: BLOCKS,
        draft_blocks: BLOCKS,
        lookup: None,
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
            arrival: specserve::protocol::Micros::ZERO,
        });
    }
    scheduler
}
