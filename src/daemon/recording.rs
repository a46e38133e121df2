//! Records draft acceptance of a configuration, for the simulator.

use std::sync::Arc;

use serde_json::Value;

use super::DaemonError;
use super::executor_plan::ExecutorPlan;
use super::models::load_models;
use crate::analyzer::{RecordJob, RecordOptions, RecordText, record as record_one};
use crate::config::Config;
use crate::model::{ChatInput, Model};
use crate::protocol::{SamplingParams, TokenId};
use crate::replay::RecordedSequence;

/// Called with each recorded output, in the order of the prompts.
pub type OnSequence<'a> = &'a mut (dyn FnMut(RecordedSequence) + Send);

/// Answers prompts with the models of `config`, one after the other, and records what
/// the draft model or draft head would have proposed at each position. Blocks.
///
/// # Errors
/// [`DaemonError`]: the models cannot be loaded, a conversation cannot be rendered, a token is not
/// in the vocabulary, or the executor fails.
pub fn record(
    config: &Config,
    options: &RecordOptions,
    on_sequence: OnSequence<'_>,
) -> Result<(), DaemonError> {
    let pair = load_models(config)?;
    let plan = ExecutorPlan::of(config, &pair)?;
    let prompts = options.prompts.iter().map(|asked| {
        let tokens_max = asked.tokens_max.unwrap_or(options.tokens_max);
        Ok((prompt(&pair.target, &asked.text)?, tokens_max))
    });
    let prompts: Vec<(Vec<TokenId>, u32)> =
        prompts.collect::<Result<_, String>>().map_err(DaemonError::Start)?;
    let ends = if options.ignore_eos { Vec::new() } else { pair.target.eos.clone() };
    let stop_tokens: Arc<[TokenId]> = ends.into();
    let mut executor = plan.build(pair.target.loaded, pair.draft).map_err(DaemonError::Start)?;
    for (seed, (prompt, tokens_max)) in (0..).zip(prompts) {
        let sampling = SamplingParams { temperature: options.temperature, seed, ..SamplingParams::greedy() };
        let job =
            RecordJob { prompt, tokens_max, sampling: Arc::new(sampling), stop_tokens: stop_tokens.clone() };
        let sequence = record_one(executor.as_mut(), &job);
        on_sequence(sequence.map_err(|error| DaemonError::Failed(error.to_string()))?);
    }
    Ok(())
}

fn prompt(model: &Model, text: &RecordText) -> Result<Vec<TokenId>, String> {
    match text {
        RecordText::Messages(messages) => rendered(model, messages),
        RecordText::Tokens(tokens) => {
            let size = model.loaded.spec.vocab_size;
            match tokens.iter().find(|&&token| token as usize >= size) {
                Some(token) => Err(format!("token {token} is not in the vocabulary of {size}")),
                None => Ok(tokens.clone()),
            }
        }
    }
}

