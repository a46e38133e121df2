//! `specserve profile`: measures the time model that policies plan with.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::error::CliError;
use super::host::DaemonHost;
use super::table::{Table, or_dash};
use super::whole_file::write_whole;
use super::{logging, progress};
use crate::charts::draw_profile;
use crate::config::Config;
use crate::protocol::ModelRole;
use crate::timing::cost_model::{LatencyModel, LatencyTerms};
use crate::timing::fit::FitError;
use crate::timing::profile::Profile;

/// Steps of the progress bar.
const BAR_STEPS: u64 = 1000;

/// Measures the configured models on this machine and writes a profile with a plot next to
/// it. The machine should be otherwise idle.
#[derive(Args, Debug)]
pub struct ProfileArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Output file, .toml; the plot is written next to it as .svg.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Total time budget, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    budget_s: u32,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: an invalid configuration, a failing executor, or files that cannot be written.
pub async fn run<H: DaemonHost>(args: &ProfileArgs, host: &H, out: &mut impl Write) -> Result<(), CliError> {
    let config = Config::read(&args.config)?;
    logging::start(&config.telemetry);
    if args.out.extension().is_none_or(|extension| extension != "toml") {
        return Err(CliError::Failed(format!("{}: the output file must end in .toml", args.out.display())));
    }
    let bar = progress::bar(BAR_STEPS, "measuring {bar:40} {percent:>3} % of the budget, {msg}");
    bar.set_message("loading the models");
    let shown = bar.clone();
    let on_progress = Box::new(move |progress: crate::analyzer::Progress| {
        shown.set_position((progress.share * BAR_STEPS as f64) as u64);
        shown.set_message(format!("{} passes, {} shapes", progress.passes, progress.shapes));
    });
    let budget = Duration::from_secs(u64::from(args.budget_s));
    let measured = host.profile(config, budget, on_progress).await;
    bar.finish_and_clear();
    let profile = measured.map_err(|error| CliError::Failed(error.to_string()))?;
    let svg = args.out.with_extension("svg");
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
    let text = to_file(&profile).map_err(|error| failed(&error))?;
    let picture = draw_profile(&profile).map_err(|error| failed(&error))?;
    write_whole(&args.out, text.as_bytes())?;
    write_whole(&svg, picture.as_bytes())?;
    if args.json {
        writeln!(out, "{:#}", document(&profile, &args.out, &svg))?;
    } else {
        write!(out, "{}", table(&profile))?;
        writeln!(out, "wrote {} and {}", args.out.display(), svg.display())?;
    }
    Ok(())
}

/// The profile as TOML, with an explanatory header.
fn to_file(profile: &Profile) -> Result<String, crate::timing::ProfileError> {
    let mut text = String::from(
        "# A time model, measured by `specserve profile`; docs/analyzer.md describes every key.\n\
         # Valid only for the fingerprint below. Times are in microseconds unless a key states another unit.\n\n",
    );
    text.push_str(&profile.to_toml()?);
    Ok(text)
}

/// The profile's models with their fitted terms and errors.
fn models(profile: &Profile) -> Vec<(ModelRole, &LatencyTerms, Option<FitError>)> {
    let target = (ModelRole::Target, &profile.target, profile.target_error);
    let draft = profile.draft.as_ref().map(|draft| (ModelRole::Draft, draft, profile.draft_error));
    std::iter::once(target).chain(draft).collect()
}

fn document(profile: &Profile, path: &Path, svg: &Path) -> Value {
    let mut document = json!({
        "profile": path,
        "svg": svg,
        "fingerprint": profile.fingerprint,
        "points": profile.points.len(),
    });
    for (role, terms, error) in models(profile) {
        let name = match role {
            ModelRole::Target => "target",
            ModelRole::Draft => "draft",
        };
        document[name] = json!({ "terms": terms, "held_out": error });
    }
    document
}

