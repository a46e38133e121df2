//! `specserve top`: live dashboard of a running daemon.

mod page;
mod stats;

use std::collections::VecDeque;
use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::client::{Client, ClientError};
use super::error::CliError;
use crate::protocol::{Clock, Micros, MonotonicClock};
use page::Page;
use stats::DashboardStats;

/// Window of the latencies, in polls.
const WINDOW_POLLS: usize = 60;
/// Cursor home, clear to the end of the screen.
const REDRAW: &str = "\x1b[H\x1b[J";

/// Shows load, throughput, speculation and latencies, refreshed each interval.
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

/// A metrics page and its time.
struct Poll {
    at: Micros,
    page: Page,
}

/// Runs the command until the daemon is gone or, with `--once`, for one screen.
///
/// # Errors
/// [`CliError`]: the daemon is unreachable, or the output cannot be written.
pub async fn run(args: &TopArgs, out: &mut impl Write) -> Result<(), CliError> {
    let client = Client::new(&args.socket);
    let clear = !args.once && !args.json && stdout().is_terminal();
    // a starting daemon has nothing to show yet
    client.get_json_once_started("/v1/engine/state").await?;
    let clock = MonotonicClock::start();
    let mut polls = VecDeque::from([poll(&client, &clock).await?]);
    loop {
        tokio::time::sleep(Duration::from_millis(args.interval_ms)).await;
        polls.push_back(poll(&client, &clock).await?);
        let stats = summarise(&polls, args.once);
        if args.json {
            let state = client.get_json("/v1/engine/state").await?;
            writeln!(out, "{}", json!({ "figures": stats, "state": state }))?;
        } else {
            write!(out, "{}{stats}", if clear { REDRAW } else { "" })?;
        }
        out.flush()?;
        if args.once {
            return Ok(());
        }
        if polls.len() > WINDOW_POLLS {
            polls.pop_front();
        }
    }
}

async fn poll(client: &Client, clock: &impl Clock) -> Result<Poll, ClientError> {
    let text = client.get("/metrics").await?;
    Ok(Poll { at: clock.now(), page: Page::parse(&text) })
}

/// Computes the statistics of the last poll; requires at least two polls.
fn summarise(polls: &VecDeque<Poll>, since_start: bool) -> DashboardStats {
    let (before, now) = (&polls[polls.len() - 2], &polls[polls.len() - 1]);
    let nothing = Page::default();
    let window_start = if since_start { &nothing } else { &polls[0].page };
    DashboardStats::new(window_start, &before.page, &now.page, (now.at - before.at).as_secs_f64())
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