/// Tokens of a conversation, up to where the assistant's reply begins.
fn rendered(model: &Model, messages: &Value) -> Result<Vec<TokenId>, String> {
    let messages = messages.as_array().map(Vec::as_slice).unwrap_or_default();
    let (text, is_chat) = match &model.chat_template {
        Some(template) => {
            let input = ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() };
            (template.render(&input).map_err(|error| error.to_string())?, true)
        }
        // Without a chat template, the model continues the raw text.
        None => {
            let contents = messages.iter().filter_map(|message| message["content"].as_str());
            (contents.collect::<Vec<&str>>().join("\n"), false)
        }
    };
    model.tokenizer.encode(&text, !is_chat).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::analyzer::RecordPrompt;
    use crate::executor::Executor;
    use crate::model::ModelRef;
    use crate::protocol::{
        BLOCK_TOKENS, BlockId, DraftForest, DraftSeed, NodeId, Proposal, RequestId, SequenceInput, VerifyRow,
    };
    use crate::replay::RecordedDraft;

    fn options(text: RecordText) -> RecordOptions {
        let prompts = vec![RecordPrompt { text, tokens_max: None }];
        RecordOptions { prompts, tokens_max: 24, temperature: 0.0, ignore_eos: false }
    }

    fn asked(text: &str) -> RecordText {
        RecordText::Messages(json!([{ "role": "user", "content": text }]))
    }

    fn recorded(options: RecordOptions) -> Result<Vec<RecordedSequence>, DaemonError> {
        recorded_with(&Config::default_tiny(), options)
    }

    fn recorded_with(config: &Config, options: RecordOptions) -> Result<Vec<RecordedSequence>, DaemonError> {
        let mut sequences = Vec::new();
        record(config, &options, &mut |sequence| sequences.push(sequence))?;
        Ok(sequences)
    }

    /// The embedded target with one of its draft heads.
    fn with_head(name: &str) -> Config {
        let head = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny").join(name);
        Config { draft: Some(ModelRef::Directory(head).into()), ..Config::default_tiny() }
    }

    /// A sequence in blocks of its own, which nothing else has written to.
    struct Fresh<'a> {
        executor: &'a mut dyn Executor,
        blocks: Vec<BlockId>,
    }

    impl Fresh<'_> {
        fn input(&self, tokens: &[TokenId], start: usize) -> SequenceInput {
            SequenceInput {
                request: RequestId(0),
                tokens: tokens[start..].to_vec(),
                start: start as u32,
                blocks: self.blocks.clone(),
                sampling: Arc::new(SamplingParams::greedy()),
                history: None,
            }
        }

        /// The target's token behind `tokens`, of which the first `start` have been fed.
        fn decode(&mut self, tokens: &[TokenId], start: usize) -> TokenId {
            let mut verdicts = Vec::new();
            let row = VerifyRow::decode(self.input(tokens, start));
            self.executor.target().verify(&[row], &mut verdicts).expect("decoded");
            verdicts[0].tokens[0]
        }

        /// The head's drafts behind `tokens`, all of which but the last have been fed.
        fn drafts(&mut self, tokens: &[TokenId], limit: u32) -> Vec<Proposal> {
            let input = self.input(tokens, tokens.len() - 1);
            let mut forest = DraftForest::default();
            let drafter = self.executor.drafter().expect("there is a head");
            drafter.start(&[DraftSeed { row: 0, input, limit, mask: None }], &mut forest).expect("drafted");
            while forest.len() < limit as usize {
                let last = NodeId(forest.len() as u32 - 1);
                drafter.extend(&[last], &mut forest).expect("drafted");
            }
            forest.since(0).map(|(_, node)| node.proposal).collect()
        }
    }

    #[test]
    fn what_is_recorded_of_a_head_is_what_it_drafts_afresh_within_the_plain_text() {
        for (name, drafts) in [("eagle3", 8), ("dspark", 7)] {
            let config = with_head(name);
            let asked = asked("What is a volcano?");
            let recorded = recorded_with(&config, options(asked.clone())).expect("recorded").remove(0);
            assert_eq!((recorded.accepted.len(), recorded.chain_drafts_max()), (23, Some(drafts)), "{name}");

            let pair = load_models(&config).expect("they load");
            let prompt = prompt(&pair.target, &asked).expect("rendered");
            let plan = ExecutorPlan::of(&config, &pair).expect("planned");
            let mut executor = plan.build(pair.target.loaded, pair.draft).expect("they fit");
            let mut next_block = 0;
            let mut fresh = |tokens: usize| {
                let first = next_block;
                next_block += (tokens as u32).div_ceil(BLOCK_TOKENS);
                (first..next_block).map(BlockId).collect::<Vec<BlockId>>()
            };
            let mut text = prompt.clone();
            let mut plain = Fresh { blocks: fresh(prompt.len() + 40), executor: executor.as_mut() };
            for _ in 0..24 + drafts {
                let start = if text.len() == prompt.len() { 0 } else { text.len() - 1 };
                let next = plain.decode(&text, start);
                text.push(next);
            }
            for place in 0..23 {
                let (before, behind) = text.split_at(prompt.len() + 1 + place);
                let mut one = Fresh { blocks: fresh(text.len()), executor: executor.as_mut() };
                one.decode(&before[..before.len() - 1], 0);
                let drafts = one.drafts(before, drafts);
                let right = drafts.iter().zip(behind).take_while(|(draft, token)| draft.token == **token);
                let right = right.count() as u32;
                let depths = 0..drafts.len();
                let ours: Vec<_> = depths.map(|depth| recorded.draft(place, depth).expect("it is")).collect();
                let expected: Vec<_> = (0..)
                    .zip(&drafts)
                    .map(|(depth, draft)| RecordedDraft {
                        probability: draft.probability.clamp(0.0, 1.0),
                        accepted: depth < right,
                        runner_up_accepted: depth == right
                            && behind.get(depth as usize) == Some(&draft.runner_up),
                    })
                    .collect();
                assert_eq!(ours, expected, "{name}, place {place}");
            }
            let deepest = recorded.later_accepted.iter().max();
            assert!(deepest > Some(&1), "{name}: {:?}", recorded.later_accepted);
        }
    }

    #[test]
    fn the_embedded_pair_is_recorded_at_every_position_and_the_same_each_time() {
        let options = options(asked("What is a volcano?"));
        let first = recorded(options.clone()).expect("recorded");
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].accepted.len(), 23);
        let right = first[0].accepted.iter().filter(|&&accepted| accepted).count();
        assert!(right >= 8, "{right} of 23 accepted");
        assert!(first[0].probabilities.iter().all(|probability| (0.0..=1.0).contains(probability)));
        assert_eq!(recorded(options).expect("recorded"), first);
    }

    #[test]
    fn outputs_end_with_the_text_or_as_long_as_each_prompt_asks() {
        let mut options = RecordOptions { tokens_max: 400, ..options(asked("Hi")) };
        options.prompts.push(RecordPrompt { tokens_max: Some(9), ..options.prompts[0].clone() });
        let positions = |options: &RecordOptions| -> Vec<usize> {
            let sequences = recorded(options.clone()).expect("recorded");
            sequences.iter().map(|sequence| sequence.accepted.len()).collect()
        };
        let ended = positions(&options);
        assert!(ended[0] < 399 && ended[1] == 8, "{ended:?}");
        options.ignore_eos = true;
        assert_eq!(positions(&options), [399, 8]);
    }

    #[test]
    fn a_prompt_of_tokens_is_taken_as_it_is() {
        let config = Config::default_tiny();
        let pair = load_models(&config).expect("embedded");
        let text = asked("What is a volcano?");
        let tokens = prompt(&pair.target, &text).expect("rendered");
        let of_tokens = recorded(options(RecordText::Tokens(tokens))).expect("recorded");
        assert_eq!(of_tokens, recorded(options(text)).expect("recorded"));
        let error = recorded(options(RecordText::Tokens(vec![1, 4096]))).expect_err("not a token");
        assert!(error.to_string().contains("token 4096 is not in the vocabulary of 4096"), "{error}");
    }

    #[test]
    fn a_configuration_without_a_draft_model_has_nothing_to_record() {
        let config = Config { draft: None, ..Config::default_tiny() };
        let error = record(&config, &options(asked("Hi")), &mut |_| ()).expect_err("no draft");
        assert!(error.to_string().contains("no draft model"), "{error}");
    }
}
