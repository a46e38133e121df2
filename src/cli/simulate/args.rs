//! Arguments of `specserve simulate`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::capacity_args::CapacityArgs;
use super::classes;
use super::matrix_args::MatrixArgs;
use crate::cli::error::CliError;
use crate::cli::parse;
use crate::pacing::ServiceOrder;
use crate::policy::registry::{PolicyName, PolicyOptions};
use crate::policy::specserve::SpecServeOptions;
use crate::protocol::{DrafterNeeds, Slo};
use crate::replay::{self, Arrival, Lengths, Recording, TraceSource, WorkloadOptions};
use crate::scheduler::SchedulerLimits;
use crate::simulate::virtual_executor::{Confidence, TimeError};
use crate::simulate::{DraftQuality, Settings, SimulatedClass};
use crate::timing::cost_model::CostModel;

/// Highest accepted temperature.
const TEMPERATURE_MAX: f64 = 2.0;

/// Simulates the engine on a trace: the real scheduler and policies under a virtual clock,
/// with a profile in place of the device.
#[derive(Args, Debug)]
pub struct SimulateArgs {
    /// A .csv or .jsonl file with arrival_s, prompt_tokens and output_tokens, or
    /// poisson:RPS,SECONDS, or gamma:RPS,CV,SECONDS.
    #[arg(long, value_name = "TRACE", required_unless_present = "cells")]
    trace: Option<TraceSource>,
    /// Profile that times the virtual device; repeatable with --matrix.
    #[arg(long = "profile", value_name = "FILE", required = true)]
    profiles: Vec<PathBuf>,
    /// Policy; repeat the option to compare several, except with --matrix.
    #[arg(long = "policy", value_name = "POLICY", default_value = "specserve")]
    policies: Vec<PolicyName>,
    /// Objectives of all requests: ttft_ms=N, tpot_ms=N, or both separated by a comma.
    #[arg(long, value_name = "SLO", value_parser = parse::slo, default_value = "")]
    slo: Slo,
    /// A class of requests: NAME:share=S, then its objectives as in --slo; repeat the option,
    /// the most urgent class first. Shares add up to 1.
    #[arg(long = "class", value_name = "CLASS", value_parser = classes::parse, conflicts_with = "slo")]
    classes: Vec<SimulatedClass>,
    /// Multiples of the trace's rate, or of the saturating rate with --saturation.
    #[arg(long = "load", value_name = "LOADS", value_delimiter = ',', default_value = "1", value_parser = parse::positive)]
    loads: Vec<f64>,
    /// Use the rate at which plain decoding drops below 95 % attainment as load 1.
    #[arg(long)]
    pub saturation: bool,
    /// Seed of everything that is drawn.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
    /// Source of lengths: trace or spec-bench. By default trace for a file, spec-bench for a
    /// generator.
    #[arg(long, value_name = "SOURCE", value_parser = parse::lengths)]
    lengths: Option<Lengths>,
    /// Divide arrival times by this; bursts get shorter.
    #[arg(long, value_name = "FACTOR", default_value = "1", value_parser = parse::positive)]
    rate_scale: f64,
    /// Keep each request with this probability; bursts keep their duration.
    #[arg(long, value_name = "SHARE", default_value = "1", value_parser = share)]
    thin: f64,
    /// Keep only the first N requests; with --matrix, requests of a cell, 1500 by default.
    #[arg(long, value_name = "REQUESTS")]
    pub limit: Option<usize>,
    /// Drop requests with longer prompts.
    #[arg(long, value_name = "TOKENS")]
    max_prompt: Option<u32>,
    /// Median acceptance of a draft token for all requests; by default depends on the task.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    acceptance: Option<f64>,
    /// Play back a recording written by `record` instead of drawing acceptance.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["acceptance", "confidence"])]
    recording: Option<PathBuf>,
    /// Draft confidence: calibrated, noisy:SD, overconfident:SHARE, misaligned:SHARE.
    #[arg(long, value_name = "KIND", value_parser = parse_confidence, default_value = "calibrated")]
    confidence: Confidence,
    /// Ratio of the machine's true times to the profile.
    #[arg(long, value_name = "FACTOR", default_value = "1", value_parser = parse::positive)]
    time_error: f64,
    /// Jitter of each call's time, as the standard deviation of its logarithm.
    #[arg(long, value_name = "SD", default_value = "0", value_parser = share)]
    jitter: f64,
    /// Sampling temperature shown to policies.
    #[arg(long, value_name = "NUMBER", default_value = "0", value_parser = temperature)]
    temperature: f64,
    /// Most running requests.
    #[arg(long, value_name = "REQUESTS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1024))]
    running_max: u32,
    /// Most waiting requests; further ones are rejected.
    #[arg(long, value_name = "REQUESTS", default_value_t = 100_000)]
    queue_max: u32,
    /// Most prefill tokens per step.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    prefill_chunk: u32,
    /// Most draft tokens per request and step.
    #[arg(long, value_name = "TOKENS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=32))]
    draft_max: u32,
    /// KV blocks of 16 tokens per model.
    #[arg(long, value_name = "BLOCKS", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    kv_blocks: u32,
    /// Context length: longest prompt plus output; longer requests are rejected.
    #[arg(long, value_name = "TOKENS", default_value_t = 32_768)]
    context_max: u32,
    /// Order of service of all policies: fifo or slo. By default slo for specserve, and fifo for
    /// the others, as their originals serve.
    #[arg(long, value_name = "ORDER")]
    scheduler: Option<ServiceOrder>,
    #[command(flatten)]
    pub capacity: CapacityArgs,
    #[command(flatten)]
    pub matrix: MatrixArgs,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

impl SimulateArgs {
    /// Policies to run.
    pub fn policies(&self) -> &[PolicyName] {
        &self.policies
    }

