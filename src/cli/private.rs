//! Private daemons, on a socket that no other user can reach.

use std::fs::Permissions;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tempfile::TempDir;

use super::client::Client;
use super::error::CliError;
use super::host::{DaemonHost, RunningDaemon};
use super::logging;
use super::notice::StartNotice;
use crate::config::{Config, LogLevel};

/// How often a starting daemon is asked. Most start in less time, and then nothing is shown.
const ASK_EVERY: Duration = Duration::from_millis(400);

/// Mode of a private directory.
const OWNER_ONLY: u32 = 0o700;

/// A daemon in a directory of its own, which goes when the daemon does.
#[derive(Debug)]
pub struct PrivateDaemon<D> {
    daemon: D,
    /// Held for its `Drop`.
    _directory: TempDir,
}

impl<D: RunningDaemon> PrivateDaemon<D> {
    /// Starts a daemon with `config`, but on a private socket and without logging.
    ///
    /// # Errors
    /// If the directory cannot be created, or the daemon fails to start or is not ready in time.
    pub async fn start<H>(host: &H, mut config: Config) -> Result<PrivateDaemon<D>, CliError>
    where
        H: DaemonHost<Daemon = D>,
    {
        let directory = private_directory()?;
        config.server.socket = directory.path().join("socket");
        // the directory's permissions suffice, and the list might exclude this user
        config.server.socket_uids = None;
        config.server.http = None;
        config.server.admin = None;
        config.server.drain_delay = Duration::ZERO;
        config.telemetry.log_level = config.telemetry.log_level.min(LogLevel::Warn);
        logging::start(&config.telemetry);
        let client = Client::new(&config.server.socket);
        let daemon = while_starting(&client, host.start(config)).await.map_err(CliError::Daemon)?;
        Client::new(daemon.socket()).wait_until_ready().await?;
        Ok(PrivateDaemon { daemon, _directory: directory })
    }

    /// Returns a client of this daemon.
    pub fn client(&self) -> Client {
        Client::new(self.daemon.socket())
    }

    /// Shuts the daemon down and removes its directory.
    pub async fn shutdown(self) {
        self.daemon.shutdown().await;
    }
}

/// Waits for `start`, and shows meanwhile what the daemon behind `client` is doing.
async fn while_starting<T>(client: &Client, start: impl Future<Output = T>) -> T {
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

/// Creates a directory that only this user can enter, under the system's directory for temporary
/// files. It is removed on drop.
///
/// # Errors
/// [`CliError::File`].
pub fn private_directory() -> Result<TempDir, CliError> {
    tempfile::Builder::new()
        .prefix("specserve-")
        .permissions(Permissions::from_mode(OWNER_ONLY))
        .tempdir()
        .map_err(|source| CliError::File { path: std::env::temp_dir(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_directory_admits_only_its_owner_and_is_removed_on_drop() {
        let directory = private_directory().expect("a directory");
        let path = directory.path().to_owned();
        let mode = std::fs::metadata(&path).expect("it exists").permissions().mode();
        assert_eq!(mode & 0o777, OWNER_ONLY);
        std::fs::write(path.join("socket"), "").expect("the owner may write");
        drop(directory);
        assert!(!path.exists());
    }
}
