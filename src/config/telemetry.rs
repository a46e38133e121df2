//! `[telemetry]`: logging.

use super::reader::Section;
use super::render::Entry;

const LOG_LEVEL_BOUND: &str = "\"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
const LOG_FORMAT_BOUND: &str = "\"text\", \"compact\" or \"json\"";

/// Log level; quieter levels compare as smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Logs nothing.
    Off,
    /// Failures.
    Error,
    /// Plus suspicious conditions.
    Warn,
    /// Plus lifecycle events (startup, readiness, shutdown) and a line per request.
    Info,
    /// Plus probes and details.
    Debug,
    /// Plus each step.
    Trace,
}

impl LogLevel {
    /// Name in the config, which is also that of `tracing`.
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

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Time, level, module, message, fields.
    Text,
    /// Like text, without time and module, for supervisors that add their own.
    Compact,
    /// One JSON object per line, for log collectors.
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

/// Logging options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// Least severe level that is logged.
    pub log_level: LogLevel,
    /// Format of log lines.
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
