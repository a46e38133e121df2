//! The profile that a daemon plans with: read and checked, or measured.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::DaemonError;
use super::executor_plan::ExecutorPlan;
use super::models::load_models;
use super::startup::OnPhase;
use crate::analyzer::{self, AnalyzerOptions, Progress, StartProfile};
use crate::config::{Config, DraftConfig};
use crate::executor::Executor;
use crate::model::ModelPair;
use crate::protocol::{Clock, Micros, MonotonicClock, SamplingParams};
use crate::timing::ProfileError;
use crate::timing::cost_model::LatencyTerms;
use crate::timing::fit::FitError;
use crate::timing::profile::{Fingerprint, Profile};

/// What measuring at the start takes if all goes well. It buys a coarse grid for the embedded pair;
/// what that gets wrong, the online correction learns.
const AT_START_BUDGET: Duration = Duration::from_millis(1500);

/// The text that measured sequences are cut from.
const TEXT: &str = "\
Once upon a time a small mouse lived under the floor of an old mill. Every night it heard the \
river and wondered where all that water went. One morning it packed a crumb of cheese, tied \
its scarf, and followed the bank down to the sea.

A river is water that flows over land to a lake or an ocean. Rain and melted snow feed it, and \
it carries sand and stones along.

def is_prime(number):
    if number < 2:
        return False
    for divisor in range(2, int(number ** 0.5) + 1):
        if number % divisor == 0:
            return False
    return True

1. Go to bed at the same time every day. 2. Keep the room dark and cool. 3. Put the telephone \
into another room an hour before you sleep.
";

/// Called with the progress of the measurement.
pub type OnProgress<'a> = &'a mut (dyn FnMut(Progress) + Send);

/// Measures the machine and the models of `config`. Blocks for about `budget`.
///
/// # Errors
/// [`DaemonError`]: the models can't be loaded, the executor can't be built, or a pass fails.
pub fn profile(
    config: &Config,
    budget: Duration,
    on_progress: OnProgress<'_>,
) -> Result<Profile, DaemonError> {
    let pair = load_models(config)?;
    let plan = ExecutorPlan::of(config, &pair)?;
    measure(&plan, &pair, budget, on_progress)
}

/// Where the times come from that policy and scheduler plan with.
pub(super) enum TimeSource {
    /// Neither policy nor scheduler plans with times.
    None,
    /// A profile file that is valid for this machine and these models.
    File(Box<Profile>),
    /// They are measured at the start, with the executor that is going to serve.
    Measure(Box<Measurement>),
}

/// What measuring needs besides an executor.
pub(super) struct Measurement {
    options: AnalyzerOptions,
    fingerprint: Fingerprint,
}

impl TimeSource {
    /// Reads the configured profile, or decides to measure.
    ///
    /// # Errors
    /// A profile that can't be used, unless the configuration says to measure instead.
    pub fn of(config: &Config, plan: &ExecutorPlan, pair: &ModelPair) -> Result<TimeSource, DaemonError> {
        let speculation = &config.speculation;
        if !config.needs_profile() {
            return Ok(TimeSource::None);
        }
        let machine = fingerprint(plan, pair)?;
        match speculation.profile.as_deref().map(|path| read(path, &machine)) {
            Some(Ok(profile)) => return Ok(TimeSource::File(Box::new(profile))),
            Some(Err(error)) if !(speculation.profile_at_start && error.is_cured_by_measuring()) => {
                return Err(error);
            }
            Some(Err(error)) => tracing::warn!(%error, "profile not used"),
            None => {}
        }
        let limit = Micros::from(speculation.profile_at_start_max);
        Ok(TimeSource::Measure(Box::new(Measurement::new(plan, pair, AT_START_BUDGET, limit)?)))
    }

