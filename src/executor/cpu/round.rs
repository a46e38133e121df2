//! The sequences of a drafting round, as drafters of every kind keep them.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::protocol::{BlockId, DraftSeed, Proposal, SamplingParams, TokenId, TokenMask};
use crate::sampling::{DraftVocabulary, Sampler, TokenHistory};

/// One seed's sequence within a round.
#[derive(Debug)]
pub(crate) struct RoundRow {
    pub(crate) blocks: Vec<BlockId>,
    /// Where its next proposal stands.
    pub(crate) end: RoundPlace,
}

/// A place behind a seed's input: what decides on the proposal there beside the logits.
#[derive(Clone, Debug)]
pub(crate) struct RoundPlace {
    sampling: Arc<SamplingParams>,
    /// Committed tokens and what was proposed and fed back, where penalties look at them.
    history: TokenHistory,
    /// The tokens that the proposal may be; `None`: any.
    mask: Option<Arc<TokenMask>>,
    /// Its position.
    pub(crate) position: u32,
}

impl RoundRow {
    /// The sequence after the seed's input.
    pub(crate) fn of(seed: &DraftSeed) -> RoundRow {
        let input = &seed.input;
        let end = RoundPlace {
            sampling: Arc::clone(&input.sampling),
            history: TokenHistory::of(input),
            mask: seed.mask.clone(),
            position: input.start + input.tokens.len() as u32,
        };
        RoundRow { blocks: input.blocks.clone(), end }
    }
}

impl RoundPlace {
    /// Goes on by a proposal; `mask` says what may follow it.
    pub(crate) fn advance(&mut self, token: TokenId, mask: Option<Arc<TokenMask>>) {
        self.position += 1;
        self.mask = mask;
        if self.sampling.has_penalties() {
            self.history.push(token);
        }
    }

    /// The proposal, from the drafter's logits over the target's tokens, or over those of
    /// `vocabulary`.
    pub(crate) fn propose(
        &self,
        sampler: &mut Sampler,
        logits: &[f32],
        vocabulary: Option<&DraftVocabulary>,
    ) -> Proposal {
        let (mask, params, history) = (self.mask.as_deref(), &*self.sampling, &self.history);
        match vocabulary {
            None => sampler.propose_allowed(logits, mask, params, self.position, history),
            Some(vocabulary) => {
                sampler.propose_mapped(logits, vocabulary, mask, params, self.position, history)
            }
        }
    }
}
