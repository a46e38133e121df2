//! The engine as the API's [`Backend`].

use super::text::ServedText;
use crate::actors::{Condition, EngineHandle};
use crate::api::{Backend, BackendInfo, ClassInfo, Health, SamplingDefaults, TextModel};
use crate::config::Config;
use crate::model::Model;
use crate::protocol::{
    AdmissionError, Generation, Micros, RequestFailure, RequestId, Submission, Termination, unix_time,
};

/// Handle to the engine, with its static properties and tokenizer.
pub(super) struct EngineBackend {
    handle: EngineHandle,
    info: BackendInfo,
    text: ServedText,
}

impl EngineBackend {
    pub(super) fn new(handle: EngineHandle, config: &Config, target: Model) -> EngineBackend {
        let context_tokens_max = handle.info().context_tokens_max;
        let info = BackendInfo {
            model: config.target.name.clone(),
            loaded_unix_s: unix_time().as_secs(),
            context_tokens_max,
            vocab_size: handle.info().vocab_size,
            end_tokens: target.eos.clone(),
            sampling: SamplingDefaults::default(),
            max_tokens_default: context_tokens_max,
            draft_tokens_max: match handle.info().drafter {
                Some(_) => config.speculation.draft_tokens_max.min(handle.info().draft_tokens_max),
                None => 0,
            },
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
        EngineBackend { handle, info, text: ServedText::new(target.tokenizer, target.chat_template) }
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
