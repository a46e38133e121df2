//! Why a command failed, and the exit code that says so.

use std::io;
use std::path::PathBuf;

use super::client::ClientError;
use super::host::HostError;
use super::signals::Received;
use crate::config::ConfigError;

/// The command did what it was asked to.
pub const EXIT_OK: u8 = 0;
/// The command failed, or a request in it did.
pub const EXIT_FAILED: u8 = 1;
/// The configuration is bad (`EX_USAGE`). Bad arguments exit with 2, clap's code.
pub const EXIT_CONFIG: u8 = 64;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is bad.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The daemon could not be asked, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon could not start or did not end well.
    #[error("the daemon failed: {0}")]
    Daemon(#[source] HostError),
    /// A file could not be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The result could not be written; a reader that has left is no failure.
    #[error("can't write the output: {0}")]
    Output(#[from] io::Error),
    /// Plain and speculative decoding gave different texts.
    #[error("plain and speculative decoding gave different texts for {0} of the prompts")]
    TextsDiffer(usize),
    /// Some requests of a batch failed.
    #[error("{failed} of {requests} requests failed")]
    RequestsFailed {
        /// How many.
        failed: u64,
        /// Of how many.
        requests: u64,
    },
    /// A signal ended the command.
    #[error("ended by {}", .0.name)]
    Interrupted(Received),
    /// Anything else that ends a command, in words.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Config(_) => EXIT_CONFIG,
            CliError::Interrupted(signal) => signal.exit_code,
            error if error.is_broken_pipe() => EXIT_OK,
            _ => EXIT_FAILED,
        }
    }

    /// Whether there is nothing to tell: who asked has ended the command or has left.
    pub fn is_silent(&self) -> bool {
        matches!(self, CliError::Interrupted(_)) || self.is_broken_pipe()
    }

    /// Whether the reader of the output has left, as `head` does.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
