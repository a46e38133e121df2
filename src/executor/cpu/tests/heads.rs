//! Draft heads: against the reference, against recorded forward passes, and through the life of a
//! sequence.

use super::plain::{PlainDrafts, PlainModel, block_drafts, eagle3_chain};
use super::*;
use crate::executor::cpu::each_set::on_each_set;
use crate::model::random::{RandomHeadOptions, random_block_head, random_eagle3};
use crate::model::{DraftHead, DraftWeights, ModelSource, load};
use crate::protocol::Proposal;

const LAYERS: usize = 4;
const DRAFTS: usize = 5;

fn deep_target() -> LoadedModel {
    random_model(&ModelSpec { layers: LAYERS, ..small_spec(VOCAB) }, 1, RandomOptions::default())
}

fn eagle3(seed: u64, options: &RandomHeadOptions) -> DraftHead {
    DraftHead::Eagle3(Box::new(random_eagle3(&deep_target().spec, seed, options)))
}

fn block(seed: u64, options: &RandomHeadOptions) -> DraftHead {
    DraftHead::Block(Box::new(random_block_head(&deep_target().spec, seed, options)))
}

/// A head of each kind.
fn one_of_each() -> [DraftHead; 3] {
    let plain = RandomHeadOptions::default();
    [
        eagle3(5, &RandomHeadOptions { draft_tokens: Some(60), ..plain.clone() }),
        block(6, &RandomHeadOptions { markov_rank: None, sample_from_anchor: false, ..plain.clone() }),
        block(7, &plain),
    ]
}

fn with_head(threads: usize, head: &DraftHead, set: InstructionSet) -> CpuExecutor {
    let head = DraftWeights::Head(head.clone());
    CpuExecutor::with_instruction_set(options(threads), deep_target(), Some(head), set).unwrap()
}

/// Feeds the target `tokens[start..end]`, of which what follows is known.
fn feed(executor: &mut CpuExecutor, blocks: &[u32], tokens: &[TokenId], start: usize, end: usize) {
    let row = VerifyRow { next: Some(tokens[end]), ..chain(blocks, &tokens[start..end], start as u32, 0) };
    verify(executor, &[row]);
}

/// The round's seed behind `tokens`.
fn seed(blocks: &[u32], tokens: &[TokenId], limit: usize) -> DraftSeed {
    let last = tokens.len() - 1;
    DraftSeed { row: 0, input: input(blocks, &tokens[last..], last as u32), limit: limit as u32, mask: None }
}

/// Each proposal of one seed, with the logits over the draft tokens that it was chosen by.
fn proposals(executor: &mut CpuExecutor, seed: &DraftSeed) -> Vec<(Proposal, Vec<f32>)> {
    let mut forest = DraftForest::default();
    executor.start(std::slice::from_ref(seed), &mut forest).unwrap();
    let Some(CpuDrafter::Head(head)) = &executor.drafter else { panic!("there is a head") };
    let first = head.first_slot();
    let mut logits: Vec<Vec<f32>> =
        (first..first + forest.len()).map(|row| head.logits().row(row).to_vec()).collect();
    while !forest.is_empty() && forest.len() < seed.limit as usize {
        let (known, last) = (forest.len(), NodeId(forest.len() as u32 - 1));
        executor.extend(&[last], &mut forest).unwrap();
        if forest.len() == known {
            break;
        }
        let Some(CpuDrafter::Head(head)) = &executor.drafter else { panic!("there is a head") };
        logits.push(head.logits().row(0).to_vec());
    }
    forest.since(0).map(|(_, node)| node.proposal).zip(logits).collect()
}

/// What the reference drafts behind `tokens`.
fn reference(head: &DraftHead, tokens: &[TokenId]) -> PlainDrafts {
    let target = deep_target();
    let mut model = PlainModel::new(&target);
    let streams: Vec<_> = tokens[..tokens.len() - 1].iter().map(|&token| model.step(token).streams).collect();
    match head {
        DraftHead::Eagle3(head) => eagle3_chain(head, &target, tokens, &streams, DRAFTS),
        DraftHead::Block(head) => block_drafts(head, &target, tokens, &streams),
    }
}

