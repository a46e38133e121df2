//! Parsing of generation requests: body and headers to a [`Submission`].

use std::sync::Arc;

use axum::http::HeaderMap;

use super::backend::{BackendInfo, TextModel};
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::fields::{Fields, UnknownFields};
use super::min_tokens::MinTokens;
use super::output_format::{self, OutputFormat};
use super::prompt::Prompt;
use super::reply::{ReplyRules, Start};
use super::{neutral, params, reply_rules, slo};
use crate::protocol::{Micros, SamplingParams, Slo, Submission, TokenId};

/// Most tokens of a marker of reasoning at the end of a prompt, and of the whitespace around it.
const MARKER_TOKENS_MAX: usize = 32;

/// The generation routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/completions`.
    Completions,
    /// `/v1/chat/completions`.
    Chat,
}

/// A fully parsed request.
#[derive(Debug)]
pub struct ParsedRequest {
    pub prompt: Prompt,
    /// How the text of the answer is to be read.
    pub reply: ReplyRules,
    /// Whether the tokenizer puts its special tokens around the prompt; `None`: as usual.
    pub add_special_tokens: Option<bool>,
    pub sampling: SamplingParams,
    pub max_tokens: Option<u32>,
    /// Least output tokens, before which nothing ends the output.
    pub min_tokens: u32,
    pub stop_strings: Vec<String>,
    pub stop_tokens: Vec<TokenId>,
    /// What the output must look like; `None`: any text.
    pub format: Option<OutputFormat>,
    pub class: u8,
    pub slo: Slo,
    /// `None` for a response in one piece.
    pub stream: Option<StreamOptions>,
}

/// Options of a streamed response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Whether a final chunk carries the token usage.
    pub include_usage: bool,
    /// Whether every chunk carries the usage so far; only with `include_usage`.
    pub continuous_usage: bool,
}

impl ParsedRequest {
    /// Parses a request. Every field is used, known to have no effect, or rejected.
    pub fn parse(
        endpoint: Endpoint,
        body: &[u8],
        headers: &HeaderMap,
        info: &BackendInfo,
        unknown: UnknownFields,
    ) -> Result<ParsedRequest, ApiError> {
        let mut fields = Fields::from_body(body, unknown)?;
        check_model(&mut fields, info)?;
        let prompt = match endpoint {
            Endpoint::Completions => Prompt::from_prompt(&mut fields, info)?,
            Endpoint::Chat => Prompt::from_messages(&mut fields, &info.chat)?,
        };
        let format = output_format(&mut fields, &prompt)?;
        let reply = match &prompt {
            Prompt::Chat(conversation) => {
                reply_rules::parse(&mut fields, conversation, &info.chat, format.is_some())?
            }
            Prompt::Text(_) | Prompt::Tokens(_) => ReplyRules::default(),
        };
        let (class, slo) = slo::parse(&mut fields, headers, info)?;
        let request = ParsedRequest {
            prompt,
            reply,
            add_special_tokens: fields.boolean("add_special_tokens")?,
            sampling: params::sampling(&mut fields, info)?,
            max_tokens: max_tokens(&mut fields)?,
            min_tokens: min_tokens(&mut fields)?,
            stop_strings: params::stop_strings(&mut fields)?,
            stop_tokens: params::stop_tokens(&mut fields, info)?,
            format,
            class,
            slo,
            stream: stream_options(&mut fields)?,
        };
        neutral::drop_neutral(&mut fields)?;
        fields.finish()?;
        Ok(request)
    }

    fn sampling(&self, info: &BackendInfo) -> SamplingParams {
        let format = self.sampling.constraint.clone();
        SamplingParams {
            constraint: MinTokens::constraint(self.min_tokens, &self.stop_tokens, info.vocab_size, format),
            ..self.sampling.clone()
        }
    }

    /// Compiles the description of the output, if there is one. The end of such an output is told by
    /// an end token, also with `ignore_eos`.
    pub fn constrain(&mut self, text: &dyn TextModel, info: &BackendInfo) -> Result<(), ApiError> {
        let Some(format) = &self.format else { return Ok(()) };
        let ends = info.end_tokens.iter().filter(|token| !self.stop_tokens.contains(token));
        let stop_tokens = [&self.stop_tokens[..], &ends.copied().collect::<Vec<_>>()].concat();
        self.sampling.constraint = Some(format.compile(text, &stop_tokens)?);
        self.stop_tokens = stop_tokens;
        Ok(())
    }

    /// Turns stop strings that are special tokens into stop tokens: no such text ever appears.
    pub fn stop_at_special_tokens(&mut self, text: &dyn TextModel) {
        let found = self.stop_strings.iter().filter_map(|stop| text.special_token(stop));
        self.stop_tokens.extend(found);
        self.stop_tokens.sort_unstable();
        self.stop_tokens.dedup();
    }

