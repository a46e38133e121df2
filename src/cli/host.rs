//! The commands' interface to the daemon: run it in the foreground or beside a command.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use crate::analyzer::{Progress, RecordOptions};
use crate::config::Config;
use crate::replay::RecordedSequence;
use crate::timing::profile::Profile;

/// Why a daemon failed to start, run or shut down.
pub type HostError = Box<dyn std::error::Error + Send + Sync>;

/// Starts daemons: real ones in the program, scripted ones in tests.
pub trait DaemonHost {
    /// A daemon in this process.
    type Daemon: RunningDaemon;

    /// Starts a daemon; it listens on its socket when this returns.
    ///
    /// # Errors
    /// If models cannot be loaded or the socket cannot be bound.
    fn start(&self, config: Config) -> impl Future<Output = Result<Self::Daemon, HostError>>;

    /// Serves until `shutdown` resolves and requests in flight are drained.
    ///
    /// # Errors
    /// As [`start`](Self::start), and if the engine fails later.
    fn run(
        &self,
        config: Config,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = Result<(), HostError>>;

    /// Profiles a configuration's models on this machine within about `budget`.
    ///
    /// # Errors
    /// If models cannot be loaded or a forward pass fails.
    fn profile(
        &self,
        config: Config,
        budget: Duration,
        on_progress: OnProgress,
    ) -> impl Future<Output = Result<Profile, HostError>>;

    /// Records the acceptance of a configuration's draft model.
    ///
    /// # Errors
    /// If models cannot be loaded, a conversation cannot be rendered, or a forward pass fails.
    fn record(
        &self,
        config: Config,
        options: RecordOptions,
        on_sequence: OnSequence,
    ) -> impl Future<Output = Result<(), HostError>>;
}

/// Called with each recorded output, from the recording thread.
pub type OnSequence = Box<dyn FnMut(RecordedSequence) + Send>;

/// Called with the analyzer's progress, from its thread.
pub type OnProgress = Box<dyn FnMut(Progress) + Send>;

/// A daemon running beside a command.
pub trait RunningDaemon {
    /// Path of its socket.
    fn socket(&self) -> &Path;

    /// Shuts the daemon down and removes its socket.
    fn shutdown(self) -> impl Future<Output = ()>;
}
