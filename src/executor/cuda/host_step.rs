//! One step as the host puts it together, before anything goes to the device.
#![forbid(unsafe_code)]

use super::attention_plan::{AttentionPlan, AttentionRoom, SequenceShape};
use super::ffi::kernels::VerifySequence;
use super::sampling_rows::SamplingRows;
use crate::protocol::SequenceInput;

/// Everything that a step reads, unpadded. Pure memory: no device is needed to fill it.
/// Reused from step to step.
#[derive(Debug)]
pub struct HostStep {
    /// Input tokens.
    pub tokens: Vec<i32>,
    /// Rows that need logits.
    pub gather: Vec<i32>,
    /// Where the hidden states of the first rows go: the row of the first, and how many.
    pub states: [i32; 2],
    /// Rows that a draft head takes states from.
    pub sources: Vec<i32>,
    /// How each of them is sampled.
    pub sampling: SamplingRows,
    /// What is verified.
    pub verify: VerifyInputs,
    /// The attention of all rows.
    pub plan: AttentionPlan,
}

impl HostStep {
    /// An empty step of a model with this room.
    pub fn new(room: AttentionRoom) -> HostStep {
        HostStep {
            tokens: Vec::new(),
            gather: Vec::new(),
            states: [0, 0],
            sources: Vec::new(),
            sampling: SamplingRows::new(),
            verify: VerifyInputs::default(),
            plan: AttentionPlan::new(room),
        }
    }

    /// Forgets everything but the plan, which is rebuilt by
    /// [`AttentionPlan::build`]; keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.gather.clear();
        self.states = [0, 0];
        self.sources.clear();
        self.sampling.clear();
        self.verify.clear();
    }

    /// Adds a sequence's input tokens.
    pub fn push_tokens(&mut self, tokens: &[u32]) {
        self.tokens.extend(tokens.iter().map(|&token| token as i32));
    }
}

/// What the verification walks, see csrc/sampling.h.
#[derive(Debug, Default)]
pub struct VerifyInputs {
    /// One per sequence that samples.
    pub sequences: Vec<VerifySequence>,
    /// The sequence of each row of logits.
    pub sequence_of: Vec<i32>,
    /// The draft before each row of logits.
    pub drafts: Vec<i32>,
    /// That draft's parent.
    pub parents: Vec<i32>,
}

impl VerifyInputs {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.sequences.clear();
        self.sequence_of.clear();
        self.drafts.clear();
        self.parents.clear();
    }
}

/// A sequence as the attention plan sees it.
pub fn input_shape<'a>(input: &'a SequenceInput, drafts: u32, tree: Option<&'a [u32]>) -> SequenceShape<'a> {
    SequenceShape {
        start: input.start,
        tokens: input.tokens.len(),
        drafts: drafts as usize,
        tree,
        cached: 0,
        blocks: &input.blocks,
    }
}
