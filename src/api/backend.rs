//! The interface between the API and the rest of the daemon.

use std::future::Future;
use std::sync::Arc;

use super::chat::Conversation;
use super::chat_features::ChatFeatures;
use super::error::ApiError;
use crate::grammar::{GrammarError, GrammarSource};
use crate::protocol::{
    AdmissionError, Generation, Micros, RequestId, Slo, Submission, TokenConstraint, TokenId,
};

/// What the API serves: the engine's actors in the daemon, a script in tests.
pub trait Backend: Send + Sync + 'static {
    /// Submits a request for admission.
    ///
    /// Dropping the returned future, or the receiver in the [`Generation`], must cancel the
    /// request: no caller is left to call [`cancel`](Self::cancel).
    fn submit(
        &self,
        submission: Submission,
    ) -> impl Future<Output = Result<Generation, AdmissionError>> + Send;

    /// Cancels a request after its client disconnected. It ends as `Failed(Cancelled)` at the
    /// next step boundary and its KV blocks are freed. Unknown and finished ids are ignored.
    fn cancel(&self, id: RequestId);

    /// Ends a request whose output completed a stop string. It ends as `Finished(Stop)` at
    /// the next step boundary and counts as a success. Unknown and finished ids are ignored.
    fn finish(&self, id: RequestId);

    /// Current time on the clock of [`Submission::arrival`].
    fn now(&self) -> Micros;

    /// Static properties of the backend.
    fn info(&self) -> &BackendInfo;

    /// Tokenizer and chat template.
    fn text(&self) -> &dyn TextModel;

    /// Liveness and readiness.
    fn health(&self) -> Health;

    /// The body of `/v1/engine/state`.
    fn state(&self) -> impl Future<Output = serde_json::Value> + Send;

    /// The body of `/metrics`, in the Prometheus text format.
    fn metrics(&self) -> impl Future<Output = String> + Send;
}

/// Properties that stay the same for the lifetime of the backend.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendInfo {
    /// Model name as requests give it in `model`.
    pub model: String,
    /// Load time, in Unix seconds.
    pub loaded_unix_s: u64,
    /// Longest context that can be served: prompt plus output, in tokens.
    pub context_tokens_max: u32,
    /// What the operator can do for a longer context, as the last clause of an error; `None` if
    /// the model itself has no longer one.
    pub context_advice: Option<String>,
    /// Vocabulary size, in tokens.
    pub vocab_size: u32,
    /// End-of-sequence tokens; they end an output unless `ignore_eos` is set.
    pub end_tokens: Vec<TokenId>,
    /// Sampling parameters of requests that set none.
    pub sampling: SamplingDefaults,
    /// Output limit of requests without `max_tokens`, in tokens; further limited by the
    /// remaining context.
    pub max_tokens_default: u32,
    /// Most draft tokens per request and step; 0 without a drafter.
    pub draft_tokens_max: u32,
    /// What the chat template can be told, and how the model answers.
    pub chat: ChatFeatures,
    /// Request classes, most urgent first; 1 to 256.
    pub classes: Vec<ClassInfo>,
    /// Index of the class of requests that do not name one.
    pub default_class: u8,
}

impl BackendInfo {
    /// [`ApiError::context_exceeded`], with the advice to the operator.
    pub fn context_exceeded(&self, param: &str, prompt_tokens: u64, max_tokens: Option<u32>) -> ApiError {
        let mut error = ApiError::context_exceeded(param, self.context_tokens_max, prompt_tokens, max_tokens);
        if let Some(advice) = &self.context_advice {
            error.message = format!("{}; {advice}.", error.message.trim_end_matches('.'));
        }
        error
    }
}

/// Default sampling parameters, with the meaning of
/// [`SamplingParams`](crate::protocol::SamplingParams).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingDefaults {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 disables the filter.
    pub top_k: u32,
    /// 1 disables the filter.
    pub top_p: f32,
    /// 0 disables the filter.
    pub min_p: f32,
    /// 1 disables the penalty.
    pub repetition_penalty: f32,
}

impl Default for SamplingDefaults {
    fn default() -> SamplingDefaults {
        SamplingDefaults { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// A request class from the config.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassInfo {
    /// Class name, as requests give it in `slo.class`.
    pub name: String,
    /// Objectives of requests that carry none of their own.
    pub slo: Slo,
    /// What attaining the objectives of its requests is worth beside other classes.
    pub weight: f32,
}

/// Liveness and readiness of the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why the process should be restarted; `None` if live.
    pub not_live: Option<String>,
    /// Why no requests should be sent now; `None` if ready.
    pub not_ready: Option<String>,
}

/// Tokenizer and chat template of the served model.
pub trait TextModel: Send + Sync {
    /// Encodes a text. `add_special` adds the tokens that the tokenizer puts around a text,
    /// such as a beginning-of-text token.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`].
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError>;

    /// Decodes tokens below the vocabulary size; special tokens are written out.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`].
    fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError>;

    /// Special tokens by their names, such as `bos_token`, as the chat template sees them.
    fn special_tokens(&self) -> Vec<(String, String)>;

    /// Source of the chat template, if the model has one.
    fn chat_template(&self) -> Option<String>;

    /// Creates a streaming decoder for one output. It decodes the text that the output adds to
    /// `prompt`, or a text by itself if `prompt` is empty. Of special tokens it has those of `shown`.
    fn decoder(&self, prompt: &[TokenId], shown: &[&str]) -> Box<dyn TextDecoder>;

    /// The special token that this text is, if any. Others than those that a decoder shows are no
    /// part of a decoded text.
    fn special_token(&self, text: &str) -> Option<TokenId>;

    /// Renders a conversation into a prompt that ends where the assistant's reply begins, or where
    /// the last message is to be continued. To be [encoded](Self::encode) without special tokens.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`], [`TextError::ChatTemplate`].
    fn render_chat(&self, conversation: &Conversation) -> Result<String, TextError>;

    /// Compiles what an output must be, up to one of `stop_tokens`, which must not be empty.
    ///
    /// # Errors
    /// What is wrong with `source`, or that this tokenizer knows no grammars.
    fn constraint(
        &self,
        source: &GrammarSource,
        stop_tokens: &[TokenId],
    ) -> Result<Arc<dyn TokenConstraint>, GrammarError>;
}

/// Why a text cannot be tokenized or rendered, for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The tokenizer failed.
    #[error("{0}")]
    Tokenizer(String),
    /// The model comes without a chat template.
    #[error("this model has no chat template; use /v1/completions")]
    NoChatTemplate,
    /// The template rejected the conversation.
    #[error("{0}")]
    ChatTemplate(String),
}

/// Incremental detokenizer of one output.
pub trait TextDecoder: Send {
    /// Returns the text completed by this token; empty while a character is incomplete.
    fn push(&mut self, token: TokenId) -> String;

    /// Returns the remaining text, with an incomplete character as U+FFFD.
    fn finish(&mut self) -> String;
}
