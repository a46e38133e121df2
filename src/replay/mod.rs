//! Workloads: when requests arrive, and how long they are.
//!
//! A [`TraceSource`] names where arrivals come from, a file or a formula; a
//! [`WorkloadOptions`] says what is made of them; the result is a list of [`Arrival`]s.

mod error;
mod source;
pub mod spec_bench;
mod trace;
mod workload;

pub use error::{SourceParseError, TraceError};
pub use source::TraceSource;
pub use trace::{TRACE_ROWS_MAX, TraceRow, parse_csv, parse_jsonl};
pub use workload::{Arrival, Lengths, WorkloadOptions, load};
