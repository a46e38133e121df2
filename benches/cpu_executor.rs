//! The CPU executor on the embedded pair's shapes, two threads, beside the ceilings of
//! the machine measured in the same run.
//!
//! `cargo bench --bench cpu_executor`

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use specserve::executor::cpu::{CpuExecutor, CpuOptions, Roofline};
use specserve::executor::{Drafter, Executor, Target};
use specserve::model::{LoadedModel, ModelSource, load};
use specserve::protocol::{
    BlockId, DraftForest, DraftSeed, ModelRole, RequestId, SamplingParams, SequenceInput, VerifyRow,
};

const THREADS: usize = 2;
const BLOCK_TOKENS: u32 = 16;
/// Blocks of each sequence: room for the context below and the longest input.
const SEQUENCE_BLOCKS: u32 = 32;
/// Tokens in the cache before a step.
const CONTEXT: u32 = 200;
const SEQUENCES: u32 = 16;

fn embedded(role: ModelRole) -> LoadedModel {
    load(&ModelSource::EmbeddedTiny, role).expect("the embedded pair loads").loaded
}

fn executor() -> CpuExecutor {
    let options = CpuOptions {
        threads: THREADS,
        target_blocks: SEQUENCES * SEQUENCE_BLOCKS,
        draft_blocks: SEQUENCES * SEQUENCE_BLOCKS,
        block_tokens: BLOCK_TOKENS,
        batch_tokens_max: 1024,
        batch_sequences_max: SEQUENCES,
        draft_tokens_max: 16,
    };
    let executor =
        CpuExecutor::new(options, embedded(ModelRole::Target), Some(embedded(ModelRole::Draft).into()))
            .expect("the pair fits the executor");
    // as the daemon's device thread does
    executor.pin_caller();
    executor
}

/// Sequence number `sequence` with `tokens` tokens from `start` on. Its blocks are scattered.
fn input(sequence: u32, start: u32, tokens: u32) -> SequenceInput {
    SequenceInput {
        request: RequestId(sequence.into()),
        tokens: (0..tokens).map(|token| 300 + (token * 37 + sequence * 11) % 3000).collect(),
        start,
        blocks: (0..SEQUENCE_BLOCKS).map(|block| BlockId(block * SEQUENCES + sequence)).collect(),
        sampling: Arc::new(SamplingParams::greedy()),
        history: None,
    }
}

fn verify_row(sequence: u32, start: u32, tokens: u32, drafts: u32) -> VerifyRow {
    VerifyRow { drafts, ..VerifyRow::decode(input(sequence, start, tokens)) }
}

fn fill(executor: &mut CpuExecutor) {
    executor.pin_caller();
    for sequence in 0..SEQUENCES {
        executor.logits(ModelRole::Target, &input(sequence, 0, CONTEXT)).expect("a prefill");
        executor.logits(ModelRole::Draft, &input(sequence, 0, CONTEXT)).expect("a prefill");
    }
}

fn target_steps(criterion: &mut Criterion) {
    let mut executor = executor();
    fill(&mut executor);
    let mut group = criterion.benchmark_group("target");
    let decode = |sequences: u32| (0..sequences).map(|s| verify_row(s, CONTEXT, 1, 0)).collect::<Vec<_>>();
    let steps = [
        ("decode, batch 1", decode(1)),
        ("verify 5 tokens", vec![verify_row(0, CONTEXT, 5, 4)]),
        ("verify 8 tokens", vec![verify_row(0, CONTEXT, 8, 7)]),
        ("decode, batch 16", decode(16)),
        ("prefill 256", vec![verify_row(0, 0, 256, 0)]),
    ];
    for (name, rows) in &steps {
        let mut verdicts = Vec::new();
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| executor.verify(rows, &mut verdicts).expect("a step"));
        });
    }
    group.finish();
}

fn draft_steps(criterion: &mut Criterion) {
    let mut executor = executor();
    fill(&mut executor);
    let mut group = criterion.benchmark_group("draft");
    for sequences in [1, 16] {
        let rows: Vec<DraftSeed> = (0..sequences)
            .map(|s| DraftSeed { row: 0, input: input(s, CONTEXT, 1), limit: 8, mask: None })
            .collect();
        let mut forest = DraftForest::default();
        group.bench_function(BenchmarkId::new("step", format!("batch {sequences}")), |bencher| {
            bencher.iter(|| {
                forest.clear();
                executor.start(&rows, &mut forest).expect("a step");
            });
        });
    }
    group.finish();
}

/// Matrix weights of a model: what one pass multiplies by.
fn weights(model: &LoadedModel) -> usize {
    let layers = model.weights.layers.iter().flat_map(|layer| {
        [&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate, &layer.up, &layer.down]
    });
    layers.map(|linear| linear.weight.elements()).sum::<usize>() + model.weights.head.elements()
}

/// Prints the bounds, before this thread is bound to one processor (new threads would inherit that): bytes of the weights over the streaming rate, multiply-adds over their rate.
fn bounds(_: &mut Criterion) {
    for role in [ModelRole::Target, ModelRole::Draft] {
        let weights = weights(&embedded(role));
        let roofline = Roofline::measure(THREADS, 2 * weights).expect("threads and memory");
        let stream_us = 2.0 * weights as f64 / roofline.stream_bytes_per_second * 1e6;
        let compute_us = weights as f64 / roofline.multiply_adds_per_second * 1e6;
        println!(
            "bound, {role:?}: {weights} weights in bf16; streaming {:.1} GB/s: {stream_us:.1} µs a pass; \
             {:.1} G multiply-adds/s: {compute_us:.1} µs a row",
            roofline.stream_bytes_per_second * 1e-9,
            roofline.multiply_adds_per_second * 1e-9,
        );
    }
}

criterion_group!(benches, bounds, target_steps, draft_steps);
criterion_main!(benches);
