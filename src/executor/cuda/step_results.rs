//! What a step brought back, as the device writes it: 32-bit words.
#![forbid(unsafe_code)]

use super::ffi::kernels::{DraftProposal, VerifyOutcome};

/// Words of a [`DraftProposal`].
pub const PROPOSAL_WORDS: usize = size_of::<DraftProposal>() / 4;
/// Words of a [`VerifyOutcome`].
pub const OUTCOME_WORDS: usize = size_of::<VerifyOutcome>() / 4;

/// Where a verification's results stand: outcomes of all sequences, then the sampled token of
/// each row of logits, then each one's draft on the path.
#[derive(Clone, Copy, Debug)]
pub struct VerdictWords {
    /// Where tokens start.
    pub tokens: usize,
    /// Where paths start.
    pub path: usize,
    /// One past the end.
    pub end: usize,
}

impl VerdictWords {
    /// For padded sizes.
    pub fn of(sequences: usize, logit_rows: usize) -> VerdictWords {
        let tokens = sequences * OUTCOME_WORDS;
        let path = tokens + logit_rows;
        VerdictWords { tokens, path, end: path + logit_rows }
    }
}

/// The proposal of a row of logits.
///
/// # Panics
/// When the words end before it.
pub fn proposal(words: &[u32], row: usize) -> DraftProposal {
    let words = &words[row * PROPOSAL_WORDS..(row + 1) * PROPOSAL_WORDS];
    DraftProposal {
        token: words[0] as i32,
        runner_up: words[1] as i32,
        probability: f32::from_bits(words[2]),
        margin: f32::from_bits(words[3]),
        finite: words[4] as i32,
    }
}

/// The results of a verification.
#[derive(Clone, Copy, Debug)]
pub struct VerdictResults<'a> {
    words: &'a [u32],
    layout: VerdictWords,
}

impl<'a> VerdictResults<'a> {
    /// Reads results that were laid out so.
    pub fn new(words: &'a [u32], layout: VerdictWords) -> VerdictResults<'a> {
        VerdictResults { words, layout }
    }

    /// The outcome of a sequence, with the tokens and the path of the rows from `first_row` on.
    ///
    /// # Panics
    /// When the words end before it.
    pub fn outcome(&self, sequence: usize, first_row: usize) -> (VerifyOutcome, &'a [u32], &'a [u32]) {
        let VerdictWords { tokens, path, end } = self.layout;
        let at = sequence * OUTCOME_WORDS;
        let outcome = VerifyOutcome { accepted: self.words[at] as i32, finite: self.words[at + 1] as i32 };
        (outcome, &self.words[tokens + first_row..path], &self.words[path + first_row..end])
    }
}
