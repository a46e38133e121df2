//! Private daemons, on a socket that no other user can reach.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::client::Client;
use super::error::CliError;
use super::host::{DaemonHost, RunningDaemon};
use super::logging;
use crate::config::{Config, LogLevel};

/// A daemon whose socket is in a private directory; the directory is removed on drop.
#[derive(Debug)]
pub struct PrivateDaemon<D> {
    daemon: D,
    /// Removes the directory on drop.
    _directory: PrivateDirectory,
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
        let directory = PrivateDirectory::create()?;
        config.server.socket = directory.path.join("socket");
        // the directory's permissions suffice, and the list might exclude this user
        config.server.socket_uids = None;
        config.server.http = None;
        config.telemetry.log_level = config.telemetry.log_level.min(LogLevel::Warn);
        logging::start(&config.telemetry);
        let daemon = host.start(config).await.map_err(CliError::Daemon)?;
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

/// A directory with mode 0700; removed on drop.
#[derive(Debug)]
pub struct PrivateDirectory {
    path: PathBuf,
}

impl PrivateDirectory {
    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates a directory under the system's temporary directory.
    ///
    /// # Errors
    /// [`CliError::File`].
    pub fn create() -> Result<PrivateDirectory, CliError> {
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let number = CREATED.fetch_add(1, Ordering::Relaxed);
        let name = format!("specserve-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        // `create` fails if the path exists, so another user cannot have planted it.
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(PrivateDirectory { path }),
            Err(source) => Err(CliError::File { path, source }),
        }
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes the directory. A failure only leaves an empty directory behind.
fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_dir_all(path) {
        tracing::debug!(path = %path.display(), %error, "failed to remove the private directory");
    }
}
