//! Arguments of `specserve simulate --matrix`.

use clap::Args;

use crate::policy::registry::PolicyName;

/// What each cell draws, or has no use for.
const DRAWN: [&str; 20] = [
    "config",
    "trace",
    "slo",
    "classes",
    "loads",
    "saturation",
    "lengths",
    "rate_scale",
    "thin",
    "max_prompt",
    "acceptance",
    "recording",
    "recording_in_order",
    "confidence",
    "time_error",
    "jitter",
    "running_max",
    "prefill_chunk",
    "kv_blocks",
    "context_max",
];

/// See the module's documentation.
#[derive(Args, Debug)]
pub struct MatrixArgs {
    /// Instead of a trace, run N random situations and compare the policy with its rivals in
    /// each.
    #[arg(long = "matrix", value_name = "N", conflicts_with_all = DRAWN, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub cells: Option<u64>,
    /// With --matrix: a policy to compare with; repeatable.
    #[arg(long = "rival", value_name = "POLICY", conflicts_with = "trace", default_values = ["none", "fixed:2", "fixed:4", "smartspec", "adaspec"])]
    pub rivals: Vec<PolicyName>,
}
