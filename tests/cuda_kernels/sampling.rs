//! Noise and draft sampling against the CPU's bits.

use std::sync::Arc;

use specserve::executor::cuda::SamplingRows;
use specserve::executor::cuda::error::check_launch;
use specserve::executor::cuda::ffi::kernels::{self, DraftProposal, DraftSampleParams, SampleParams};
use specserve::protocol::{Proposal, SamplingParams, TokenMask};
use specserve::sampling::noise::Noise;
use specserve::sampling::{Sampler, TokenHistory};

use crate::draft_head::no_draft;
use crate::support::{Bench, Random};

/// Relative tolerance of probabilities; only policies read them, tokens do not depend on them.
const PROBABILITY_TOLERANCE: f32 = 1e-3;

#[test]
#[ignore = "needs a CUDA device"]
fn noise_has_the_cpu_s_bits() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        let (seed, position, count) = (bench.random.word(), bench.random.below(1 << 20) as u32, 152_064);
        let mut out = bench.poisoned::<f32>(count);
        // SAFETY: `out` holds `count` numbers and lives until the download.
        let status = unsafe {
            kernels::specserve_noise(seed, position, count as i32, out.mut_ptr(), bench.stream.raw())
        };
        check_launch(status, "noise").expect("launches");
        let noise = Noise { seed, position };
        for (token, got) in bench.download(&out).into_iter().enumerate() {
            let want = noise.gumbel(token as u32);
            assert_eq!(got.to_bits(), want.to_bits(), "token {token}, seed {seed}, position {position}");
        }
    }
}

/// Logits like a model's, flat ones, and coarse ones with many exact ties.
pub fn random_logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    match random.below(4) {
        0 => (0..vocab).map(|_| random.normal() * 0.01).collect(),
        1 => (0..vocab).map(|_| (random.normal() * 4.0).round() / 2.0).collect(),
        _ => {
            let mut logits: Vec<f32> = (0..vocab).map(|_| random.normal() * 2.5).collect();
            for _ in 0..20 {
                let token = random.below(vocab);
                logits[token] = 8.0 + 6.0 * random.uniform();
            }
            logits
        }
    }
}

/// All kinds of parameters.
pub fn random_params(random: &mut Random, vocab: usize) -> SamplingParams {
    let mut params = SamplingParams {
        temperature: [0.0, 0.3, 0.8, 1.0, 1.7, 1e-9][random.below(6)],
        seed: random.word(),
        ..SamplingParams::greedy()
    };
    if random.below(2) == 0 {
        params.top_k = [0, 1, 2, 20, 50, 5_000, vocab as u32, u32::MAX][random.below(8)];
        params.top_p = [1.0, 0.95, 0.5, 0.999, 0.0][random.below(5)];
        params.min_p = [0.0, 0.05, 0.5, 1.0][random.below(4)];
    }
    if random.below(3) == 0 {
        params.repetition_penalty = 1.0 + random.uniform();
        params.presence_penalty = random.uniform();
        params.frequency_penalty = random.uniform();
    }
    if random.below(3) == 0 {
        let mut tokens: Vec<u32> = (0..30).map(|_| random.below(vocab) as u32).collect();
        tokens.sort_unstable();
        tokens.dedup();
        params.logit_bias = tokens.into_iter().map(|token| (token, random.normal() * 5.0)).collect();
    }
    params
}

pub fn random_history(random: &mut Random, vocab: usize) -> TokenHistory {
    let tokens = (0..50).map(|_| random.below(vocab) as u32).collect();
    TokenHistory::new(20, tokens)
}

/// One call's rows, on the host.
struct Batch {
    logits: Vec<f32>,
    stride: usize,
    rows: SamplingRows,
    want: Vec<Proposal>,
}

/// None, few, one, half or all but few of the tokens, or no mask.
pub fn random_mask(random: &mut Random, vocab: usize) -> Option<Arc<TokenMask>> {
    let mut mask = TokenMask::none(vocab as u32);
    let few = 1 + random.below(9);
    match random.below(6) {
        0 => return None,
        1 => {}
        2 => mask.allow(random.below(vocab) as u32),
        3 => (0..few).for_each(|_| mask.allow(random.below(vocab) as u32)),
        4 => {
            let first = random.below(2) as u32;
            mask = TokenMask::from_fn(vocab as u32, |token| token % 2 == first);
        }
        _ => mask = TokenMask::from_fn(vocab as u32, |token| token as usize >= few),
    }
    Some(Arc::new(mask))
}

