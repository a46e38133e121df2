//! What a pull tells while it runs.

use super::error::HubError;

/// Progress of a pull.
#[derive(Debug)]
pub enum PullEvent<'a> {
    /// So many bytes are to be in the cache, as far as it is known.
    Total(u64),
    /// So many more are.
    Bytes(u64),
    /// So many are not, because the server sends a file from its start again.
    Lost(u64),
    /// A file is fetched, or found in the cache.
    File {
        /// Its path in the repository.
        path: &'a str,
    },
    /// Another process is fetching the same file.
    Waits {
        /// Its path in the repository.
        path: &'a str,
    },
    /// The connection broke, and another is tried.
    Retries {
        /// The file's path in the repository.
        path: &'a str,
        /// What happened.
        problem: &'a HubError,
    },
}

/// Told of the progress of a pull.
pub type OnPull<'a> = dyn FnMut(PullEvent<'_>) + 'a;
