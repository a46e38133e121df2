//! The configuration of one deployment: a TOML file, checked as a whole.
//!
//! In stages: text, then sections of raw values (`reader`), then the validated types
//! here, with units. Checking opens no file and no socket, so `check-config` is safe to run
//! anywhere; the daemon builds itself from a [`Config`] later. docs/config.md lists every key.
#![forbid(unsafe_code)]

mod executor;
mod kv;
mod models;
mod problem;
mod reader;
mod render;
mod rules;
mod scheduler;
mod server;
mod slo;
mod speculation;
mod telemetry;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use executor::{Backend, ExecutorConfig};
pub use kv::{KvConfig, KvSize, PoolBlocks};
pub use models::{DraftConfig, TargetConfig};
pub use problem::{ConfigError, Problem};
pub use scheduler::SchedulerConfig;
pub use server::{SOCKET_PATH_BYTES_MAX, ServerConfig};
pub use slo::{CLASSES_MAX, Infeasible, Late, SloClass, SloConfig};
pub use speculation::SpeculationConfig;
pub use telemetry::{LogFormat, LogLevel, TelemetryConfig};

use reader::{Problems, Section};
use render::Rendered;

/// The commented configuration of the embedded pair, config/tiny-cpu.toml.
pub const TINY_CPU_TOML: &str = include_str!("../../config/tiny-cpu.toml");

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where requests come in.
    pub server: ServerConfig,
    /// The model that is served.
    pub target: TargetConfig,
    /// The model that guesses, if there is one.
    pub draft: Option<DraftConfig>,
    /// What computes.
    pub executor: ExecutorConfig,
    /// The paged caches.
    pub kv: KvConfig,
    /// The running set and the queue.
    pub scheduler: SchedulerConfig,
    /// Latency objectives.
    pub slo: SloConfig,
    /// How far to draft.
    pub speculation: SpeculationConfig,
    /// Logs.
    pub telemetry: TelemetryConfig,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`] when the file can't be read, else as [`Config::parse`].
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Config::parse(&text)
    }

    /// Checks a configuration.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every problem; a text that is not TOML is one problem.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        let mut problems = Problems::default();
        let config = match text.parse::<toml::Table>() {
            Ok(file) => Some(Config::from_table(file, &mut problems)),
            Err(error) => {
                let advice = "mend the syntax; the rest is checked after that";
                problems.add("the file", None, error.to_string().trim().to_owned(), advice);
                None
            }
        };
        let problems = problems.into_vec();
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError::Invalid { problems }),
        }
    }

    /// The embedded pair on the CPU: what config/tiny-cpu.toml says.
    pub fn default_tiny() -> Config {
        match Config::parse(TINY_CPU_TOML) {
            Ok(config) => config,
            Err(error) => unreachable!("the embedded configuration is tested: {error}"),
        }
    }

    fn from_table(mut file: toml::Table, problems: &mut Problems) -> Config {
        let drafts = file.contains_key("draft");
        let config = Config {
            server: ServerConfig::read(Section::take(&mut file, "server", problems)),
            target: TargetConfig::read(Section::take(&mut file, "target", problems)),
            draft: drafts.then(|| DraftConfig::read(Section::take(&mut file, "draft", problems))),
            executor: ExecutorConfig::read(Section::take(&mut file, "executor", problems)),
            kv: KvConfig::read(Section::take(&mut file, "kv", problems)),
            scheduler: SchedulerConfig::read(Section::take(&mut file, "scheduler", problems)),
            slo: SloConfig::read(&mut file, problems),
            speculation: SpeculationConfig::read(Section::take(&mut file, "speculation", problems), drafts),
            telemetry: TelemetryConfig::read(Section::take(&mut file, "telemetry", problems)),
        };
        for name in file.keys() {
            let advice = "remove it; the sections are server, target, draft, executor, kv, scheduler, \
                          slo, speculation, telemetry";
            problems.add(name, None, "is not a known section", advice);
        }
        rules::check(&config, problems);
        config
    }

    /// The effective configuration as TOML: every key with its value and its bound.
    /// Parses back to the same configuration.
    pub fn to_toml(&self) -> String {
        self.rendered().into_text()
    }

    /// The effective configuration as values, section by section.
    pub fn to_table(&self) -> toml::Table {
        self.rendered().into_table()
    }

    fn rendered(&self) -> Rendered {
        let mut rendered = Rendered::default();
        rendered.section("server", &self.server.entries());
        rendered.section("target", &self.target.entries());
        if let Some(draft) = &self.draft {
            rendered.section("draft", &draft.entries());
        }
        rendered.section("executor", &self.executor.entries());
        rendered.section("kv", &self.kv.entries());
        rendered.section("scheduler", &self.scheduler.entries());
        self.slo.render(&mut rendered);
        rendered.section("speculation", &self.speculation.entries());
        rendered.section("telemetry", &self.telemetry.entries());
        rendered
    }
}
