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
/// the draft model would have proposed at each position. Blocks.
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
    use serde_json::json;

    use super::*;
    use crate::analyzer::RecordPrompt;

    fn options(text: RecordText) -> RecordOptions {
        let prompts = vec![RecordPrompt { text, tokens_max: None }];
        RecordOptions { prompts, tokens_max: 24, temperature: 0.0, ignore_eos: false }
    }

    fn asked(text: &str) -> RecordText {
        RecordText::Messages(json!([{ "role": "user", "content": text }]))
    }

    fn recorded(options: RecordOptions) -> Result<Vec<RecordedSequence>, DaemonError> {
        let mut sequences = Vec::new();
        record(&Config::default_tiny(), &options, &mut |sequence| sequences.push(sequence))?;
        Ok(sequences)
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