    /// The profile, measured with `executor` if it has to be. Call it on the device thread.
    ///
    /// # Errors
    /// [`DaemonError::Analyzer`].
    pub fn resolve(
        self,
        executor: &mut dyn Executor,
        on_phase: OnPhase<'_>,
    ) -> Result<Option<Profile>, DaemonError> {
        match self {
            TimeSource::None => Ok(None),
            TimeSource::File(profile) => Ok(Some(*profile)),
            TimeSource::Measure(measurement) => measurement.at_start(executor, on_phase).map(Some),
        }
    }
}

impl Measurement {
    fn new(
        plan: &ExecutorPlan,
        pair: &ModelPair,
        budget: Duration,
        limit: Micros,
    ) -> Result<Measurement, DaemonError> {
        let text = pair.target.tokenizer.encode(TEXT, false);
        let options = AnalyzerOptions {
            budget: Micros::from(budget),
            limit,
            text: text.map_err(|error| DaemonError::Start(error.to_string()))?,
            sampling: Arc::new(SamplingParams::greedy()),
        };
        Ok(Measurement { options, fingerprint: fingerprint(plan, pair)? })
    }

    fn run(
        self,
        executor: &mut dyn Executor,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<Profile, DaemonError> {
        let clock = MonotonicClock::start();
        Ok(analyzer::analyze(executor, &clock, self.fingerprint, &self.options, on_progress)?)
    }

    fn at_start(self, executor: &mut dyn Executor, on_phase: OnPhase<'_>) -> Result<Profile, DaemonError> {
        let (budget, limit) = (self.options.budget, self.options.limit);
        tracing::info!(
            budget_s = budget.as_secs_f64(),
            limit_s = limit.as_secs_f64(),
            "measuring step times"
        );
        let clock = MonotonicClock::start();
        let mut show = |progress: Progress| {
            on_phase.show(format!("measuring step times: {:.0} %", 100.0 * progress.share));
        };
        let measured =
            analyzer::analyze_at_start(executor, &clock, self.fingerprint, &self.options, &mut show)?;
        on_phase.show("starting the engine");
        let StartProfile { profile, doubts, attempts } = measured;
        let mape = |error: Option<FitError>| error.map(|error| error.mape);
        let row_us = |terms: &LatencyTerms| terms.micros.first().copied();
        tracing::info!(
            seconds = clock.now().as_secs_f64(),
            attempts,
            shapes = profile.points.len(),
            target_us = row_us(&profile.target),
            draft_us = profile.draft.as_ref().and_then(row_us),
            target_mape = mape(profile.target_error),
            draft_mape = mape(profile.draft_error),
            "measured step times"
        );
        if !doubts.is_empty() {
            tracing::warn!(
                doubts = doubts.join("; "),
                "step times could not be measured reliably; speculation starts from a cautious model and \
                 learns from there. Measure with `specserve profile` when the machine is idle and set \
                 speculation.profile, or raise speculation.profile_at_start_ms_max"
            );
        }
        Ok(profile)
    }
}

/// The profile as a policy of this configuration plans with it.
pub(super) fn for_drafter(profile: Option<Profile>, draft: Option<&DraftConfig>) -> Option<Profile> {
    let mut profile = profile?;
    if let Some(DraftConfig::Ngram) = draft {
        // looking up takes no device time; without this the policy would know of no drafter
        profile.draft = Some(LatencyTerms::negligible());
    }
    Some(profile)
}

fn fingerprint(plan: &ExecutorPlan, pair: &ModelPair) -> Result<Fingerprint, DaemonError> {
    Ok(analyzer::fingerprint(plan.machine()?, &pair.target.loaded, pair.draft.as_ref()))
}

/// Reads a profile, and refuses one that is not for this machine, these models, this version.
fn read(path: &Path, machine: &Fingerprint) -> Result<Profile, DaemonError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| DaemonError::ProfileFile { path: path.to_owned(), source })?;
    let checked = Profile::from_toml(&text).and_then(|profile| {
        profile.check_fresh(machine)?;
        Ok(profile)
    });
    checked.map_err(|source| DaemonError::Profile { path: path.to_owned(), source })
}

