//! The dashboard on a terminal.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use ratatui::DefaultTerminal;

use super::keys::{self, Key};
use super::polls::{Poll, Polls};
use super::screen::{View, render};
use crate::cli::client::{Client, ClientError};
use crate::cli::colour;
use crate::cli::error::CliError;
use crate::protocol::MonotonicClock;

/// Speeds that are remembered: more than a terminal has columns.
const SPEEDS_MAX: usize = 1024;

const STARTING: &str = "the daemon is starting";

/// Shows the dashboard until the user quits. A daemon that is gone is waited for.
///
/// # Errors
/// [`CliError::Client`] if the daemon does not answer from the start; [`CliError::Output`] if the
/// terminal fails.
pub async fn show(client: &Client, interval: Duration) -> Result<(), CliError> {
    let clock = MonotonicClock::start();
    let mut dashboard = Dashboard::begin(Poll::take(client, &clock).await?, interval, colour::on(true));
    let next_poll = || async {
        tokio::time::sleep(interval).await;
        Poll::take(client, &clock).await
    };
    let mut screen = FullScreen::enter()?;
    let mut keys = keys::listen();
    let mut poll = Box::pin(next_poll());
    loop {
        let view = dashboard.view();
        screen.terminal.draw(|frame| render(&view, frame.area(), frame.buffer_mut()))?;
        tokio::select! {
            key = keys.recv() => match key.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))? {
                Key::Quit => return Ok(()),
                Key::Pause => dashboard.pause(),
                Key::Redraw => {}
            },
            polled = &mut poll => {
                dashboard.take(polled);
                poll = Box::pin(next_poll());
            }
        }
    }
}

/// The terminal in raw mode, on its other screen; as it was before when dropped, and also when the
/// program panics.
struct FullScreen {
    terminal: DefaultTerminal,
}

impl FullScreen {
    fn enter() -> io::Result<FullScreen> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(FullScreen { terminal }),
            Err(error) => {
                // a part of it may have worked
                let _ = ratatui::try_restore();
                Err(error)
            }
        }
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        // nothing can be done about a terminal that is gone
        let _ = self.terminal.show_cursor();
        let _ = ratatui::try_restore();
    }
}

/// State of the dashboard.
struct Dashboard {
    polls: Polls,
    speeds: VecDeque<f64>,
    interval: Duration,
    /// Why the last poll failed.
    problem: Option<String>,
    colours: bool,
    /// The view that stands still.
    paused: Option<View>,
}

impl Dashboard {
    fn begin(first: Poll, interval: Duration, colours: bool) -> Dashboard {
        let (polls, speeds) = (Polls::begin(first), VecDeque::new());
        Dashboard { polls, speeds, interval, problem: None, colours, paused: None }
    }

    fn take(&mut self, polled: Result<Poll, ClientError>) {
        match polled {
            Err(error) => self.problem = Some(error.to_string()),
            Ok(poll) if !poll.has_engine() => self.problem = Some(STARTING.to_owned()),
            // it may have started again, and counts from 0
            Ok(poll) if self.problem.take().is_some() => self.polls = Polls::begin(poll),
            Ok(poll) => {
                self.polls.push(poll);
                self.speeds.push_back(self.polls.stats(false).tokens_per_second);
                if self.speeds.len() > SPEEDS_MAX {
                    self.speeds.pop_front();
                }
            }
        }
    }

    fn pause(&mut self) {
        self.paused = match self.paused {
            Some(_) => None,
            None => Some(View { paused: true, ..self.view() }),
        };
    }

    fn view(&self) -> View {
        self.paused.clone().unwrap_or_else(|| View {
            stats: self.polls.stats(false),
            speeds: self.speeds.iter().copied().collect(),
            interval: self.interval,
            paused: false,
            problem: self.problem.clone(),
            colours: self.colours,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Micros;

    fn poll(tokens: u32, seconds: u64) -> Poll {
        let info = "specserve_engine_info{model=\"tiny\",policy=\"none\"} 1";
        let text = format!("{info}\nspecserve_generation_tokens_total {tokens}\n");
        Poll::of(&text, Micros::from_millis(1000 * seconds))
    }

    fn dashboard() -> Dashboard {
        Dashboard::begin(poll(0, 0), Duration::from_secs(1), false)
    }

    #[test]
    fn each_poll_adds_a_speed() {
        let mut dashboard = dashboard();
        assert!(dashboard.view().speeds.is_empty());
        dashboard.take(Ok(poll(10, 1)));
        dashboard.take(Ok(poll(40, 2)));
        let view = dashboard.view();
        assert_eq!((view.speeds, view.stats.tokens_per_second), (vec![10.0, 30.0], 30.0));
    }

    #[test]
    fn a_pause_keeps_the_picture_and_not_the_figures_from_coming() {
        let mut dashboard = dashboard();
        dashboard.pause();
        dashboard.take(Ok(poll(10, 1)));
        assert!(dashboard.view().paused && dashboard.view().speeds.is_empty());
        dashboard.pause();
        assert!(!dashboard.view().paused);
        assert_eq!(dashboard.view().speeds, [10.0]);
    }

    #[test]
    fn a_daemon_that_comes_back_is_not_compared_with_the_one_before() {
        let mut dashboard = dashboard();
        dashboard.take(Ok(poll(1000, 1)));
        dashboard.take(Err(ClientError::Protocol("gone".to_owned())));
        assert!(dashboard.view().problem.is_some_and(|problem| problem.contains("gone")));
        dashboard.take(Ok(Poll::of("", Micros::from_millis(2000))));
        assert_eq!(dashboard.view().problem.as_deref(), Some(STARTING));
        assert_eq!(dashboard.view().stats.model, "tiny", "the last figures stay");
        dashboard.take(Ok(poll(1500, 3)));
        assert_eq!(dashboard.view().problem, None);
        assert_eq!(dashboard.view().speeds, [1000.0]);
        assert_eq!(dashboard.view().stats.tokens_per_second, 0.0);
    }
}
