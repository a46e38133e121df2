//! `specserve top`: live dashboard of a running daemon.

mod dashboard;
mod keys;
mod page;
mod polls;
mod screen;
mod stats;

use std::io::{IsTerminal, Write, stdin, stdout};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::client::Client;
use super::colour;
use super::error::CliError;
use crate::protocol::MonotonicClock;
use polls::{Poll, Polls};

/// Cursor home, clear to the end of the screen.
const REDRAW: &str = "\x1b[H\x1b[J";

/// Shows load, throughput, speculation and latencies, refreshed each interval. On a terminal q
/// quits and p pauses.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// Socket of the daemon.
    #[arg(long, value_name = "PATH", default_value = super::SOCKET_DEFAULT)]
    socket: PathBuf,
    /// Print one screen measured over one interval and exit. Latencies are then cumulative
    /// since the daemon's start.
    #[arg(long)]
    once: bool,
    /// Refresh interval, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    interval_ms: u64,
    /// Print each screen as one line of JSON, including the engine's state.
    #[arg(long)]
    json: bool,
}

/// Runs the command until the user quits, until the daemon is gone or, with `--once`, for one
/// screen.
///
/// # Errors
/// [`CliError`]: the daemon is unreachable, or the output cannot be written.
pub async fn run(args: &TopArgs, out: &mut impl Write) -> Result<(), CliError> {
    let client = Client::new(&args.socket);
    // a starting daemon has nothing to show yet
    client.get_json_once_started("/v1/engine/state").await?;
    let repeated = !args.once && !args.json;
    let screen = repeated && stdout().is_terminal() && !colour::is_dumb();
    if screen && stdin().is_terminal() {
        dashboard::show(&client, Duration::from_millis(args.interval_ms)).await
    } else {
        print_pages(args, &client, screen, out).await
    }
}

/// Prints a page each interval, over the one before if `redraw`.
async fn print_pages(
    args: &TopArgs,
    client: &Client,
    redraw: bool,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let clock = MonotonicClock::start();
    let mut polls = Polls::begin(Poll::take(client, &clock).await?);
    loop {
        tokio::time::sleep(Duration::from_millis(args.interval_ms)).await;
        polls.push(Poll::take(client, &clock).await?);
        let stats = polls.stats(args.once);
        if args.json {
            let state = client.get_json("/v1/engine/state").await?;
            writeln!(out, "{}", json!({ "figures": stats, "state": state }))?;
        } else {
            write!(out, "{}{stats}", if redraw { REDRAW } else { "" })?;
        }
        out.flush()?;
        if args.once {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use axum::{Json, Router};

    use super::*;
    use crate::cli::testing::{ScratchDirectory, serve_router};

    fn args(socket: PathBuf, json: bool) -> TopArgs {
        TopArgs { socket, once: true, interval_ms: 1, json }
    }

    fn router() -> Router {
        let metrics =
            "specserve_engine_info{model=\"tiny\",policy=\"none\"} 1\nspecserve_requests_running 3\n";
        Router::new()
            .route("/metrics", get(move || async move { metrics }))
            .route("/v1/engine/state", get(|| async { Json(json!({ "policy": "none" })) }))
    }

    #[tokio::test]
    async fn once_prints_one_screen() {
        let directory = ScratchDirectory::new();
        let socket = directory.path().join("socket");
        let _server = serve_router(&socket, router());
        let mut out = Vec::new();
        run(&args(socket, false), &mut out).await.expect("polled");
        let text = String::from_utf8(out).expect("text");
        assert!(text.starts_with("specserve: tiny, policy none\nrequests     3 running"), "{text}");
    }

    #[tokio::test]
    async fn json_holds_the_figures_and_the_engines_state() {
        let directory = ScratchDirectory::new();
        let socket = directory.path().join("socket");
        let _server = serve_router(&socket, router());
        let mut out = Vec::new();
        run(&args(socket, true), &mut out).await.expect("polled");
        let document: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(document["figures"]["requests_running"], 3);
        assert_eq!(document["state"]["policy"], "none");
    }

    #[tokio::test]
    async fn a_missing_daemon_is_said_clearly() {
        let directory = ScratchDirectory::new();
        let socket = directory.path().join("absent");
        let error = run(&args(socket, false), &mut Vec::new()).await.expect_err("no daemon");
        assert!(error.to_string().contains("absent does not exist; start one with"), "{error}");
    }
}
