//! Handling of SIGINT and SIGTERM.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signal handlers, active from [`Signals::install`] on.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// A received signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Name of the signal.
    pub name: &'static str,
    /// 128 plus the signal number, as in shells.
    pub exit_code: u8,
}

impl Received {
    /// SIGINT, as from Ctrl-C.
    pub const INTERRUPT: Received = Received { name: "SIGINT", exit_code: 130 };
    /// SIGTERM.
    pub const TERMINATE: Received = Received { name: "SIGTERM", exit_code: 143 };
}

impl Signals {
    /// Replaces the default action, which terminates the process.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn install() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.interrupt.recv() => Received::INTERRUPT,
            _ = self.terminate.recv() => Received::TERMINATE,
        }
    }
}
