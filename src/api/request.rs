//! Parsing of generation requests: body and headers to a [`Submission`].

use std::sync::Arc;

use axum::http::HeaderMap;

use super::backend::{BackendInfo, TextModel};
use super::error::ApiError;
use super::error_code::ErrorCode;
use super::fields::Fields;
use super::prompt::Prompt;
use super::{params, slo};
use crate::protocol::{Micros, SamplingParams, Slo, Submission, TokenId};

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
    pub sampling: SamplingParams,
    pub max_tokens: Option<u32>,
    pub stop_strings: Vec<String>,
    pub stop_tokens: Vec<TokenId>,
    pub class: u8,
    pub slo: Slo,
    /// `None` for a response in one piece.
    pub stream: Option<StreamOptions>,
}

/// Options of a streamed response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Whether a final chunk carries the token usage.
    pub include_usage: bool,
}

impl ParsedRequest {
    /// Parses a request. Every field is used, known to have no effect, or rejected.
    pub fn parse(
        endpoint: Endpoint,
        body: &[u8],
        headers: &HeaderMap,
        info: &BackendInfo,
    ) -> Result<ParsedRequest, ApiError> {
        let mut fields = Fields::from_body(body)?;
        check_model(&mut fields, info)?;
        let prompt = match endpoint {
            Endpoint::Completions => Prompt::from_prompt(&mut fields, info)?,
            Endpoint::Chat => Prompt::from_messages(&mut fields)?,
        };
        let (class, slo) = slo::parse(&mut fields, headers, info)?;
        let request = ParsedRequest {
            prompt,
            sampling: params::sampling(&mut fields, info)?,
            max_tokens: max_tokens(&mut fields)?,
            stop_strings: params::stop_strings(&mut fields)?,
            stop_tokens: params::stop_tokens(&mut fields, info)?,
            class,
            slo,
            stream: stream_options(&mut fields)?,
        };
        params::refuse_unsupported(&mut fields)?;
        fields.finish()?;
        Ok(request)
    }

    /// Turns stop strings that are special tokens into stop tokens: no such text ever appears.
    pub fn stop_at_special_tokens(&mut self, text: &dyn TextModel) {
        let found = self.stop_strings.iter().filter_map(|stop| text.special_token(stop));
        self.stop_tokens.extend(found);
        self.stop_tokens.sort_unstable();
        self.stop_tokens.dedup();
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
            let message = format!(
                "the prompt's {prompt_tokens} tokens and max_tokens {max_tokens} exceed the context of \
                 {context} tokens"
            );
            let (code, message) = (ErrorCode::ContextLengthExceeded, info.with_context_advice(message));
            return Err(ApiError { code, ..ApiError::invalid("max_tokens", message) });
        }
        Ok(Submission {
            prompt: prompt.into(),
            max_tokens,
            sampling: Arc::new(self.sampling.clone()),
            stop_tokens: self.stop_tokens.as_slice().into(),
            slo: self.slo,
            class: self.class,
            weight: info.classes[usize::from(self.class)].weight,
            arrival,
        })
    }
}

/// Takes `model` and compares it with the served model.
pub fn check_model(fields: &mut Fields, info: &BackendInfo) -> Result<(), ApiError> {
    let value = fields.required("model")?;
    if value == info.model.as_str() {
        return Ok(());
    }
    Err(unknown_model(&value.to_string(), info))
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
    let mut include_usage = false;
    if let Some(value) = fields.take("stream_options") {
        let mut options = Fields::from_value("stream_options", value)?;
        include_usage = options.boolean("include_usage")?.unwrap_or(false);
        if options.boolean("include_obfuscation")?.unwrap_or(false) {
            let path = options.path("include_obfuscation");
            return Err(ApiError::unsupported(path.clone(), format!("{path} = true is not supported")));
        }
        options.finish()?;
    }
    Ok(stream.then_some(StreamOptions { include_usage }))
}
