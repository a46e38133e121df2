//! Why a workload could not be made.

use std::io;
use std::path::PathBuf;

/// A trace can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not what it should be.
    #[error("line {line}: {problem}")]
    Line {
        /// Counted from 1, header included.
        line: usize,
        /// What is wrong, in words.
        problem: String,
    },
    /// The file's name ends in neither .csv nor .jsonl.
    #[error("{}: a trace is a .csv or a .jsonl file", .0.display())]
    Extension(PathBuf),
    /// A request has no lengths.
    #[error("line {line}: no {column}, and no other source of lengths was given")]
    NoLength {
        /// Counted from 1, header included.
        line: usize,
        /// The empty column.
        column: &'static str,
    },
    /// Nothing is left.
    #[error("the trace has no requests")]
    Empty,
}

/// A text names no source of arrivals.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceParseError {
    /// A formula with wrong arguments.
    #[error("{0:?} is not of the form {1}")]
    Formula(String, &'static str),
}
