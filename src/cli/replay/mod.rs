//! `specserve replay`: replays a trace against a daemon.
//!
//! The client is open-loop: requests are sent at their trace times, regardless of whether
//! earlier ones have completed. A run can compare several policies and rates, each on its
//! own private daemon. They are interleaved over the repeats, so that a drifting machine
//! favours none.

mod args;
pub(super) mod prompts;
mod report;
mod run_stats;
mod session;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::json;

pub use args::ReplayArgs;

use super::client::Client;
use super::error::CliError;
use super::host::DaemonHost;
use super::measured_profile::MeasuredProfile;
use super::private::PrivateDaemon;
use super::progress;
use crate::config::Config;
use crate::policy::registry::PolicyName;
use crate::policy::specserve::Shape;
use crate::protocol::Slo;
use crate::replay::{Arrival, load};
use prompts::Prompts;
use report::ReplayReport;
use run_stats::{RunStats, Setting};
use session::{Session, warm_up};

/// Time budget for profiling, if a policy needs a profile and none is configured.
const PROFILE_BUDGET: Duration = Duration::from_secs(5);
/// Connections of a private daemon in addition to those of the trace's requests.
const SPARE_CONNECTIONS: usize = 16;

/// Runs the command.
///
/// # Errors
/// [`CliError`]: conflicting arguments, an invalid trace, prompt file, configuration or
/// profile, or an unreachable daemon. Failed requests are reported as statistics instead.
pub async fn run<H: DaemonHost>(args: &ReplayArgs, host: &H, out: &mut impl Write) -> Result<(), CliError> {
    let prompts = args.prompts.as_deref().map_or_else(|| Ok(Prompts::built_in()), Prompts::read)?;
    let workloads = args.rate_scales.iter().map(|&rate| Ok((rate, workload(args, rate)?)));
    let workloads: Vec<(f64, Vec<Arrival>)> = workloads.collect::<Result<_, CliError>>()?;
    let runs = match (&args.socket, &args.config) {
        (Some(socket), _) => {
            let replay = Replay { args, prompts: &prompts, slo: args.slo };
            replay.against(&Client::new(socket), &workloads).await?
        }
        (None, Some(path)) => {
            let config = Config::read(path)?;
            let class = config.slo.classes[usize::from(config.slo.default_class)].slo;
            let slo = Slo { ttft: args.slo.ttft.or(class.ttft), tpot: args.slo.tpot.or(class.tpot) };
            let replay = Replay { args, prompts: &prompts, slo };
            replay.compare(host, config, &workloads).await?
        }
        (None, None) => unreachable!("clap requires one of them"),
    };
    let report = ReplayReport::new(runs);
    match args.json {
        true => writeln!(out, "{:#}", json!(report))?,
        false => write!(out, "{report}")?,
    }
    Ok(())
}

fn workload(args: &ReplayArgs, rate_scale: f64) -> Result<Vec<Arrival>, CliError> {
    let options = args.workload_options(rate_scale);
    load(&args.trace, &options).map_err(|error| CliError::Failed(error.to_string()))
}

struct Replay<'a> {
    args: &'a ReplayArgs,
    prompts: &'a Prompts,
    slo: Slo,
}

