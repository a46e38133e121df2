//! Tokenizer and chat template behind the API's seam.

use crate::api::{ChatMessage, TextDecoder, TextModel};
use crate::model::{ChatInput, ChatTemplate, StreamDecoder, Tokenizer};
use crate::protocol::{TokenId, unix_time};

/// Text of the served model.
pub(super) struct ServedText {
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
}

impl ServedText {
    pub(super) fn new(tokenizer: Tokenizer, chat_template: Option<ChatTemplate>) -> ServedText {
        ServedText { tokenizer, chat_template }
    }
}

impl TextModel for ServedText {
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, String> {
        self.tokenizer.encode(text, add_special).map_err(|error| error.to_string())
    }

    fn decode(&self, tokens: &[TokenId]) -> Result<String, String> {
        self.tokenizer.decode(tokens, false).map_err(|error| error.to_string())
    }

    fn decoder(&self) -> Box<dyn TextDecoder> {
        Box::new(Decoder(self.tokenizer.stream_decoder(true)))
    }

    fn render_chat(&self, messages: &[ChatMessage]) -> Result<String, String> {
        let Some(template) = &self.chat_template else {
            return Err("this model has no chat template: use /v1/completions".to_owned());
        };
        let messages: Vec<serde_json::Value> = messages
            .iter()
            .map(|message| serde_json::json!({ "role": message.role, "content": message.content }))
            .collect();
        let input = ChatInput {
            messages: &messages,
            add_generation_prompt: true,
            unix_seconds: unix_time().as_secs(),
            ..ChatInput::default()
        };
        template.render(&input).map_err(|error| error.to_string())
    }
}

struct Decoder(StreamDecoder);

impl TextDecoder for Decoder {
    fn push(&mut self, token: TokenId) -> String {
        let mut text = String::new();
        self.0.push(token, &mut text);
        text
    }

    fn finish(&mut self) -> String {
        let mut text = String::new();
        self.0.finish(&mut text);
        text
    }
}
