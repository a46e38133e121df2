//! `specserve simulate`: runs the engine on a trace under a virtual clock.

mod args;
mod table;

use std::io::Write;
use std::num::NonZero;

use serde_json::json;

pub use args::SimulateArgs;

use super::error::CliError;
use crate::policy::Learner;
use crate::policy::registry::{self, PolicyName};
use crate::protocol::MonotonicClock;
use crate::replay;
use crate::simulate::{Job, Report, Settings, saturation_load, sweep};
use crate::timing::profile::Profile;

/// Runs the command.
///
/// # Errors
/// [`CliError`]: an invalid trace or profile, or a policy that violates an invariant.
pub fn run(args: &SimulateArgs, out: &mut impl Write) -> Result<(), CliError> {
    let failed = |error: &dyn std::error::Error| CliError::Failed(error.to_string());
    let profile = read_profile(args)?;
    let workload =
        replay::load(&args.trace, &args.workload_options()).map_err(|error| match &args.trace {
            replay::TraceSource::File(path) => CliError::Failed(format!("{}: {error}", path.display())),
            replay::TraceSource::Gamma { .. } => failed(&error),
        })?;
    let cost = profile.cost_model().map_err(|error| failed(&error))?;
    let settings = args.settings(cost, args.recording()?);
    let unit = if args.saturation { find_saturation(&workload, &settings)? } else { 1.0 };
    let factory = |&name| Ok((args.order(name), factory(name, &profile, args)?));
    let factories: Vec<_> = args.policies().iter().map(factory).collect::<Result<_, CliError>>()?;
    let mut jobs = Vec::new();
    for &load in args.loads() {
        jobs.extend(factories.iter().map(|(order, learner)| Job {
            rate: load * unit,
            load,
            order: *order,
            learner: &**learner,
        }));
    }
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let clock = MonotonicClock::start();
    let reports = sweep(&workload, &settings, &jobs, threads, &clock).map_err(|error| failed(&error))?;
    print(args, &reports, out)
}

type Factory = Box<dyn Fn() -> Box<dyn Learner> + Sync>;

/// Returns a factory that builds a fresh policy for each run.
fn factory(name: PolicyName, profile: &Profile, args: &SimulateArgs) -> Result<Factory, CliError> {
    let (profile, options) = (profile.clone(), args.policy_options());
    let build = move || registry::build(name, Some(&profile), &options);
    build().map_err(|error| CliError::Failed(error.to_string()))?;
    Ok(Box::new(move || build().expect("the same options built a policy before")))
}

fn read_profile(args: &SimulateArgs) -> Result<Profile, CliError> {
    let path = &args.profile;
    let text =
        std::fs::read_to_string(path).map_err(|source| CliError::File { path: path.clone(), source })?;
    Profile::from_toml(&text).map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
}

fn find_saturation(workload: &[replay::Arrival], settings: &Settings) -> Result<f64, CliError> {
    let found = saturation_load(workload, settings).map_err(|error| CliError::Failed(error.to_string()))?;
    found.ok_or_else(|| CliError::Failed("plain decoding saturates at no load; change --slo".to_owned()))
}

fn print(args: &SimulateArgs, reports: &[Report], out: &mut impl Write) -> Result<(), CliError> {
    match (args.json, reports) {
        (true, [report]) => writeln!(out, "{:#}", json!(report))?,
        (true, reports) => writeln!(out, "{:#}", json!({ "runs": reports }))?,
        (false, reports) => write!(out, "{}", table::of(reports))?,
    }
    Ok(())
}
