//! Records draft acceptance of a configuration, for the simulator.

use std::sync::Arc;

use serde_json::Value;

use super::DaemonError;
use super::executor_plan::ExecutorPlan;
use crate::analyzer::{RecordJob, RecordOptions, record as record_one};
use crate::config::{Config, DraftConfig};
use crate::model::{ChatInput, Model, load_pair};
use crate::protocol::{SamplingParams, TokenId};
use crate::replay::RecordedSequence;

/// Called with each recorded output, in the order of the prompts.
pub type OnSequence<'a> = &'a mut (dyn FnMut(RecordedSequence) + Send);

/// Decodes conversations with the models of `config`, one after the other, and records what
/// the draft model would have proposed at each position. Blocks.
///
/// # Errors
/// [`DaemonError`]: the models cannot be loaded, a conversation cannot be rendered, or the
/// executor fails.
pub fn record(
    config: &Config,
    options: &RecordOptions,
    on_sequence: OnSequence<'_>,
) -> Result<(), DaemonError> {
    let pair = load_pair(&config.target.model, config.draft.as_ref().and_then(DraftConfig::model))?;
    let plan = ExecutorPlan::of(config, &pair)?;
    let prompts = options.conversations.iter().map(|messages| prompt(&pair.target, messages));
    let prompts: Vec<Vec<TokenId>> = prompts.collect::<Result<_, _>>().map_err(DaemonError::Start)?;
    let stop_tokens: Arc<[TokenId]> = pair.target.eos.clone().into();
    let mut executor =
        plan.build(pair.target.loaded, pair.draft.map(|model| model.loaded)).map_err(DaemonError::Start)?;
    for (seed, prompt) in (0..).zip(prompts) {
        let sampling = SamplingParams { temperature: options.temperature, seed, ..SamplingParams::greedy() };
        let job = RecordJob {
            prompt,
            tokens_max: options.tokens_max,
            sampling: Arc::new(sampling),
            stop_tokens: stop_tokens.clone(),
        };
        let sequence = record_one(executor.as_mut(), &job);
        on_sequence(sequence.map_err(|error| DaemonError::Failed(error.to_string()))?);
    }
    Ok(())
}

/// Tokens of a conversation, up to where the assistant's reply begins.
fn prompt(model: &Model, messages: &Value) -> Result<Vec<TokenId>, String> {
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

    fn recorded(conversations: Vec<Value>) -> Result<Vec<RecordedSequence>, DaemonError> {
        let options = RecordOptions { conversations, tokens_max: 24, temperature: 0.0 };
        let mut sequences = Vec::new();
        record(&Config::default_tiny(), &options, &mut |sequence| sequences.push(sequence))?;
        Ok(sequences)
    }

    #[test]
    fn the_embedded_pair_is_recorded_at_every_position_and_the_same_each_time() {
        let asked = vec![json!([{ "role": "user", "content": "What is a volcano?" }])];
        let first = recorded(asked.clone()).expect("recorded");
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].accepted.len(), 23);
        let right = first[0].accepted.iter().filter(|&&accepted| accepted).count();
        assert!(right >= 8, "{right} of 23 accepted");
        assert!(first[0].probabilities.iter().all(|probability| (0.0..=1.0).contains(probability)));
        assert_eq!(recorded(asked).expect("recorded"), first);
    }

    #[test]
    fn a_configuration_without_a_draft_model_has_nothing_to_record() {
        let config = Config { draft: None, ..Config::default_tiny() };
        let conversations = vec![json!([{ "role": "user", "content": "Hi" }])];
        let options = RecordOptions { conversations, tokens_max: 4, temperature: 0.0 };
        let error = record(&config, &options, &mut |_| ()).expect_err("no draft");
        assert!(error.to_string().contains("no draft model"), "{error}");
    }
}