fn assert_as_the_reference(set: InstructionSet, head: &DraftHead, what: &str) {
    let tokens = text(3, 37);
    let mut executor = with_head(2, head, set);
    let blocks = [5, 0, 9];
    for (start, end) in [(0, 20), (20, 21), (21, 36)] {
        feed(&mut executor, &blocks, &tokens, start, end);
    }
    let expected = reference(head, &tokens);
    let ours = proposals(&mut executor, &seed(&blocks, &tokens, expected.len()));
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (draft, ((proposal, logits), (token, expected, confidence))) in ours.iter().zip(expected).enumerate()
    {
        let largest = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        assert!(largest > 0.5, "logits that are all alike would show nothing");
        assert_eq!(logits.len(), expected.len(), "{what}");
        for (ours, expected) in logits.iter().zip(&expected) {
            let error = (f64::from(*ours) - expected).abs();
            assert!(error < 2e-4 * largest.max(1.0), "{set:?}, {what}, draft {draft}: {ours} for {expected}");
        }
        assert_eq!(proposal.token, token, "{what}, draft {draft}");
        if let Some(confidence) = confidence {
            assert!((f64::from(proposal.probability) - confidence).abs() < 1e-4, "{what}, draft {draft}");
        }
    }
}

on_each_set!(
    eagle3_heads_of_every_variant_agree_with_the_reference,
    block_heads_of_every_variant_agree_with_the_reference
);

fn eagle3_heads_of_every_variant_agree_with_the_reference(set: InstructionSet) {
    let plain = RandomHeadOptions::default();
    let variants = [
        plain.clone(),
        RandomHeadOptions { layers: vec![2], ..plain.clone() },
        RandomHeadOptions { layers: vec![3, 0], joint_norm: true, ..plain.clone() },
        RandomHeadOptions { layers: vec![0, 1, 2, 3], each_norm: true, norm_output: true, ..plain.clone() },
        RandomHeadOptions { draft_tokens: Some(40), head_norms: true, ..plain.clone() },
        RandomHeadOptions { norm_before_residual: true, own_embedding: true, ..plain },
    ];
    for (number, variant) in (10..).zip(variants) {
        assert_as_the_reference(set, &eagle3(number, &variant), &format!("{variant:?}"));
    }
}

fn block_heads_of_every_variant_agree_with_the_reference(set: InstructionSet) {
    let plain = RandomHeadOptions::default();
    let variants = [
        plain.clone(),
        RandomHeadOptions { markov_rank: None, sample_from_anchor: false, ..plain.clone() },
        RandomHeadOptions { draft_tokens: Some(40), depth: 1, head_norms: true, ..plain.clone() },
        RandomHeadOptions { layers: vec![1], block_tokens: 18, depth: 3, own_embedding: true, ..plain },
    ];
    for (number, variant) in (20..).zip(variants) {
        assert_as_the_reference(set, &block(number, &variant), &format!("{variant:?}"));
    }
}

/// Chains from `known` tokens on, of a golden file.
#[derive(serde::Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    prompt_ids: Vec<TokenId>,
    greedy_ids: Vec<TokenId>,
    chains: Vec<GoldenChain>,
}

#[derive(serde::Deserialize)]
struct GoldenChain {
    known_tokens: usize,
    drafts: Vec<GoldenDraft>,
}

#[derive(serde::Deserialize)]
struct GoldenDraft {
    token: TokenId,
    top8: (Vec<TokenId>, Vec<f32>),
    probability: f32,
    confidence: Option<f32>,
}

/// Logits are recorded in f32 from the same weights.
const TOLERANCE: f32 = 0.01;