fn table(profile: &Profile) -> String {
    let mut text = format!(
        "{}, {}; {} batch shapes\n",
        profile.fingerprint.backend,
        profile.fingerprint.device,
        profile.points.len()
    );
    let mut table =
        Table::new(["model", "1 row, ms", "most rows", "ms", "prefill token, µs", "MAPE, %", "p99, %"]);
    for (role, terms, error) in models(profile) {
        let percent =
            |share: fn(&FitError) -> f64| or_dash(error.as_ref().map(|error| share(error) * 100.0), 1);
        let millis = |micros: Option<&f64>| micros.map_or(0.0, |micros| micros / 1e3);
        table.row([
            format!("{role:?}").to_lowercase(),
            format!("{:.3}", millis(terms.micros.first())),
            terms.rows.last().map_or(0, |rows| *rows).to_string(),
            format!("{:.3}", millis(terms.micros.last())),
            or_dash(prefill_token_us(terms), 1),
            percent(|error| error.mape),
            percent(|error| error.p99),
        ]);
    }
    // writing to a string cannot fail
    let _ = write!(text, "{table}");
    text
}

/// Prefill tokens of the chunk that the table tells the price of.
const TABLE_CHUNK: u32 = 512;

/// What each token of a chunk adds to a pass that reads the weights anyway.
fn prefill_token_us(terms: &LatencyTerms) -> Option<f64> {
    let model = LatencyModel::new(terms.clone()).ok()?;
    Some(model.prefill_us(1, TABLE_CHUNK, 0) / f64::from(TABLE_CHUNK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{ScratchDirectory, ScriptedHost};

    fn args(directory: &Path, out: &str, json: bool) -> ProfileArgs {
        let config = directory.join("config.toml");
        std::fs::write(&config, crate::config::TINY_CPU_TOML).expect("written");
        ProfileArgs { config, out: directory.join(out), budget_s: 1, json }
    }

    fn host() -> ScriptedHost {
        ScriptedHost::new(|_, _| String::new())
    }

    #[tokio::test]
    async fn the_profile_and_its_picture_are_written_side_by_side() {
        let directory = ScratchDirectory::new();
        let args = args(directory.path(), "profiles/here.toml", false);
        let mut out = Vec::new();
        run(&args, &host(), &mut out).await.expect("profiled");
        let text = std::fs::read_to_string(&args.out).expect("the profile");
        assert!(text.starts_with("# A time model"));
        assert_eq!(Profile::from_toml(&text).expect("valid"), crate::timing::profile::tests::gpu_like());
        let svg = std::fs::read_to_string(args.out.with_extension("svg")).expect("the picture");
        assert!(svg.starts_with("<svg"));
        assert!(String::from_utf8(out).expect("text").contains("target"));
    }

    #[tokio::test]
    async fn json_holds_terms_errors_and_paths() {
        let directory = ScratchDirectory::new();
        let args = args(directory.path(), "here.toml", true);
        let mut out = Vec::new();
        run(&args, &host(), &mut out).await.expect("profiled");
        let document: Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(document["target"]["terms"]["prefill_row"], 1.0);
        assert_eq!(document["fingerprint"]["backend"], "virtual");
        assert_eq!(document["draft"]["held_out"], Value::Null);
    }

    #[tokio::test]
    async fn bad_file_names_and_configs_are_rejected_before_measuring() {
        let directory = ScratchDirectory::new();
        let error = run(&args(directory.path(), "here.json", false), &host(), &mut Vec::new()).await;
        assert!(error.expect_err("no .toml").to_string().contains("must end in .toml"));
        let args = args(directory.path(), "here.toml", false);
        std::fs::write(&args.config, "[target]\n").expect("written");
        let error = run(&args, &host(), &mut Vec::new()).await.expect_err("a bad config");
        assert_eq!(error.exit_code(), crate::cli::EXIT_CONFIG);
        assert!(!args.out.exists());
    }
}
