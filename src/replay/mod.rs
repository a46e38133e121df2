//! Workloads: when requests arrive, and how long they are.
//!
//! A [`TraceSource`] names where arrivals come from, a file or a formula; a
//! [`WorkloadOptions`] says what is made of them; the result is a list of [`Arrival`]s.
#![forbid(unsafe_code)]

mod error;
mod recording;
mod source;
pub mod spec_bench;
mod trace;
mod workload;

pub use error::{SourceParseError, TraceError};
pub use recording::{RecordedSequence, Recording, RecordingError};
pub use source::{Lengths, TraceSource};
pub use trace::{TRACE_ROWS_MAX, TraceRow, parse_csv, parse_jsonl};
pub use workload::{Arrival, WorkloadOptions, load};