    /// Notes whether the output begins within the reasoning: templates may begin it.
    pub fn note_start(&mut self, text: &dyn TextModel, prompt: &[TokenId]) -> Result<(), ApiError> {
        let continues = self.prompt.is_continued();
        let Some(reasoning) = self.reply.reasoning.as_mut().filter(|_| !continues) else { return Ok(()) };
        let end = &prompt[prompt.len().saturating_sub(MARKER_TOKENS_MAX)..];
        let end = text.decode(end).map_err(|error| ApiError::invalid("messages", error.to_string()))?;
        reasoning.start = Start::after(&end, reasoning.format);
        Ok(())
    }

    /// Builds the submission for the encoded prompt. Without `max_tokens`, the output is
    /// limited by the remaining context and [`BackendInfo::max_tokens_default`].
    pub fn submission(
        &self,
        prompt: Vec<TokenId>,
        arrival: Micros,
        info: &BackendInfo,
    ) -> Result<Submission, ApiError> {
        let (prompt_tokens, context) = (prompt.len() as u64, u64::from(info.context_tokens_max));
        let left = context.saturating_sub(prompt_tokens) as u32;
        let max_tokens = self.max_tokens.unwrap_or(left.min(info.max_tokens_default));
        if max_tokens > left {
            return Err(info.context_exceeded("max_tokens", prompt_tokens, Some(max_tokens)));
        }
        if self.min_tokens > max_tokens {
            let message = format!("min_tokens is {} and max_tokens is {max_tokens}", self.min_tokens);
            return Err(ApiError::invalid("min_tokens", message));
        }
        Ok(Submission {
            prompt: prompt.into(),
            max_tokens,
            sampling: Arc::new(self.sampling(info)),
            stop_tokens: self.stop_tokens.as_slice().into(),
            slo: self.slo,
            class: self.class,
            weight: info.classes[usize::from(self.class)].weight,
            arrival,
        })
    }
}

/// What the output must look like: what the request says, or calls of its tools.
fn output_format(fields: &mut Fields, prompt: &Prompt) -> Result<Option<OutputFormat>, ApiError> {
    let described = output_format::parse(fields)?;
    let Prompt::Chat(conversation) = prompt else { return Ok(described) };
    if !conversation.tools.are_forced() {
        return Ok(described);
    }
    match described {
        None => Ok(Some(OutputFormat::calls(&conversation.tools))),
        Some(OutputFormat { field, .. }) => {
            let message = format!("{field} and tool_choice both describe the output; set one of them");
            Err(ApiError::invalid("tool_choice", message))
        }
    }
}

fn min_tokens(fields: &mut Fields) -> Result<u32, ApiError> {
    let tokens = fields.integer("min_tokens", 0..=i64::from(u32::MAX))?;
    Ok(tokens.unwrap_or(0) as u32)
}

/// Takes `model` and compares it with the served model. Without one, or with an empty one, the
/// served model is meant.
pub fn check_model(fields: &mut Fields, info: &BackendInfo) -> Result<(), ApiError> {
    match fields.take("model") {
        None => Ok(()),
        Some(value) if value == "" || value == info.model.as_str() => Ok(()),
        Some(value) => Err(unknown_model(&value.to_string(), info)),
    }
}

/// 404: the requested model is not the served one.
pub fn unknown_model(shown: &str, info: &BackendInfo) -> ApiError {
    let message = format!("the model {shown} does not exist; this server serves {:?}", info.model);
    ApiError::new(ErrorCode::ModelNotFound, message).with_param("model")
}

fn max_tokens(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let bounds = 1..=i64::from(u32::MAX);
    let old = fields.integer("max_tokens", bounds.clone())?;
    let new = fields.integer("max_completion_tokens", bounds)?;
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        let message = format!("max_completion_tokens is {new} and max_tokens is {old}; set only one of them");
        return Err(ApiError::invalid("max_completion_tokens", message));
    }
    Ok(new.or(old).map(|tokens| tokens as u32))
}

/// Without `stream`, `stream_options` is validated but has no effect.
fn stream_options(fields: &mut Fields) -> Result<Option<StreamOptions>, ApiError> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let mut chosen = StreamOptions::default();
    if let Some(value) = fields.take("stream_options") {
        let mut options = fields.nested("stream_options", value)?;
        chosen.include_usage = options.boolean("include_usage")?.unwrap_or(false);
        chosen.continuous_usage = options.boolean("continuous_usage_stats")?.unwrap_or(false);
        if options.boolean("include_obfuscation")?.unwrap_or(false) {
            let path = options.path("include_obfuscation");
            return Err(ApiError::unsupported(path.clone(), format!("{path} = true is not supported")));
        }
        options.finish()?;
    }
    Ok(stream.then_some(chosen))
}
