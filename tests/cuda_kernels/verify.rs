//! Fused verification against the CPU's sampler and walk.

use std::sync::Arc;

use specserve::executor::cuda::SamplingRows;
use specserve::executor::cuda::error::check_launch;
use specserve::executor::cuda::ffi::kernels::{
    self, SampleParams, VerifyOutcome, VerifyParams, VerifySequence,
};
use specserve::protocol::{SamplingParams, TokenMask, Verdict};
use specserve::sampling::{Sampler, TokenHistory, walk_chain, walk_tree};

use crate::sampling::{
    bytemuck_adjustments, bytemuck_rows, random_history, random_logits, random_mask, random_params,
};
use crate::support::{Bench, Random};

/// How often a draft equals the target's sample.
const HIT_RATE: f32 = 0.85;

/// One sequence to verify.
struct Sequence {
    params: SamplingParams,
    history: TokenHistory,
    position: u32,
    /// One row per node: the root, then the drafts.
    logits: Vec<Vec<f32>>,
    /// One per node.
    masks: Vec<Option<Arc<TokenMask>>>,
    drafts: Vec<u32>,
    parents: Vec<u32>,
    tree: bool,
}

impl Sequence {
    fn random(random: &mut Random, vocab: usize, tree: bool, masked: bool) -> Sequence {
        let count = [0, 1, 3, 8, 64][random.below(5)];
        let mut params = random_params(random, vocab);
        // Penalties make a node's sample depend on its path. Paths are unique in a tree, so each
        // row serves one path.
        params.seed = random.word();
        let mut sequence = Sequence {
            params,
            history: random_history(random, vocab),
            position: random.below(10_000) as u32,
            logits: (0..=count).map(|_| random_logits(random, vocab)).collect(),
            masks: (0..=count).map(|_| if masked { node_mask(random, vocab) } else { None }).collect(),
            drafts: Vec::new(),
            parents: Vec::new(),
            tree,
        };
        let mut sampler = Sampler::new();
        for draft in 0..count {
            let parent = if tree && random.below(3) > 0 { random.below(draft + 1) } else { draft };
            let hit = random.uniform() < HIT_RATE;
            sequence.parents.push(parent as u32);
            let own = sequence.sample(&mut sampler, parent).token;
            sequence.drafts.push(if hit { own } else { random.below(vocab) as u32 });
        }
        if random.below(6) == 0 {
            let node = random.below(count + 1);
            sequence.logits[node][vocab / 2] = f32::NAN;
        }
        sequence
    }

    /// The drafts from the root to `node`.
    fn path_to(&self, node: usize) -> Vec<usize> {
        let mut path = Vec::new();
        let mut at = node;
        while at > 0 {
            path.push(at - 1);
            at = self.parents[at - 1] as usize;
        }
        path.reverse();
        path
    }

    fn history_at(&self, node: usize) -> TokenHistory {
        let mut history = self.history.clone();
        for draft in self.path_to(node) {
            history.push(self.drafts[draft]);
        }
        history
    }

    fn position_at(&self, node: usize) -> u32 {
        self.position + self.path_to(node).len() as u32
    }

    fn sample(&self, sampler: &mut Sampler, node: usize) -> specserve::sampling::SampledToken {
        let history = self.history_at(node);
        let mask = self.masks[node].as_deref();
        sampler.sample_allowed(&self.logits[node], mask, &self.params, self.position_at(node), &history)
    }

    fn want(&self) -> Verdict {
        let mut sampler = Sampler::new();
        if self.tree {
            walk_tree(&self.drafts, &self.parents, |node, _| self.sample(&mut sampler, node))
        } else {
            walk_chain(&self.drafts, |node| self.sample(&mut sampler, node))
        }
    }
}

/// A mask for most nodes. Few of them allow no token: the walk ends there without a verdict.
fn node_mask(random: &mut Random, vocab: usize) -> Option<Arc<TokenMask>> {
    let mask = random_mask(random, vocab)?;
    (mask.allowed().next().is_some() || random.below(8) == 0).then_some(mask)
}

/// Device inputs of one call; rows of padding stand between the sequences.
#[derive(Default)]
struct Inputs {
    logits: Vec<f32>,
    rows: SamplingRows,
    sequences: Vec<i32>,
    sequence_of: Vec<i32>,
    drafts: Vec<i32>,
    parents: Vec<i32>,
}

impl Inputs {
    fn of(sequences: &[Sequence], stride: usize) -> Inputs {
        let mut inputs = Inputs::default();
        for (index, sequence) in sequences.iter().enumerate() {
            let first_row = inputs.sequence_of.len() as i32;
            inputs.sequences.extend([first_row, sequence.drafts.len() as i32, i32::from(sequence.tree)]);
            for (node, logits) in sequence.logits.iter().enumerate() {
                inputs.push_row(logits, stride, index as i32);
                inputs.rows.push_masked(
                    &sequence.params,
                    sequence.position_at(node),
                    &sequence.history_at(node),
                    sequence.masks[node].as_ref(),
                );
                let draft = node.checked_sub(1);
                inputs.drafts.push(draft.map_or(-1, |d| sequence.drafts[d] as i32));
                inputs.parents.push(draft.map_or(-1, |d| sequence.parents[d] as i32));
            }
            if index % 3 == 0 {
                inputs.push_row(&[], stride, -1);
                inputs.rows.push_padding();
                inputs.drafts.push(-1);
                inputs.parents.push(-1);
            }
        }
        inputs.sequences.extend([0, -1, 0]);
        inputs
    }

