//! `specserve pull`: fetches a model from the Hugging Face hub.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use indicatif::{DecimalBytes, ProgressBar};
use serde_json::{Value, json};

use super::error::CliError;
use super::progress;
use crate::hub::{HubSettings, PullEvent, PullReport, PulledFile, pull};
use crate::model::HubName;

const TICK: Duration = Duration::from_millis(100);

/// Fetches a model from the Hugging Face hub into the cache on this machine, where `serve`,
/// `chat` and configurations find it by its name.
///
/// Only what is needed is fetched. Interrupted downloads are resumed, and hashes are checked.
#[derive(Args, Debug)]
pub struct PullArgs {
    /// The model: org/name, or org/name@revision with a branch, tag or commit.
    #[arg(value_name = "MODEL")]
    model: HubName,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Runs the command with the environment's settings.
///
/// # Errors
/// [`CliError::Failed`] with what failed and what to do.
pub async fn run(args: &PullArgs, out: &mut impl Write) -> Result<(), CliError> {
    run_with(args, HubSettings::of_process(), out).await
}

async fn run_with(args: &PullArgs, settings: HubSettings, out: &mut impl Write) -> Result<(), CliError> {
    let name = args.model.clone();
    // Ctrl-C drops this future, and with it the bar
    let shown = Shown::new();
    let bar = shown.0.clone();
    let pulled = tokio::task::spawn_blocking(move || pull(&settings, &name, &mut |event| tell(&bar, &event)));
    let pulled = pulled.await.map_err(|error| CliError::Failed(error.to_string()))?;
    drop(shown);
    let report = pulled.map_err(|error| CliError::Failed(error.to_string()))?;
    if args.json {
        writeln!(out, "{:#}", document(&args.model, &report))?;
    } else {
        write!(out, "{}", summary(&args.model, &report))?;
    }
    Ok(())
}

/// A bar on the terminal, gone when dropped. Nothing is written if standard error is not a
/// terminal.
struct Shown(ProgressBar);

impl Shown {
    fn new() -> Shown {
        let template =
            "{msg} {wide_bar} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
        let bar = progress::bar(0, template);
        bar.enable_steady_tick(TICK);
        Shown(bar)
    }
}

fn tell(bar: &ProgressBar, event: &PullEvent<'_>) {
    match event {
        PullEvent::Total(bytes) => bar.set_length(*bytes),
        PullEvent::Bytes(bytes) => bar.inc(*bytes),
        PullEvent::Lost(bytes) => bar.set_position(bar.position().saturating_sub(*bytes)),
        PullEvent::File { path } => bar.set_message((*path).to_owned()),
        PullEvent::Waits { path } => {
            bar.println(format!("another process is fetching {path}; waiting for it"))
        }
        PullEvent::Retries { path, problem } => bar.println(format!("{path}: {problem}; trying again")),
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn bytes(report: &PullReport) -> (u64, u64) {
    let of = |bytes: fn(&PulledFile) -> u64| report.files.iter().map(bytes).sum();
    (of(|file| file.bytes), of(|file| file.fetched_bytes))
}

fn summary(model: &HubName, report: &PullReport) -> String {
    let directory = report.directory.display();
    let Some(commit) = &report.commit else {
        return format!("{model} is in the cache, {directory}; HF_HUB_OFFLINE kept it from being checked\n");
    };
    let (bytes, fetched) = bytes(report);
    format!(
        "{model}, commit {commit}: {} files, {}, {} of them fetched now\n{directory}\nspecserve chat --model \
         {model}\n",
        report.files.len(),
        DecimalBytes(bytes),
        DecimalBytes(fetched),
    )
}

fn document(model: &HubName, report: &PullReport) -> Value {
    let (bytes, fetched_bytes) = bytes(report);
    let files = report.files.iter();
    let files = files
        .map(|file| json!({ "path": file.path, "bytes": file.bytes, "fetched_bytes": file.fetched_bytes }));
    json!({
        "model": model.repository(),
        "revision": model.revision(),
        "commit": report.commit,
        "directory": report.directory,
        "files": files.collect::<Vec<Value>>(),
        "bytes": bytes,
        "fetched_bytes": fetched_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::tests::server::{COMMIT, Faults, Hub};

    fn run_on(hub: &mut Hub, json: bool) -> Result<String, CliError> {
        let args = PullArgs { model: "org/name".parse().expect("a name"), json };
        let mut out = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(run_with(&args, hub.settings.clone(), &mut out))?;
        Ok(String::from_utf8(out).expect("text"))
    }

    fn hub(faults: Faults) -> Hub {
        let files =
            [("config.json", &b"{}"[..]), ("tokenizer.json", b"[]"), ("model.safetensors", b"weights")];
        Hub::new(&files, faults)
    }

    #[test]
    fn json_says_what_was_fetched_and_where_it_is() {
        let mut hub = hub(Faults::default());
        let document: Value = serde_json::from_str(&run_on(&mut hub, true).expect("pulled")).expect("JSON");
        assert_eq!((&document["model"], &document["revision"]), (&"org/name".into(), &"main".into()));
        assert_eq!(document["commit"], COMMIT);
        assert_eq!(document["directory"], json!(hub.cached(&format!("snapshots/{COMMIT}"))));
        assert_eq!((&document["bytes"], &document["fetched_bytes"]), (&11.into(), &11.into()));
        let last = json!({ "path": "model.safetensors", "bytes": 7, "fetched_bytes": 7 });
        assert_eq!(document["files"][2], last);
    }

    #[test]
    fn the_summary_ends_with_a_command_that_uses_the_model() {
        let mut hub = hub(Faults::default());
        let text = run_on(&mut hub, false).expect("pulled");
        assert!(text.starts_with(&format!("org/name, commit {COMMIT}: 3 files")), "{text}");
        assert!(text.ends_with("\nspecserve chat --model org/name\n"), "{text}");
        hub.settings.offline = true;
        let text = run_on(&mut hub, false).expect("it is in the cache");
        assert!(text.starts_with("org/name is in the cache, "), "{text}");
    }

    #[test]
    fn a_failed_pull_exits_with_1_and_the_reason() {
        let mut hub = hub(Faults { files: Some((401, "GatedRepo")), ..Faults::default() });
        let error = run_on(&mut hub, false).expect_err("gated");
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().starts_with("`org/name` is gated"), "{error}");
    }
}
