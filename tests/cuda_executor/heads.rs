//! Draft heads: against the CPU executor, which is their oracle, and through the life of sequences.

use std::sync::Arc;

use specserve::executor::cpu::{CpuExecutor, CpuOptions};
use specserve::executor::cuda::{CudaExecutor, CudaOptions, KvBudget};
use specserve::executor::{Executor, Target};
use specserve::model::random::{
    RandomHeadOptions, RandomOptions, random_block_head, random_eagle3, random_model, small_spec,
};
use specserve::model::{DraftHead, DraftWeights, LoadedModel, ModelSpec};
use specserve::policy::{Fixed, Static};
use specserve::protocol::{
    BlockId, DraftForest, DraftSeed, GenerationRequest, ModelRole, NodeId, Proposal, RequestId,
    SamplingParams, SequenceInput, TokenId, VerifyRow,
};

use super::common::{Played, embedded, head, play, prompt, request};
use super::contract_suite;
use super::{alone, executor, same_up_to_ties, small};

/// Two proposals may differ where the best two probabilities are closer than this on either side.
const NEAR: f32 = 0.03;
/// Probabilities may differ by this much: one is computed in bf16.
const PROBABILITY_ERROR_MAX: f32 = 0.05;
const DRAFTS: usize = 5;

/// A target that the kernels take.
fn target_spec() -> ModelSpec {
    ModelSpec {
        layers: 4,
        hidden_size: 128,
        intermediate_size: 256,
        heads: 2,
        kv_heads: 1,
        head_dim: 64,
        ..small_spec(512)
    }
}

fn target() -> LoadedModel {
    random_model(&target_spec(), 1, RandomOptions::default())
}

fn cuda_options() -> CudaOptions {
    CudaOptions {
        kv: KvBudget::Blocks { target: 512, draft: 0 },
        batch_tokens_max: 512,
        batch_sequences_max: 64,
        draft_tokens_max: 8,
        ..CudaOptions::default()
    }
}

fn cpu_options() -> CpuOptions {
    CpuOptions {
        threads: 4,
        target_blocks: 512,
        draft_blocks: 0,
        block_tokens: 16,
        batch_tokens_max: 512,
        batch_sequences_max: 64,
        draft_tokens_max: 8,
    }
}

fn both(target: &LoadedModel, head: &DraftWeights) -> (CudaExecutor, CpuExecutor) {
    let cuda = CudaExecutor::new(target, Some(head), cuda_options()).expect("a CUDA device");
    let cpu = CpuExecutor::new(cpu_options(), target.clone(), Some(head.clone())).expect("the CPU");
    (cuda, cpu)
}

/// A sequence whose text is known.
struct Text {
    request: u64,
    tokens: Vec<TokenId>,
    blocks: Vec<BlockId>,
    fed: usize,
}

impl Text {
    fn new(request: u64, length: usize, vocab: u32) -> Text {
        let token = |at: usize| (at as u32 * 37 + request as u32 * 101 + 11) % vocab;
        let blocks = (0..8).map(|block| BlockId(request as u32 * 8 + (block * 5) % 8)).collect();
        Text { request, tokens: (0..length).map(token).collect(), blocks, fed: 0 }
    }

    fn input(&self, start: usize, end: usize) -> SequenceInput {
        SequenceInput {
            request: RequestId(self.request),
            tokens: self.tokens[start..end].to_vec(),
            start: start as u32,
            blocks: self.blocks.clone(),
            sampling: Arc::new(SamplingParams::greedy()),
            history: None,
        }
    }

    /// The target's input up to `end`, of which what follows is known.
    fn row(&self, end: usize) -> VerifyRow {
        VerifyRow::prefill(self.input(self.fed, end), Some(self.tokens[end]))
    }

    /// The seed behind the tokens that were fed and the one that follows them.
    fn seed(&self, limit: usize) -> DraftSeed {
        DraftSeed { row: 0, input: self.input(self.fed, self.fed + 1), limit: limit as u32, mask: None }
    }
}

/// Feeds each text up to its position in `ends` in one call.
fn feed(executors: [&mut dyn Executor; 2], texts: &mut [Text], ends: &[usize]) {
    let rows: Vec<VerifyRow> = texts.iter().zip(ends).map(|(text, &end)| text.row(end)).collect();
    for executor in executors {
        executor.target().verify(&rows, &mut Vec::new()).expect("the target runs");
    }
    texts.iter_mut().zip(ends).for_each(|(text, &end)| text.fed = end);
}

