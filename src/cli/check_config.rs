//! `specserve check-config`: validates a configuration and prints the effective values.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::error::CliError;
use super::notice;
use crate::config::{Config, ConfigError, ConfigProblem};

/// Validates a configuration and prints its effective values with their bounds.
#[derive(Args, Debug)]
pub struct CheckConfigArgs {
    /// The configuration file.
    #[arg(value_name = "FILE", required_unless_present = "config", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// The configuration file, as for `serve`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::Config`] if the configuration is invalid.
pub fn run(args: &CheckConfigArgs, out: &mut impl Write) -> Result<(), CliError> {
    let path = args.file.as_deref().or(args.config.as_deref()).unwrap_or(Path::new(""));
    match (Config::read(path), args.json) {
        (Ok(config), false) => {
            let warn = |warning| notice::say(format_args!("specserve: warning: {warning}"));
            config.warnings().iter().for_each(warn);
            write!(out, "{}", config.to_toml())?;
        }
        (Ok(config), true) => {
            let warnings = listed(&config.warnings());
            let document =
                json!({ "valid": true, "config": config.to_table(), "problems": [], "warnings": warnings });
            writeln!(out, "{document:#}")?;
        }
        (Err(error), false) => return Err(error.into()),
        (Err(error), true) => {
            let document =
                json!({ "valid": false, "config": null, "problems": problems(&error), "warnings": [] });
            writeln!(out, "{document:#}")?;
            return Err(error.into());
        }
    }
    Ok(())
}

fn problems(error: &ConfigError) -> serde_json::Value {
    if let ConfigError::Unreadable { path, source } = error {
        let advice = "check the path and its permissions";
        return json!([{ "path": path, "value": null, "what": source.to_string(), "advice": advice }]);
    }
    listed(error.problems())
}

fn listed(problems: &[ConfigProblem]) -> serde_json::Value {
    problems
        .iter()
        .map(|problem| {
            json!({
                "path": problem.path,
                "value": problem.value,
                "what": problem.what,
                "advice": problem.advice,
            })
        })
        .collect()
}
