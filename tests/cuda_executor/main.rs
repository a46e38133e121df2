//! The CUDA executor on the embedded pair: golden logits, batch invariance, speculation
//! against plain decoding, chunks, trees, token masks.
#![cfg(feature = "cuda")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/contract_suite.rs"]
mod contract_suite;
mod driver;
mod heads;
mod masks;
mod not_finite;
mod trees;

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use driver::{Sequence, draft, generate};
use serde_json::Value;
use specserve::executor::cuda::{CudaExecutor, CudaOptions, KvBudget};
use specserve::executor::{Executor, Target};
use specserve::model::{ModelSource, load_pair};
use specserve::protocol::{Compaction, ModelRole, SamplingParams, TokenId, TokenMask, Verdict, VerifyRow};
use specserve::sampling::noise::Noise;

/// Positions whose best two candidates are closer than this, in units of the logits, may be
/// decided either way: products of different batch sizes round differently.
const NEAR_TIE: f32 = 0.1;
/// Logits may differ from the float64 reference by this much: the target's.
const LOGIT_ERROR_MAX: f32 = 0.1;
/// The draft's hidden vectors have 128 numbers: what bf16 rounds off averages out less.
const DRAFT_LOGIT_ERROR_MAX: f32 = 0.2;

/// Whether to run small cases only (`SPECSERVE_TEST_SMALL`), for compute-sanitizer, under
/// which kernels run a hundred times slower.
fn small() -> bool {
    std::env::var_os("SPECSERVE_TEST_SMALL").is_some()
}

fn options() -> CudaOptions {
    CudaOptions { kv: KvBudget::Blocks { target: 4096, draft: 4096 }, ..CudaOptions::default() }
}

fn executor() -> CudaExecutor {
    let pair = load_pair(&ModelSource::EmbeddedTiny, Some(&ModelSource::EmbeddedTiny)).expect("embedded");
    CudaExecutor::new(&pair.target.loaded, pair.draft.as_ref(), options()).expect("a CUDA device")
}

/// Serializes the tests: module loads of one executor can break a graph capture of another
/// thread. The daemon has a single executor.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Golden {
    prompt: Vec<TokenId>,
    greedy: Vec<TokenId>,
    top8: [(Vec<TokenId>, Vec<f32>); 2],
}

fn golden() -> Vec<Golden> {
    let text = include_str!("../../assets/tiny/golden.json");
    let json: Value = serde_json::from_str(text).expect("golden.json parses");
    let ids = |value: &Value| -> Vec<TokenId> {
        value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as TokenId).collect()
    };
    let floats = |value: &Value| -> Vec<f32> {
        value.as_array().expect("logits").iter().map(|v| v.as_f64().expect("a number") as f32).collect()
    };
    let cases = json["cases"].as_array().expect("cases");
    cases
        .iter()
        .map(|case| Golden {
            prompt: ids(&case["prompt_ids"]),
            greedy: ids(&case["greedy_ids"]),
            top8: ["target_top8", "draft_top8"].map(|key| (ids(&case[key][0]), floats(&case[key][1]))),
        })
        .collect()
}

/// 64 different prompts: the golden ones, longer and longer.
fn prompts() -> Vec<Vec<TokenId>> {
    let golden = golden();
    (0..64)
        .map(|index| {
            let case = &golden[index % golden.len()];
            let more = (index / golden.len() * 6).min(case.greedy.len().saturating_sub(1));
            [&case.prompt[..], &case.greedy[..more]].concat()
        })
        .collect()
}

fn sampled(temperature: f32, seed: u64) -> SamplingParams {
    SamplingParams { temperature, seed, ..SamplingParams::greedy() }
}

/// Logit difference of the best two candidates that `mask` allows for the token after `prefix`.
fn gap(
    executor: &mut CudaExecutor,
    prefix: &[TokenId],
    params: &SamplingParams,
    mask: Option<&TokenMask>,
) -> f32 {
    let spare = Sequence::new(63, prefix, params.clone(), 1024);
    let mut logits = executor.logits(ModelRole::Target, &spare.input(0, &[])).expect("logits");
    assert_eq!(
        (params.presence_penalty, params.frequency_penalty),
        (0.0, 0.0),
        "not part of the scores here"
    );
    let seen: BTreeSet<TokenId> = prefix.iter().copied().collect();
    for token in seen {
        let (penalty, logit) = (params.repetition_penalty, &mut logits[token as usize]);
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
    }
    let noise = Noise { seed: params.seed, position: prefix.len() as u32 };
    let scale = if params.temperature > 0.0 { params.temperature } else { 0.0 };
    let mut scores: Vec<f32> = (0..logits.len())
        .filter(|&token| mask.is_none_or(|mask| mask.allows(token as TokenId)))
        .map(|token| logits[token] + if scale > 0.0 { scale * noise.gumbel(token as TokenId) } else { 0.0 })
        .collect();
    scores.sort_by(|a, b| b.total_cmp(a));
    scores[0] - scores[1]
}

