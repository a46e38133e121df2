//! Messages to the user on standard error.

use std::fmt::Display;
use std::io::{Write, stderr};
use std::time::Duration;

use indicatif::ProgressBar;

use super::progress;

const TICK: Duration = Duration::from_millis(100);

/// Writes a line to standard error. Errors are ignored: it may be closed.
pub fn say(text: impl Display) {
    let _ = writeln!(stderr(), "{text}");
}

/// A line on the terminal with the phase of the start; gone when dropped. Nothing is written if
/// standard error is not a terminal.
pub struct StartNotice {
    line: Option<ProgressBar>,
}

impl StartNotice {
    /// Nothing shown yet.
    pub fn new() -> StartNotice {
        StartNotice { line: None }
    }

    /// Shows what the daemon says it is doing.
    pub fn show(&mut self, what: &str) {
        let line = self.line.get_or_insert_with(|| {
            let line = progress::spinner("{spinner} {msg} ({elapsed})");
            line.enable_steady_tick(TICK);
            line
        });
        line.set_message(what.to_owned());
    }
}

impl Drop for StartNotice {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}
