//! A streamed chat answer, put together.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::error::CliError;

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
}

/// What speculation did for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpeculativeDecoding {
    /// Target steps after the prefill.
    pub steps: u64,
    /// Draft tokens proposed.
    pub drafted: u64,
    /// Of those, given to the target.
    pub verified: u64,
    /// Of those, equal to the target's own.
    pub accepted: u64,
    /// Tokens that one of these steps yields.
    pub mean_acceptance_length: Option<f64>,
}

/// The daemon's own figures about a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestMetrics {
    /// Arrival to the first step, in milliseconds.
    pub queue_ms: Option<f64>,
    /// Arrival to the first token, in milliseconds.
    pub ttft_ms: Option<f64>,
    /// Mean time per token after the first, in milliseconds; none for a single token.
    pub tpot_ms: Option<f64>,
    /// Speculation.
    #[serde(default)]
    pub speculative_decoding: SpeculativeDecoding,
    /// How often it was preempted.
    #[serde(default)]
    pub preemptions: u64,
    /// The seed that repeats the answer.
    pub seed: Option<u64>,
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: Option<String>,
    /// Tokens.
    pub usage: Usage,
    /// The daemon's figures.
    pub metrics: RequestMetrics,
}

/// Streams the answer to a chat request; `on_text` gets each piece as it comes.
///
/// # Errors
/// [`CliError::Client`], and what `on_text` fails with; the request is cancelled then.
pub async fn chat(
    client: &Client,
    mut body: Value,
    mut on_text: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<Answer, CliError> {
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let mut events = client.stream("/v1/chat/completions", &body).await?;
    let mut answer = Answer::default();
    while let Some(event) = events.next().await? {
        if let Some(piece) = answer.take(event)? {
            on_text(&piece)?;
            answer.text.push_str(&piece);
        }
    }
    Ok(answer)
}

impl Answer {
    /// Takes one event; the text in it, if there is any.
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
