//! Tokenizer and chat template of the served model, as the API's [`TextModel`].

use std::sync::{Arc, OnceLock};

use crate::api::{ChatMessage, Conversation, TextDecoder, TextError, TextModel};
use crate::grammar::{GrammarCompiler, GrammarError, GrammarSource, Vocabulary};
use crate::model::{ChatInput, ChatTemplate, StreamDecoder, Tokenizer};
use crate::protocol::{TokenConstraint, TokenId, unix_time};

/// The served model's tokenizer and chat template.
pub(super) struct ServedText {
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    /// The target's vocabulary, which may be larger than the tokenizer's.
    vocab_size: u32,
    end_tokens: Vec<TokenId>,
    /// Made for the first request that needs it: large vocabularies take a while.
    grammars: OnceLock<Result<GrammarCompiler, GrammarError>>,
}

impl ServedText {
    pub(super) fn new(
        tokenizer: Tokenizer,
        chat_template: Option<ChatTemplate>,
        vocab_size: u32,
        end_tokens: Vec<TokenId>,
    ) -> ServedText {
        ServedText { tokenizer, chat_template, vocab_size, end_tokens, grammars: OnceLock::new() }
    }

    fn compiler(&self) -> Result<GrammarCompiler, GrammarError> {
        let bytes = self.tokenizer.fixed_bytes(self.vocab_size as usize).ok_or_else(|| {
            let what = "a structured output needs tokens that are the same text everywhere, and the \
                        tokenizer of this model has others";
            GrammarError::Unsupported(what.to_owned())
        })?;
        let tokenizer = self.tokenizer.clone();
        let encode = move |text: &str| tokenizer.encode(text, false).ok();
        GrammarCompiler::new(Vocabulary {
            bytes,
            end_tokens: self.end_tokens.clone(),
            encode: self.tokenizer.encodes_anywhere().then(|| Box::new(encode) as _),
        })
    }
}

impl TextModel for ServedText {
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        self.tokenizer.encode(text, add_special).map_err(|error| TextError::Tokenizer(error.to_string()))
    }

    fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
        self.tokenizer.decode(tokens, false).map_err(|error| TextError::Tokenizer(error.to_string()))
    }

    fn special_tokens(&self) -> Vec<(String, String)> {
        self.chat_template.as_ref().map(|template| template.special_tokens().to_vec()).unwrap_or_default()
    }

    fn chat_template(&self) -> Option<String> {
        self.chat_template.as_ref().map(ChatTemplate::source)
    }

    fn decoder(&self, prompt: &[TokenId], shown: &[&str]) -> Box<dyn TextDecoder> {
        let shown = shown.iter().filter_map(|text| self.tokenizer.special_token_id(text)).collect();
        Box::new(Decoder(self.tokenizer.stream_decoder_after(prompt, true).showing(shown)))
    }

    fn special_token(&self, text: &str) -> Option<TokenId> {
        self.tokenizer.special_token_id(text)
    }

    fn render_chat(&self, conversation: &Conversation) -> Result<String, TextError> {
        let Some(template) = &self.chat_template else {
            return Err(TextError::NoChatTemplate);
        };
        let messages: Vec<serde_json::Value> =
            conversation.messages.iter().map(ChatMessage::to_json).collect();
        let input = ChatInput {
            messages: &messages,
            tools: Some(conversation.tools.list.as_slice()).filter(|tools| !tools.is_empty()),
            add_generation_prompt: conversation.add_generation_prompt,
            continue_final_message: conversation.continue_final_message,
            variables: Some(&conversation.variables),
            unix_seconds: unix_time().as_secs(),
            ..ChatInput::default()
        };
        template.render(&input).map_err(|error| TextError::ChatTemplate(error.to_string()))
    }

    fn constraint(
        &self,
        source: &GrammarSource,
        stop_tokens: &[TokenId],
    ) -> Result<Arc<dyn TokenConstraint>, GrammarError> {
        let compiler = self.grammars.get_or_init(|| self.compiler());
        compiler.as_ref().map_err(Clone::clone)?.compile(source, stop_tokens)
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
