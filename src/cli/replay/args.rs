//! Arguments of `specserve replay`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use crate::cli::parse;
use crate::policy::registry::PolicyName;
use crate::policy::specserve::Shape;
use crate::protocol::Slo;
use crate::replay::{Lengths, TraceSource, WorkloadOptions};

/// Highest accepted temperature.
const TEMPERATURE_MAX: f64 = 2.0;

/// Sends a trace's requests to a daemon at their arrival times and reports latencies,
/// attainment and goodput. With --config, starts private daemons and can compare policies.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("daemon").required(true).args(["config", "socket"])))]
pub struct ReplayArgs {
    /// Start private daemons with this configuration.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Use the daemon behind this socket with its own configuration.
    #[arg(long, value_name = "PATH", conflicts_with = "policies")]
    pub socket: Option<PathBuf>,
    /// A .csv or .jsonl file with arrival_s, prompt_tokens and output_tokens, or
    /// poisson:RPS,SECONDS, or gamma:RPS,CV,SECONDS.
    #[arg(long, value_name = "TRACE")]
    pub trace: TraceSource,
    /// Prompts, one JSON object per line with prompt, turns or messages; by default short
    /// prompts of the kinds that the embedded pair was trained on.
    #[arg(long, value_name = "FILE.jsonl")]
    pub prompts: Option<PathBuf>,
    /// Policies to compare, comma-separated; by default the configured one.
    #[arg(long = "policy", value_name = "POLICIES", value_delimiter = ',')]
    pub policies: Vec<PolicyName>,
    /// Shapes of the policy specserve to compare, comma-separated: chain, tree, auto; by default the
    /// configured one.
    #[arg(long = "shape", value_name = "SHAPES", value_delimiter = ',', conflicts_with = "socket")]
    pub shapes: Vec<Shape>,
    /// Multiples of the trace's rate, comma-separated.
    #[arg(long = "rate-scale", value_name = "FACTORS", value_delimiter = ',', default_value = "1", value_parser = parse::positive)]
    pub rate_scales: Vec<f64>,
    /// Repeats of each combination; the report shows medians.
    #[arg(long, value_name = "TIMES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeats: u32,
    /// Objectives of all requests: ttft_ms=N, tpot_ms=N, or both separated by a comma; by
    /// default those of the daemon's default class.
    #[arg(long, value_name = "SLO", value_parser = parse::slo, default_value = "")]
    pub slo: Slo,
    /// Source of output lengths: trace or spec-bench. By default trace for a file, spec-bench
    /// for a generator.
    #[arg(long, value_name = "SOURCE", value_parser = parse::lengths)]
    lengths: Option<Lengths>,
    /// Send only the first N requests.
    #[arg(long, value_name = "REQUESTS")]
    limit: Option<usize>,
    /// Limit on the output tokens of each request.
    #[arg(long = "max-output", value_name = "TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub output_tokens_max: u32,
    /// Sampling temperature.
    #[arg(long, value_name = "NUMBER", default_value = "0", value_parser = temperature)]
    pub temperature: f64,
    /// Seed of everything that is drawn.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

impl ReplayArgs {
    /// Workload options for this multiple of the trace's rate.
    pub fn workload_options(&self, rate_scale: f64) -> WorkloadOptions {
        let lengths = self.lengths.unwrap_or(self.trace.lengths());
        WorkloadOptions { rate_scale, requests_max: self.limit, ..WorkloadOptions::whole(lengths, self.seed) }
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    parse::within(text, TEMPERATURE_MAX)
}