fn assert_golden(directory: &str, golden: &str) {
    let golden: Golden = serde_json::from_str(golden).unwrap();
    let target = load(&ModelSource::EmbeddedTiny, ModelRole::Target).unwrap().loaded;
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny").join(directory);
    let head = DraftHead::load(&ModelSource::Directory(path), Some(&target.spec)).unwrap().unwrap();
    let to_target = head.interface().draft_to_target.clone();
    let options = CpuOptions { target_blocks: 40, ..options(2) };
    let mut executor = CpuExecutor::new(options, target, Some(head.into())).unwrap();
    let blocks: Vec<u32> = (0..40).rev().collect();
    for case in &golden.cases {
        let tokens = [&case.prompt_ids[..], &case.greedy_ids].concat();
        let mut fed = 0;
        for chain in &case.chains {
            let known = &tokens[..chain.known_tokens];
            feed(&mut executor, &blocks, &tokens, fed, known.len() - 1);
            fed = known.len() - 1;
            let ours = proposals(&mut executor, &seed(&blocks, known, chain.drafts.len()));
            assert_eq!(ours.len(), chain.drafts.len());
            for ((proposal, logits), expected) in ours.iter().zip(&chain.drafts) {
                assert_eq!(proposal.token, expected.token);
                let probability = expected.confidence.unwrap_or(expected.probability);
                assert!((proposal.probability - probability).abs() < TOLERANCE / 2.0);
                for (id, expected) in expected.top8.0.iter().zip(&expected.top8.1) {
                    let at = match &to_target {
                        None => *id as usize,
                        Some(tokens) => tokens.iter().position(|token| token == id).unwrap(),
                    };
                    assert!((logits[at] - expected).abs() < TOLERANCE, "{} for {expected}", logits[at]);
                }
            }
        }
    }
}

#[test]
fn the_tiny_eagle3_head_drafts_as_recorded() {
    assert_golden("eagle3", include_str!("../../../../assets/tiny/eagle3/golden_eagle.json"));
}

#[test]
fn the_tiny_dspark_head_drafts_as_recorded() {
    assert_golden("dspark", include_str!("../../../../assets/tiny/dspark/golden_dspark.json"));
}

/// What a fresh executor drafts behind `tokens` that it was fed at once.
fn fresh(head: &DraftHead, tokens: &[TokenId]) -> Vec<Proposal> {
    let mut executor = with_head(1, head, InstructionSet::detect());
    let blocks: Vec<u32> = (0..32).collect();
    feed(&mut executor, &blocks, tokens, 0, tokens.len() - 1);
    drafted(&mut executor, &seed(&blocks, tokens, 4))
}

fn drafted(executor: &mut CpuExecutor, seed: &DraftSeed) -> Vec<Proposal> {
    proposals(executor, seed).into_iter().map(|(proposal, _)| proposal).collect()
}

#[test]
fn a_head_that_rested_for_hundreds_of_steps_drafts_as_if_it_never_had() {
    for head in one_of_each() {
        let options = CpuOptions { batch_tokens_max: 200, target_blocks: 128, ..options(2) };
        let mut executor = CpuExecutor::new(options, deep_target(), Some(head.clone().into())).unwrap();
        let blocks = |index: usize| -> Vec<u32> { (32 * index as u32..32 * (index as u32 + 1)).collect() };
        let mut texts: Vec<Vec<TokenId>> = (0..4).map(|index| text(index, 40)).collect();
        let mut starts = [0; 4];
        // 4 · 440 tokens: more than may wait until the head reads them
        for _ in 0..400 {
            let rows: Vec<VerifyRow> = (0..4)
                .map(|index| chain(&blocks(index), &texts[index][starts[index]..], starts[index] as u32, 0))
                .collect();
            let verdicts = verify(&mut executor, &rows);
            for index in 0..4 {
                starts[index] = texts[index].len();
                texts[index].extend(&verdicts[index].tokens);
            }
        }
        for (index, text) in texts.iter().enumerate() {
            let ours = drafted(&mut executor, &seed(&blocks(index), text, 4));
            assert_eq!(ours.len(), 4);
            assert_eq!(ours, fresh(&head, text), "{:?}, sequence {index}", head.kind());
        }
    }
}