impl DaemonError {
    /// Whether it is about a profile that is not there or is out of date.
    fn is_cured_by_measuring(&self) -> bool {
        match self {
            DaemonError::ProfileFile { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            DaemonError::Profile { source, .. } => {
                matches!(source, ProfileError::Stale(_) | ProfileError::Format { .. })
            }
            _ => false,
        }
    }
}

/// Builds an executor and measures it, on a thread of its own: executors belong to the thread that
/// built them, and may bind it to a processor.
fn measure(
    plan: &ExecutorPlan,
    pair: &ModelPair,
    budget: Duration,
    on_progress: OnProgress<'_>,
) -> Result<Profile, DaemonError> {
    let measurement = Measurement::new(plan, pair, budget, AnalyzerOptions::NO_LIMIT)?;
    let (plan, target, draft) = (plan.clone(), pair.target.loaded.clone(), pair.draft.clone());
    let run = move || -> Result<Profile, DaemonError> {
        let mut executor = plan.build(target, draft).map_err(DaemonError::Start)?;
        measurement.run(executor.as_mut(), on_progress)
    };
    let failed = |what: String| DaemonError::Start(format!("the analyzer's thread {what}"));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("analyzer".to_owned()).spawn_scoped(scope, run);
        let thread = thread.map_err(|error| failed(format!("could not be started: {error}")))?;
        thread.join().map_err(|_| failed("panicked".to_owned()))?
    })
}

#[cfg(test)]
mod tests {
    use super::super::startup::Phase;
    use super::*;
    use crate::config::SchedulerConfig;
    use crate::model::ModelRef;
    use crate::pacing::ServiceOrder;
    use crate::policy::registry::PolicyName;
    use crate::timing::profile::tests::gpu_like;

    /// The embedded pair with a policy, and a profile in a file that may not be there.
    fn found(policy: PolicyName, text: Option<&str>, at_start: bool) -> Result<Option<Profile>, DaemonError> {
        found_in(SchedulerConfig::order_with(policy), policy, text, at_start)
    }

    fn found_in(
        order: ServiceOrder,
        policy: PolicyName,
        text: Option<&str>,
        at_start: bool,
    ) -> Result<Option<Profile>, DaemonError> {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let path = directory.path().join("here.toml");
        if let Some(text) = text {
            std::fs::write(&path, text).expect("written");
        }
        let mut config = Config::default_tiny();
        config.scheduler.order = order;
        config.speculation.policy = policy;
        config.speculation.profile = Some(path);
        config.speculation.profile_at_start = at_start;
        let (plan, pair) = planned(&config);
        let source = TimeSource::of(&config, &plan, &pair)?;
        let mut executor = plan.build(pair.target.loaded, pair.draft).map_err(DaemonError::Start)?;
        source.resolve(executor.as_mut(), &Phase::default())
    }

    fn planned(config: &Config) -> (ExecutorPlan, ModelPair) {
        let pair = load_models(config).expect("the embedded pair loads");
        (ExecutorPlan::of(config, &pair).expect("it fits"), pair)
    }

    #[test]
    fn a_profile_of_another_machine_is_refused_by_naming_what_differs() {
        let text = gpu_like().to_toml().expect("written");
        let error = found(PolicyName::SpecServe, Some(&text), false).expect_err("stale").to_string();
        for words in
            ["here.toml: the profile is stale", "backend was \"virtual\", is \"cpu\"", "target model"]
        {
            assert!(error.contains(words), "{error}");
        }
    }

    /// The embedded target with one of its draft heads.
    fn with_head(name: &str, policy: PolicyName) -> (Config, ExecutorPlan, ModelPair) {
        let head = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny").join(name);
        let mut config = Config::default_tiny();
        config.draft = Some(ModelRef::Directory(head).into());
        config.speculation.policy = policy;
        let (plan, pair) = planned(&config);
        (config, plan, pair)
    }

