//! Arguments of `specserve simulate`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::capacity_args::CapacityArgs;
use super::deployment::Deployment;
use super::deployment_args::DeploymentArgs;
use super::matrix_args::MatrixArgs;
use crate::cli::error::CliError;
use crate::cli::parse;
use crate::pacing::ServiceOrder;
use crate::replay::{self, Arrival, Lengths, Recording, TraceSource, WorkloadOptions};
use crate::simulate::virtual_executor::{Confidence, TimeError};
use crate::simulate::{DraftQuality, Settings};
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
    #[command(flatten)]
    pub deployment: DeploymentArgs,
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
    /// Play the recording's outputs to the requests in order, instead of one drawn for each.
    #[arg(long, requires = "recording")]
    recording_in_order: bool,
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
    /// Context length: longest prompt plus output; longer requests are rejected.
    #[arg(long, value_name = "TOKENS", default_value_t = 32_768)]
    context_max: u32,
    #[command(flatten)]
    pub capacity: CapacityArgs,
    #[command(flatten)]
    pub matrix: MatrixArgs,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

impl SimulateArgs {
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

    /// The settings of the simulation of `deployment`. Each run sets its order of service.
    pub fn settings(
        &self,
        deployment: &Deployment,
        cost: CostModel,
        recording: Option<Arc<Recording>>,
    ) -> Settings {
        Settings {
            limits: deployment.limits(cost.draft.as_ref()),
            cost,
            error: TimeError { jitter: self.jitter, ..TimeError::all(self.time_error) },
            draft: DraftQuality {
                median: self.acceptance,
                confidence: self.confidence.clone(),
                recording,
                recording_in_order: self.recording_in_order,
                ..DraftQuality::typical()
            },
            queue_requests_max: deployment.queue_requests_max,
            context_tokens_max: self.context_max,
            order: ServiceOrder::default(),
            late: deployment.late,
            classes: deployment.classes.clone(),
            temperature: self.temperature as f32,
            seed: self.seed,
        }
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