#[test]
fn after_each_verification_a_head_drafts_from_what_was_accepted() {
    for head in one_of_each() {
        for temperature in [0.0, 0.8] {
            let mut executor = with_head(2, &head, InstructionSet::detect());
            let blocks = [16, 17, 18, 19, 20, 21, 22];
            let mut tokens = text(5, 21);
            let sampling = Arc::new(SamplingParams { temperature, seed: 3, ..SamplingParams::greedy() });
            let mut first = chain(&blocks, &tokens, 0, 0);
            first.input.sampling = Arc::clone(&sampling);
            tokens.extend(&verify(&mut executor, &[first])[0].tokens);
            let mut accepted = Vec::new();
            while tokens.len() < 80 {
                let mut seed = seed(&blocks, &tokens, 4);
                seed.input.sampling = Arc::clone(&sampling);
                let ours = drafted(&mut executor, &seed);
                if temperature == 0.0 {
                    assert_eq!(ours, fresh(&head, &tokens), "{:?} behind {}", head.kind(), tokens.len());
                }
                // in every other step a draft is replaced by what the target will say
                let mut drafts: Vec<TokenId> = ours.iter().map(|proposal| proposal.token).collect();
                if accepted.len() % 2 == 0 {
                    let mut plain = with_head(1, &head, InstructionSet::detect());
                    let mut row = chain(&blocks, &tokens, 0, 0);
                    row.input.sampling = Arc::clone(&sampling);
                    drafts[0] = verify(&mut plain, &[row])[0].tokens[0];
                }
                let start = tokens.len() - 1;
                let mut row = chain(&blocks, &[&tokens[start..], &drafts].concat(), start as u32, 4);
                row.input.sampling = Arc::clone(&sampling);
                let verdict = verify(&mut executor, &[row]).remove(0);
                accepted.push(verdict.accepted);
                tokens.extend(&verdict.tokens);
            }
            assert!(accepted.contains(&0) && accepted.iter().any(|&count| count > 0), "{accepted:?}");
        }
    }
}

#[test]
fn a_prefix_that_another_sequence_computed_is_there_for_the_head() {
    for head in one_of_each() {
        let mut executor = with_head(2, &head, InstructionSet::detect());
        let tokens = text(8, 60);
        feed(&mut executor, &[4, 5, 6, 7], &tokens, 0, 50);
        // two of its blocks hold all of a prefix; the token behind them is the same
        feed(&mut executor, &[4, 5, 9, 10], &tokens, 32, 59);
        let ours = drafted(&mut executor, &seed(&[4, 5, 9, 10], &tokens, 4));
        assert_eq!(ours, fresh(&head, &tokens), "{:?}", head.kind());
    }
}

/// A round behind `tokens` that feeds the choice of a call where `path` says 0, else its runner-up.
fn along(head: &DraftHead, tokens: &[TokenId], path: &[u32]) -> Vec<Proposal> {
    let mut executor = with_head(1, head, InstructionSet::detect());
    let blocks = [5, 0, 9];
    feed(&mut executor, &blocks, tokens, 0, tokens.len() - 1);
    let mut forest = DraftForest::default();
    executor.start(&[seed(&blocks, tokens, 8)], &mut forest).unwrap();
    let mut proposals = Vec::new();
    for &rank in path {
        let latest = NodeId(forest.len() as u32 - 1);
        proposals.push(forest.get(latest).unwrap().proposal);
        let fed = if rank == 0 { latest } else { forest.add_runner_up(latest) };
        executor.extend(&[fed], &mut forest).unwrap();
    }
    proposals.push(forest.since(forest.len() - 1).next().unwrap().1.proposal);
    proposals
}

#[test]
fn each_branch_of_a_tree_is_drafted_as_if_there_were_no_other() {
    let plain = RandomHeadOptions::default();
    let heads = [
        eagle3(5, &RandomHeadOptions { draft_tokens: Some(60), ..plain.clone() }),
        eagle3(9, &RandomHeadOptions { norm_before_residual: true, norm_output: true, ..plain }),
    ];
    for head in heads {
        let mut executor = with_head(2, &head, InstructionSet::detect());
        let (texts, tables) = ([text(4, 37), text(7, 30)], [[5, 0, 9, 3], [11, 12, 13, 14]]);
        for (tokens, blocks) in texts.iter().zip(&tables) {
            feed(&mut executor, blocks, tokens, 0, tokens.len() - 1);
        }
        let seeds = [0, 1].map(|index| seed(&tables[index], &texts[index], 8));
        let mut forest = DraftForest::default();
        executor.start(&seeds, &mut forest).unwrap();
        // level by level all choices and all runner-ups; of the second sequence the runner-ups only
        let mut level = vec![(NodeId(0), vec![]), (NodeId(1), vec![])];
        for _ in 0..3 {
            let mut fed = Vec::new();
            for (choice, path) in level {
                let of_first = forest.get(choice).unwrap().seed == 0;
                let beside = forest.add_runner_up(choice);
                fed.push((beside, [&path[..], &[1]].concat()));
                if of_first {
                    fed.push((choice, [&path[..], &[0]].concat()));
                }
            }
            fed.sort();
            let nodes: Vec<NodeId> = fed.iter().map(|&(node, _)| node).collect();
            let known = forest.len();
            executor.extend(&nodes, &mut forest).unwrap();
            level = (known as u32..).map(NodeId).zip(fed.into_iter().map(|(_, path)| path)).collect();
            for (node, path) in &level {
                let node = *forest.get(*node).unwrap();
                let alone = along(&head, &texts[node.seed as usize], path);
                assert_eq!(Some(&node.proposal), alone.last(), "seed {}, {path:?}", node.seed);
            }
        }
        assert_eq!(level.len(), 9, "eight paths of the first sequence, one of the second");
    }
}

