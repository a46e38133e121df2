//! What the commands need of the daemon: to run it here, or beside a command.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use crate::analyzer::{Progress, RecordOptions};
use crate::config::Config;
use crate::replay::RecordedSequence;
use crate::timing::profile::Profile;

/// Why a daemon could not start or ended badly, as it says itself.
pub type HostError = Box<dyn std::error::Error + Send + Sync>;

/// Starts daemons: the engine in the program, a script in tests.
pub trait DaemonHost {
    /// A daemon in this process.
    type Daemon: RunningDaemon;

    /// Starts a daemon that answers on its socket once this returns.
    ///
    /// # Errors
    /// When models can't be loaded or the socket can't be bound.
    fn start(&self, config: Config) -> impl Future<Output = Result<Self::Daemon, HostError>>;

    /// Serves until `shutdown` resolves and requests in flight are drained.
    ///
    /// # Errors
    /// As [`start`](Self::start), and when the engine fails later.
    fn run(
        &self,
        config: Config,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = Result<(), HostError>>;

    /// Measures the machine and the models of a configuration, in about `budget`.
    ///
    /// # Errors
    /// When models can't be loaded or a pass fails.
    fn profile(
        &self,
        config: Config,
        budget: Duration,
        on_progress: OnProgress,
    ) -> impl Future<Output = Result<Profile, HostError>>;

    /// Records what a configuration's draft model would have proposed.
    ///
    /// # Errors
    /// When models can't be loaded, a conversation can't be rendered, or a pass fails.
    fn record(
        &self,
        config: Config,
        options: RecordOptions,
        on_sequence: OnSequence,
    ) -> impl Future<Output = Result<(), HostError>>;
}

/// Hears each output that was recorded; called from the recording thread.
pub type OnSequence = Box<dyn FnMut(RecordedSequence) + Send>;

/// Hears how far the analyzer is; called from its thread.
pub type OnProgress = Box<dyn FnMut(Progress) + Send>;

/// A daemon that runs beside a command.
pub trait RunningDaemon {
    /// Its socket.
    fn socket(&self) -> &Path;

    /// Ends it; the socket is gone afterwards.
    fn shutdown(self) -> impl Future<Output = ()>;
}