/// The chains of a round.
fn round(executor: &mut dyn Executor, seeds: &[DraftSeed]) -> Vec<Vec<Proposal>> {
    let drafter = executor.drafter().expect("a head");
    let mut forest = DraftForest::default();
    drafter.start(seeds, &mut forest).expect("starts");
    let mut chains: Vec<Vec<NodeId>> = vec![Vec::new(); seeds.len()];
    let mut known = 0;
    loop {
        for (id, node) in forest.since(known) {
            chains[node.seed as usize].push(id);
        }
        known = forest.len();
        let wants = |(chain, seed): &(&Vec<NodeId>, &DraftSeed)| {
            !chain.is_empty() && chain.len() < seed.limit as usize
        };
        let mut last: Vec<NodeId> =
            chains.iter().zip(seeds).filter(wants).filter_map(|(chain, _)| chain.last().copied()).collect();
        last.sort_unstable();
        if last.is_empty() {
            break;
        }
        drafter.extend(&last, &mut forest).expect("extends");
        if forest.len() == known {
            break;
        }
    }
    let proposal = |id: &NodeId| forest.get(*id).expect("a node").proposal;
    chains.iter().map(|chain| chain.iter().map(proposal).collect()).collect()
}

/// Asserts that both drafted the same up to near-ties; returns how many proposals were compared.
fn assert_alike(cuda: &[Vec<Proposal>], cpu: &[Vec<Proposal>], what: &str) -> usize {
    let mut compared = 0;
    assert_eq!(cuda.len(), cpu.len());
    for (sequence, (ours, theirs)) in cuda.iter().zip(cpu).enumerate() {
        assert_eq!(ours.len(), theirs.len(), "{what}, sequence {sequence}");
        for (draft, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            assert_eq!(ours.finite, theirs.finite, "{what}, sequence {sequence}, draft {draft}");
            if ours.token != theirs.token {
                let tie = theirs.margin < NEAR && ours.margin < NEAR;
                assert!(tie, "{what}, sequence {sequence}, draft {draft}: {ours:?} for {theirs:?}");
                break; // from here on they stand behind different tokens
            }
            let error = (ours.probability - theirs.probability).abs();
            assert!(
                error < PROBABILITY_ERROR_MAX,
                "{what}, sequence {sequence}, draft {draft}: {ours:?} for {theirs:?}"
            );
            compared += 1;
        }
    }
    compared
}

fn variants() -> Vec<DraftHead> {
    let plain = RandomHeadOptions::default();
    let spec = target_spec();
    let chains = [
        plain.clone(),
        RandomHeadOptions { layers: vec![2], ..plain.clone() },
        RandomHeadOptions { layers: vec![3, 0], joint_norm: true, ..plain.clone() },
        RandomHeadOptions { layers: vec![0, 1, 2, 3], each_norm: true, norm_output: true, ..plain.clone() },
        RandomHeadOptions { draft_tokens: Some(40), head_norms: true, ..plain.clone() },
        RandomHeadOptions { norm_before_residual: true, own_embedding: true, ..plain.clone() },
    ];
    let blocks = [
        RandomHeadOptions { markov_rank: Some(64), ..plain.clone() },
        RandomHeadOptions { markov_rank: None, sample_from_anchor: false, ..plain.clone() },
        RandomHeadOptions { draft_tokens: Some(40), depth: 1, head_norms: true, ..plain.clone() },
        RandomHeadOptions { layers: vec![1], block_tokens: 18, depth: 3, own_embedding: true, ..plain },
    ];
    let chains = (10..)
        .zip(&chains)
        .map(|(seed, options)| DraftHead::Eagle3(Box::new(random_eagle3(&spec, seed, options))));
    let blocks = (20..)
        .zip(&blocks)
        .map(|(seed, options)| DraftHead::Block(Box::new(random_block_head(&spec, seed, options))));
    chains.chain(blocks).collect()
}

