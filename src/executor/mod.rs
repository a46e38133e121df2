//! The seam between the engine and whatever computes.
//!
//! An [`Executor`] holds a target model, perhaps a draft model, and a paged KV
//! cache for each. It lives on one thread that owns the device. Everything above
//! speaks in tokens: sampling and verification happen behind this trait, because
//! on a GPU they must not leave the device. The same tests run on every
//! implementation (DESIGN, section 11 and 12).

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod shadow;

pub use shadow::{ShadowExecutor, ShadowOptions};

use crate::protocol::{
    Compaction, DraftRow, ExecutorError, ExecutorInfo, Micros, ModelRole, Proposal, SequenceInput, Verdict,
    VerifyRow,
};

/// Computes. Single-threaded towards its caller; may use many threads inside.
pub trait Executor: Send {
    /// Fixed facts.
    fn info(&self) -> &ExecutorInfo;

    /// Starts a drafting round: runs the draft model over every row's input, and
    /// writes one [`Proposal`] per row to `out` (default where `propose` is unset).
    fn draft_start(&mut self, rows: &[DraftRow], out: &mut Vec<Proposal>) -> Result<(), ExecutorError>;

    /// Goes on with the rows `keep` (ascending indices into the rows of
    /// [`draft_start`](Self::draft_start)): feeds each its last proposal, writes one new
    /// proposal per kept row to `out`. `blocks` must already cover the positions.
    /// A row that was left out may not come back in this round.
    fn draft_continue(&mut self, keep: &[u32], out: &mut Vec<Proposal>) -> Result<(), ExecutorError>;

    /// Runs the target over all rows (any mix of prefill, decode and verification),
    /// and writes one [`Verdict`] per row to `out`.
    fn verify(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError>;

    /// How long the device stood idle before the work of the last call: since the work of
    /// the call before it, whichever model that ran. `None` where device and caller are one.
    fn idle_before_last_call(&self) -> Option<Micros> {
        None
    }

    /// Moves target KV after trees were accepted; a chain never needs it.
    fn compact(&mut self, moves: &[Compaction]) -> Result<(), ExecutorError>;

    /// The logits (fp32, `vocab_size`) after the last input token of one row, for
    /// tests and golden files; runs the named model and fills its cache.
    fn logits(&mut self, model: ModelRole, input: &SequenceInput) -> Result<Vec<f32>, ExecutorError>;
}
