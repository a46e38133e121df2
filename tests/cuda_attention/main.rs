//! The attention kernels against their oracle, over heads, contexts, query lengths and trees.
#![cfg(feature = "cuda")]

mod case;
mod oracle;

use case::{Case, Heads, Kernel, Problem, Random, Sequence, vector_offset};
use half::bf16;
use specserve::executor::cuda::{Gpu, Stream};
use specserve::protocol::BLOCK_TOKENS;

/// Largest error of a row's head, relative to its length: outputs are rounded to bf16 once,
/// weights to bf16 before they multiply values.
const ROW_ERROR_MAX: f64 = 1.2e-2;
/// Row-heads of a case that are compared with the oracle.
const CHECKED: usize = 48;

fn device() -> (Gpu, Stream) {
    let gpu = Gpu::open(0).expect("a CUDA device");
    let stream = Stream::new().expect("a stream");
    (gpu, stream)
}

/// Whether to run small cases only (`SPECSERVE_TEST_SMALL`), for compute-sanitizer, under
/// which kernels run a hundred times slower.
fn small() -> bool {
    std::env::var_os("SPECSERVE_TEST_SMALL").is_some()
}

fn number(bits: u16) -> f64 {
    f64::from(bf16::from_bits(bits))
}

fn error(got: &[u16], want: &[f64]) -> f64 {
    let difference: f64 = got.iter().zip(want).map(|(&g, w)| (number(g) - w).powi(2)).sum();
    let length: f64 = want.iter().map(|w| w * w).sum();
    (difference / length).sqrt()
}

/// Fast and naive against the oracle at random rows, fast against naive everywhere.
fn check(heads: Heads, sequences: Vec<Sequence>, seed: u64, stream: &Stream) {
    let name = format!("{heads:?} seed {seed} {} sequences", sequences.len());
    let problem = Problem::new(heads, sequences, seed);
    let mut case = Case::new(&problem, stream).expect("the case fits the device");
    let fast = case.run(Kernel::Fast, stream).expect("fast runs");
    let naive = case.run(Kernel::Naive, stream).expect("naive runs");
    let mut random = Random::new(seed + 1);
    for _ in 0..CHECKED {
        let sequence = random.below(problem.sequences.len());
        let query = random.below(problem.sequences[sequence].tokens);
        let head = random.below(heads.query);
        let want = problem.oracle(sequence, query, head);
        let at = (problem.first_row(sequence) + query) * problem.width() + head * heads.dim;
        for (kernel, out) in [("fast", &fast), ("naive", &naive)] {
            let error = error(&out[at..at + heads.dim], &want);
            assert!(error < ROW_ERROR_MAX, "{name}: {kernel}, sequence {sequence} query {query}: {error}");
        }
    }
    for (row, (fast, naive)) in fast.chunks(heads.dim).zip(naive.chunks(heads.dim)).enumerate() {
        let want: Vec<f64> = naive.iter().map(|&bits| number(bits)).collect();
        let error = error(fast, &want);
        assert!(error < 2.0 * ROW_ERROR_MAX, "{name}: fast and naive differ in row-head {row}: {error}");
    }
}

fn grid() -> Vec<Heads> {
    let mut all = Vec::new();
    for dim in [64, 128] {
        for (query, kv) in [(2, 2), (4, 2), (6, 2), (8, 2), (7, 1), (16, 2), (16, 8)] {
            all.push(Heads { query, kv, dim });
        }
    }
    if small() {
        all = vec![all[2], all[13]];
    }
    all
}

fn random_tree(random: &mut Random, drafts: usize) -> Vec<u32> {
    (0..drafts).map(|draft| random.below(draft + 1) as u32).collect()
}

