//! Log lines on stderr.

use std::io::IsTerminal;

use tracing_subscriber::filter::LevelFilter;

use crate::config::{LogFormat, LogLevel, TelemetryConfig};

/// Starts logging for the rest of the process. A second call changes nothing.
pub fn start(config: &TelemetryConfig) {
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(filter(config.log_level));
    let started = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Compact => builder.compact().without_time().with_target(false).try_init(),
    };
    // Only fails when logging has started already.
    drop(started);
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
