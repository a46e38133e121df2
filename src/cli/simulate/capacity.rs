//! `specserve simulate --capacity`: the highest rates at which each policy keeps objectives.

use std::io::Write;

use serde_json::json;

use super::deployment::Deployment;
use super::{SimulateArgs, contenders, read_profile, threads};
use crate::cli::error::CliError;
use crate::cli::table::{Table, or_dash};
use crate::simulate::{CAPACITY_ATTAINMENTS, Capacity, Settings, Trial, capacities};

/// Finds the capacities and prints them.
///
/// # Errors
/// [`CliError`]: an invalid trace or profile, or a policy that violates an invariant.
pub fn run(args: &SimulateArgs, deployment: &Deployment, out: &mut impl Write) -> Result<(), CliError> {
    let failed = |error: &dyn std::error::Error| CliError::Failed(error.to_string());
    let profile = read_profile(deployment.profile()?)?;
    let cost = profile.cost_model().map_err(|error| failed(&error))?;
    let settings = args.settings(deployment, cost, args.recording()?);
    let trials = trials(args, &settings)?;
    let policies = contenders(&deployment.policies, &profile, deployment)?;
    let found = capacities(&policies, &trials, threads()).map_err(|error| failed(&error))?;
    if args.json {
        writeln!(out, "{:#}", json!({ "capacities": found }))?;
    } else {
        write!(out, "{}", table(&found))?;
    }
    Ok(())
}

/// A trial per seed.
fn trials(args: &SimulateArgs, settings: &Settings) -> Result<Vec<Trial>, CliError> {
    let seeds = (0..args.capacity.seeds).map(|place| args.seed.wrapping_add(place));
    seeds
        .map(|seed| {
            Ok(Trial { workload: args.workload(seed)?, settings: Settings { seed, ..settings.clone() } })
        })
        .collect()
}

/// One row per policy, in requests/s.
fn table(found: &[Capacity]) -> Table {
    let mut table = Table::new(["policy", "99 % rps", "±", "95 % rps", "±", "90 % rps", "±"]);
    for of_policy in found.chunks(CAPACITY_ATTAINMENTS.len()) {
        let cells = of_policy.iter().flat_map(|one| {
            let rps = one.rps;
            let half_width = rps.and_then(|rps| rps.half_width);
            [or_dash(rps.map(|rps| rps.mean), 2), or_dash(half_width, 2)]
        });
        let policy = of_policy.iter().take(1).map(|one| one.policy.clone());
        let row: Vec<String> = policy.chain(cells).collect();
        if let Ok(row) = <[String; 7]>::try_from(row) {
            table.row(row);
        }
    }
    table
}
