//! Errors of pulling a model, for its user.

use std::io::ErrorKind;
use std::path::PathBuf;

use crate::model::ModelError;

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The network must not be used, and the cache does not hold the model.
    #[error("HF_HUB_OFFLINE forbids the network, and {0}")]
    Offline(#[source] ModelError),
    /// The endpoint is no address.
    #[error("HF_ENDPOINT is {given:?}: give an address such as https://huggingface.co")]
    Endpoint {
        /// The endpoint as set.
        given: String,
    },
    /// The hub could not be reached, or the connection broke.
    #[error(
        "cannot reach {url}: {problem}; check the network (HTTPS_PROXY for a proxy, HF_ENDPOINT for a mirror), \
         then pull again: what has arrived is kept"
    )]
    Network {
        /// What was asked for.
        url: String,
        /// What failed.
        problem: String,
    },
    /// The model's licence has to be accepted first.
    #[error("`{name}` is gated: accept its conditions at {page}, then {}", token_advice(*token))]
    Gated {
        /// Name of the model.
        name: String,
        /// Its page.
        page: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// There is no such model, or it is private.
    #[error(
        "{endpoint} shows no model `{name}` {}: check the name, letter case included; if it is private or \
         gated, {}",
        if *token { "to the owner of this token" } else { "without a token" },
        token_advice(*token)
    )]
    NoRepository {
        /// Name of the model.
        name: String,
        /// Address of the hub.
        endpoint: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The model has no such revision.
    #[error("`{name}` has no branch, tag or commit `{revision}`; see {page}")]
    NoRevision {
        /// Name of the model.
        name: String,
        /// The revision.
        revision: String,
        /// Page that lists the revisions.
        page: String,
    },
    /// An unexpected HTTP status.
    #[error("{url} answered {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status code.
        status: u16,
        /// The hub's explanation; may be empty.
        message: String,
    },
    /// A malformed answer.
    #[error("{url} does not answer like the Hugging Face hub: {problem}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The repository holds no model that could be served.
    #[error("`{name}` {problem}")]
    Unfit {
        /// Name of the model.
        name: String,
        /// What it lacks.
        problem: String,
    },
    /// The repository holds GGUF files only.
    #[error(
        "`{name}` holds GGUF ({file}) and no safetensors: pull the original that it was made from (its page \
         names it), or convert it as docs/models.md says under GGUF"
    )]
    Gguf {
        /// Name of the model.
        name: String,
        /// One of the files.
        file: String,
    },
    /// No hash is known for weights.
    #[error(
        "{url} comes with no SHA-256, so it cannot be checked (its ETag is {tag:?}); pull from a hub that sends \
         one, by HF_ENDPOINT"
    )]
    NoHash {
        /// The file.
        url: String,
        /// Its tag.
        tag: String,
    },
    /// A file is not what the hub announced.
    #[error(
        "{file} is damaged: its hash is {found}, the hub announces {expected}; the copy was removed, pull again"
    )]
    Hash {
        /// Name of the file.
        file: String,
        /// Hash by the hub.
        expected: String,
        /// Hash of what arrived.
        found: String,
    },
    /// The disk is too full.
    #[error(
        "{} has {:.2} GB free, but {:.2} GB are to be fetched; make room, or set HF_HOME to another disk",
        directory.display(), *free_bytes as f64 * 1e-9, *needed_bytes as f64 * 1e-9
    )]
    Space {
        /// Directory of the cache.
        directory: PathBuf,
        /// Bytes that are to be fetched.
        needed_bytes: u64,
        /// Bytes that are free.
        free_bytes: u64,
    },
    /// A file of the cache could not be written or read.
    #[error("{}: {source}{}", path.display(), file_advice(source.kind()))]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The index of the weights makes no sense.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl HubError {
    /// Whether it may pass by itself.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            HubError::Network { .. } => true,
            HubError::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
}

fn token_advice(sent: bool) -> &'static str {
    match sent {
        true => "use a token (HF_TOKEN) of an account that has access; the one that was sent has none",
        false => "set HF_TOKEN to a token of an account that has access",
    }
}

fn file_advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "; set HF_HOME to a directory that you can write"
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "; make room and pull again: what has arrived is kept"
        }
        _ => "",
    }
}