#[test]
fn the_accepted_path_of_a_tree_is_what_a_head_drafts_from() {
    for head in one_of_each() {
        let mut executor = with_head(2, &head, InstructionSet::detect());
        let blocks = [8, 9, 10, 11];
        let mut tokens = text(2, 30);
        let mut plain = with_head(1, &head, InstructionSet::detect());
        let said = verify(&mut plain, &[chain(&blocks, &tokens, 0, 0)])[0].tokens[0];
        let behind = [&tokens[..], &[said]].concat();
        let then = verify(&mut plain, &[chain(&blocks, &behind, 0, 0)])[0].tokens[0];
        feed(&mut executor, &blocks, &tokens, 0, 29);
        let wrong = (said + 1) % VOCAB as u32;
        // the second branch is right: nodes 1 and 2
        let row = VerifyRow {
            tree: Some(vec![0, 0, 2]),
            ..chain(&blocks, &[tokens[29], wrong, said, then], 29, 3)
        };
        let verdict = verify(&mut executor, &[row]).remove(0);
        assert_eq!((verdict.accepted, &verdict.path[..]), (2, &[1, 2][..]));
        let blocks_ids = blocks.iter().copied().map(BlockId).collect();
        executor
            .compact(&[Compaction { blocks: blocks_ids, first: 30, path: verdict.path.clone() }])
            .unwrap();
        tokens.extend(&verdict.tokens);
        let ours = drafted(&mut executor, &seed(&blocks, &tokens, 4));
        assert_eq!(ours, fresh(&head, &tokens), "{:?}", head.kind());
    }
}

#[test]
fn seeds_of_a_batch_draft_as_they_would_alone_however_large_it_is() {
    for head in one_of_each() {
        let mut executor = with_head(2, &head, InstructionSet::detect());
        // more sequences than go through a block head's layers, or have their logits, together
        let texts: Vec<Vec<TokenId>> = (0..38).map(|index| text(index, 10 + index % 5)).collect();
        for size in [38, 1, 8, 13] {
            let rows: Vec<VerifyRow> = (0..size)
                .map(|index| {
                    let text = &texts[index];
                    let next = text.last().copied();
                    let tokens = &text[..text.len() - 1];
                    VerifyRow { next, ..chain(&[index as u32], tokens, 0, 0) }
                })
                .collect();
            verify(&mut executor, &rows);
            let seeds: Vec<DraftSeed> = (0..size)
                .map(|index| seed(&[index as u32, 40 + index as u32 % 20], &texts[index], 1 + index % 2))
                .collect();
            let mut forest = DraftForest::default();
            executor.start(&seeds, &mut forest).unwrap();
            for (index, text) in texts[..size].iter().enumerate() {
                let of_seed = forest.since(0).filter(|(_, node)| node.seed == index as u32);
                let ours: Vec<Proposal> = of_seed.map(|(_, node)| node.proposal).collect();
                let expected = fresh(&head, text);
                assert!(!ours.is_empty(), "{:?}", head.kind());
                assert_eq!(ours, expected[..ours.len()], "{:?}, {index} of {size}", head.kind());
            }
        }
    }
}

#[test]
fn without_hidden_states_an_eagle3_head_proposes_nothing_and_goes_on() {
    let [head, ..] = one_of_each();
    let mut executor = with_head(2, &head, InstructionSet::detect());
    let tokens = text(1, 20);
    assert_eq!(drafted(&mut executor, &seed(&[3, 4], &tokens, 4)), []);
    feed(&mut executor, &[3, 4], &tokens, 0, 19);
    assert_eq!(drafted(&mut executor, &seed(&[3, 4], &tokens, 4)).len(), 4);
    // other tokens than the target was fed: what is there is of another sequence
    let other = [&tokens[..19], &[tokens[19] ^ 1]].concat();
    assert_eq!(drafted(&mut executor, &seed(&[3, 4], &other, 4)), []);
}

