//! Errors of the commands and their exit codes.

use std::io;
use std::path::PathBuf;

use super::client::ClientError;
use super::host::HostError;
use super::signals::Received;
use crate::config::ConfigError;

/// The command succeeded.
pub const EXIT_OK: u8 = 0;
/// The command or one of its requests failed.
pub const EXIT_FAILED: u8 = 1;
/// The arguments are invalid; clap's code.
pub const EXIT_ARGUMENTS: u8 = 2;
/// The configuration is invalid (`EX_USAGE`).
pub const EXIT_CONFIG: u8 = 64;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Arguments that are valid one by one do not fit together.
    #[error("{0}")]
    Arguments(String),
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A request to the daemon failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon failed to start, run or shut down.
    #[error("the daemon failed: {0}")]
    Daemon(#[source] HostError),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The result could not be written. A closed pipe is not a failure.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// Plain and speculative decoding produced different outputs.
    #[error("plain and speculative decoding produced different outputs for {0} of the prompts")]
    TextsDiffer(usize),
    /// Some requests of a batch failed.
    #[error("{failed} of {requests} requests failed; the first: {first}")]
    RequestsFailed {
        /// Failed requests.
        failed: u64,
        /// All requests of the batch.
        requests: u64,
        /// Why the first one failed, with its line.
        first: String,
    },
    /// The command was interrupted by a signal.
    #[error("interrupted by {}", .0.name)]
    Interrupted(Received),
    /// Any other failure, as a message for the operator.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    /// Exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Arguments(_) => EXIT_ARGUMENTS,
            CliError::Config(_) => EXIT_CONFIG,
            CliError::Interrupted(signal) => signal.exit_code,
            error if error.is_broken_pipe() => EXIT_OK,
            _ => EXIT_FAILED,
        }
    }

    /// Whether no message should be printed: the user interrupted the command or closed the pipe.
    pub fn is_silent(&self) -> bool {
        matches!(self, CliError::Interrupted(_)) || self.is_broken_pipe()
    }

    /// Whether the output's reader closed the pipe, as `head` does.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
