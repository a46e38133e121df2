//! Sampler and verification on a toy model: no kind of speculation changes the output.

use std::sync::Arc;

use crate::protocol::{ConstraintState, Proposal, SamplingParams, TokenConstraint, TokenId, TokenMask};
use crate::sampling::noise::Noise;
use crate::sampling::{Sampler, TokenHistory, walk_chain, walk_tree};

const VOCAB_SIZE: u32 = 150;
const PROMPT: [TokenId; 3] = [1, 2, 3];
const OUTPUT_TOKENS: usize = 40;

/// A model: logits that depend on the last two tokens, peaked like a language model's.
/// `blur` mixes in another model, for a draft that is only partly right.
fn logits(tokens: &[TokenId], blur: f32) -> Vec<f32> {
    let context = tokens.iter().rev().take(2).fold(0, |hash: u64, &t| hash * 1009 + u64::from(t));
    let part = |position, token| Noise { seed: 0xABCD ^ context, position }.gumbel(token);
    (0..VOCAB_SIZE).map(|token| 1.8 * ((1.0 - blur) * part(0, token) + blur * part(1, token))).collect()
}

/// What may follow prompt and output.
fn mask_after(params: &SamplingParams, tokens: &[TokenId]) -> Option<Arc<TokenMask>> {
    params.constraint.as_ref()?.mask(&tokens[PROMPT.len()..])
}

/// Every third token is free; the others have the parity of the token before.
#[derive(Debug)]
struct Parity;

impl TokenConstraint for Parity {
    fn state(&self, output: &[TokenId]) -> Box<dyn ConstraintState> {
        Box::new(ParityBehind(output.to_vec()))
    }
}

#[derive(Clone, Debug)]
struct ParityBehind(Vec<TokenId>);

impl ConstraintState for ParityBehind {
    fn mask(&mut self) -> Option<Arc<TokenMask>> {
        let last = *self.0.last()?;
        let constrained = !self.0.len().is_multiple_of(3);
        constrained.then(|| Arc::new(TokenMask::from_fn(VOCAB_SIZE, |token| token % 2 == last % 2)))
    }

    fn advance(&mut self, token: TokenId) {
        self.0.push(token);
    }

    fn fork(&self) -> Box<dyn ConstraintState> {
        Box::new(self.clone())
    }
}

/// How a step is drafted and pruned.
#[derive(Clone, Copy, Debug)]
struct Drafting {
    /// 0: the draft equals the target; 1: the two are independent.
    blur: f32,
    length: usize,
    /// Whether a draft is kept, given its index and proposal.
    keeps: fn(usize, &Proposal) -> bool,
    /// Whether each draft gets its runner-up as a sibling.
    tree: bool,
}

struct Decoder<'a> {
    sampler: Sampler,
    params: &'a SamplingParams,
    history: TokenHistory,
    drafted: u32,
    accepted: u32,
}

