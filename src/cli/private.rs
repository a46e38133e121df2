//! A daemon of one's own: on a socket that nobody else can reach.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::client::Client;
use super::error::CliError;
use super::host::{DaemonHost, RunningDaemon};
use super::logging;
use crate::config::{Config, LogLevel};

/// A daemon in a directory of its own, which goes when the daemon does.
#[derive(Debug)]
pub struct PrivateDaemon<D> {
    daemon: D,
    /// Held for its `Drop`.
    _directory: PrivateDirectory,
}

impl<D: RunningDaemon> PrivateDaemon<D> {
    /// Starts a daemon as `config` says, but on a private socket and quiet.
    ///
    /// # Errors
    /// When the directory can't be made, the daemon can't start, or it is not ready in time.
    pub async fn start<H>(host: &H, mut config: Config) -> Result<PrivateDaemon<D>, CliError>
    where
        H: DaemonHost<Daemon = D>,
    {
        let directory = PrivateDirectory::create()?;
        config.server.socket = directory.path.join("socket");
        // its directory lets in nobody else, and the list may leave this user out
        config.server.socket_uids = None;
        config.server.http = None;
        config.telemetry.log_level = config.telemetry.log_level.min(LogLevel::Warn);
        logging::start(&config.telemetry);
        let daemon = host.start(config).await.map_err(CliError::Daemon)?;
        Client::new(daemon.socket()).wait_until_ready().await?;
        Ok(PrivateDaemon { daemon, _directory: directory })
    }

    /// A client of this daemon.
    pub fn client(&self) -> Client {
        Client::new(self.daemon.socket())
    }

    /// Ends the daemon and removes its directory.
    pub async fn shutdown(self) {
        self.daemon.shutdown().await;
    }
}

/// A directory that only this user can enter; removed on drop.
#[derive(Debug)]
pub struct PrivateDirectory {
    path: PathBuf,
}

impl PrivateDirectory {
    /// Its place.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new one under the system's directory for temporary files.
    ///
    /// # Errors
    /// [`CliError::File`].
    pub fn create() -> Result<PrivateDirectory, CliError> {
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let number = CREATED.fetch_add(1, Ordering::Relaxed);
        let name = format!("specserve-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        // `create` fails when the path exists: nobody can have prepared it.
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

/// Removes the directory; a failure leaves an empty directory behind and harms nobody.
fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_dir_all(path) {
        tracing::debug!(path = %path.display(), %error, "the private directory stays");
    }
}