#[test]
fn drafts_obey_their_masks_and_penalties() {
    for head in one_of_each() {
        let mut executor = with_head(2, &head, InstructionSet::detect());
        let tokens = text(6, 25);
        feed(&mut executor, &[3, 4], &tokens, 0, 24);
        let free = drafted(&mut executor, &seed(&[3, 4], &tokens, 4));
        let mut masked = seed(&[3, 4], &tokens, 4);
        let other = |token| token != free[0].token;
        masked.mask = Some(Arc::new(crate::protocol::TokenMask::from_fn(VOCAB as u32, other)));
        let ours = drafted(&mut executor, &masked);
        assert!(ours[0].finite && ours[0].token != free[0].token, "{:?}", head.kind());
        masked.mask = Some(Arc::new(crate::protocol::TokenMask::none(VOCAB as u32)));
        let mut forest = DraftForest::default();
        executor.start(&[masked], &mut forest).unwrap();
        let proposals: Vec<bool> = forest.since(0).map(|(_, node)| node.proposal.finite).collect();
        assert_eq!(proposals, [false], "nothing is allowed, and nothing follows");
        let mut biased = seed(&[3, 4], &tokens, 4);
        let logit_bias = vec![(free[0].token, -100.0)];
        biased.input.sampling = Arc::new(SamplingParams { logit_bias, ..SamplingParams::greedy() });
        let ours = drafted(&mut executor, &biased);
        assert!(ours.iter().all(|proposal| proposal.token != free[0].token), "{:?}", head.kind());
    }
}

#[test]
fn more_sequences_than_go_through_the_layer_together_draft_as_they_would_alone() {
    let head = &one_of_each()[0];
    let options =
        CpuOptions { target_blocks: 300, batch_sequences_max: 300, batch_tokens_max: 1200, ..options(2) };
    let mut executor = CpuExecutor::new(options, deep_target(), Some(head.clone().into())).unwrap();
    let texts: Vec<Vec<TokenId>> = (0..300).map(|index| text(index, 4)).collect();
    let prompts = texts
        .iter()
        .enumerate()
        .map(|(index, text)| VerifyRow { next: Some(text[3]), ..chain(&[index as u32], &text[..3], 0, 0) });
    verify(&mut executor, &prompts.collect::<Vec<_>>());
    let seeds: Vec<DraftSeed> =
        texts.iter().enumerate().map(|(index, text)| seed(&[index as u32], text, 2)).collect();
    let mut forest = DraftForest::default();
    executor.start(&seeds, &mut forest).unwrap();
    let roots: Vec<NodeId> = forest.since(0).map(|(id, _)| id).collect();
    executor.extend(&roots, &mut forest).unwrap();
    assert_eq!(forest.len(), 600);
    for index in [0, 1, 255, 256, 299] {
        let of_seed = forest.since(0).filter(|(_, node)| node.seed == index as u32);
        let ours: Vec<Proposal> = of_seed.map(|(_, node)| node.proposal).collect();
        assert_eq!(ours, fresh(head, &texts[index])[..2], "sequence {index}");
    }
}

#[test]
fn a_block_that_reaches_beyond_the_context_is_drafted_like_any_other() {
    let [_, dflash, dspark] = one_of_each();
    for head in [dflash, dspark] {
        let mut executor = with_head(2, &head, InstructionSet::detect());
        let context = executor.info().context_tokens_max as usize;
        let blocks: Vec<u32> = (0..32).collect();
        let tokens = text(4, context as u32);
        feed(&mut executor, &blocks, &tokens, 0, context - 1);
        let expected = reference(&head, &tokens);
        let ours = drafted(&mut executor, &seed(&blocks, &tokens, expected.len()));
        let tokens: Vec<TokenId> = ours.iter().map(|proposal| proposal.token).collect();
        assert_eq!(tokens, expected.iter().map(|(token, ..)| *token).collect::<Vec<_>>());
    }
}

#[test]
fn an_executor_verifies_no_more_drafts_than_a_block_has() {
    let most =
        one_of_each().map(|head| with_head(1, &head, InstructionSet::detect()).info().draft_tokens_max);
    assert_eq!(most, [64, 4, 5], "chains, a block of five without and with the anchor's slot");
}
