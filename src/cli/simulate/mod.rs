//! `specserve simulate`: runs the engine on a trace under a virtual clock.

mod args;
mod capacity;
mod capacity_args;
mod classes;
mod deployment;
mod deployment_args;
mod matrix;
mod matrix_args;
mod table;

use std::io::Write;
use std::num::NonZero;
use std::path::Path;

use serde_json::json;

pub use args::SimulateArgs;

use self::deployment::Deployment;
use super::error::CliError;
use crate::pacing::ServiceOrder;
use crate::policy::registry::{self, PolicyName};
use crate::protocol::MonotonicClock;
use crate::replay;
use crate::simulate::{Contender, Job, Report, Settings, saturation_load, sweep};
use crate::timing::profile::Profile;

/// Runs the command.
///
/// # Errors
/// [`CliError`]: an invalid configuration, trace or profile, or a policy that violates an invariant.
pub fn run(args: &SimulateArgs, out: &mut impl Write) -> Result<(), CliError> {
    let deployment = Deployment::of(&args.deployment)?;
    check_late(args, &deployment)?;
    if let Some(cells) = args.matrix.cells {
        return matrix::run(args, &deployment, cells, out);
    }
    if args.capacity.capacity {
        return capacity::run(args, &deployment, out);
    }
    let failed = |error: &dyn std::error::Error| CliError::Failed(error.to_string());
    let profile = read_profile(deployment.profile()?)?;
    let workload = args.workload(args.seed)?;
    let cost = profile.cost_model().map_err(|error| failed(&error))?;
    let settings = args.settings(&deployment, cost, args.recording()?);
    let unit = if args.saturation { find_saturation(&workload, &settings)? } else { 1.0 };
    let contenders = contenders(&deployment.policies, &profile, &deployment)?;
    let mut jobs = Vec::new();
    for &load in args.loads() {
        jobs.extend(contenders.iter().map(|contender| Job { rate: load * unit, load, contender }));
    }
    let clock = MonotonicClock::start();
    let reports = sweep(&workload, &settings, &jobs, threads(), &clock).map_err(|error| failed(&error))?;
    print(args, &reports, out)
}

/// Refuses `--late` where no run has the order of service that it is about.
fn check_late(args: &SimulateArgs, deployment: &Deployment) -> Result<(), CliError> {
    let rivals = args.matrix.cells.map_or(&[][..], |_| &args.matrix.rivals);
    let mut policies = deployment.policies.iter().chain(rivals);
    if args.deployment.late.is_some() && policies.all(|&name| deployment.order(name) == ServiceOrder::Fifo) {
        let advice = "--late is about the order slo, and all policies run in the order fifo; \
                      add --scheduler slo";
        return Err(CliError::Arguments(advice.to_owned()));
    }
    Ok(())
}

/// As many threads as there are cores.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

fn contenders(
    names: &[PolicyName],
    profile: &Profile,
    deployment: &Deployment,
) -> Result<Vec<Contender>, CliError> {
    names.iter().map(|&name| contender(name, profile, deployment)).collect()
}

/// Returns a factory that builds a fresh policy for each run.
fn contender(name: PolicyName, profile: &Profile, deployment: &Deployment) -> Result<Contender, CliError> {
    let (profile, options) = (profile.clone(), deployment.policy_options());
    let build = move || registry::build(name, Some(&profile), &options);
    build().map_err(|error| CliError::Failed(error.to_string()))?;
    let learner = Box::new(move || build().expect("the same options built a policy before"));
    Ok(Contender { order: deployment.order(name), learner })
}

fn read_profile(path: &Path) -> Result<Profile, CliError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| CliError::File { path: path.to_owned(), source })?;
    Profile::from_toml(&text).map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
}

fn find_saturation(workload: &[replay::Arrival], settings: &Settings) -> Result<f64, CliError> {
    let found = saturation_load(workload, settings).map_err(|error| CliError::Failed(error.to_string()))?;
    found.ok_or_else(|| {
        CliError::Failed("there is no load at which plain decoding saturates; change --slo".to_owned())
    })
}

fn print(args: &SimulateArgs, reports: &[Report], out: &mut impl Write) -> Result<(), CliError> {
    match (args.json, reports) {
        (true, [report]) => writeln!(out, "{:#}", json!(report))?,
        (true, reports) => writeln!(out, "{:#}", json!({ "runs": reports }))?,
        (false, reports) => {
            write!(out, "{}", table::of(reports))?;
            if reports.iter().any(|report| report.classes.len() > 1) {
                write!(out, "\n{}", table::of_classes(reports))?;
            }
        }
    }
    Ok(())
}
