//! Prompt lookup as a drafter of any executor.

use super::ngram::{NgramOptions, propose};
use crate::executor::{BatchContract, Drafter, Executor, Target};
use crate::protocol::{
    DraftForest, DraftSeed, DrafterNeeds, ExecutorError, ExecutorInfo, Micros, ModelRole, NodeId, Proposal,
    SequenceInput,
};

/// An executor whose drafts are looked up in each sequence instead of computed.
pub struct WithPromptLookup {
    executor: Box<dyn Executor>,
    info: ExecutorInfo,
    drafter: PromptLookup,
}

/// Drafts for each seed what followed its last tokens the last time they occurred.
#[derive(Debug)]
struct PromptLookup {
    contract: BatchContract,
    options: NgramOptions,
    proposals: Vec<Proposal>,
    /// Whether the last call was of this drafter, which keeps no device waiting.
    called_last: bool,
}

impl WithPromptLookup {
    /// Drafts for `executor`'s target. A draft model that the executor may have is not used.
    pub fn new(executor: Box<dyn Executor>, options: NgramOptions) -> WithPromptLookup {
        let info = ExecutorInfo { drafter: Some(DrafterNeeds::tokens()), ..executor.info().clone() };
        WithPromptLookup {
            executor,
            drafter: PromptLookup {
                contract: BatchContract::new(&info),
                options,
                proposals: Vec::new(),
                called_last: false,
            },
            info,
        }
    }
}

impl Executor for WithPromptLookup {
    fn info(&self) -> &ExecutorInfo {
        &self.info
    }

    fn target(&mut self) -> &mut dyn Target {
        self.drafter.called_last = false;
        self.executor.target()
    }

    fn drafter(&mut self) -> Option<&mut dyn Drafter> {
        Some(&mut self.drafter)
    }

    fn idle_before_last_call(&self) -> Option<Micros> {
        if self.drafter.called_last { None } else { self.executor.idle_before_last_call() }
    }

    fn logits(&mut self, model: ModelRole, input: &SequenceInput) -> Result<Vec<f32>, ExecutorError> {
        self.executor.logits(model, input)
    }
}

impl Drafter for PromptLookup {
    fn start(&mut self, seeds: &[DraftSeed], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        self.called_last = true;
        self.contract.start(seeds)?;
        for (index, seed) in seeds.iter().enumerate() {
            let request = seed.input.request;
            let history = seed.input.history.as_ref().ok_or_else(|| {
                ExecutorError::Malformed(format!("request {request}: prompt lookup needs its tokens"))
            })?;
            propose(&history.tokens, seed.limit, &self.options, &mut self.proposals);
            let mut end: Option<NodeId> = None;
            for &proposal in &self.proposals {
                end = Some(match end {
                    None => forest.add_root(index as u32, proposal),
                    Some(parent) => forest.add_child(parent, proposal),
                });
            }
        }
        Ok(())
    }

    /// Every chain is complete from the start.
    fn extend(&mut self, _nodes: &[NodeId], _forest: &mut DraftForest) -> Result<(), ExecutorError> {
        Ok(())
    }
}
