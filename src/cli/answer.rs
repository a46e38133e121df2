//! Collects a streamed chat completion.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::error::CliError;

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Output tokens.
    pub completion_tokens: u64,
}

/// Speculation statistics of a request; the server names them as vLLM does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpeculativeDecoding {
    /// Target steps after the prefill.
    #[serde(alias = "num_spec_steps")]
    pub steps: u64,
    /// Draft tokens proposed.
    #[serde(alias = "num_proposed_draft_tokens")]
    pub drafted: u64,
    /// Draft tokens verified by the target.
    #[serde(alias = "num_draft_tokens")]
    pub verified: u64,
    /// Draft tokens accepted by the target.
    #[serde(alias = "num_accepted_draft_tokens")]
    pub accepted: u64,
    /// Mean tokens per target step.
    pub mean_acceptance_length: Option<f64>,
}

/// Server-side metrics of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestMetrics {
    /// Arrival to the first step, in milliseconds.
    pub queue_ms: Option<f64>,
    /// Arrival to the first token, in milliseconds.
    pub ttft_ms: Option<f64>,
    /// Mean time per token after the first, in milliseconds; `None` for a single token.
    pub tpot_ms: Option<f64>,
    /// Speculation statistics.
    #[serde(default)]
    pub speculative_decoding: SpeculativeDecoding,
    /// Number of preemptions.
    #[serde(default)]
    pub preemptions: u64,
    /// Seed that reproduces the output.
    pub seed: Option<u64>,
}

/// A complete reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatReply {
    /// Text of the reply.
    pub text: String,
    /// Finish reason.
    pub finish_reason: Option<String>,
    /// Token counts.
    pub usage: Usage,
    /// Server-side metrics.
    pub metrics: RequestMetrics,
}

/// Sends a chat request and collects the streamed reply; `on_text` receives each text delta.
///
/// # Errors
/// [`CliError::Client`], and any error of `on_text`. On error the request is cancelled.
pub async fn chat(
    client: &Client,
    mut body: Value,
    mut on_text: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<ChatReply, CliError> {
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let mut events = client.stream("/v1/chat/completions", &body).await?;
    let mut answer = ChatReply::default();
    while let Some(event) = events.next().await? {
        if let Some(piece) = answer.take(event)? {
            on_text(&piece)?;
            answer.text.push_str(&piece);
        }
    }
    Ok(answer)
}

impl ChatReply {
    /// Applies one event; returns its text delta, if any.
    fn take(&mut self, mut event: Value) -> Result<Option<String>, ClientError> {
        if let Some(reason) = event.pointer("/choices/0/finish_reason").and_then(Value::as_str) {
            self.finish_reason = Some(reason.to_owned());
        }
        if let Some(usage) = event.get_mut("usage").map(Value::take).filter(|usage| !usage.is_null()) {
            self.usage = serde_json::from_value(usage).map_err(ClientError::protocol)?;
        }
        if let Some(metrics) = event.get_mut("metrics").map(Value::take).filter(|metrics| !metrics.is_null())
        {
            self.metrics = serde_json::from_value(metrics).map_err(ClientError::protocol)?;
        }
        let piece = event.pointer("/choices/0/delta/content").and_then(Value::as_str);
        Ok(piece.filter(|piece| !piece.is_empty()).map(ToOwned::to_owned))
    }
}
