//! Arguments of `specserve simulate` that describe a deployment: what a daemon's configuration says.

use std::path::PathBuf;

use clap::Args;

use super::classes::{self, ClassArg};
use crate::cli::parse;
use crate::pacing::{LateAction, ServiceOrder};
use crate::policy::registry::PolicyName;
use crate::policy::specserve::Shape;
use crate::protocol::Slo;

/// See the module's documentation. What is left out is the configuration's; without one, what
/// each option's text says.
#[derive(Args, Debug)]
pub struct DeploymentArgs {
    /// Configuration of a daemon, whose values replace the defaults of --profile, --policy, --slo,
    /// --running-max, --queue-max, --prefill-chunk, --draft-max, --shape, --kv-blocks, --scheduler and
    /// --late.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Profile that times the virtual device; repeatable with --matrix.
    #[arg(long = "profile", value_name = "FILE", required_unless_present = "config")]
    pub(super) profiles: Vec<PathBuf>,
    /// Policy, specserve by default; repeat the option to compare several, except with --matrix.
    #[arg(long = "policy", value_name = "POLICY")]
    pub(super) policies: Vec<PolicyName>,
    /// Objectives of all requests: ttft_ms=N, tpot_ms=N, or both separated by a comma.
    #[arg(long, value_name = "SLO", value_parser = parse::slo, default_value = "")]
    pub(super) slo: Slo,
    /// A class of requests: NAME:share=S, then its objectives as in --slo, and weight=W if they
    /// are not worth 1; repeat the option, the most urgent class first. Shares add up to 1.
    #[arg(long = "class", value_name = "CLASS", value_parser = classes::parse, conflicts_with = "slo")]
    pub(super) classes: Vec<ClassArg>,
    /// Most running requests, 256 by default.
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) running_max: Option<u32>,
    /// Most waiting requests, 100000 by default; further ones are rejected.
    #[arg(long, value_name = "REQUESTS")]
    pub(super) queue_max: Option<u32>,
    /// Most prefill tokens per step, 512 by default.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) prefill_chunk: Option<u32>,
    /// Most draft tokens per request and step, 8 by default.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(super) draft_max: Option<u32>,
    /// How the drafts of the policy specserve may stand to each other: chain, tree or auto; chain by
    /// default.
    #[arg(long, value_name = "SHAPE")]
    pub(super) shape: Option<Shape>,
    /// KV blocks of 16 tokens per model, 20000 by default.
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub(super) kv_blocks: Option<u32>,
    /// Order of service of all policies: fifo or slo. By default slo for specserve, and fifo for
    /// the others, as their originals serve.
    #[arg(long, value_name = "ORDER")]
    pub(super) scheduler: Option<ServiceOrder>,
    /// What becomes of late requests in the order slo: queue, demote or reject; demote by default.
    #[arg(long, value_name = "ACTION")]
    pub(super) late: Option<LateAction>,
}
