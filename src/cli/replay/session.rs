//! Replays one trace against one daemon, open-loop.

use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::prompts::Prompts;
use crate::cli::answer::{ChatReply, chat};
use crate::cli::client::{Client, ClientError};
use crate::cli::error::CliError;
use crate::protocol::Slo;
use crate::replay::Arrival;

/// Delay between readiness and the first arrival.
const LEAD: Duration = Duration::from_millis(50);
/// Bound of seeds; below it every JSON reader keeps them exact.
const SEED_MAX: u64 = (1 << 53) - 1;
/// Warm-up requests before the first arrival.
const WARM_UP_REQUESTS: usize = 8;
/// Output tokens of each warm-up request.
const WARM_UP_TOKENS: u32 = 48;

/// Final state of a request.
#[derive(Clone, Debug)]
pub enum Fate {
    /// Completed.
    Answered(ChatReply),
    /// Rejected by the daemon.
    Refused,
    /// Failed, or the reply was incomplete.
    Failed(String),
}

/// Client-side outcome of a request.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Final state.
    pub fate: Fate,
    /// Delay of the send behind its trace time.
    pub late: Duration,
    /// Gaps between text deltas, in milliseconds.
    pub gaps_ms: Vec<f64>,
}

/// Outcomes of a whole trace.
#[derive(Clone, Debug)]
pub struct Played {
    /// One outcome per request, in order of arrival.
    pub outcomes: Vec<Outcome>,
    /// Time from the first arrival to the end of the last reply.
    pub elapsed: Duration,
}

/// Settings shared by all requests of a session.
pub struct Session<'a> {
    pub client: &'a Client,
    pub model: &'a str,
    pub prompts: &'a Prompts,
    pub slo: Slo,
    pub temperature: f64,
    pub output_tokens_max: u32,
    pub seed: u64,
}

impl Session<'_> {
    /// Sends every request at its trace time and waits for all replies.
    pub async fn play(&self, arrivals: &[Arrival], progress: &ProgressBar) -> Played {
        let first = arrivals.first().map_or(Duration::ZERO, |arrival| arrival.at.into());
        let start = Instant::now() + LEAD;
        let requests: Vec<_> = arrivals
            .iter()
            .enumerate()
            .map(|(index, arrival)| {
                let due = start + (Duration::from(arrival.at) - first);
                let (client, body, bar) = (self.client.clone(), self.body(index, arrival), progress.clone());
                tokio::spawn(async move {
                    let outcome = send(&client, body, due).await;
                    bar.inc(1);
                    outcome
                })
            })
            .collect();
        let mut outcomes = Vec::with_capacity(requests.len());
        for request in requests {
            outcomes.push(request.await.unwrap_or_else(|error| Outcome {
                fate: Fate::Failed(error.to_string()),
                late: Duration::ZERO,
                gaps_ms: Vec::new(),
            }));
        }
        Played { outcomes, elapsed: start.elapsed() }
    }

    fn body(&self, index: usize, arrival: &Arrival) -> Value {
        let mut body = json!({
            "model": self.model,
            "messages": self.prompts.messages(index),
            "max_tokens": arrival.output_tokens.min(self.output_tokens_max),
            "ignore_eos": true,
            "temperature": self.temperature,
            "seed": (self.seed.wrapping_add(index as u64)) & SEED_MAX,
        });
        let bounds = [("ttft_ms", self.slo.ttft), ("tpot_ms", self.slo.tpot)];
        for (name, bound) in bounds {
            if let Some(bound) = bound {
                body["slo"][name] = json!(bound.as_millis_f64());
            }
        }
        body
    }
}

async fn send(client: &Client, body: Value, due: Instant) -> Outcome {
    tokio::time::sleep_until(due).await;
    let late = due.elapsed();
    let mut gaps_ms = Vec::new();
    let mut last: Option<Instant> = None;
    let answered = chat(client, body, |_| {
        let now = Instant::now();
        gaps_ms.extend(last.replace(now).map(|last| (now - last).as_secs_f64() * 1e3));
        Ok(())
    });
    let fate = match answered.await {
        Ok(answer) => Fate::Answered(answer),
        Err(CliError::Client(ClientError::Refused { .. })) => Fate::Refused,
        Err(error) => Fate::Failed(error.to_string()),
    };
    Outcome { fate, late, gaps_ms }
}

/// Sends warm-up requests, two at a time, to warm caches and train policies.
///
/// # Errors
/// If one of them fails.
pub async fn warm_up(client: &Client, model: &str, prompts: &Prompts) -> Result<(), CliError> {
    let request = |index: usize| {
        let body = json!({
            "model": model,
            "messages": prompts.messages(prompts.len() - 1 - index % prompts.len()),
            "max_tokens": WARM_UP_TOKENS,
            "temperature": 0,
        });
        chat(client, body, |_| Ok(()))
    };
    for pair in 0..WARM_UP_REQUESTS / 2 {
        let (one, other) = tokio::join!(request(2 * pair), request(2 * pair + 1));
        one.and(other)?;
    }
    Ok(())
}
