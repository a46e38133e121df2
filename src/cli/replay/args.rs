//! Arguments of `specserve replay`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use crate::cli::parse;
use crate::policy::registry::PolicyName;
use crate::protocol::Slo;
use crate::replay::{Lengths, TraceSource, WorkloadOptions};

/// Highest sampling temperature.
const TEMPERATURE_MAX: f64 = 2.0;

/// Sends a trace's requests to a daemon at their times, and reports latencies, attainment
/// and goodput. With --config it starts private daemons, and can compare policies.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("daemon").required(true).args(["config", "socket"])))]
pub struct ReplayArgs {
    /// Start private daemons with this configuration.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Ask the daemon behind this socket, as it is configured.
    #[arg(long, value_name = "PATH", conflicts_with = "policies")]
    pub socket: Option<PathBuf>,
    /// A .csv or .jsonl file with arrival_s, prompt_tokens and output_tokens, or
    /// poisson:RPS,SECONDS, or gamma:RPS,CV,SECONDS.
    #[arg(long, value_name = "TRACE")]
    pub trace: TraceSource,
    /// Prompts, one JSON object a line with prompt, turns or messages; by default short
    /// ones of the kinds that the embedded pair was trained on.
    #[arg(long, value_name = "FILE.jsonl")]
    pub prompts: Option<PathBuf>,
    /// Policies to compare, with commas between; by default the configuration's.
    #[arg(long = "policy", value_name = "POLICIES", value_delimiter = ',')]
    pub policies: Vec<PolicyName>,
    /// Multiples of the trace's rate, with commas between.
    #[arg(long = "rate-scale", value_name = "FACTORS", value_delimiter = ',', default_value = "1", value_parser = parse::positive)]
    pub rate_scales: Vec<f64>,
    /// How often each combination is measured; figures are medians.
    #[arg(long, value_name = "TIMES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeats: u32,
    /// Every request's objectives: ttft_ms=N, tpot_ms=N, or both with a comma between; by
    /// default those of the daemon's default class.
    #[arg(long, value_name = "SLO", value_parser = parse::slo, default_value = "")]
    pub slo: Slo,
    /// Where output lengths come from: trace or spec-bench. By default the file, or
    /// spec-bench where there is no file.
    #[arg(long, value_name = "SOURCE", value_parser = parse::lengths)]
    lengths: Option<Lengths>,
    /// Send the first requests only.
    #[arg(long, value_name = "REQUESTS")]
    limit: Option<usize>,
    /// Outputs of the trace are cut to this.
    #[arg(long = "max-output", value_name = "TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub output_tokens_max: u32,
    /// Sampling temperature.
    #[arg(long, value_name = "NUMBER", default_value = "0", value_parser = temperature)]
    pub temperature: f64,
    /// Of everything that is drawn.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

impl ReplayArgs {
    /// What is made of the trace at this multiple of its rate.
    pub fn workload_options(&self, rate_scale: f64) -> WorkloadOptions {
        let lengths = self.lengths.unwrap_or(self.trace.lengths());
        WorkloadOptions { rate_scale, requests_max: self.limit, ..WorkloadOptions::whole(lengths, self.seed) }
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    parse::within(text, TEMPERATURE_MAX)
}