#[test]
#[ignore = "needs a CUDA device"]
fn random_heads_of_every_variant_draft_what_the_cpu_drafts() {
    let _alone = alone();
    let target = target();
    for (number, head) in variants().into_iter().enumerate() {
        let head = DraftWeights::from(head);
        for batch in if small() { vec![2] } else { vec![1, 3, 7, 33] } {
            let (mut cuda, mut cpu) = both(&target, &head);
            let most = DRAFTS.min(cuda.info().draft_tokens_max as usize);
            let mut texts: Vec<Text> = (0..batch).map(|id| Text::new(id as u64, 100, 512)).collect();
            let mut compared = 0;
            // a prompt in two chunks, then decode steps and longer ones as after accepted drafts
            for (step, more) in [7, 6, 1, 1, 4, 1, 3, 2].into_iter().enumerate() {
                let ends: Vec<usize> =
                    texts.iter().enumerate().map(|(id, text)| text.fed + more + id % 3).collect();
                feed([&mut cuda, &mut cpu], &mut texts, &ends);
                if step == 0 || step == 3 {
                    continue; // the head rests
                }
                let seeds: Vec<DraftSeed> = texts
                    .iter()
                    .enumerate()
                    .map(|(id, text)| text.seed(if id % 4 == 1 { 2 } else { most }))
                    .collect();
                let what = format!("variant {number}, batch {batch}, step {step}");
                compared += assert_alike(&round(&mut cuda, &seeds), &round(&mut cpu, &seeds), &what);
            }
            assert!(compared > 12 * batch, "variant {number}, batch {batch}: {compared} compared");
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_prompt_longer_than_a_pass_and_a_full_buffer_are_read_before_a_round() {
    let _alone = alone();
    let target = target();
    for number in [0, 4, 6] {
        let head = DraftWeights::from(variants().swap_remove(number));
        let (mut cuda, mut cpu) = both(&target, &head);
        let mut texts = vec![Text::new(0, 128, 512), Text::new(1, 128, 512), Text::new(2, 128, 512)];
        // more tokens than may wait: the same positions again and again
        for _ in 0..12 {
            texts.iter_mut().for_each(|text| text.fed = 0);
            feed([&mut cuda, &mut cpu], &mut texts, &[100, 90, 110]);
        }
        let seeds: Vec<DraftSeed> = texts.iter().map(|text| text.seed(DRAFTS)).collect();
        let what = format!("variant {number}");
        assert!(assert_alike(&round(&mut cuda, &seeds), &round(&mut cpu, &seeds), &what) >= 6);
    }
}

/// Text that the target goes on with, which the heads of the embedded pair were trained for.
fn speculated(name: &str, steps: usize, length: usize) -> (f64, usize) {
    let (mut cuda, mut cpu) = {
        let (target, head) = (embedded(ModelRole::Target), head(name));
        both(&target, &head)
    };
    let (mut accepted, mut rounds, mut compared) = (0, 0, 0);
    for number in 0..4 {
        let mut text =
            Text { request: number, tokens: prompt(number as usize).to_vec(), blocks: Vec::new(), fed: 0 };
        text.blocks = (0..16).map(|block| BlockId(number as u32 * 16 + block)).collect();
        let last = text.tokens.len() - 1;
        for executor in [&mut cuda as &mut dyn Executor, &mut cpu] {
            executor.target().verify(&[text.row(last)], &mut Vec::new()).expect("the prompt runs");
        }
        text.fed = last;
        for _ in 0..steps {
            let seeds = [text.seed(length)];
            let (ours, theirs) = (round(&mut cuda, &seeds), round(&mut cpu, &seeds));
            compared += assert_alike(&ours, &theirs, name);
            let drafts: Vec<TokenId> = ours[0].iter().map(|proposal| proposal.token).collect();
            let mut input = text.input(text.fed, text.fed + 1);
            input.tokens.extend(&drafts);
            let row = VerifyRow { drafts: drafts.len() as u32, ..VerifyRow::decode(input) };
            let mut verdicts = Vec::new();
            cuda.verify(&[row], &mut verdicts).expect("verifies");
            text.tokens.extend(&verdicts[0].tokens);
            let end = text.tokens.len() - 1;
            cpu.verify(&[text.row(end)], &mut Vec::new()).expect("the oracle follows");
            text.fed = end;
            accepted += verdicts[0].accepted as usize;
            rounds += 1;
        }
    }
    (accepted as f64 / rounds as f64, compared)
}

#[test]
#[ignore = "needs a CUDA device"]
fn the_tiny_heads_draft_as_on_the_cpu_behind_what_was_accepted() {
    let _alone = alone();
    for (name, length, least) in [("eagle3", 6, 2.5), ("dspark", 7, 2.5)] {
        let (accepted, compared) = speculated(name, if small() { 2 } else { 16 }, length);
        println!("{name}: {accepted:.2} of {length} accepted, {compared} proposals compared");
        assert!(small() || accepted > least, "{name}: {accepted} accepted");
    }
}

fn requests(count: usize, temperature: f32) -> Vec<GenerationRequest> {
    let sampling = SamplingParams { temperature, ..SamplingParams::greedy() };
    (0..count).map(|number| request(number, 32, sampling.clone())).collect()
}

/// What `requests` are answered, at most `batch` at a time with `drafts` drafts each.
fn answers(
    drafter: Option<&DraftWeights>,
    blocks: u32,
    batch: u32,
    drafts: u32,
    requests: &[GenerationRequest],
) -> std::collections::BTreeMap<RequestId, Played> {
    let options = CudaOptions { kv: KvBudget::Blocks { target: blocks, draft: 0 }, ..cuda_options() };
    let mut executor =
        CudaExecutor::new(&embedded(ModelRole::Target), drafter, options).expect("a CUDA device");
    play(&mut executor, Box::new(Static::new(Fixed { draft_tokens: drafts })), batch, requests)
}

#[test]
#[ignore = "needs a CUDA device"]
fn speculation_with_heads_emits_what_plain_decoding_emits() {
    let _alone = alone();
    let mut judge = executor();
    for temperature in [0.0, 0.8] {
        let all = requests(if small() { 2 } else { 32 }, temperature);
        let plain = answers(None, 512, 1, 0, &all);
        for name in ["eagle3", "dspark"] {
            let head = head(name);
            for (batch, drafts, blocks) in
                [(1, 7, 512), (2, 7, 512), (2, 3, 512), (7, 4, 512), (32, 8, 512), (32, 4, 40)]
            {
                let ours = answers(Some(&head), blocks, batch, drafts, &all);
                let mut ties = 0;
                for request in &all {
                    let (ours, plain) = (&ours[&request.id].tokens, &plain[&request.id].tokens);
                    let what =
                        format!("{name} t {temperature} batch {batch} k {drafts} request {}", request.id);
                    if batch == 1 {
                        assert_eq!(ours, plain, "{what}");
                    }
                    let pair = [&plain[..], &ours[..]];
                    ties += u32::from(same_up_to_ties(
                        &mut judge,
                        &request.prompt,
                        &request.sampling,
                        pair,
                        &what,
                    ));
                }
                let accepted: u32 = ours.values().map(|played| played.summary.speculation.accepted).sum();
                let preempted: u32 = ours.values().map(|played| played.summary.preemptions).sum();
                println!(
                    "{name} t {temperature} batch {batch} k {drafts} blocks {blocks}: {ties} near-ties, {accepted} accepted, {preempted} preempted"
                );
                assert!(accepted > 0);
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn executors_with_heads_keep_the_contract() {
    let _alone = alone();
    let options = CudaOptions {
        batch_tokens_max: 72,
        batch_sequences_max: 6,
        draft_tokens_max: 4,
        kv: KvBudget::Blocks { target: 4096, draft: 0 },
        ..CudaOptions::default()
    };
    let target = embedded(ModelRole::Target);
    let build = |name: &str| CudaExecutor::new(&target, Some(&head(name)), options).expect("a CUDA device");
    contract_suite::check_target(&mut build("eagle3"));
    contract_suite::check_drafter(&mut build("eagle3"));
    contract_suite::check_block_drafter(&mut build("dspark"));
}

#[test]
#[ignore = "needs a CUDA device"]
fn warming_up_captures_the_passes_of_a_head_and_leaves_it_whole() {
    let _alone = alone();
    for name in ["eagle3", "dspark"] {
        let head = head(name);
        let options = CudaOptions { batch_sequences_max: 4, ..cuda_options() };
        let mut executor =
            CudaExecutor::new(&embedded(ModelRole::Target), Some(&head), options).expect("a CUDA device");
        executor.warm_up().expect("warms up");
        let (_, captured) = executor.graph_counts();
        assert!(captured > 6, "{captured} graphs");
        let all = requests(4, 0.0);
        let drafting = || Box::new(Static::new(Fixed { draft_tokens: 3 }));
        play(&mut executor, drafting(), 4, &all);
        assert_eq!(executor.graph_counts().1, captured, "{name}: no pass of four sequences is new");
        let ours = play(&mut executor, drafting(), 1, &all);
        let plain = answers(None, 512, 1, 0, &all);
        for request in &all {
            assert_eq!(ours[&request.id].tokens, plain[&request.id].tokens, "{name}");
        }
    }
}