    #[test]
    fn draft_heads_are_measured_and_say_how_many_drafts_a_call_makes() {
        for (name, drafts_per_call) in [("eagle3", 1), ("dspark", 7)] {
            let (config, plan, pair) = with_head(name, PolicyName::SpecServe);
            let source = TimeSource::of(&config, &plan, &pair).expect("it decides to measure");
            let mut executor = plan.build(pair.target.loaded, pair.draft).expect("they fit");
            let profile = source.resolve(executor.as_mut(), &Phase::default()).expect("it measures");
            let profile = profile.expect("the policy needs one");
            let draft = profile.draft.as_ref().expect("the head's times");
            let head = draft.head.expect("it says that it is a head");
            assert_eq!(head.drafts_per_call, drafts_per_call, "{name}");
            assert!(draft.micros[0] > 0.0, "{draft:?}");
            // a round without proposals would not count
            let rounds = |calls| profile.points.iter().filter(move |point| point.head_calls == Some(calls));
            assert!(rounds(1).any(|point| point.rows == 8 && point.prefill_tokens == 0), "{name}");
            assert_eq!(rounds(4).any(|point| point.rows == 8), drafts_per_call == 1, "{name}");
            assert!(rounds(1).any(|point| point.prefill_tokens == 64), "{name}");
        }
    }

    #[test]
    fn the_profile_of_one_head_is_not_that_of_another_or_of_a_draft_model() {
        let of = |pair: &ModelPair, plan: &ExecutorPlan| fingerprint(plan, pair).expect("a processor");
        let (plan, pair) = planned(&Config::default_tiny());
        let mut fingerprints = vec![of(&pair, &plan)];
        for name in ["eagle3", "dspark"] {
            let (_, plan, pair) = with_head(name, PolicyName::SpecServe);
            fingerprints.push(of(&pair, &plan));
        }
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            let differences = fingerprints[one].differences(&fingerprints[other]);
            assert!(differences.iter().any(|what| what.starts_with("draft model")), "{differences:?}");
        }
    }

    #[test]
    fn a_fresh_profile_is_taken_as_it_is() {
        let (plan, pair) = planned(&Config::default_tiny());
        let profile = Profile {
            fingerprint: fingerprint(&plan, &pair).expect("a processor is always there"),
            ..gpu_like()
        };
        let text = profile.to_toml().expect("written");
        let taken = found(PolicyName::SmartSpec, Some(&text), true).expect("fresh");
        assert_eq!(taken, Some(profile));
    }

    #[test]
    fn a_file_that_is_no_profile_is_refused_even_with_leave_to_measure() {
        let error = found(PolicyName::SpecServe, Some("format = 2\n"), true).expect_err("no profile");
        assert!(matches!(error, DaemonError::Profile { source: ProfileError::Parse(_), .. }), "{error}");
    }

    #[test]
    fn a_profile_that_is_not_there_is_measured_with_leave() {
        let measured = found(PolicyName::SpecServe, None, true).expect("measured").expect("a profile");
        let draft = measured.draft.as_ref().expect("the embedded pair has a draft");
        assert!(measured.target.rows.len() >= 4 && draft.rows.len() >= 4, "{measured:?}");
        assert!(measured.cost_model().is_ok());
    }

    #[test]
    fn a_missing_profile_is_named() {
        let error = found(PolicyName::AdaSpec, None, false).expect_err("missing");
        assert!(error.is_cured_by_measuring() && error.to_string().contains("here.toml"), "{error}");
    }

    #[test]
    fn policies_that_plan_without_times_read_no_profile() {
        for policy in [PolicyName::None, PolicyName::Fixed(4), PolicyName::Threshold(0.5)] {
            assert!(matches!(found(policy, None, false), Ok(None)), "{policy}");
        }
    }

    #[test]
    fn to_serve_by_slack_a_profile_is_measured_whatever_the_policy() {
        let measured = found_in(ServiceOrder::Slo, PolicyName::None, None, true).expect("measured");
        assert!(measured.is_some_and(|profile| profile.cost_model().is_ok()));
    }
}