fn random_batch(random: &mut Random, rows: usize, vocab: usize, masked: bool) -> Batch {
    let stride = vocab.next_multiple_of(4);
    let mut batch =
        Batch { logits: vec![f32::NAN; rows * stride], stride, rows: SamplingRows::new(), want: Vec::new() };
    let mut sampler = Sampler::new();
    for row in 0..rows {
        let mut logits = random_logits(random, vocab);
        if row % 11 == 7 {
            let bad = random.below(vocab);
            logits[bad] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.below(3)];
        }
        batch.logits[row * stride..row * stride + vocab].copy_from_slice(&logits);
        if row % 13 == 5 {
            batch.rows.push_padding();
            batch.want.push(Proposal::default());
            continue;
        }
        let (params, history) = (random_params(random, vocab), random_history(random, vocab));
        let position = random.below(100_000) as u32;
        let mask = if masked { random_mask(random, vocab) } else { None };
        batch.rows.push_masked(&params, position, &history, mask.as_ref());
        batch.want.push(sampler.propose_allowed(&logits, mask.as_deref(), &params, position, &history));
    }
    batch
}

/// Rows of a head that drafts the first `draft_tokens` tokens alone.
fn draft_vocabulary_batch(random: &mut Random, rows: usize, draft_tokens: usize, vocab: usize) -> Batch {
    let mut batch = Batch { logits: Vec::new(), stride: vocab, rows: SamplingRows::new(), want: Vec::new() };
    let mut sampler = Sampler::new();
    for row in 0..rows {
        let mut logits = random_logits(random, draft_tokens);
        logits.extend((draft_tokens..vocab).map(no_draft));
        let temperature = [0.0, 1e-6, 0.01, 0.8, 2.0][row % 5];
        let params = SamplingParams { temperature, ..SamplingParams::greedy() };
        batch.rows.push(&params, row as u32, &TokenHistory::default());
        batch.want.push(sampler.propose(&logits, &params, row as u32, &TokenHistory::default()));
        batch.logits.extend(logits);
    }
    batch
}

fn run_draft(bench: &Bench, batch: &Batch, vocab: usize, naive: bool) -> Vec<DraftProposal> {
    let rows = batch.rows.rows().len();
    let mut logits = bench.upload(&batch.logits);
    let rows_on = bench.upload(bytemuck_rows(&batch.rows));
    let adjustments_on = bench.upload(bytemuck_adjustments(&batch.rows));
    let words: Vec<u32> = batch.rows.masks().iter().flat_map(|mask| mask.words().to_vec()).collect();
    let masks_on = bench.upload(&words);
    // SAFETY: plain arithmetic.
    let scratch_bytes = unsafe { kernels::specserve_sample_scratch_bytes(rows as i32) };
    let mut scratch = bench.zeroed::<u8>(scratch_bytes);
    let mut proposals = bench.poisoned::<u32>(rows * size_of::<DraftProposal>() / 4);
    let mut tokens = bench.poisoned::<i32>(rows);
    let params = DraftSampleParams {
        sample: SampleParams {
            logits: logits.mut_ptr(),
            stride: batch.stride as i64,
            rows: rows_on.ptr().cast(),
            adjustments: adjustments_on.ptr().cast(),
            masks: masks_on.ptr(),
            scratch: scratch.mut_ptr().cast(),
            row_count: rows as i32,
            vocab: vocab as i32,
            filtered: i32::from(batch.rows.filtered()),
        },
        proposals: proposals.mut_ptr().cast(),
        tokens: tokens.mut_ptr(),
    };
    let mut found = Vec::new();
    // Twice, to check that scratch memory is zeroed again. Adjustments act in place, so
    // the logits are restored in between.
    for _ in 0..2 {
        logits.upload(&batch.logits, &bench.stream).expect("fits");
        // SAFETY: all buffers have the shapes that the parameters name and live until the
        // download below.
        let status = unsafe {
            if naive {
                kernels::specserve_draft_sample_naive(&params, bench.stream.raw())
            } else {
                kernels::specserve_draft_sample(&params, bench.stream.raw())
            }
        };
        check_launch(status, "draft sampling").expect("launches");
        let words = bench.download(&proposals);
        found = words.chunks_exact(5).map(proposal_of).collect();
        let tokens: Vec<i32> = bench.download(&tokens);
        assert!(tokens.iter().zip(&found).all(|(&token, p)| token == p.token));
    }
    found
}

