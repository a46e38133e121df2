//! `[telemetry]`: what the daemon says about itself.

use super::reader::Section;
use super::render::Entry;

const LOG_LEVEL_BOUND: &str = "\"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
const LOG_FORMAT_BOUND: &str = "\"text\", \"compact\" or \"json\"";

/// The least severe event that is logged; quieter levels compare as smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// And what looks wrong.
    Warn,
    /// And what changes: start, readiness, shutdown.
    Info,
    /// And each request.
    Debug,
    /// And each step.
    Trace,
}

impl LogLevel {
    /// As the config spells it, which is how `tracing` does.
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Off => "off",
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }

    fn parse(text: &str) -> Result<LogLevel, String> {
        use LogLevel::{Debug, Error, Info, Off, Trace, Warn};
        [Off, Error, Warn, Info, Debug, Trace]
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or_else(|| "is not a log level".to_owned())
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Time, level, module, message, fields.
    Text,
    /// The same without the time and the module, for a supervisor that adds its own.
    Compact,
    /// One JSON object a line, for a log collector.
    Json,
}

impl LogFormat {
    fn name(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Compact => "compact",
            LogFormat::Json => "json",
        }
    }

    fn parse(text: &str) -> Result<LogFormat, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "compact" => Ok(LogFormat::Compact),
            "json" => Ok(LogFormat::Json),
            _ => Err("is not a log format".to_owned()),
        }
    }
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// How much is logged.
    pub log_level: LogLevel,
    /// How a line looks.
    pub log_format: LogFormat,
}

impl TelemetryConfig {
    pub(super) fn read(mut section: Section<'_>) -> TelemetryConfig {
        let config = TelemetryConfig {
            log_level: section
                .parsed("log_level", &format!("give {LOG_LEVEL_BOUND}"), LogLevel::parse)
                .unwrap_or(LogLevel::Info),
            log_format: section
                .parsed("log_format", &format!("give {LOG_FORMAT_BOUND}"), LogFormat::parse)
                .unwrap_or(LogFormat::Text),
        };
        section.finish();
        config
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        vec![
            Entry::text("log_level", self.log_level.name(), LOG_LEVEL_BOUND),
            Entry::text("log_format", self.log_format.name(), LOG_FORMAT_BOUND),
        ]
    }
}
