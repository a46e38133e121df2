//! Finds or starts the daemon to chat with.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::ChatArgs;
use crate::cli::client::Client;
use crate::cli::error::CliError;
use crate::cli::host::{DaemonHost, RunningDaemon};
use crate::cli::notice;
use crate::cli::private::PrivateDaemon;
use crate::config::Config;

/// How long a daemon on the default socket may take to say that it is ready. One that is busy
/// still answers this at once.
const READY_WITHIN: Duration = Duration::from_secs(1);

/// A daemon that answers.
pub enum Daemon<D> {
    /// One that was running.
    Running(Client),
    /// One that was started for this chat.
    Private(PrivateDaemon<D>),
}

impl<D: RunningDaemon> Daemon<D> {
    /// The daemon that the arguments name; else the one on `default_socket`, if it is ready; else
    /// one for this chat.
    ///
    /// # Errors
    /// [`CliError`] if a daemon cannot be started.
    pub async fn find<H: DaemonHost<Daemon = D>>(
        args: &ChatArgs,
        host: &H,
        default_socket: &Path,
    ) -> Result<Daemon<D>, CliError> {
        if let Some(socket) = &args.socket {
            return Ok(Daemon::Running(Client::new(socket)));
        }
        let config = match &args.model {
            // the socket is replaced by a private one
            Some(model) => Config::of_models(default_socket, None, model, args.draft.as_deref())?,
            None if is_ready(default_socket).await => {
                return Ok(Daemon::Running(Client::new(default_socket)));
            }
            None => Config::default_tiny(),
        };
        Ok(Daemon::Private(PrivateDaemon::start(host, config).await?))
    }

    /// A client of the daemon.
    pub fn client(&self) -> Client {
        match self {
            Daemon::Running(client) => client.clone(),
            Daemon::Private(daemon) => daemon.client(),
        }
    }

    /// Shuts a daemon of this chat down.
    pub async fn leave(self) {
        if let Daemon::Private(daemon) = self {
            daemon.shutdown().await;
        }
    }
}

/// Whether a daemon is ready on `socket` that this user did not name but may trust; says so, or
/// that there is another's.
async fn is_ready(socket: &Path) -> bool {
    let client = Client::new(socket);
    let ready = tokio::time::timeout(READY_WITHIN, client.get("/health/ready")).await;
    let Ok(about) = std::fs::metadata(socket) else { return false };
    if !matches!(ready, Ok(Ok(_))) {
        return false;
    }
    let (owner, socket) = (about.uid(), socket.display());
    let trusted = is_trusted(owner, rustix::process::geteuid().as_raw());
    if trusted {
        notice::say(format_args!("Using the daemon on {socket}."));
    } else {
        notice::say(format_args!("User {owner} has a daemon on {socket}; --socket {socket} uses it."));
    }
    trusted
}

/// Anyone may create a socket in a directory for temporary files, and would read what is said to it.
fn is_trusted(owner: u32, user: u32) -> bool {
    owner == user || owner == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_daemon_of_this_user_or_of_root_is_used_unasked() {
        assert!(is_trusted(1000, 1000) && is_trusted(0, 1000));
        assert!(!is_trusted(1001, 1000) && !is_trusted(1000, 0));
    }
}
