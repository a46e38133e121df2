//! Recording a real pair's acceptance, for the simulator to play back.
//!
//! Every position is recorded, whatever the draft does: the target decodes plainly, and before
//! each of its tokens the draft model is asked for its own choice behind the very same text.
//! A chain of drafts whose predecessors were all accepted stands behind the same text as well,
//! so nothing is lost, and nothing is selected: drafting in earnest sees no position behind a
//! rejected draft, and hardly any where the draft is unsure.

use std::sync::Arc;

use serde_json::Value;

use crate::executor::Executor;
use crate::protocol::{
    BlockId, DraftForest, DraftSeed, ExecutorError, History, Proposal, RequestId, RowRole, SamplingParams,
    SequenceInput, TokenId, Verdict, VerifyRow,
};
use crate::replay::RecordedSequence;

/// What is recorded.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// What is asked, in order.
    pub prompts: Vec<RecordPrompt>,
    /// Most output tokens of each prompt that does not say.
    pub tokens_max: u32,
    /// Sampling temperature.
    pub temperature: f32,
    /// Whether outputs go on behind the token that would end them, as load generators ask for.
    pub ignore_eos: bool,
}

/// A prompt to record the answer to.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordPrompt {
    /// What is asked.
    pub text: RecordText,
    /// Most output tokens; `None` for [`RecordOptions::tokens_max`].
    pub tokens_max: Option<u32>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordText {
    /// A conversation, as a list of messages.
    Messages(Value),
    /// The prompt's tokens themselves.
    Tokens(Vec<TokenId>),
}

/// What one output is recorded from.
#[derive(Clone, Debug)]
pub struct RecordJob {
    /// The prompt; at least one token.
    pub prompt: Vec<TokenId>,
    /// Most output tokens; no more than fit the executor are made.
    pub tokens_max: u32,
    /// Sampling parameters.
    pub sampling: Arc<SamplingParams>,
    /// Tokens that end the output.
    pub stop_tokens: Arc<[TokenId]>,
}

/// Decodes one prompt on an otherwise idle executor, and records what its draft model would
/// have proposed.
///
/// # Errors
/// [`ExecutorError`]; [`ExecutorError::Malformed`] also for an executor without a draft model (a draft
/// head is none: it is less often right the deeper it drafts, even where all drafts before were
/// accepted, so that its first drafts do not stand for the others), and for a prompt that is empty or
/// does not fit.
pub fn record(executor: &mut dyn Executor, job: &RecordJob) -> Result<RecordedSequence, ExecutorError> {
    let info = executor.info();
    let blocks = info.target_blocks.min(info.draft_blocks());
    let room = info.context_tokens_max.min(blocks * info.block_tokens);
    if !info.has_draft_model() {
        let what = if info.has_draft_head() {
            "the drafts of a draft head cannot be recorded: how often they are right depends on their depth"
        } else {
            "there is no draft model"
        };
        return Err(ExecutorError::Malformed(what.to_owned()));
    }
    if job.prompt.is_empty() || job.prompt.len() as u32 >= room {
        let tokens = job.prompt.len();
        return Err(ExecutorError::Malformed(format!("a prompt of {tokens} tokens for a context of {room}")));
    }
    let most = (room - job.prompt.len() as u32).min(job.tokens_max);
    let blocks = (0..(job.prompt.len() as u32 + most).div_ceil(info.block_tokens)).map(BlockId).collect();
    let chunk = info.batch_tokens_max.max(1) as usize;
    let mut recorder = Recorder { executor, job, blocks, tokens: job.prompt.clone() };
    let mut next = recorder.prefill(chunk)?;
    let mut sequence = RecordedSequence::default();
    for _ in 1..most {
        recorder.tokens.push(next);
        if job.stop_tokens.contains(&next) {
            break;
        }
        let proposal = recorder.propose()?;
        next = recorder.decode()?;
        if proposal.finite {
            sequence.probabilities.push(proposal.probability.clamp(0.0, 1.0));
            sequence.accepted.push(proposal.token == next);
        }
    }
    Ok(sequence)
}

struct Recorder<'a> {
    executor: &'a mut dyn Executor,
    job: &'a RecordJob,
    blocks: Vec<BlockId>,
    /// Prompt and output.
    tokens: Vec<TokenId>,
}

