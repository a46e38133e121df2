//! Tells the user what a starting daemon is doing.

use std::future::Future;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::client::Client;

/// How often a starting daemon is asked. Most start in less time, and then nothing is shown.
const ASK_EVERY: Duration = Duration::from_millis(400);
const TICK: Duration = Duration::from_millis(100);

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
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
            let line = ProgressBar::new_spinner().with_style(style);
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

/// Waits for `start`, and shows meanwhile what the daemon behind `client` is doing.
pub async fn while_starting<T>(client: &Client, start: impl Future<Output = T>) -> T {
    let mut start = std::pin::pin!(start);
    let mut notice = StartNotice::new();
    loop {
        tokio::select! {
            started = start.as_mut() => return started,
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
        tokio::select! {
            started = start.as_mut() => return started,
            reason = client.starting_reason() => {
                if let Some(reason) = reason {
                    notice.show(&reason);
                }
            }
        }
    }
}