impl<'a> Decoder<'a> {
    fn new(params: &'a SamplingParams) -> Decoder<'a> {
        let history = TokenHistory::new(PROMPT.len() as u32, PROMPT.to_vec());
        Decoder { sampler: Sampler::new(), params, history, drafted: 0, accepted: 0 }
    }

    fn output(&self) -> &[TokenId] {
        &self.history.tokens()[PROMPT.len()..]
    }

    /// The draft model's proposals after the committed tokens, pruned.
    fn draft(&mut self, drafting: Drafting) -> Vec<Proposal> {
        let committed = self.history.tokens().len();
        let mut proposals = Vec::new();
        for index in 0..drafting.length {
            let tokens = self.history.tokens();
            let (row, position) = (logits(tokens, drafting.blur), tokens.len() as u32);
            let mask = mask_after(self.params, tokens);
            let proposal =
                self.sampler.propose_allowed(&row, mask.as_deref(), self.params, position, &self.history);
            if !(drafting.keeps)(index, &proposal) {
                break;
            }
            proposals.push(proposal);
            self.history.push(proposal.token);
        }
        self.history.truncate(committed);
        proposals
    }

    /// Runs one step and appends the emitted tokens.
    fn step(&mut self, drafting: Drafting) {
        let proposals = self.draft(drafting);
        let (drafts, parents): (Vec<TokenId>, Vec<u32>) = if drafting.tree {
            // Draft 2i is the i-th proposal, draft 2i + 1 its runner-up; both under draft 2i - 2.
            let parent = |i: usize| (2 * i).saturating_sub(1) as u32;
            let twins = proposals.iter().enumerate();
            twins.flat_map(|(i, p)| [(p.token, parent(i)), (p.runner_up, parent(i))]).unzip()
        } else {
            proposals.iter().enumerate().map(|(i, p)| (p.token, i as u32)).unzip()
        };
        let committed = self.history.tokens().len();
        let (sampler, history, params) = (&mut self.sampler, &mut self.history, self.params);
        let mut sample = |branch: &[usize]| {
            history.truncate(committed);
            branch.iter().for_each(|&d| history.push(drafts[d]));
            let tokens = history.tokens();
            let (mask, position) = (mask_after(params, tokens), tokens.len() as u32);
            sampler.sample_allowed(&logits(tokens, 0.0), mask.as_deref(), params, position, history)
        };
        let verdict = if drafting.tree {
            walk_tree(&drafts, &parents, |_, branch| sample(branch))
        } else {
            walk_chain(&drafts, |index| sample(&(0..index).collect::<Vec<_>>()))
        };
        assert!(verdict.finite && verdict.accepted as usize <= proposals.len());
        self.history.truncate(committed);
        verdict.tokens.iter().for_each(|&token| self.history.push(token));
        self.drafted += proposals.len() as u32;
        self.accepted += verdict.accepted;
    }
}

fn decode(params: &SamplingParams, drafting: Drafting) -> (Vec<TokenId>, u32, u32) {
    let mut decoder = Decoder::new(params);
    while decoder.output().len() < OUTPUT_TOKENS {
        decoder.step(drafting);
    }
    (decoder.output()[..OUTPUT_TOKENS].to_vec(), decoder.drafted, decoder.accepted)
}

fn plain() -> Drafting {
    Drafting { blur: 1.0, length: 0, keeps: |_, _| true, tree: false }
}

fn parameter_sets() -> Vec<SamplingParams> {
    let greedy = SamplingParams::greedy();
    let warm = SamplingParams { temperature: 0.9, seed: 17, ..greedy.clone() };
    let constraint: Option<Arc<dyn TokenConstraint>> = Some(Arc::new(Parity));
    vec![
        SamplingParams { constraint: constraint.clone(), ..greedy.clone() },
        SamplingParams { constraint: constraint.clone(), ..warm.clone() },
        SamplingParams { constraint, top_p: 0.9, repetition_penalty: 1.2, ..warm.clone() },
        greedy.clone(),
        SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.2, ..greedy },
        warm.clone(),
        SamplingParams { top_k: 20, top_p: 0.9, min_p: 0.01, ..warm.clone() },
        SamplingParams { presence_penalty: 0.8, repetition_penalty: 1.1, ..warm },
    ]
}

#[test]
fn the_output_is_the_same_for_every_draft_length_and_pruning() {
    let rules: [fn(usize, &Proposal) -> bool; 4] = [
        |_, _| true,
        |_, proposal| proposal.probability > 0.2,
        |_, proposal| proposal.margin > 0.1 || proposal.token % 2 == 0,
        |index, proposal| !(proposal.token as usize + index).is_multiple_of(3),
    ];
    for params in parameter_sets() {
        let (expected, ..) = decode(&params, plain());
        for blur in [0.0, 0.4, 1.0] {
            for length in [1, 3, 7] {
                for keeps in rules {
                    for tree in [false, true] {
                        let drafting = Drafting { blur, length, keeps, tree };
                        assert_eq!(decode(&params, drafting).0, expected, "{params:?} {drafting:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_draft_equal_to_the_target_is_fully_accepted() {
    for params in parameter_sets() {
        for tree in [false, true] {
            let (_, drafted, accepted) = decode(&params, Drafting { blur: 0.0, length: 4, tree, ..plain() });
            assert_eq!(accepted, drafted);
            assert!(drafted > 0);
        }
    }
}

#[test]
fn a_better_draft_is_accepted_more_often_and_a_tree_more_often_than_its_chain() {
    let params = SamplingParams { temperature: 0.9, ..SamplingParams::greedy() };
    let accepted = |blur, tree| {
        let runs = (0..20).map(|seed| {
            let params = SamplingParams { seed, ..params.clone() };
            let (_, drafted, accepted) = decode(&params, Drafting { blur, length: 3, tree, ..plain() });
            f64::from(accepted) / f64::from(drafted)
        });
        runs.sum::<f64>() / 20.0
    };
    let (unrelated, close) = (accepted(1.0, false), accepted(0.3, false));
    assert!(unrelated < 0.1 && close > 2.0 * unrelated, "{unrelated} and {close}");
    assert!(accepted(0.3, true) > close);
}

#[test]
fn a_constrained_output_obeys_its_constraint() {
    for params in parameter_sets().iter().filter(|params| params.constraint.is_some()) {
        let (output, ..) = decode(params, Drafting { blur: 0.4, length: 3, ..plain() });
        let obeys = |index: usize| index.is_multiple_of(3) || output[index] % 2 == output[index - 1] % 2;
        assert!((0..output.len()).all(obeys), "{output:?}");
        let free = SamplingParams { constraint: None, ..params.clone() };
        assert_ne!(output, decode(&free, plain()).0, "the constraint matters");
    }
}