impl Recorder<'_> {
    /// Feeds the prompt to both models; returns the first output token.
    fn prefill(&mut self, chunk: usize) -> Result<TokenId, ExecutorError> {
        let length = self.tokens.len();
        for start in (0..length).step_by(chunk) {
            let end = (start + chunk).min(length);
            self.draft(DraftSeed { row: 0, input: self.input(start, end), limit: 0, mask: None })?;
            let next = self.verify(start, end)?;
            if let Some(next) = next {
                return Ok(next);
            }
        }
        Err(ExecutorError::Device("the target chose no token".to_owned()))
    }

    /// The draft's choice behind all tokens.
    fn propose(&mut self) -> Result<Proposal, ExecutorError> {
        let length = self.tokens.len();
        let proposal =
            self.draft(DraftSeed { row: 0, input: self.input(length - 1, length), limit: 1, mask: None })?;
        proposal.ok_or_else(|| ExecutorError::Device("the draft proposed nothing".to_owned()))
    }

    fn draft(&mut self, seed: DraftSeed) -> Result<Option<Proposal>, ExecutorError> {
        let mut forest = DraftForest::default();
        let drafter = self.executor.drafter();
        let drafter =
            drafter.ok_or_else(|| ExecutorError::Malformed("there is no draft model".to_owned()))?;
        drafter.start(&[seed], &mut forest)?;
        Ok(forest.since(0).map(|(_, node)| node.proposal).last())
    }

    /// The target's.
    fn decode(&mut self) -> Result<TokenId, ExecutorError> {
        let length = self.tokens.len();
        let next = self.verify(length - 1, length)?;
        next.ok_or_else(|| ExecutorError::Device("the target chose no token".to_owned()))
    }

    fn verify(&mut self, start: usize, end: usize) -> Result<Option<TokenId>, ExecutorError> {
        let mut verdicts: Vec<Verdict> = Vec::new();
        let role = if end - start == 1 { RowRole::Decode } else { RowRole::Prefill };
        let next = self.tokens.get(end).copied();
        let row = VerifyRow { role, next, ..VerifyRow::decode(self.input(start, end)) };
        self.executor.target().verify(&[row], &mut verdicts)?;
        Ok(verdicts.pop().and_then(|verdict| verdict.tokens.first().copied()))
    }

    fn input(&self, start: usize, end: usize) -> SequenceInput {
        let sampling = self.job.sampling.clone();
        let history = sampling.needs_history().then(|| History {
            tokens: self.tokens[..end].to_vec(),
            prompt_tokens: self.job.prompt.len() as u32,
        });
        SequenceInput {
            request: RequestId(0),
            tokens: self.tokens[start..end].to_vec(),
            start: start as u32,
            blocks: self.blocks.clone(),
            sampling,
            history,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{ShadowExecutor, ShadowOptions};
    use crate::protocol::ExecutorInfo;
    use crate::simulate::tests::settings;
    use crate::simulate::virtual_executor::{
        AcceptanceProcess, VirtualClock, VirtualExecutor, VirtualOptions,
    };

    fn job(prompt_tokens: u32, tokens_max: u32) -> RecordJob {
        RecordJob {
            prompt: VirtualExecutor::prompt(RequestId(0), prompt_tokens).to_vec(),
            tokens_max,
            sampling: Arc::new(SamplingParams::greedy()),
            stop_tokens: Arc::new([]),
        }
    }

    const SEED: u64 = 4;

    fn executor(draft_blocks: u32) -> VirtualExecutor {
        let mut settings = settings();
        settings.limits.drafter =
            (draft_blocks > 0).then(|| crate::protocol::DrafterNeeds::kv_cache(draft_blocks));
        let options = VirtualOptions {
            info: settings.executor_info(),
            cost: settings.cost.clone(),
            error: settings.error,
            acceptance: settings.draft.options(&[]),
            seed: SEED,
        };
        VirtualExecutor::new(options, Arc::new(VirtualClock::default()))
    }

    #[test]
    fn what_was_recorded_of_an_executor_is_what_its_process_says_at_every_position() {
        let sequence = record(&mut executor(1000), &job(700, 60)).expect("recorded");
        let mut process = AcceptanceProcess::new(settings().draft.options(&[]), SEED);
        assert_eq!(sequence.accepted.len(), 59);
        for (index, (&probability, &accepted)) in
            sequence.probabilities.iter().zip(&sequence.accepted).enumerate()
        {
            let position = process.at(RequestId(0), 701 + index as u32);
            assert_eq!((position.probability, position.accepted), (probability, accepted));
        }
        assert!(sequence.accepted.contains(&true) && sequence.accepted.contains(&false));
    }

    #[test]
    fn an_output_ends_with_a_stop_token_or_with_the_room() {
        let prompt = VirtualExecutor::prompt(RequestId(0), 40);
        let mut stopped = job(30, 60);
        stopped.stop_tokens = Arc::new([prompt[36]]);
        assert_eq!(record(&mut executor(1000), &stopped).expect("recorded").accepted.len(), 6);
        let cramped = record(&mut executor(3), &job(30, 60)).expect("recorded");
        assert_eq!(cramped.accepted.len(), 17);
    }

    #[test]
    fn without_a_draft_model_or_with_a_prompt_that_does_not_fit_nothing_is_recorded() {
        let refused = |draft_blocks, prompt_tokens| {
            let result = record(&mut executor(draft_blocks), &job(prompt_tokens, 5));
            assert!(matches!(result, Err(ExecutorError::Malformed(_))), "{result:?}");
        };
        refused(0, 10);
        refused(1000, 0);
        refused(3, 48);
    }

    #[test]
    fn drafts_of_a_head_are_not_recorded_and_the_reason_is_said() {
        let drafter = Some(crate::protocol::DrafterNeeds::hidden_states(vec![1]));
        let small = ShadowOptions::small(64, 0);
        let info = ExecutorInfo { drafter, ..small.info.clone() };
        let mut executor = ShadowExecutor::new(ShadowOptions { info, ..small });
        let error = record(&mut executor, &job(10, 5)).expect_err("a head").to_string();
        assert!(error.contains("of a draft head cannot be recorded"), "{error}");
    }
}
