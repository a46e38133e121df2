//! The messages of a conversation.

use serde_json::{Value, json};

use super::ChatArgs;
use crate::cli::answer::{ChatReply, chat};
use crate::cli::client::Client;
use crate::cli::error::CliError;

/// Outcome of a message.
#[derive(Debug)]
pub enum Said<S> {
    /// The model's whole answer.
    Answer(ChatReply),
    /// The answer was stopped; what was said of it stays in the conversation.
    Stopped(S),
}

/// A conversation with one model.
pub struct Conversation {
    model: String,
    settings: Value,
    /// The system message, if any, and the exchanges after it.
    messages: Vec<Value>,
}

impl Conversation {
    /// Begins a conversation with `model`.
    pub fn start(args: &ChatArgs, model: String) -> Conversation {
        let mut settings = json!({});
        let given = [
            ("temperature", args.temperature.map(|value| json!(value))),
            ("seed", args.seed.map(|value| json!(value))),
            ("max_tokens", args.max_tokens.map(|value| json!(value))),
        ];
        for (key, value) in given {
            if let Some(value) = value {
                settings[key] = value;
            }
        }
        let mut conversation = Conversation { model, settings, messages: Vec::new() };
        conversation.set_system(args.system.as_deref());
        conversation
    }

    /// Name of the model.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Most tokens of an answer, if the user limited them.
    pub fn tokens_max(&self) -> Option<u64> {
        self.settings["max_tokens"].as_u64()
    }

    /// The messages so far.
    #[cfg(test)]
    pub fn messages(&self) -> &[Value] {
        &self.messages
    }

    /// Forgets all but the system message.
    pub fn clear(&mut self) {
        self.messages.retain(is_system);
    }

    /// Replaces the system message; `None` removes it. The exchanges stay.
    pub fn set_system(&mut self, text: Option<&str>) {
        self.messages.retain(|message| !is_system(message));
        if let Some(text) = text {
            self.messages.insert(0, json!({ "role": "system", "content": text }));
        }
    }

    /// Sends `text` and appends the exchange to the conversation; a failed one is discarded. When
    /// `stop` resolves, the request is cancelled.
    ///
    /// # Errors
    /// [`CliError::Client`], and any error of `on_text`.
    pub async fn say<S>(
        &mut self,
        client: &Client,
        text: &str,
        mut on_text: impl FnMut(&str) -> std::io::Result<()>,
        stop: impl Future<Output = S>,
    ) -> Result<Said<S>, CliError> {
        let before = self.messages.len();
        self.messages.push(json!({ "role": "user", "content": text }));
        let mut body = self.settings.clone();
        body["model"] = json!(self.model);
        body["messages"] = json!(self.messages);
        let mut so_far = String::new();
        let answer = chat(client, body, |piece| {
            so_far.push_str(piece);
            on_text(piece)
        });
        // dropping the answer closes its connection, which cancels the request
        let said = tokio::select! {
            answer = answer => answer.map(Said::Answer),
            signal = stop => Ok(Said::Stopped(signal)),
        };
        // a message without an answer would be followed by another one, which templates refuse
        if said.is_err() || matches!(said, Ok(Said::Stopped(_)) if so_far.is_empty()) {
            self.messages.truncate(before);
        } else {
            self.messages.push(json!({ "role": "assistant", "content": so_far }));
        }
        said
    }
}

fn is_system(message: &Value) -> bool {
    message["role"] == "system"
}
