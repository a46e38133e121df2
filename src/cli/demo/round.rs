//! One round: every prompt on one side, with timings.

use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::PROMPTS;
use crate::cli::answer::{ChatReply, chat};
use crate::cli::client::Client;
use crate::cli::error::CliError;
use crate::protocol::{Clock, MonotonicClock};

/// One request as seen by the client.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The reply.
    pub answer: ChatReply,
    /// Time from sending the request to the end of the reply.
    pub elapsed: Duration,
}

/// One sample for each of [`PROMPTS`], in order.
#[derive(Clone, Debug)]
pub struct Round(pub Vec<Sample>);

impl Round {
    /// Runs every prompt, one after the other.
    ///
    /// # Errors
    /// If a request fails.
    pub async fn measure(
        client: &Client,
        model: &str,
        tokens: u32,
        progress: &ProgressBar,
    ) -> Result<Round, CliError> {
        let mut samples = Vec::with_capacity(PROMPTS.len());
        for prompt in PROMPTS {
            let clock = MonotonicClock::start();
            let answer = chat(client, request(model, prompt, tokens), |_| Ok(())).await?;
            samples.push(Sample { answer, elapsed: clock.now().into() });
            progress.inc(1);
        }
        Ok(Round(samples))
    }

    /// Output tokens of all replies.
    pub fn output_tokens(&self) -> u64 {
        self.0.iter().map(|sample| sample.answer.usage.completion_tokens).sum()
    }

    /// Output tokens per second, including prefill and transport.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds: f64 = self.0.iter().map(|sample| sample.elapsed.as_secs_f64()).sum();
        self.output_tokens() as f64 / seconds.max(1e-9)
    }
}

/// A greedy chat request.
pub fn request(model: &str, prompt: &str, tokens: u32) -> Value {
    json!({
        "model": model,
        "messages": [{ "role": "user", "content": prompt }],
        "temperature": 0,
        "max_tokens": tokens,
    })
}