    /// The order of service under a policy.
    pub fn order(&self, policy: PolicyName) -> ServiceOrder {
        self.scheduler.unwrap_or(match policy {
            PolicyName::SpecServe => ServiceOrder::Slo,
            _ => ServiceOrder::Fifo,
        })
    }

    /// Profiles; at least one.
    pub fn profiles(&self) -> &[PathBuf] {
        &self.profiles
    }

    /// The profile of a command that takes only one.
    ///
    /// # Errors
    /// [`CliError::Arguments`]: several.
    pub fn profile(&self) -> Result<&Path, CliError> {
        match &self.profiles[..] {
            [profile] => Ok(profile),
            _ => Err(CliError::Arguments("several --profile need --matrix".to_owned())),
        }
    }

    /// The requests of the trace under `seed`.
    ///
    /// # Errors
    /// [`CliError`]: no trace, or an invalid one.
    pub fn workload(&self, seed: u64) -> Result<Vec<Arrival>, CliError> {
        let Some(trace) = &self.trace else {
            return Err(CliError::Arguments("--trace is missing".to_owned()));
        };
        replay::load(trace, &self.workload_options(trace, seed)).map_err(|error| match trace {
            TraceSource::File(path) => CliError::Failed(format!("{}: {error}", path.display())),
            TraceSource::Gamma { .. } => CliError::Failed(error.to_string()),
        })
    }

    /// Loads to run them at.
    pub fn loads(&self) -> &[f64] {
        &self.loads
    }

    fn workload_options(&self, trace: &TraceSource, seed: u64) -> WorkloadOptions {
        WorkloadOptions {
            rate_scale: self.rate_scale,
            thin: self.thin,
            requests_max: self.limit,
            prompt_tokens_max: self.max_prompt,
            lengths: self.lengths.unwrap_or(trace.lengths()),
            seed,
        }
    }

    /// Options of the policies.
    pub fn policy_options(&self) -> PolicyOptions {
        let specserve = SpecServeOptions { draft_tokens_max: self.draft_max, ..SpecServeOptions::default() };
        PolicyOptions { specserve, ..PolicyOptions::default() }
    }

    /// The recording to play back, if any.
    ///
    /// # Errors
    /// [`CliError`]: an unreadable file or a malformed line.
    pub fn recording(&self) -> Result<Option<Arc<Recording>>, CliError> {
        let Some(path) = &self.recording else { return Ok(None) };
        let text =
            std::fs::read_to_string(path).map_err(|source| CliError::File { path: path.clone(), source })?;
        match Recording::parse(&text) {
            Ok(recording) => Ok(Some(Arc::new(recording))),
            Err(error) => Err(CliError::Failed(format!("{}: {error}", path.display()))),
        }
    }

    /// The remaining settings of the simulation.
    ///
    /// # Errors
    /// [`CliError::Arguments`]: classes that do not fit together.
    pub fn settings(&self, cost: CostModel, recording: Option<Arc<Recording>>) -> Result<Settings, CliError> {
        let classes = if self.classes.is_empty() {
            SimulatedClass::of_all(self.slo)
        } else {
            classes::check(&self.classes)?;
            self.classes.clone()
        };
        let drafter = cost.draft.is_some().then(|| DrafterNeeds::kv_cache(self.kv_blocks));
        Ok(Settings {
            cost,
            error: TimeError { jitter: self.jitter, ..TimeError::all(self.time_error) },
            draft: DraftQuality {
                median: self.acceptance,
                confidence: self.confidence.clone(),
                recording,
                ..DraftQuality::typical()
            },
            limits: SchedulerLimits {
                running_requests_max: self.running_max,
                prefill_chunk_tokens_max: self.prefill_chunk,
                // room for the drafts of all requests in addition to a full prefill chunk
                batch_tokens_max: self.prefill_chunk + self.running_max * (1 + self.draft_max),
                draft_tokens_max: self.draft_max,
                target_blocks: self.kv_blocks,
                drafter,
            },
            queue_requests_max: self.queue_max,
            context_tokens_max: self.context_max,
            order: self.scheduler.unwrap_or_default(),
            classes,
            temperature: self.temperature as f32,
            seed: self.seed,
        })
    }
}

fn share(text: &str) -> Result<f64, String> {
    parse::within(text, 1.0)
}

fn temperature(text: &str) -> Result<f64, String> {
    parse::within(text, TEMPERATURE_MAX)
}

fn parse_confidence(text: &str) -> Result<Confidence, String> {
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    match name {
        "calibrated" if value.is_empty() => Ok(Confidence::Calibrated),
        "noisy" => Ok(Confidence::Noisy { logit_sd: parse::positive(value)? }),
        "overconfident" => Ok(Confidence::Curve(vec![(0.0, 0.0), (1.0, share(value)?)])),
        "misaligned" => Ok(Confidence::Misaligned { acceptance: share(value)? }),
        _ => Err("must be calibrated, noisy:SD, overconfident:SHARE or misaligned:SHARE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confidences_are_read_with_their_argument() {
        assert_eq!(parse_confidence("noisy:1.5"), Ok(Confidence::Noisy { logit_sd: 1.5 }));
        assert_eq!(parse_confidence("misaligned:0.02"), Ok(Confidence::Misaligned { acceptance: 0.02 }));
        let curve = Confidence::Curve(vec![(0.0, 0.0), (1.0, 0.7)]);
        assert_eq!(parse_confidence("overconfident:0.7"), Ok(curve));
        for bad in ["", "calibrated:1", "noisy", "noisy:0", "misaligned:2", "sure"] {
            assert!(parse_confidence(bad).is_err(), "{bad}");
        }
    }
}