/// Asserts equality up to a near-tie; returns whether there was one.
fn same_up_to_ties(
    executor: &mut CudaExecutor,
    prompt: &[TokenId],
    params: &SamplingParams,
    [want, got]: [&[TokenId]; 2],
    what: &str,
) -> bool {
    let Some(first) = (0..want.len().min(got.len())).find(|&i| want[i] != got[i]) else { return false };
    let prefix = [prompt, &want[..first]].concat();
    let mask = params.constraint.as_ref().and_then(|constraint| constraint.mask(&want[..first]));
    let gap = gap(executor, &prefix, params, mask.as_deref());
    assert!(gap < NEAR_TIE, "{what}: differs at output {first}, where the gap is {gap}");
    true
}

#[test]
#[ignore = "needs a CUDA device"]
fn logits_of_both_models_are_the_float64_references() {
    let _alone = alone();
    let mut executor = executor();
    let mut worst = [0f32; 2];
    for (index, case) in golden().iter().enumerate() {
        for (slot, (ids, want)) in case.top8.iter().enumerate() {
            let role = [ModelRole::Target, ModelRole::Draft][slot];
            let sequence = Sequence::new(index as u64, &case.prompt, SamplingParams::greedy(), 512);
            let logits = executor.logits(role, &sequence.input(0, &[])).expect("logits");
            for (&id, want) in ids.iter().zip(want) {
                worst[slot] = worst[slot].max((logits[id as usize] - want).abs());
            }
        }
    }
    println!("golden: largest error of a logit {worst:?}");
    assert!(worst[0] < LOGIT_ERROR_MAX && worst[1] < DRAFT_LOGIT_ERROR_MAX, "{worst:?}");
}

#[test]
#[ignore = "needs a CUDA device"]
fn greedy_text_is_the_references_up_to_near_ties() {
    let _alone = alone();
    let mut executor = executor();
    let mut ties = 0;
    for (index, case) in golden().iter().enumerate() {
        let params = SamplingParams::greedy();
        let mut sequences = [Sequence::new(index as u64, &case.prompt, params.clone(), 512)];
        generate(&mut executor, &mut sequences, 0, case.greedy.len());
        let pair = [&case.greedy[..], sequences[0].output()];
        ties +=
            u32::from(same_up_to_ties(&mut executor, &case.prompt, &params, pair, &format!("case {index}")));
    }
    println!("golden: {ties} of 10 texts left the reference at a near-tie");
}

#[test]
#[ignore = "needs a CUDA device"]
fn speculation_emits_what_plain_decoding_emits() {
    let _alone = alone();
    let mut executor = executor();
    if !small() {
        executor.warm_up().expect("warm");
    }
    let prompts = prompts();
    let (count, lengths) = if small() { (6, 3..=3) } else { (40, 0..=8) };
    for temperature in [0.0, 0.8] {
        let params: Vec<_> = (0..64).map(|index| sampled(temperature, 1000 + index)).collect();
        let fresh = |range: std::ops::Range<usize>| -> Vec<Sequence> {
            range
                .map(|index| Sequence::new(index as u64, &prompts[index], params[index].clone(), 512))
                .collect()
        };
        let mut plain = fresh(0..64);
        generate(&mut executor, &mut plain, 0, count);
        for length in lengths.clone() {
            let mut ties = [0u32; 3];
            let mut rates = [0.0; 3];
            for (slot, batch) in [1usize, 8, 64].into_iter().enumerate() {
                let prompts_used = if batch == 1 { if small() { 1 } else { 8 } } else { 64 };
                for begin in (0..prompts_used).step_by(batch) {
                    let mut sequences = fresh(begin..begin + batch);
                    let (accepted, verified) = generate(&mut executor, &mut sequences, length, count);
                    rates[slot] = accepted as f64 / verified.max(1) as f64;
                    for (sequence, plain) in sequences.iter().zip(&plain[begin..]) {
                        let index = sequence.id as usize;
                        let what = format!("t {temperature} k {length} batch {batch} prompt {index}");
                        let pair = [plain.output(), sequence.output()];
                        let tie =
                            same_up_to_ties(&mut executor, &prompts[index], &params[index], pair, &what);
                        ties[slot] += u32::from(tie);
                    }
                }
            }
            println!("t {temperature} k {length}: near-ties {ties:?}, acceptance {rates:.2?}");
        }
    }
    println!("graphs: {:?}", executor.graph_counts());
}

