//! Time to choose or propose one token from a row of logits, by vocabulary and parameters.
//!
//! Rows look like a language model's: a few likely tokens above a bell of unlikely ones.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use specserve::protocol::SamplingParams;
use specserve::sampling::noise::Noise;
use specserve::sampling::{Sampler, TokenHistory};

/// The embedded pair's vocabulary, and that of Qwen2.5.
const VOCAB_SIZES: [usize; 2] = [4096, 151_936];

/// A bell of standard deviation 2.5 (four Gumbels) under a head that falls off with the rank.
fn logits(vocab_size: usize) -> Vec<f32> {
    let part = |position, token| Noise { seed: 1, position }.gumbel(token) - 0.577;
    (0..vocab_size as u32)
        .map(|token| {
            let bell: f32 = (0..4).map(|position| part(position, token)).sum::<f32>() * 0.97;
            let rank = (token.wrapping_mul(2_654_435_761) % vocab_size as u32) as f32;
            bell + 14.0 / (1.0 + 0.2 * rank)
        })
        .collect()
}

fn parameters() -> Vec<(&'static str, SamplingParams)> {
    let greedy = SamplingParams::greedy();
    let warm = SamplingParams { temperature: 0.8, ..greedy.clone() };
    vec![
        ("greedy", greedy),
        ("temperature", warm.clone()),
        ("top_k", SamplingParams { top_k: 40, ..warm.clone() }),
        ("top_p", SamplingParams { top_p: 0.95, ..warm.clone() }),
        ("penalties", SamplingParams { repetition_penalty: 1.1, ..warm }),
    ]
}

fn sampling(criterion: &mut Criterion) {
    let history = TokenHistory::new(100, (0..500u32).map(|i| i * 7 % 1000).collect());
    for vocab_size in VOCAB_SIZES {
        let row = logits(vocab_size);
        let mut group = criterion.benchmark_group(format!("sampling/{vocab_size}"));
        group.throughput(Throughput::Bytes(4 * vocab_size as u64));
        group
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(400))
            .sample_size(10);
        for (name, params) in parameters() {
            let (mut sampler, mut position) = (Sampler::new(), 0);
            group.bench_function(BenchmarkId::new("choose", name), |bencher| {
                bencher.iter(|| {
                    position += 1;
                    sampler.sample(black_box(&row), &params, position, &history)
                });
            });
            group.bench_function(BenchmarkId::new("propose", name), |bencher| {
                bencher.iter(|| {
                    position += 1;
                    sampler.propose(black_box(&row), &params, position, &history)
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, sampling);
criterion_main!(benches);