    fn push_row(&mut self, logits: &[f32], stride: usize, sequence: i32) {
        self.logits.extend_from_slice(logits);
        let end = self.logits.len().next_multiple_of(stride).max((self.sequence_of.len() + 1) * stride);
        self.logits.resize(end, f32::NAN);
        self.sequence_of.push(sequence);
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn verification_matches_the_cpu() {
    compare_with_the_cpu(false);
}

#[test]
#[ignore = "needs a CUDA device"]
fn masked_verification_matches_the_cpu() {
    compare_with_the_cpu(true);
}

fn compare_with_the_cpu(masked: bool) {
    let mut bench = Bench::new();
    for (count, vocab) in [(1, 4_096), (8, 4_096), (64, 4_099), (8, 32_000), (6, 152_064)] {
        if bench.leaves_out(count * vocab) {
            continue;
        }
        for tree in [false, true] {
            let sequences: Vec<Sequence> =
                (0..count).map(|_| Sequence::random(&mut bench.random, vocab, tree, masked)).collect();
            for naive in [false, true] {
                if naive && vocab > 40_000 {
                    continue;
                }
                check(&bench, &sequences, vocab, naive);
            }
        }
    }
}

fn check(bench: &Bench, sequences: &[Sequence], vocab: usize, naive: bool) {
    let stride = vocab.next_multiple_of(4);
    let inputs = Inputs::of(sequences, stride);
    let rows = inputs.sequence_of.len();
    let mut logits = bench.upload(&inputs.logits);
    let rows_on = bench.upload(bytemuck_rows(&inputs.rows));
    let adjustments_on = bench.upload(bytemuck_adjustments(&inputs.rows));
    let words: Vec<u32> = inputs.rows.masks().iter().flat_map(|mask| mask.words().to_vec()).collect();
    let masks_on = bench.upload(&words);
    let (sequences_on, sequence_of_on) = (bench.upload(&inputs.sequences), bench.upload(&inputs.sequence_of));
    let (drafts_on, parents_on) = (bench.upload(&inputs.drafts), bench.upload(&inputs.parents));
    // SAFETY: plain arithmetic.
    let scratch_bytes = unsafe { kernels::specserve_sample_scratch_bytes(rows as i32) };
    let mut scratch = bench.zeroed::<u8>(scratch_bytes);
    let mut outcomes = bench.poisoned::<i32>(2 * (sequences.len() + 1));
    let (mut tokens, mut path) = (bench.poisoned::<i32>(rows), bench.poisoned::<i32>(rows));
    let params = VerifyParams {
        sample: SampleParams {
            logits: logits.mut_ptr(),
            stride: stride as i64,
            rows: rows_on.ptr().cast(),
            adjustments: adjustments_on.ptr().cast(),
            masks: masks_on.ptr(),
            scratch: scratch.mut_ptr().cast(),
            row_count: rows as i32,
            vocab: vocab as i32,
            filtered: i32::from(inputs.rows.filtered()),
        },
        sequences: sequences_on.ptr().cast::<VerifySequence>(),
        sequence_of: sequence_of_on.ptr(),
        drafts: drafts_on.ptr(),
        parents: parents_on.ptr(),
        outcomes: outcomes.mut_ptr().cast::<VerifyOutcome>(),
        tokens: tokens.mut_ptr(),
        path: path.mut_ptr(),
        sequence_count: sequences.len() as i32 + 1,
    };
    for _ in 0..2 {
        logits.upload(&inputs.logits, &bench.stream).expect("fits");
        // SAFETY: all buffers have the shapes that the parameters name and live until the
        // downloads below.
        let status = unsafe {
            if naive {
                kernels::specserve_verify_naive(&params, bench.stream.raw())
            } else {
                kernels::specserve_verify(&params, bench.stream.raw())
            }
        };
        check_launch(status, "verification").expect("launches");
        let (outcomes, tokens, path) =
            (bench.download(&outcomes), bench.download(&tokens), bench.download(&path));
        for (index, sequence) in sequences.iter().enumerate() {
            let first_row = inputs.sequences[3 * index] as usize;
            let found = (outcomes[2 * index] as usize, outcomes[2 * index + 1]);
            assert_verdict(sequence, found, &tokens[first_row..], &path[first_row..]);
        }
    }
}

fn assert_verdict(sequence: &Sequence, (accepted, finite): (usize, i32), tokens: &[i32], path: &[i32]) {
    let want = sequence.want();
    let what = format!("{} drafts, tree {}, {:?}", sequence.drafts.len(), sequence.tree, sequence.params);
    assert_eq!(finite == 1, want.finite, "{what}");
    assert_eq!(accepted, want.accepted as usize, "{what}");
    if !want.finite {
        return;
    }
    let tokens: Vec<u32> = tokens[..=accepted].iter().map(|&token| token as u32).collect();
    assert_eq!(tokens, want.tokens, "{what}");
    let path: Vec<u32> = path[..accepted].iter().map(|&draft| draft as u32).collect();
    let chain: Vec<u32> = (0..accepted as u32).collect();
    assert_eq!(path, if sequence.tree { want.path } else { chain }, "{what}");
}
