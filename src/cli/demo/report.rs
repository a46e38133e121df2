//! Figures of the demo.

use serde::Serialize;

use super::PROMPTS;
use super::round::Round;
use crate::cli::answer::SpeculativeDecoding;
use crate::policy::registry::PolicyName;
use crate::stats::quantile::{median, nearest_rank};

/// Parameters of the demo.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Policy of the speculative side.
    pub policy: PolicyName,
    /// Maximum output tokens per prompt.
    pub tokens_max: u32,
}

/// Two percentiles, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Median over requests.
    pub p50: Option<f64>,
    /// 99th percentile over requests.
    pub p99: Option<f64>,
}

/// Statistics of one side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SideStats {
    /// Output tokens per second; the median over rounds.
    pub tokens_per_second: f64,
    /// Output tokens of one round.
    pub output_tokens: u64,
    /// Mean tokens per target step, `1 + accepted / steps`; `None` without steps.
    pub acceptance_length: Option<f64>,
    /// Draft tokens proposed in one round.
    pub draft_tokens: u64,
    /// Share of the proposed draft tokens that the target accepted; `None` without any.
    pub acceptance_rate: Option<f64>,
    /// TTFT as measured by the daemon.
    pub ttft_ms: Percentiles,
    /// TPOT as measured by the daemon.
    pub tpot_ms: Percentiles,
}

/// The complete report; the `--json` document.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DemoReport {
    /// Version of this program.
    pub version: &'static str,
    /// Policy of the speculative side.
    pub policy: String,
    /// Number of prompts.
    pub prompts: usize,
    /// Maximum output tokens per prompt.
    pub tokens_max: u32,
    /// Rounds per side.
    pub rounds: usize,
    /// The side without speculation.
    pub plain: SideStats,
    /// The side with speculation.
    pub speculative: SideStats,
    /// Speculative over plain tokens per second.
    pub speedup: f64,
    /// Whether all outputs of a prompt were identical, across sides and rounds.
    pub identical: bool,
    /// Prompts whose outputs differed.
    pub different_prompts: Vec<&'static str>,
    /// The answers of the first round with speculation.
    pub answers: Vec<Answer>,
}

/// An answer of the demo.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The prompt.
    pub prompt: &'static str,
    /// The answer.
    pub text: String,
    /// Why it ended.
    pub finish_reason: Option<String>,
}

impl DemoReport {
    /// Summarises the rounds of both sides; each has at least one.
    pub fn new(setting: Setting, plain: &[Round], speculative: &[Round]) -> DemoReport {
        let different_prompts = different_prompts(plain, speculative);
        let answers = speculative.first().map(answers).unwrap_or_default();
        let (plain, rounds) = (SideStats::new(plain), plain.len());
        let speculative = SideStats::new(speculative);
        DemoReport {
            version: env!("CARGO_PKG_VERSION"),
            policy: setting.policy.to_string(),
            prompts: PROMPTS.len(),
            tokens_max: setting.tokens_max,
            rounds,
            speedup: speculative.tokens_per_second / plain.tokens_per_second,
            plain,
            speculative,
            identical: different_prompts.is_empty(),
            different_prompts,
            answers,
        }
    }
}

impl SideStats {
    /// Mean time of a step in milliseconds: drafting and one pass of the target.
    pub fn step_ms(&self) -> Option<f64> {
        Some(self.tpot_ms.p50? * self.acceptance_length?)
    }

    fn new(rounds: &[Round]) -> SideStats {
        let answers = || rounds.iter().flat_map(|round| &round.0).map(|sample| &sample.answer);
        let sum = |field: fn(&SpeculativeDecoding) -> u64| -> u64 {
            answers().map(|answer| field(&answer.metrics.speculative_decoding)).sum()
        };
        let (steps, drafted, accepted) =
            (sum(|one| one.steps), sum(|one| one.drafted), sum(|one| one.accepted));
        let count = rounds.len().max(1) as u64;
        SideStats {
            tokens_per_second: median(rounds.iter().map(Round::tokens_per_second).collect()).unwrap_or(0.0),
            output_tokens: rounds.iter().map(Round::output_tokens).sum::<u64>() / count,
            acceptance_length: (steps > 0).then(|| 1.0 + accepted as f64 / steps as f64),
            draft_tokens: drafted / count,
            acceptance_rate: (drafted > 0).then(|| accepted as f64 / drafted as f64),
            ttft_ms: Percentiles::of(answers().filter_map(|answer| answer.metrics.ttft_ms)),
            tpot_ms: Percentiles::of(answers().filter_map(|answer| answer.metrics.tpot_ms)),
        }
    }
}

impl Percentiles {
    fn of(values: impl Iterator<Item = f64>) -> Percentiles {
        let mut values: Vec<f64> = values.collect();
        let p99 = nearest_rank(&mut values, 0.99, f64::total_cmp);
        Percentiles { p50: median(values), p99 }
    }
}

fn answers(round: &Round) -> Vec<Answer> {
    let replies = round.0.iter().map(|sample| &sample.answer);
    PROMPTS
        .iter()
        .zip(replies)
        .map(|(prompt, reply)| Answer {
            prompt,
            text: reply.text.clone(),
            finish_reason: reply.finish_reason.clone(),
        })
        .collect()
}

/// Prompts whose outputs were not identical every time.
fn different_prompts(plain: &[Round], speculative: &[Round]) -> Vec<&'static str> {
    let answer = |round: &Round, index: usize| {
        let answer = &round.0[index].answer;
        (answer.text.clone(), answer.usage.completion_tokens, answer.finish_reason.clone())
    };
    let differs = |index: usize| {
        let mut answers = plain.iter().chain(speculative).map(|round| answer(round, index));
        let first = answers.next();
        answers.any(|other| Some(other) != first)
    };
    PROMPTS.iter().enumerate().filter(|(index, _)| differs(*index)).map(|(_, prompt)| *prompt).collect()
}
