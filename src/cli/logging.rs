//! Logging to stderr.

use std::io::{IsTerminal, stderr};

use tracing::Subscriber;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::colour;
use crate::config::{LogFormat, LogLevel, TelemetryConfig};

/// Installs the process's log subscriber. Further calls have no effect.
pub fn start(config: &TelemetryConfig) {
    let subscriber = subscriber(config, stderr, colour::on(stderr().is_terminal()));
    // Fails only if a subscriber is already installed.
    drop(tracing::subscriber::set_global_default(subscriber));
}

/// Builds a subscriber that writes to `writer`; `colours` applies to formats that have any.
fn subscriber<W>(config: &TelemetryConfig, writer: W, colours: bool) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_writer(writer)
        .with_ansi(colours)
        // It would report a failed write to stderr, where the write failed, and panic at that.
        .log_internal_errors(false)
        .with_max_level(filter(config.log_level));
    match config.log_format {
        LogFormat::Text => Box::new(builder.finish()),
        LogFormat::Compact => Box::new(builder.compact().without_time().with_target(false).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
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

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use serde_json::Value;

    use super::*;

    /// The lines of two events, one of them below the level.
    fn logged(log_format: LogFormat) -> String {
        let mut file = tempfile::tempfile().expect("a file for the test");
        let config = TelemetryConfig { log_level: LogLevel::Warn, log_format };
        let writer = file.try_clone().expect("another handle");
        let subscriber = subscriber(&config, std::sync::Mutex::new(writer), true);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(uid = 1000, path = "a \"b\"\n", "a peer was \"refused\"");
            tracing::info!("not a word");
        });
        file.flush().and_then(|()| file.rewind()).expect("rewound");
        std::io::read_to_string(file).expect("text")
    }

    #[test]
    fn json_lines_hold_time_level_module_message_and_fields() {
        let text = logged(LogFormat::Json);
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        let [line] = lines.as_slice() else { panic!("{text}") };
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "a peer was \"refused\"");
        assert_eq!((&line["uid"], &line["path"]), (&Value::from(1000), &Value::from("a \"b\"\n")));
        assert_eq!(line["target"], module_path!());
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
    }

    #[test]
    fn text_has_a_time_and_a_module_and_compact_has_neither() {
        let (text, compact) = (logged(LogFormat::Text), logged(LogFormat::Compact));
        for line in [&text, &compact] {
            assert!(line.contains("WARN") && line.contains("a peer was") && !line.contains("not a word"));
        }
        assert!(text.contains(module_path!()) && !compact.contains(module_path!()), "{text}{compact}");
        assert!(text.len() > compact.len() + module_path!().len(), "{text}{compact}");
    }
}
