//! Recording how often a real target's drafter is right, for the simulator to play back.
//!
//! Every position is recorded, whatever the drafts do: the target decodes plainly, and before
//! each of its tokens the drafter is asked what it would draft behind the very same text. So nothing is
//! selected: drafting in earnest sees no position behind a rejected draft, and hardly any where the
//! drafter is unsure.
//!
//! A draft model is asked for one draft. Behind drafts that were all accepted, its next one stands
//! behind the same text as the first one of a later position, so nothing is lost. A draft head is asked
//! for the whole chain, because its later drafts follow from its own states or from those before the
//! block. Which of them are right, the target's plain text says, as far as they stand behind it.

use std::sync::Arc;

use serde_json::Value;

use super::drafter;
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

/// Decodes one prompt on an otherwise idle executor, and records what its draft model or draft head
/// would have proposed: one draft at each position, or as many as the executor takes in a step.
///
/// # Errors
/// [`ExecutorError`]; [`ExecutorError::Malformed`] also for an executor without a draft model or head,
/// and for a prompt that is empty or does not fit.
pub fn record(executor: &mut dyn Executor, job: &RecordJob) -> Result<RecordedSequence, ExecutorError> {
    let mut recorder = Recorder::new(executor, job)?;
    recorder.prefill()?;
    let mut chains = Vec::new();
    while recorder.goes_on() {
        chains.push(recorder.draft_chain()?);
        recorder.decode()?;
    }
    recorder.decode_behind(&chains)?;
    Ok(recorder.judge(&chains))
}

/// What was drafted in one round.
struct Chain {
    /// Position of the first draft.
    start: usize,
    /// Up to the first one that is not finite.
    drafts: Vec<Proposal>,
}

struct Recorder<'a> {
    executor: &'a mut dyn Executor,
    job: &'a RecordJob,
    blocks: Vec<BlockId>,
    /// Prompt and output.
    tokens: Vec<TokenId>,
    /// Tokens of the prompt and the longest output.
    end: usize,
    /// Positions that drafts and the target's tokens behind the output may have.
    reach: usize,
    /// Most drafts of a chain.
    drafts_max: usize,
    /// Whether the drafts of each chain are recorded, and not the first one alone.
    whole_chains: bool,
}