pub fn bytemuck_rows(rows: &SamplingRows) -> &[u8] {
    let rows = rows.rows();
    // SAFETY: a C struct of numbers without padding, read as bytes.
    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), size_of_val(rows)) }
}

pub fn bytemuck_adjustments(rows: &SamplingRows) -> &[u8] {
    let adjustments = rows.adjustments();
    // SAFETY: a C struct of numbers without padding, read as bytes.
    unsafe { std::slice::from_raw_parts(adjustments.as_ptr().cast(), size_of_val(adjustments)) }
}

fn proposal_of(words: &[u32]) -> DraftProposal {
    DraftProposal {
        token: words[0] as i32,
        runner_up: words[1] as i32,
        probability: f32::from_bits(words[2]),
        margin: f32::from_bits(words[3]),
        finite: words[4] as i32,
    }
}

fn assert_same(got: &DraftProposal, want: &Proposal, row: usize, batch: &Batch) {
    let context = || format!("row {row}: {got:?}, not {want:?}; {:?}", batch.rows.rows()[row]);
    assert_eq!(got.finite == 1, want.finite, "{}", context());
    assert_eq!(got.token as u32, want.token, "{}", context());
    assert_eq!(got.runner_up as u32, want.runner_up, "{}", context());
    let close = |a: f32, b: f32, slack: f32| (a - b).abs() <= PROBABILITY_TOLERANCE * b.abs() + slack;
    assert!(close(got.probability, want.probability, 1e-7), "{}", context());
    // A margin is a difference of numbers up to 1.
    assert!(close(got.margin, want.margin, 2e-6), "{}", context());
}

#[test]
#[ignore = "needs a CUDA device"]
fn draft_sampling_matches_the_cpu() {
    compare_with_the_cpu(false);
}

#[test]
#[ignore = "needs a CUDA device"]
fn masked_draft_sampling_matches_the_cpu() {
    compare_with_the_cpu(true);
}

#[test]
#[ignore = "needs a CUDA device"]
fn slices_of_a_row_without_a_token_that_the_head_can_draft_change_nothing() {
    let mut bench = Bench::new();
    for (rows, draft_tokens, vocab) in [(1, 2048, 128_256), (5, 40, 152_064), (64, 32_000, 128_256)] {
        if bench.leaves_out(rows * vocab) {
            continue;
        }
        let batch = draft_vocabulary_batch(&mut bench.random, rows, draft_tokens, vocab);
        let got = run_draft(&bench, &batch, vocab, false);
        for (row, (got, want)) in got.iter().zip(&batch.want).enumerate() {
            assert!(got.finite == 1 && (got.token as usize) < draft_tokens, "row {row}: {got:?}");
            assert_same(got, want, row, &batch);
        }
    }
}

fn compare_with_the_cpu(masked: bool) {
    let mut bench = Bench::new();
    let grid = [
        (1, 4_096),
        (3, 4_099),
        (17, 4_096),
        (256, 4_096),
        (64, 32_000),
        (1, 152_064),
        (5, 151_936),
        (40, 152_064),
        (256, 152_064),
        (1, 1),
        (4, 5),
    ];
    for (rows, vocab) in grid {
        if bench.leaves_out(rows * vocab) {
            continue;
        }
        let batch = random_batch(&mut bench.random, rows, vocab, masked);
        for naive in [false, true] {
            if naive && rows * vocab > 1 << 21 {
                continue;
            }
            let got = run_draft(&bench, &batch, vocab, naive);
            for (row, (got, want)) in got.iter().zip(&batch.want).enumerate() {
                assert_same(got, want, row, &batch);
            }
        }
    }
}
