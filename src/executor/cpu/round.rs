//! The sequences of a drafting round, as drafters of every kind keep them.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::protocol::{BlockId, DraftSeed, Proposal, SamplingParams, TokenId, TokenMask};
use crate::sampling::{DraftVocabulary, Sampler, TokenHistory};

/// One seed's sequence within a round.
#[derive(Debug)]
pub(crate) struct RoundRow {
    pub(crate) blocks: Vec<BlockId>,
    sampling: Arc<SamplingParams>,
    /// Committed tokens and what was proposed and fed back, where penalties look at them.
    history: TokenHistory,
    /// The tokens that the next proposal may be; `None`: any.
    mask: Option<Arc<TokenMask>>,
    /// Position of the next proposal.
    pub(crate) next: u32,
}

impl RoundRow {
    /// The sequence after the seed's input.
    pub(crate) fn of(seed: &DraftSeed) -> RoundRow {
        let input = &seed.input;
        RoundRow {
            blocks: input.blocks.clone(),
            sampling: Arc::clone(&input.sampling),
            history: TokenHistory::of(input),
            mask: seed.mask.clone(),
            next: input.start + input.tokens.len() as u32,
        }
    }

    /// Appends a proposal; `mask` says what may follow it.
    pub(crate) fn advance(&mut self, token: TokenId, mask: Option<Arc<TokenMask>>) {
        self.next += 1;
        self.mask = mask;
        if self.sampling.has_penalties() {
            self.history.push(token);
        }
    }

    /// The next proposal, from the drafter's logits over the target's tokens, or over those of
    /// `vocabulary`.
    pub(crate) fn propose(
        &self,
        sampler: &mut Sampler,
        logits: &[f32],
        vocabulary: Option<&DraftVocabulary>,
    ) -> Proposal {
        let (mask, params, history) = (self.mask.as_deref(), &*self.sampling, &self.history);
        match vocabulary {
            None => sampler.propose_allowed(logits, mask, params, self.next, history),
            Some(vocabulary) => sampler.propose_mapped(logits, vocabulary, mask, params, self.next, history),
        }
    }
}