impl Replay<'_> {
    /// Runs every rate against an already running daemon.
    async fn against(
        &self,
        client: &Client,
        workloads: &[(f64, Vec<Arrival>)],
    ) -> Result<Vec<RunStats>, CliError> {
        let state = client.get_json_once_started("/v1/engine/state").await?;
        let policy = state.pointer("/policy/policy").and_then(serde_json::Value::as_str).unwrap_or("unknown");
        let mut runs = Vec::new();
        for repeat in 0..self.args.repeats {
            for (rate_scale, arrivals) in workloads {
                let setting = Setting { policy: policy.to_owned(), rate_scale: *rate_scale, repeat };
                runs.push(self.measure(client, setting, arrivals).await?);
            }
        }
        Ok(runs)
    }

    /// Runs every policy at every rate, each against its own daemon.
    async fn compare<H: DaemonHost>(
        &self,
        host: &H,
        config: Config,
        workloads: &[(f64, Vec<Arrival>)],
    ) -> Result<Vec<RunStats>, CliError> {
        let policies = match self.args.policies.as_slice() {
            [] => vec![config.speculation.policy],
            policies => policies.to_vec(),
        };
        let candidates = candidates(&policies, &self.args.shapes, config.speculation.shape);
        let profile = MeasuredProfile::prepare(host, &config, &policies, PROFILE_BUDGET).await?;
        let mut runs = Vec::new();
        for repeat in 0..self.args.repeats {
            for (rate_scale, arrivals) in workloads {
                let mut order = candidates.clone();
                order.rotate_left(repeat as usize % candidates.len());
                for candidate in order {
                    let policy = candidate.name();
                    let config = self.private_config(&config, candidate, profile.as_ref(), arrivals.len());
                    let daemon = PrivateDaemon::start(host, config).await?;
                    let setting = Setting { policy, rate_scale: *rate_scale, repeat };
                    let measured = self.measure(&daemon.client(), setting, arrivals).await;
                    daemon.shutdown().await;
                    runs.push(measured?);
                }
            }
        }
        Ok(runs)
    }

    fn private_config(
        &self,
        config: &Config,
        Candidate { policy, shape, .. }: Candidate,
        profile: Option<&MeasuredProfile>,
        requests: usize,
    ) -> Config {
        let mut config = config.clone();
        config.speculation.policy = policy;
        config.speculation.shape = shape;
        let longest = policy.draft_tokens().unwrap_or(0);
        config.speculation.draft_tokens_max = config.speculation.draft_tokens_max.max(longest);
        if let Some(profile) = profile {
            config.speculation.profile = Some(profile.path().to_owned());
        }
        config.server.connections_max = config.server.connections_max.max(requests + SPARE_CONNECTIONS);
        // a replay measures how late requests are: none is refused for having waited
        config.scheduler.queue_wait_max = config.server.request_timeout;
        config
    }

    async fn measure(
        &self,
        client: &Client,
        setting: Setting,
        arrivals: &[Arrival],
    ) -> Result<RunStats, CliError> {
        let model = client.model().await?;
        warm_up(client, &model, self.prompts).await?;
        let bar = progress_bar(&setting, arrivals.len());
        let session = Session {
            client,
            model: &model,
            prompts: self.prompts,
            slo: self.args.slo,
            temperature: self.args.temperature,
            output_tokens_max: self.args.output_tokens_max,
            seed: self.args.seed,
        };
        let played = session.play(arrivals, &bar).await;
        bar.finish_and_clear();
        let state = client.get_json_once_started("/v1/engine/state").await?;
        Ok(RunStats::new(setting, &self.slo, &played, &state))
    }
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    policy: PolicyName,
    shape: Shape,
    /// Whether its shape tells it from others.
    shows_shape: bool,
}

impl Candidate {
    fn name(self) -> String {
        match self.shows_shape {
            true => format!("{} {}", self.policy, self.shape.name()),
            false => self.policy.to_string(),
        }
    }
}

/// Each policy, `specserve` once in each shape; `configured` if there are none.
fn candidates(policies: &[PolicyName], shapes: &[Shape], configured: Shape) -> Vec<Candidate> {
    let of = |&policy: &PolicyName| match policy {
        PolicyName::SpecServe if shapes.is_empty() => {
            vec![Candidate { policy, shape: configured, shows_shape: false }]
        }
        PolicyName::SpecServe => {
            shapes.iter().map(|&shape| Candidate { policy, shape, shows_shape: true }).collect()
        }
        _ => vec![Candidate { policy, shape: Shape::Chain, shows_shape: false }],
    };
    policies.iter().flat_map(of).collect()
}

fn progress_bar(setting: &Setting, requests: usize) -> ProgressBar {
    let template = "{msg} {bar:40} {pos}/{len} requests, {elapsed} elapsed";
    let message = format!("{} at {} ×, repeat {}", setting.policy, setting.rate_scale, setting.repeat + 1);
    progress::bar(requests as u64, template).with_message(message)
}
