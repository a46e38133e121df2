//! The deployment's configuration: one TOML file, validated as a whole.
//!
//! Parsing goes from text to sections of raw values (`reader`) to the validated types here,
//! with units. Validation opens no files or sockets, so `check-config` is safe to run
//! anywhere. docs/config.md lists every key.
//!
//! May import: protocol, model, pacing, policy.
#![forbid(unsafe_code)]

#[cfg(test)]
mod documented;
mod executor;
mod kv;
mod models;
mod problem;
mod reader;
mod render;
mod reply_format;
mod rules;
mod scheduler;
mod server;
mod slo;
mod speculation;
mod telemetry;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::Path;

pub use executor::{Backend, ExecutorConfig};
pub use kv::{KvConfig, KvSize, PoolBlocks};
pub use models::{DraftConfig, TargetConfig};
pub use problem::{ConfigError, ConfigProblem};
pub use reply_format::{ReasoningFormat, ToolFormat};
pub use scheduler::SchedulerConfig;
pub use server::{SOCKET_PATH_BYTES_MAX, ServerConfig, UnknownFields};
pub use slo::{CLASS_WEIGHT_MAX, CLASSES_MAX, InfeasibleAction, SloClass, SloConfig};
pub use speculation::SpeculationConfig;
pub use telemetry::{LogFormat, LogLevel, TelemetryConfig};

use reader::{Problems, Section};
use render::Rendered;

use crate::pacing::ServiceOrder;

/// The commented configuration of the embedded pair, config/tiny-cpu.toml.
pub const TINY_CPU_TOML: &str = include_str!("../../config/tiny-cpu.toml");

/// A validated configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Sockets and request limits.
    pub server: ServerConfig,
    /// The served model.
    pub target: TargetConfig,
    /// The draft model or drafting method, if any.
    pub draft: Option<DraftConfig>,
    /// Backend and batch limits.
    pub executor: ExecutorConfig,
    /// The paged KV caches.
    pub kv: KvConfig,
    /// Order of service, limits of the running set and the queue.
    pub scheduler: SchedulerConfig,
    /// Request classes with their latency objectives.
    pub slo: SloConfig,
    /// Speculation policy and time model.
    pub speculation: SpeculationConfig,
    /// Logging.
    pub telemetry: TelemetryConfig,
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`] if the file cannot be read, else as [`Config::parse`].
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Config::parse(&text)
    }

    /// Parses and validates a configuration.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every problem; a TOML syntax error is a single problem.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        match text.parse::<toml::Table>() {
            Ok(file) => Config::validate(file),
            Err(error) => {
                let mut problems = Problems::default();
                let advice = "fix the syntax; the rest is checked once it parses";
                problems.add("the file", None, error.to_string().trim().to_owned(), advice);
                Err(ConfigError::Invalid { problems: problems.into_vec() })
            }
        }
    }

    /// A configuration with nothing but the models and where to listen; all else is by default.
    /// `target` and `draft` have the values of `target.model` and `draft.model`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every problem.
    pub fn of_models(
        socket: &Path,
        http: Option<SocketAddr>,
        target: &str,
        draft: Option<&str>,
    ) -> Result<Config, ConfigError> {
        let section = |entries: Vec<(&str, String)>| {
            let entries = entries.into_iter().map(|(key, value)| (key.to_owned(), value.into()));
            toml::Value::Table(entries.collect())
        };
        let mut server = vec![("socket", socket.to_string_lossy().into_owned())];
        server.extend(http.map(|address| ("http", address.to_string())));
        let mut file = toml::Table::new();
        file.insert("server".to_owned(), section(server));
        file.insert("target".to_owned(), section(vec![("model", target.to_owned())]));
        if let Some(draft) = draft {
            file.insert("draft".to_owned(), section(vec![("model", draft.to_owned())]));
        }
        Config::validate(file)
    }

    fn validate(file: toml::Table) -> Result<Config, ConfigError> {
        let mut problems = Problems::default();
        let config = Config::from_table(file, &mut problems);
        let problems = problems.into_vec();
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { problems }) }
    }

    /// The configuration of config/tiny-cpu.toml: the embedded pair on the CPU.
    pub fn default_tiny() -> Config {
        match Config::parse(TINY_CPU_TOML) {
            Ok(config) => config,
            Err(error) => unreachable!("the embedded configuration is tested: {error}"),
        }
    }

    fn from_table(mut file: toml::Table, problems: &mut Problems) -> Config {
        let drafts = file.contains_key("draft");
        let (mut server, connections) = ServerConfig::read(Section::take(&mut file, "server", problems));
        let target = TargetConfig::read(Section::take(&mut file, "target", problems));
        let draft = drafts.then(|| DraftConfig::read(Section::take(&mut file, "draft", problems)));
        let executor = ExecutorConfig::read(Section::take(&mut file, "executor", problems));
        let kv = KvConfig::read(Section::take(&mut file, "kv", problems), executor.backend);
        let (mut scheduler, order) = SchedulerConfig::read(Section::take(&mut file, "scheduler", problems));
        let (mut slo, late) = SloConfig::read(&mut file, problems);
        let speculation = SpeculationConfig::read(Section::take(&mut file, "speculation", problems), drafts);
        let telemetry = TelemetryConfig::read(Section::take(&mut file, "telemetry", problems));
        server.connections_max = connections.unwrap_or(ServerConfig::connections_for(&scheduler));
        scheduler.order = order.unwrap_or(SchedulerConfig::order_with(speculation.policy));
        slo.late = late.unwrap_or(SloConfig::late_in(scheduler.order));
        let config = Config { server, target, draft, executor, kv, scheduler, slo, speculation, telemetry };
        for name in file.keys() {
            let advice = "remove it; the sections are server, target, draft, executor, kv, scheduler, \
                          slo, speculation, telemetry";
            problems.add(name, None, "is not a known section", advice);
        }
        rules::check(&config, problems);
        config
    }

    /// What is valid but probably not meant, for the operator.
    pub fn warnings(&self) -> Vec<ConfigProblem> {
        rules::warnings(self)
    }

    /// Whether step times are needed: by the policy, or to serve by slack.
    pub fn needs_profile(&self) -> bool {
        self.speculation.policy.needs_profile() || self.scheduler.order == ServiceOrder::Slo
    }

    /// The effective configuration as TOML: every key with its value and bound. Round-trips
    /// through [`Config::parse`].
    pub fn to_toml(&self) -> String {
        self.rendered().into_text()
    }

    /// The effective configuration as TOML values.
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