impl<'a> Recorder<'a> {
    fn new(executor: &'a mut dyn Executor, job: &'a RecordJob) -> Result<Recorder<'a>, ExecutorError> {
        let info = executor.info();
        let whole_chains = info.has_draft_head();
        let blocks = match (info.has_draft_model(), whole_chains) {
            (true, _) => info.target_blocks.min(info.draft_blocks()),
            (false, true) => info.target_blocks,
            (false, false) => {
                let what = "there is no draft model and no draft head".to_owned();
                return Err(ExecutorError::Malformed(what));
            }
        };
        let (room, prompt) =
            (info.context_tokens_max.min(blocks * info.block_tokens) as usize, job.prompt.len());
        if prompt == 0 || prompt >= room {
            let what = format!("a prompt of {prompt} tokens for a context of {room}");
            return Err(ExecutorError::Malformed(what));
        }
        let end = prompt + (room - prompt).min(job.tokens_max as usize);
        let drafts_max = if whole_chains { info.draft_tokens_max.max(1) as usize } else { 1 };
        let reach = room.min(end + drafts_max - 1);
        let blocks = (0..reach.div_ceil(info.block_tokens as usize) as u32).map(BlockId).collect();
        Ok(Recorder {
            executor,
            job,
            blocks,
            tokens: job.prompt.clone(),
            end,
            reach,
            drafts_max,
            whole_chains,
        })
    }

    /// Feeds the prompt to the target, and to a draft model; adds the first output token.
    fn prefill(&mut self) -> Result<(), ExecutorError> {
        let info = self.executor.info();
        let (chunk, feeds_drafter) = (info.batch_tokens_max.max(1) as usize, info.has_draft_model());
        let length = self.tokens.len();
        for start in (0..length).step_by(chunk) {
            let end = (start + chunk).min(length);
            if feeds_drafter {
                let seed = DraftSeed { row: 0, input: self.input(start, end), limit: 0, mask: None };
                drafter(self.executor)?.start(&[seed], &mut DraftForest::default())?;
            }
            let next = self.verify(start, end)?;
            self.tokens.extend(next);
        }
        self.expect_token_behind(length)
    }

    /// Whether the last token is neither the longest output's last one nor a stop token.
    fn goes_on(&self) -> bool {
        let stopped = self.tokens.last().is_some_and(|last| self.job.stop_tokens.contains(last));
        self.tokens.len() < self.end && !stopped
    }

    /// What is drafted behind all tokens.
    fn draft_chain(&mut self) -> Result<Chain, ExecutorError> {
        let start = self.tokens.len();
        let limit = self.drafts_max.min(self.reach - start);
        let seed = DraftSeed { row: 0, input: self.input(start - 1, start), limit: limit as u32, mask: None };
        let mut forest = DraftForest::default();
        let drafter = drafter(self.executor)?;
        drafter.start(&[seed], &mut forest)?;
        while let Some((last, node)) = forest.since(0).last() {
            let known = forest.len();
            if known >= limit || !node.proposal.finite {
                break;
            }
            drafter.extend(&[last], &mut forest)?;
            // a drafter of blocks has made all of them at once
            if forest.len() == known {
                break;
            }
        }
        let drafts: Vec<Proposal> = forest.since(0).map(|(_, node)| node.proposal).collect();
        if drafts.is_empty() {
            return Err(ExecutorError::Device("the drafter proposed nothing".to_owned()));
        }
        let finite = drafts.into_iter().take_while(|draft| draft.finite).collect();
        Ok(Chain { start, drafts: finite })
    }

    /// Adds the target's next token.
    fn decode(&mut self) -> Result<(), ExecutorError> {
        let length = self.tokens.len();
        let next = self.verify(length - 1, length)?;
        self.tokens.extend(next);
        self.expect_token_behind(length)
    }

    /// Lets the target go on to where the last drafts are: the output is over, but only the target can
    /// say whether they are right.
    fn decode_behind(&mut self, chains: &[Chain]) -> Result<(), ExecutorError> {
        let end = chains.iter().map(|chain| chain.start + chain.drafts.len()).max().unwrap_or(0);
        while self.tokens.len() < end {
            self.decode()?;
        }
        Ok(())
    }

    /// Compares the drafts with the text.
    fn judge(&self, chains: &[Chain]) -> RecordedSequence {
        let mut sequence = RecordedSequence::default();
        for Chain { start, drafts } in chains {
            let text = &self.tokens[*start..];
            let right = drafts.iter().zip(text).take_while(|(draft, token)| draft.token == **token).count();
            let mut probabilities = drafts.iter().map(|draft| draft.probability.clamp(0.0, 1.0));
            let Some(first) = probabilities.next() else { continue };
            sequence.probabilities.push(first);
            sequence.accepted.push(right > 0);
            let wrong = drafts.get(right).zip(text.get(right));
            let is_right = wrong.is_some_and(|(draft, token)| draft.runner_up == *token);
            sequence.runner_up_accepted.push(is_right);
            if self.whole_chains {
                sequence.later_probabilities.push(probabilities.collect());
                sequence.later_accepted.push(right.saturating_sub(1) as u32);
            }
        }
        sequence
    }

    fn verify(&mut self, start: usize, end: usize) -> Result<Option<TokenId>, ExecutorError> {
        let mut verdicts: Vec<Verdict> = Vec::new();
        let role = if end - start == 1 { RowRole::Decode } else { RowRole::Prefill };
        let next = self.tokens.get(end).copied();
        let row = VerifyRow { role, next, ..VerifyRow::decode(self.input(start, end)) };
        self.executor.target().verify(&[row], &mut verdicts)?;
        Ok(verdicts.pop().and_then(|verdict| verdict.tokens.first().copied()))
    }

    fn expect_token_behind(&self, length: usize) -> Result<(), ExecutorError> {
        match self.tokens.len() > length {
            true => Ok(()),
            false => Err(ExecutorError::Device("the target chose no token".to_owned())),
        }
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
    use crate::protocol::{DrafterNeeds, Micros};
    use crate::replay::spec_bench::Task;
    use crate::replay::{Arrival, Recording};
    use crate::simulate::Settings;
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
        settings.limits.drafter = (draft_blocks > 0).then(|| DrafterNeeds::kv_cache(draft_blocks));
        executor_of(&settings, &[])
    }

    fn executor_of(settings: &Settings, workload: &[Arrival]) -> VirtualExecutor {
        let options = VirtualOptions {
            info: settings.executor_info(),
            cost: settings.cost.clone(),
            error: settings.error,
            acceptance: settings.draft.options(workload),
            seed: SEED,
        };
        VirtualExecutor::new(options, Arc::new(VirtualClock::default()))
    }

    /// Of a draft head that makes so many drafts per call, 0 for one of chains, with `target_blocks`.
    fn head_that_plays(text: &str, block_tokens: u32, target_blocks: u32) -> VirtualExecutor {
        let mut settings = settings();
        settings.draft.recording = Some(Arc::new(Recording::parse(text).expect("good")));
        settings.limits.target_blocks = target_blocks;
        settings.limits.drafter = Some(DrafterNeeds { block_tokens, ..DrafterNeeds::hidden_states(vec![1]) });
        let arrival = Arrival { at: Micros::ZERO, prompt_tokens: 20, output_tokens: 1, task: Task::Chat };
        executor_of(&settings, &[arrival])
    }

    /// The last drafts are right, so that what they are compared with lies behind the output.
    const CHAINS: &str = "{\"probabilities\":[0.9,0.2,0.5,0.75],\"accepted\":[true,false,true,true],\
        \"later_probabilities\":[[0.8,0.7],[0.6,0.1],[0.4,0.3],[0.9,0.5]],\"later_accepted\":[1,0,0,2],\
        \"runner_up_accepted\":[true,true,false,false]}";

    #[test]
    fn a_head_is_recorded_with_its_chains_and_plays_back_what_was_recorded() {
        for block_tokens in [0, 3] {
            let mut executor = head_that_plays(CHAINS, block_tokens, 1000);
            let sequence = record(&mut executor, &job(20, 5)).expect("recorded");
            assert_eq!([sequence], Recording::parse(CHAINS).expect("good").sequences());
        }
    }

    #[test]
    fn chains_end_with_the_room() {
        let recorded =
            |blocks| record(&mut head_that_plays(CHAINS, 0, blocks), &job(20, 20)).expect("recorded");
        let (cramped, free) = (recorded(2), recorded(1000));
        assert_eq!((cramped.accepted.len(), free.accepted.len()), (11, 19));
        let later: Vec<usize> = cramped.later_probabilities.iter().map(Vec::len).collect();
        assert_eq!(later, [2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 0]);
        assert_eq!(cramped.later_accepted, [1, 0, 0, 2, 1, 0, 0, 2, 1, 0, 0]);
        assert_eq!(free.later_accepted[..10], cramped.later_accepted[..10]);
    }

    #[test]
    fn what_was_recorded_of_an_executor_is_what_its_process_says_at_every_position() {
        let sequence = record(&mut executor(1000), &job(700, 60)).expect("recorded");
        let mut process = AcceptanceProcess::new(settings().draft.options(&[]), SEED);
        assert_eq!(sequence.accepted.len(), 59);
        for (index, (&probability, &accepted)) in
            sequence.probabilities.iter().zip(&sequence.accepted).enumerate()
        {
            let position = process.draft(RequestId(0), 701 + index as u32, 0).expect("one is drawn");
            assert_eq!((position.probability, position.accepted), (probability, accepted));
        }
        assert!(sequence.accepted.contains(&true) && sequence.accepted.contains(&false));
        assert!(!sequence.has_chains());
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
}
