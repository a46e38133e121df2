//! The engine's actors.

mod handle;

pub use handle::{AdmissionError, Generation, Submission};