#[test]
#[ignore = "needs a CUDA device"]
fn penalties_and_filters_speculate_losslessly() {
    let _alone = alone();
    let mut executor = executor();
    let prompts = prompts();
    let params = |index: usize| SamplingParams {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.9,
        min_p: 0.02,
        seed: index as u64,
        repetition_penalty: 1.2,
        presence_penalty: 0.3,
        frequency_penalty: 0.1,
        logit_bias: vec![(300, 1.0), (315, -2.0)],
        constraint: None,
    };
    let fresh = || -> Vec<Sequence> {
        (0..8).map(|index| Sequence::new(index as u64, &prompts[index], params(index), 512)).collect()
    };
    let mut plain = fresh();
    generate(&mut executor, &mut plain, 0, 40);
    // One draft each: at most sixteen rows, for which rows do not interact.
    let mut speculative = fresh();
    let (accepted, _) = generate(&mut executor, &mut speculative, 1, 40);
    assert!(accepted > 0);
    for (plain, speculative) in plain.iter().zip(&speculative) {
        assert_eq!(plain.tokens, speculative.tokens);
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn up_to_sixteen_rows_speculation_is_equal_bit_for_bit() {
    let _alone = alone();
    let mut executor = executor();
    let prompts = prompts();
    for temperature in [0.0, 0.8] {
        for (index, prompt) in prompts.iter().enumerate().take(if small() { 1 } else { 10 }) {
            let fresh = || [Sequence::new(0, prompt, sampled(temperature, index as u64), 512)];
            let mut plain = fresh();
            generate(&mut executor, &mut plain, 0, 60);
            for length in 1..=8 {
                let mut speculative = fresh();
                generate(&mut executor, &mut speculative, length, 60);
                assert_eq!(
                    plain[0].tokens, speculative[0].tokens,
                    "t {temperature} prompt {index} k {length}"
                );
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_prompt_in_chunks_is_the_prompt_at_once() {
    let _alone = alone();
    let mut executor = executor();
    let long: Vec<TokenId> = prompts().concat().into_iter().take(700).collect();
    let params = SamplingParams::greedy();
    let whole = Sequence::new(0, &long, params.clone(), 1024);
    let want = executor.logits(ModelRole::Target, &whole.input(0, &[])).expect("logits");
    for chunk in [16usize, 64, 100, 333] {
        let mut parts = Sequence::new(1, &long, params.clone(), 1024);
        let all = parts.tokens.clone();
        let last = (all.len() - 1) / chunk * chunk;
        for begin in (0..last).step_by(chunk) {
            parts.tokens = all[..begin + chunk].to_vec();
            let row = VerifyRow::prefill(parts.input(begin, &[]), Some(all[begin + chunk]));
            let mut verdicts = Vec::new();
            executor.verify(&[row], &mut verdicts).expect("a chunk runs");
            assert_eq!(verdicts, [Verdict { finite: true, ..Verdict::default() }]);
        }
        parts.tokens = all;
        let got = executor.logits(ModelRole::Target, &parts.input(last, &[])).expect("logits");
        let worst = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < LOGIT_ERROR_MAX, "chunks of {chunk}: {worst}");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn prefill_decode_and_verification_share_one_call() {
    let _alone = alone();
    let mut executor = executor();
    let prompts = prompts();
    let count = 24;
    let params = SamplingParams::greedy();
    let mut plain: Vec<Sequence> =
        (0..3).map(|index| Sequence::new(index, &prompts[index as usize], params.clone(), 512)).collect();
    generate(&mut executor, &mut plain, 0, count);

    let mut mixed: Vec<Sequence> = (0..3)
        .map(|index| Sequence::new(10 + index, &prompts[index as usize], params.clone(), 512))
        .collect();
    let long: Vec<TokenId> = prompts.concat().into_iter().take(600).collect();
    let mut guest = Sequence::new(20, &long, params.clone(), 1024);
    generate(&mut executor, &mut mixed, 0, 1);
    let mut step = 0;
    while mixed[0].output().len() < count {
        let drafts = draft(&mut executor, &mixed[1..2], 3);
        let chunk = (step * 150, (step * 150 + 150).min(600));
        let mut rows =
            vec![mixed[0].verify_row(&[]), mixed[1].verify_row(&drafts[0]), mixed[2].verify_row(&[])];
        if chunk.0 < chunk.1 {
            guest.tokens = long[..chunk.1].to_vec();
            let input = guest.input(chunk.0, &[]);
            rows.push(VerifyRow::prefill(input, long.get(chunk.1).copied()));
        }
        let mut verdicts = Vec::new();
        executor.verify(&rows, &mut verdicts).expect("a mixed batch runs");
        for (index, sequence) in mixed.iter_mut().enumerate() {
            sequence.commit(&verdicts[index], if index == 1 { 3 } else { 0 });
        }
        step += 1;
    }
    for (plain, mixed) in plain.iter().zip(&mixed) {
        let prompt = &prompts[plain.id as usize];
        let pair = [plain.output(), mixed.output()];
        same_up_to_ties(&mut executor, prompt, &params, pair, "mixed");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_tree_reveals_the_plain_sequence_and_its_path_can_be_compacted() {
    let _alone = alone();
    let mut executor = executor();
    let prompts = prompts();
    let params = SamplingParams::greedy();
    let mut plain = [Sequence::new(0, &prompts[1], params.clone(), 512)];
    generate(&mut executor, &mut plain, 0, 24);
    let truth = plain[0].output().to_vec();

    let mut tree = Sequence::new(1, &prompts[1], params.clone(), 512);
    generate(&mut executor, std::slice::from_mut(&mut tree), 0, 1);
    while tree.output().len() < 20 {
        let done = tree.output().len();
        let next = &truth[done..done + 4];
        let wrong = |token: TokenId| (token + 1) % 4096;
        // A wrong sibling before each right node, so that the path has gaps.
        let drafts =
            vec![wrong(next[0]), next[0], wrong(next[1]), next[1], wrong(next[0]), next[2], wrong(next[3])];
        let parents = vec![0, 0, 2, 2, 1, 4, 6];
        let mut row = tree.verify_row(&drafts);
        row.tree = Some(parents);
        let mut verdicts = Vec::new();
        let first = (tree.tokens.len()) as u32;
        executor.verify(&[row], &mut verdicts).expect("a tree runs");
        let verdict = &verdicts[0];
        assert_eq!(verdict.tokens, next[..4], "output {done}");
        assert_eq!(verdict.path, [1, 3, 5]);
        let blocks = tree.blocks.clone();
        let compaction = Compaction { blocks, first, path: verdict.path.clone() };
        executor.compact(&[compaction]).expect("compacts");
        tree.tokens.extend_from_slice(&verdict.tokens);
        tree.target_cached = tree.tokens.len() - 1;
    }
    generate_more(&mut executor, &mut tree, 24);
    assert_eq!(tree.output()[..24], truth[..24]);
}

/// Plain decoding of a prefilled sequence.
fn generate_more(executor: &mut CudaExecutor, sequence: &mut Sequence, count: usize) {
    while sequence.output().len() < count {
        let mut verdicts = Vec::new();
        executor.verify(&[sequence.verify_row(&[])], &mut verdicts).expect("the target runs");
        sequence.commit(&verdicts[0], 0);
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn the_executor_keeps_the_contract() {
    let _alone = alone();
    let pair = load_pair(&ModelSource::EmbeddedTiny, Some(&ModelSource::EmbeddedTiny)).expect("embedded");
    let options = CudaOptions {
        batch_tokens_max: 72,
        batch_sequences_max: 6,
        draft_tokens_max: 4,
        kv: KvBudget::Blocks { target: 4096, draft: 4096 },
        ..CudaOptions::default()
    };
    let mut executor =
        CudaExecutor::new(&pair.target.loaded, pair.draft.as_ref(), options).expect("a CUDA device");
    contract_suite::check_target(&mut executor);
    contract_suite::check_drafter(&mut executor);
}
