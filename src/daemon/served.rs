//! The engine as the API's [`Backend`].

use super::chat_features;
use super::text::ServedText;
use crate::actors::{Condition, EngineHandle};
use crate::api::{Backend, BackendInfo, ClassInfo, Health, SamplingDefaults, TextModel};
use crate::config::Config;
use crate::model::{Model, RecommendedSampling};
use crate::protocol::{
    AdmissionError, ExecutorInfo, Generation, Micros, RequestFailure, RequestId, Submission, Termination,
    unix_time,
};

/// Handle to the engine, with its static properties and tokenizer.
pub(super) struct EngineBackend {
    handle: EngineHandle,
    info: BackendInfo,
    text: ServedText,
}

impl EngineBackend {
    pub(super) fn new(handle: EngineHandle, config: &Config, target: Model) -> EngineBackend {
        let Context { tokens_max: context_tokens_max, advice } =
            Context::of(config, handle.info(), target.own_context_tokens_max);
        let info = BackendInfo {
            model: config.target.name.clone(),
            loaded_unix_s: unix_time().as_secs(),
            context_tokens_max,
            context_advice: advice,
            vocab_size: handle.info().vocab_size,
            end_tokens: target.eos.clone(),
            sampling: sampling_defaults(&target.sampling),
            max_tokens_default: context_tokens_max,
            draft_tokens_max: match handle.info().drafter {
                Some(_) => config.speculation.draft_tokens_max.min(handle.info().draft_tokens_max),
                None => 0,
            },
            chat: chat_features::of(&config.target, target.chat_template.as_ref()),
            classes: config
                .slo
                .classes
                .iter()
                .map(|class| ClassInfo {
                    name: class.name.clone(),
                    slo: class.slo,
                    weight: class.weight as f32,
                })
                .collect(),
            default_class: config.slo.default_class,
        };
        log_context(&info);
        let (vocab_size, end_tokens) = (info.vocab_size, info.end_tokens.clone());
        let text = ServedText::new(target.tokenizer, target.chat_template, vocab_size, end_tokens);
        EngineBackend { handle, info, text }
    }
}

/// The model's recommendations, and OpenAI's defaults where it has none.
fn sampling_defaults(model: &RecommendedSampling) -> SamplingDefaults {
    let open = SamplingDefaults::default();
    SamplingDefaults {
        temperature: model.temperature.unwrap_or(open.temperature),
        top_k: model.top_k.unwrap_or(open.top_k),
        top_p: model.top_p.unwrap_or(open.top_p),
        min_p: model.min_p.unwrap_or(open.min_p),
        repetition_penalty: model.repetition_penalty.unwrap_or(open.repetition_penalty),
    }
}

fn log_context(info: &BackendInfo) {
    match &info.context_advice {
        None => tracing::info!(tokens = info.context_tokens_max, "longest context"),
        Some(advice) => tracing::warn!(tokens = info.context_tokens_max, "longest context; {advice}"),
    }
}

/// The context that can be served, and what limits it.
#[derive(Debug, PartialEq, Eq)]
struct Context {
    /// Prompt and output together, in tokens.
    tokens_max: u32,
    /// How to get a longer one; `None` if only the models limit it.
    advice: Option<String>,
}

impl Context {
    /// A request has to fit the whole KV pool, however long the models' contexts are.
    fn of(config: &Config, executor: &ExecutorInfo, own_tokens_max: u32) -> Context {
        let pool_tokens = executor.target_blocks.saturating_mul(executor.block_tokens);
        let tokens_max = executor.context_tokens_max.min(pool_tokens);
        let key = match config.target.context_tokens_max {
            _ if pool_tokens < executor.context_tokens_max => config.kv.size.key(),
            Some(cap) if cap == tokens_max && cap < own_tokens_max => "target.context_tokens_max",
            _ => return Context { tokens_max, advice: None },
        };
        let advice = format!(
            "the model's own context is {own_tokens_max} tokens: to serve more of it, raise {key} in the \
             server's configuration"
        );
        Context { tokens_max, advice: Some(advice) }
    }
}

impl Backend for EngineBackend {
    async fn submit(&self, submission: Submission) -> Result<Generation, AdmissionError> {
        self.handle.submit(submission).await
    }

    fn cancel(&self, id: RequestId) {
        self.handle.end(id, Termination::Failed(RequestFailure::Cancelled));
    }

    fn finish(&self, id: RequestId) {
        self.handle.end(id, Termination::Stopped);
    }

    fn now(&self) -> Micros {
        self.handle.now()
    }

    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn text(&self) -> &dyn TextModel {
        &self.text
    }

    fn health(&self) -> Health {
        match self.handle.health().get() {
            Condition::Serving => Health::default(),
            Condition::Leaving | Condition::Draining => {
                Health { not_ready: Some("the server is shutting down".to_owned()), ..Health::default() }
            }
            Condition::Failed(reason) => Health { not_live: Some(reason.clone()), not_ready: Some(reason) },
        }
    }

    async fn state(&self) -> serde_json::Value {
        self.handle.state().await
    }

    async fn metrics(&self) -> String {
        self.handle.metrics().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::ShadowOptions;

    #[test]
    fn each_value_that_a_model_recommends_is_a_default_and_openais_are_the_others() {
        assert_eq!(sampling_defaults(&RecommendedSampling::default()), SamplingDefaults::default());
        let recommended = RecommendedSampling {
            temperature: Some(0.7),
            top_k: Some(20),
            top_p: Some(0.8),
            min_p: Some(0.1),
            repetition_penalty: Some(1.05),
        };
        let expected = SamplingDefaults {
            temperature: 0.7,
            top_k: 20,
            top_p: 0.8,
            min_p: 0.1,
            repetition_penalty: 1.05,
        };
        assert_eq!(sampling_defaults(&recommended), expected);
    }

    fn context(kv: &str, target: &str, blocks: u32) -> Context {
        let text = format!("[target]\nmodel = \"embedded:tiny\"\n{target}\n[kv]\n{kv}\n");
        let config = Config::parse(&text).expect("valid");
        let cap = config.target.context_tokens_max.unwrap_or(u32::MAX);
        let small = ShadowOptions::small(blocks, 0).info;
        let executor = ExecutorInfo { context_tokens_max: cap.min(131_072), ..small };
        Context::of(&config, &executor, 131_072)
    }

    #[test]
    fn a_context_that_does_not_fit_the_pool_is_announced_shorter_with_the_key_to_raise() {
        for (kv, key) in [
            ("", "kv.memory_percent"),
            ("memory_mib_max = 64", "kv.memory_mib_max"),
            ("target_blocks = 100", "kv.target_blocks"),
        ] {
            let context = context(kv, "", 100);
            assert_eq!(context.tokens_max, 1600);
            let advice = context.advice.expect("there is a key to raise");
            assert!(
                advice.contains(&format!("131072 tokens: to serve more of it, raise {key} ")),
                "{advice}"
            );
        }
    }

    #[test]
    fn a_capped_context_names_the_cap_and_a_whole_one_nothing() {
        let capped = context("", "context_tokens_max = 4096", 10_000);
        assert_eq!(capped.tokens_max, 4096);
        assert!(capped.advice.expect("it can be raised").contains("raise target.context_tokens_max "));
        let whole = Context { tokens_max: 131_072, advice: None };
        assert_eq!(context("", "", 10_000), whole);
        assert_eq!(context("", "context_tokens_max = 200000", 10_000), whole);
    }
}
