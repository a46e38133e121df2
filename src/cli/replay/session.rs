//! One trace against one daemon, open-loop.

use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::prompts::Prompts;
use crate::cli::answer::{Answer, chat};
use crate::cli::client::{Client, ClientError};
use crate::cli::error::CliError;
use crate::protocol::Slo;
use crate::replay::Arrival;

/// Time between getting ready and the first arrival.
const LEAD: Duration = Duration::from_millis(50);
/// Seeds stay exact in every JSON reader.
const SEED_MAX: u64 = (1 << 53) - 1;
/// Unmeasured requests before the first arrival.
const WARM_UP_REQUESTS: usize = 8;
/// Their output.
const WARM_UP_TOKENS: u32 = 48;

/// How a request ended.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It was answered.
    Answered(Answer),
    /// The daemon did not take it.
    Refused,
    /// It broke, or got no whole answer.
    Failed(String),
}

/// What the client saw of a request.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub fate: Fate,
    /// How long after its time it was sent.
    pub late: Duration,
    /// Gaps between pieces of text, in milliseconds.
    pub gaps_ms: Vec<f64>,
}

/// All of a trace.
#[derive(Clone, Debug)]
pub struct Played {
    /// One for each request, in order of arrival.
    pub outcomes: Vec<Outcome>,
    /// From the first arrival to the end of the last answer.
    pub elapsed: Duration,
}

/// What all requests of a session have in common.
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
    /// Sends every request at its time and waits for all answers.
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

/// A few unmeasured requests, two at a time: caches get warm, and policies learn.
///
/// # Errors
/// When one of them fails.
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
