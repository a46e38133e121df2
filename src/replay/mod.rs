//! Workloads: arrival times and lengths of requests, and recordings of draft acceptance.
//!
//! A [`TraceSource`] is a trace file or a generator, [`WorkloadOptions`] scales and filters it, and
//! the result is a list of [`Arrival`]s.
//!
//! May import: protocol, random.
#![forbid(unsafe_code)]

mod error;
mod recording;
mod source;
pub mod spec_bench;
mod trace;
mod workload;

pub use error::{SourceParseError, TraceError};
pub use recording::{RecordedDraft, RecordedSequence, Recording, RecordingError};
pub use source::{Lengths, TraceSource};
pub use trace::{TRACE_ROWS_MAX, TraceRow, parse_csv, parse_jsonl};
pub use workload::{Arrival, WorkloadOptions, load};