#[test]
#[ignore = "needs a CUDA device"]
fn decode_of_one_token_is_the_oracles_for_all_heads_and_batches() {
    let (_gpu, stream) = device();
    for (index, heads) in grid().into_iter().enumerate() {
        let mut random = Random::new(index as u64);
        let batches = [(1usize, 1usize), (3, 700), (17, 2500), (256, 300)];
        for (count, longest) in batches.into_iter().take(if small() { 2 } else { batches.len() }) {
            let sequences = (0..count).map(|_| Sequence::chain(random.below(longest) as u32, 1)).collect();
            check(heads, sequences, 100 + index as u64, &stream);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn ragged_verification_is_the_oracles() {
    let (_gpu, stream) = device();
    for (index, heads) in grid().into_iter().enumerate() {
        let mut random = Random::new(50 + index as u64);
        for most in [4usize, 9, 64] {
            let sequences =
                (0..13).map(|_| Sequence::chain(random.below(1500) as u32, 1 + random.below(most))).collect();
            check(heads, sequences, 200 + index as u64, &stream);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn chunk_and_block_borders_are_the_oracles() {
    let (_gpu, stream) = device();
    let few = Heads { query: 8, kv: 2, dim: 128 };
    let many = Heads { query: 16, kv: 8, dim: 128 };
    for start in [0u32, 1, 14, 15, 16, 17, 62, 63, 64, 250, 255, 256, 257, 511, 512, 4095, 4096, 8191, 8192] {
        for heads in [few, many] {
            let sequences = vec![Sequence::chain(start, 1), Sequence::chain(start, 5)];
            check(heads, sequences, u64::from(start), &stream);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn contexts_of_thirty_two_thousand_tokens_are_the_oracles() {
    let (_gpu, stream) = device();
    let end = if small() { 1200 } else { 32_768 };
    for dim in [64, 128] {
        let sequences =
            vec![Sequence::chain(end - 1, 1), Sequence::chain(end - 68, 9), Sequence::chain(end / 2, 2)];
        check(Heads { query: 8, kv: 2, dim }, sequences, 7, &stream);
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn trees_of_up_to_sixty_three_drafts_are_the_oracles() {
    let (_gpu, stream) = device();
    for (index, heads) in grid().into_iter().enumerate() {
        let mut random = Random::new(90 + index as u64);
        let sequences = [1usize, 2, 7, 16, 40, 63]
            .into_iter()
            .map(|drafts| Sequence {
                start: random.below(900) as u32,
                tokens: drafts + 1,
                drafts,
                tree: Some(random_tree(&mut random, drafts)),
            })
            .collect();
        check(heads, sequences, 300 + index as u64, &stream);
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn prefill_is_the_oracles_for_whole_prompts_and_chunks() {
    let (_gpu, stream) = device();
    for (index, heads) in grid().into_iter().enumerate() {
        let sequences = vec![
            Sequence::chain(0, 65),
            Sequence::chain(0, 333),
            Sequence::chain(129, 200),
            Sequence::chain(1000, 77),
            Sequence::chain(700, 1),
        ];
        check(heads, sequences, 400 + index as u64, &stream);
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_sequence_has_the_same_bits_alone_and_among_others() {
    let (_gpu, stream) = device();
    for dim in [64, 128] {
        let mut random = Random::new(dim as u64);
        let sequences: Vec<Sequence> = (0..40)
            .map(|_| {
                Sequence::chain(random.below(if small() { 300 } else { 6000 }) as u32, 1 + random.below(9))
            })
            .collect();
        let heads = if dim == 64 { Heads { query: 8, kv: 2, dim } } else { Heads { query: 16, kv: 8, dim } };
        let problem = Problem::new(heads, sequences, 11);
        let mut case = Case::new(&problem, &stream).expect("fits");
        let all = case.run(Kernel::Fast, &stream).expect("runs");
        for index in [0, 7, 39] {
            let mut alone = Case::new(&problem.alone(index), &stream).expect("fits");
            let own = alone.run(Kernel::Fast, &stream).expect("runs");
            let at = problem.first_row(index) * problem.width();
            assert!(own == all[at..at + own.len()], "sequence {index} at head_dim {dim}");
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_query_has_the_same_bits_in_a_decode_and_in_a_verification() {
    let (_gpu, stream) = device();
    let (few, many) = (Heads { query: 8, kv: 2, dim: 128 }, Heads { query: 32, kv: 8, dim: 128 });
    for (start, heads) in [(100u32, few), (250, few), (508, many), (1000, few), (5000, many), (8185, many)] {
        let problem = Problem::new(heads, vec![Sequence::chain(start, 9)], 5);
        let mut verify = Case::tiled(&problem, true, &stream).expect("fits");
        assert!(verify.plan.large);
        let together = verify.run(Kernel::Fast, &stream).expect("runs");
        let mut small = Case::tiled(&problem, false, &stream).expect("fits");
        assert!(!small.plan.large);
        assert!(small.run(Kernel::Fast, &stream).expect("runs") == together, "start {start} in small tiles");
        for query in [0usize, 4, 8] {
            let width = problem.width();
            let one = Problem {
                sequences: vec![Sequence::chain(start + query as u32, 1)],
                q: problem.q[query * width..(query + 1) * width].to_vec(),
                ..problem.clone()
            };
            let mut decode = Case::new(&one, &stream).expect("fits");
            assert!(!decode.plan.large);
            let own = decode.run(Kernel::Fast, &stream).expect("runs");
            assert!(own == together[query * width..(query + 1) * width], "start {start} query {query}");
        }
    }
}

/// The problem in which draft `draft` of a tree is decoded in plain: its ancestors' keys and values lie
/// where the text has them.
fn decoded_alone(tree: &Problem, draft: usize) -> Problem {
    let (sequence, blocks) = (&tree.sequences[0], &tree.blocks[0]);
    let parents = sequence.tree.as_ref().expect("a tree");
    let committed = sequence.tokens - sequence.drafts;
    let first = sequence.start as usize + committed;
    let mut path = vec![draft];
    while let Some(parent) = (parents[path[path.len() - 1]] as usize).checked_sub(1) {
        path.push(parent);
    }
    path.reverse();
    let mut kv = tree.kv.clone();
    let tokens = BLOCK_TOKENS as usize;
    for (depth, ancestor) in path.iter().enumerate() {
        for (kv_head, which) in (0..tree.heads.kv).flat_map(|head| [(head, 0), (head, 1)]) {
            let at = |slot: usize| {
                vector_offset(tree.heads, blocks[slot / tokens].index(), kv_head, which, slot % tokens)
            };
            let (from, to) = (at(first + ancestor), at(first + depth));
            kv[to..to + tree.heads.dim].copy_from_slice(&tree.kv[from..from + tree.heads.dim]);
        }
    }
    let (row, width) = (committed + draft, tree.width());
    Problem {
        sequences: vec![Sequence::chain((first + path.len() - 1) as u32, 1)],
        q: tree.q[row * width..(row + 1) * width].to_vec(),
        kv,
        ..tree.clone()
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_draft_of_a_tree_has_the_bits_of_plain_decoding() {
    let (_gpu, stream) = device();
    let heads = [
        Heads { query: 8, kv: 2, dim: 128 },
        Heads { query: 32, kv: 8, dim: 128 },
        Heads { query: 6, kv: 2, dim: 64 },
    ];
    let mut random = Random::new(77);
    let mut gathered = 0;
    for start in [0u32, 7, 100, 250, 255, 508, 1000, 5000, 8185] {
        for heads in heads {
            let drafts = [5, 16, 40, 63][random.below(4)];
            let tree = Some(random_tree(&mut random, drafts));
            let sequence = Sequence { start, tokens: drafts + 1, drafts, tree };
            let problem = Problem::new(heads, vec![sequence], u64::from(start));
            let mut outputs = [false, true].map(|large| {
                let mut case = Case::tiled(&problem, large, &stream).expect("fits");
                gathered += case.plan.items.iter().filter(|item| item.gathered != 0).count();
                case.run(Kernel::Fast, &stream).expect("runs")
            });
            assert!(outputs[0] == outputs[1], "start {start}: small tiles and large");
            let together = std::mem::take(&mut outputs[0]);
            for draft in (0..drafts).step_by(3) {
                let one = decoded_alone(&problem, draft);
                let mut decode = Case::new(&one, &stream).expect("fits");
                let own = decode.run(Kernel::Fast, &stream).expect("runs");
                let at = (1 + draft) * problem.width();
                assert!(own == together[at..at + own.len()], "start {start} draft {draft} of {drafts}");
            }
        }
    }
    assert!(gathered > 100, "{gathered} items");
}

#[test]
#[ignore = "needs a CUDA device"]
fn chips_with_little_shared_memory_get_the_same_bits() {
    let (_gpu, stream) = device();
    for (dim, queries) in [(64, 1), (64, 9), (128, 1), (128, 9)] {
        let heads = Heads { query: 8, kv: 2, dim };
        let count = if small() { 4 } else { 40 };
        let sequences = (0..count).map(|i| Sequence::chain(i * 197, queries)).collect();
        let problem = Problem::new(heads, sequences, 23);
        for large in [false, true] {
            let mut case = Case::tiled(&problem, large, &stream).expect("fits");
            assert_eq!(case.plan.large, large && queries > 1);
            let many = case.run(Kernel::Fast, &stream).expect("runs");
            assert!(
                case.run(Kernel::FewStages, &stream).expect("runs") == many,
                "{heads:?}, {queries} queries"
            );
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_prompt_has_the_same_bits_alone_in_small_tiles_and_among_others_in_large_ones() {
    let (_gpu, stream) = device();
    for dim in [64, 128] {
        let heads = Heads { query: 16, kv: 8, dim };
        // 32 tiles of 128 rows alone; together more than any device has SMs.
        let sequences = (0..12).map(|i| Sequence::chain(i * 31, 200)).collect();
        let problem = Problem::new(heads, sequences, 29);
        let all = Case::new(&problem, &stream).expect("fits").run(Kernel::Fast, &stream).expect("runs");
        for index in [0, 11] {
            let mut alone = Case::new(&problem.alone(index), &stream).expect("fits");
            assert!(!alone.plan.prefill_items.is_empty());
            let own = alone.run(Kernel::Fast, &stream).expect("runs");
            let at = problem.first_row(index) * problem.width();
            assert!(own == all[at..at + own.len()], "sequence {index} at head_dim {dim}");
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn repeated_launches_give_the_same_bits() {
    let (_gpu, stream) = device();
    let heads = Heads { query: 8, kv: 2, dim: 128 };
    let sequences = (0..20).map(|i| Sequence::chain(i * 391, 3)).collect();
    let mut case = Case::new(&Problem::new(heads, sequences, 3), &stream).expect("fits");
    let first = case.run(Kernel::Fast, &stream).expect("runs");
    for _ in 0..5 {
        assert!(case.run(Kernel::Fast, &stream).expect("runs") == first);
    }
}
