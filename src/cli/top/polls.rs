//! Metrics pages over time.

use std::collections::VecDeque;

use super::page::Page;
use super::stats::DashboardStats;
use crate::cli::client::{Client, ClientError};
use crate::protocol::{Clock, Micros};

/// Window of the latencies, in polls.
const WINDOW_POLLS: usize = 60;

/// A metrics page and its time.
pub struct Poll {
    at: Micros,
    page: Page,
}

impl Poll {
    /// Asks the daemon for its metrics.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn take(client: &Client, clock: &impl Clock) -> Result<Poll, ClientError> {
        let text = client.get("/metrics").await?;
        Ok(Poll { at: clock.now(), page: Page::parse(&text) })
    }

    /// Whether the engine runs: until then a starting daemon has no metrics of it.
    pub fn has_engine(&self) -> bool {
        self.page.label("specserve_engine_info", "model").is_some()
    }

    /// A page of this text and time.
    #[cfg(test)]
    pub fn of(text: &str, at: Micros) -> Poll {
        Poll { at, page: Page::parse(text) }
    }
}

/// The last polls; there is at least one.
pub struct Polls(VecDeque<Poll>);

impl Polls {
    /// Begins with one poll.
    pub fn begin(first: Poll) -> Polls {
        Polls(VecDeque::from([first]))
    }

    /// Adds a poll, and drops those before the window.
    pub fn push(&mut self, poll: Poll) {
        self.0.push_back(poll);
        if self.0.len() > WINDOW_POLLS + 1 {
            self.0.pop_front();
        }
    }

    /// The statistics of the last poll: rates since the one before; latencies since the window's
    /// start, or the daemon's.
    pub fn stats(&self, since_start: bool) -> DashboardStats {
        let now = &self.0[self.0.len() - 1];
        let before = &self.0[self.0.len().saturating_sub(2)];
        let nothing = Page::default();
        let window_start = if since_start { &nothing } else { &self.0[0].page };
        DashboardStats::new(window_start, &before.page, &now.page, (now.at - before.at).as_secs_f64())
    }
}
