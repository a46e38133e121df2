//! `specserve simulate --matrix`: a policy against its rivals in random situations.

use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use super::deployment::Deployment;
use super::{SimulateArgs, contender, contenders, read_profile, threads};
use crate::cli::error::CliError;
use crate::cli::table::{Table, or_dash};
use crate::simulate::matrix::{Cell, Machine, Matrix, Outcomes, POOR_RATIO, Played, Summary, summarize};

/// Requests of a cell.
const REQUESTS_DEFAULT: usize = 1500;

/// Runs `cells` cells and prints them.
///
/// # Errors
/// [`CliError`]: several policies to test, an invalid profile, or a run that failed.
pub fn run(
    args: &SimulateArgs,
    deployment: &Deployment,
    cells: u64,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let machines = machines(args, deployment)?;
    let requests = args.limit.unwrap_or(REQUESTS_DEFAULT);
    let matrix = Matrix { seed: args.seed, cells, requests, machines: &machines };
    let Outcomes { mut played, skipped } =
        matrix.play(threads()).map_err(|error| CliError::Failed(error.to_string()))?;
    played.sort_by(|a, b| b.ratio().total_cmp(&a.ratio()));
    let summary = summarize(&played, skipped.len());
    if args.json {
        writeln!(out, "{:#}", document(&machines, &played, &skipped, summary.as_ref()))?;
        return Ok(());
    }
    if !played.is_empty() {
        writeln!(out, "{}", table(&played))?;
    }
    match summary {
        Some(summary) => write!(out, "{}", text(&summary))?,
        None => writeln!(out, "no cells: plain decoding saturates at no load in any of {}", skipped.len())?,
    }
    Ok(())
}

/// A machine per profile.
fn machines(args: &SimulateArgs, deployment: &Deployment) -> Result<Vec<Machine>, CliError> {
    let &[policy] = &deployment.policies[..] else {
        let advice = "--matrix tests a single --policy; name the others with --rival";
        return Err(CliError::Arguments(advice.to_owned()));
    };
    let machine = |path: &PathBuf| {
        let profile = read_profile(path)?;
        let cost = profile.cost_model();
        let cost = cost.map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))?;
        Ok(Machine {
            name: path.display().to_string(),
            settings: args.settings(deployment, cost, None),
            policy: contender(policy, &profile, deployment)?,
            rivals: contenders(&args.matrix.rivals, &profile, deployment)?,
        })
    };
    deployment.profiles.iter().map(machine).collect()
}

fn document(
    machines: &[Machine],
    played: &[Played],
    skipped: &[Cell],
    summary: Option<&Summary>,
) -> serde_json::Value {
    let cells: Vec<_> = played
        .iter()
        .map(|one| {
            let mut row = json!(one);
            row["best_rival"] = json!(one.best_rival().policy);
            row["ratio"] = json!(one.ratio());
            row["late_for_nothing"] = json!(one.is_late_for_nothing());
            row
        })
        .collect();
    let profiles: Vec<&str> = machines.iter().map(|machine| machine.name.as_str()).collect();
    json!({ "profiles": profiles, "summary": summary, "cells": cells, "skipped": skipped })
}

/// One row per cell.
fn table(played: &[Played]) -> Table {
    let mut table = Table::new([
        "cell",
        "ratio",
        "goodput/s",
        "attained %",
        "best rival",
        "its goodput/s",
        "attained %",
        "TTFT p50",
        "its",
        "TPOT mean",
        "its ms",
        "profile",
        "load",
        "arrivals",
        "prompt",
        "output",
        "spread",
        "TTFT",
        "TPOT ms",
        "running",
        "chunk",
        "acceptance",
        "confidence",
        "jitter",
        "time error",
        "classes",
    ]);
    for one in played {
        let (cell, ours, best) = (&one.cell, &one.policy, one.best_rival());
        let two = |value: f64| format!("{value:.2}");
        table.row([
            cell.index.to_string(),
            format!("{:.3}", one.ratio()),
            two(ours.goodput_rps),
            format!("{:.1}", ours.attainment * 100.0),
            best.policy.clone(),
            two(best.goodput_rps),
            format!("{:.1}", best.attainment * 100.0),
            or_dash(ours.ttft_p50_ms, 0),
            or_dash(best.ttft_p50_ms, 0),
            or_dash(ours.tpot_mean_ms, 2),
            or_dash(best.tpot_mean_ms, 2),
            (cell.machine + 1).to_string(),
            two(cell.load),
            cell.arrivals.name().to_owned(),
            cell.prompt_tokens.to_string(),
            cell.output_tokens.to_string(),
            two(cell.length_log_sd),
            cell.ttft_ms.map_or_else(|| "-".to_owned(), |ttft| ttft.to_string()),
            or_dash(one.tpot_ms, 2),
            cell.running_requests_max.to_string(),
            cell.prefill_chunk_tokens_max.to_string(),
            two(cell.acceptance),
            cell.confidence.name().to_owned(),
            two(cell.jitter),
            two(cell.time_error),
            if cell.batch_class { "2" } else { "1" }.to_owned(),
        ]);
    }
    table
}

/// The summary in words.
fn text(summary: &Summary) -> String {
    let rivals: Vec<String> =
        summary.rivals.iter().map(|rival| format!("{} {:.3}", rival.policy, rival.ratio_min)).collect();
    format!(
        "{} cells, {} skipped (plain decoding saturates at no load)\n\
         goodput over the best rival's: min {:.3}, p10 {:.3}, median {:.3}, geometric mean {:.3}; \
         below {POOR_RATIO} in {}\n\
         lowest goodput over that of: {}\n\
         first tokens twice as late for nothing in {}\n",
        summary.cells,
        summary.skipped,
        summary.ratio_min,
        summary.ratio_p10,
        summary.ratio_p50,
        summary.ratio_geometric_mean,
        summary.poor,
        rivals.join(", "),
        summary.late_for_nothing,
    )
}
