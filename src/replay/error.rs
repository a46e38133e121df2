//! Errors of traces and their sources.

use std::io;
use std::path::PathBuf;

/// Why a trace could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A line is malformed.
    #[error("line {line}: {problem}")]
    Line {
        /// Line number from 1, including the header.
        line: usize,
        /// What is wrong with the line.
        problem: String,
    },
    /// The file name ends in neither .csv nor .jsonl.
    #[error("{}: unknown trace format, expected .csv or .jsonl", .0.display())]
    Extension(PathBuf),
    /// A request has no lengths.
    #[error("line {line}: no {column}; add it, or draw lengths with --lengths spec-bench")]
    NoLength {
        /// Line number from 1, including the header.
        line: usize,
        /// The empty column.
        column: &'static str,
    },
    /// No requests are left after filtering.
    #[error("the trace has no requests")]
    Empty,
}

/// A string is not a valid source of arrivals.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceParseError {
    /// A generator with invalid arguments.
    #[error("{0:?} is not of the form {1}")]
    Formula(String, &'static str),
}
