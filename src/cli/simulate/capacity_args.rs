//! Arguments of `specserve simulate --capacity`.

use clap::Args;

/// See the module's documentation.
#[derive(Args, Debug)]
pub struct CapacityArgs {
    /// Instead of runs at given loads, find the highest rates at which 99, 95 and 90 % of the
    /// requests attain their objectives.
    #[arg(long, conflicts_with_all = ["loads", "saturation", "cells"])]
    pub capacity: bool,
    /// With --capacity: seeds, from --seed on, to take the mean over.
    #[arg(long, value_name = "N", requires = "capacity", default_value_t = 5, conflicts_with_all = ["loads", "saturation", "cells"], value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
}
