//! What the API needs of the rest of the daemon.

use std::future::Future;

use serde::Serialize;

use crate::protocol::{AdmissionError, Generation, Micros, RequestId, Slo, Submission, TokenId};

/// The engine as the API sees it: the actors in the daemon, a script in tests.
pub trait Backend: Send + Sync + 'static {
    /// Admits a request or refuses it.
    ///
    /// If the returned future is dropped, or the receiver in the [`Generation`], the
    /// request must be cancelled: then nobody is left to call [`cancel`](Self::cancel).
    fn submit(
        &self,
        submission: Submission,
    ) -> impl Future<Output = Result<Generation, AdmissionError>> + Send;

    /// The client has left: the request ends as `Failed(Cancelled)` at the next step
    /// boundary and its KV is freed. Unknown and finished requests are ignored.
    fn cancel(&self, id: RequestId);

    /// The client has all it wants (a stop string is complete): the request ends as
    /// `Finished(Stop)` at the next step boundary and counts as a success. Unknown and
    /// finished requests are ignored.
    fn finish(&self, id: RequestId);

    /// Now, on the clock of [`Submission::arrival`].
    fn now(&self) -> Micros;

    /// What does not change while the engine runs.
    fn info(&self) -> &BackendInfo;

    /// Text to tokens and back.
    fn text(&self) -> &dyn TextModel;

    /// Whether the engine lives and takes requests.
    fn health(&self) -> Health;

    /// The body of `/v1/engine/state`.
    fn state(&self) -> impl Future<Output = serde_json::Value> + Send;

    /// The body of `/metrics`, in the Prometheus text format.
    fn metrics(&self) -> impl Future<Output = String> + Send;
}

/// What does not change while the engine runs.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendInfo {
    /// The name that requests give as `model`.
    pub model: String,
    /// When the daemon loaded it, in seconds of Unix time.
    pub loaded_unix_s: u64,
    /// Prompt and output together, in tokens.
    pub context_tokens_max: u32,
    /// Tokens in the vocabulary.
    pub vocab_size: u32,
    /// Tokens that end an output unless `ignore_eos` is set.
    pub end_tokens: Vec<TokenId>,
    /// Sampling where a request says nothing.
    pub sampling: SamplingDefaults,
    /// Output bound where a request gives none, in tokens; also cut to what is left of
    /// the context.
    pub max_tokens_default: u32,
    /// Request classes, most urgent first; at least one, at most 256.
    pub classes: Vec<ClassInfo>,
    /// Index of the class of requests that name none.
    pub default_class: u8,
}

/// Sampling where a request says nothing: from generation_config.json, else neutral.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingDefaults {
    /// See [`SamplingParams`](crate::protocol::SamplingParams).
    pub temperature: f32,
    /// 0: all.
    pub top_k: u32,
    /// 1: all.
    pub top_p: f32,
    /// 0: all.
    pub min_p: f32,
    /// 1: off.
    pub repetition_penalty: f32,
}

impl Default for SamplingDefaults {
    fn default() -> SamplingDefaults {
        SamplingDefaults { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// One request class of the config.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassInfo {
    /// Its name.
    pub name: String,
    /// Objectives of its requests where they carry none.
    pub slo: Slo,
}

/// The engine's condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why the process should be restarted; `None`: it is live.
    pub not_live: Option<String>,
    /// Why no request should be sent now; `None`: it is ready.
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

    /// Creates a streaming decoder for one output.
    fn decoder(&self) -> Box<dyn TextDecoder>;

    /// Renders a conversation into a prompt that ends where the assistant's reply begins.
    /// To be [encoded](Self::encode) without special tokens.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`], [`TextError::ChatTemplate`].
    fn render_chat(&self, messages: &[ChatMessage]) -> Result<String, TextError>;
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

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// Its text.
    pub content: String,
}
