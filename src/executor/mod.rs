//! The seam between the engine and the devices.
//!
//! An [`Executor`] owns one device's models and their paged KV caches, and lives on one thread. It
//! has two sides: the [`Target`], whose tokens are served, and a [`Drafter`], which proposes
//! tokens for the target to verify. Everything above speaks in tokens and block ids: sampling and
//! verification happen behind these traits, because on a GPU they must not leave the device.
//! Every implementation checks its batches with the [`BatchContract`] first; the same contract
//! suite (tests/common/contract_suite.rs) runs on all of them.
//!
//! May import: protocol, sampling, random, model.

mod chains;
mod committed_states;
mod contract;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod shadow;

pub use chains::DraftChains;
pub use contract::BatchContract;
pub use shadow::{ShadowExecutor, ShadowOptions};

use crate::protocol::{
    Compaction, DraftForest, DraftSeed, ExecutorError, ExecutorInfo, Micros, ModelRole, NodeId,
    SequenceInput, Verdict, VerifyRow,
};

/// The model that is served.
pub trait Target {
    /// Runs the target over all rows (any mix of prefill, decode and verification) and writes one
    /// [`Verdict`] per row to `out`, which is cleared first.
    ///
    /// # Errors
    /// [`ExecutorError::Malformed`] for a batch that breaks a rule of the [`BatchContract`]; the
    /// executor stays usable. [`ExecutorError::Device`] when the device failed.
    fn verify(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError>;

    /// Moves the KV of accepted tree paths to where a chain's would be; a chain never needs it.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    fn compact(&mut self, moves: &[Compaction]) -> Result<(), ExecutorError>;
}

/// What proposes tokens. What it must be given is in [`ExecutorInfo::drafter`].
///
/// A round begins with [`start`](Self::start) and ends with the next one. How far a sequence lags
/// behind is the caller's to know: it feeds what was not fed.
pub trait Drafter {
    /// Begins a round: feeds every seed's input, and adds the first proposals of each seed with a
    /// positive limit to `forest`. A drafter may add several at once, up to the limit.
    ///
    /// # Errors
    /// As [`Target::verify`].
    fn start(&mut self, seeds: &[DraftSeed], forest: &mut DraftForest) -> Result<(), ExecutorError>;

    /// Feeds these nodes and adds what follows each of them. Blocks must already cover the
    /// positions. Nodes are ascending, and each follows one that the call before fed, or the seed's
    /// input in the first call: what was left out stays out of the round. A drafter of chains takes at
    /// most one node per seed.
    ///
    /// What may follow a node of a constrained sequence is [`DraftForest::mask`], and
    /// [`DraftSeed::mask`] for the first proposal. A drafter that ignores masks is wrong more
    /// often, never harmful: the target samples under its own.
    ///
    /// # Errors
    /// As [`Target::verify`].
    fn extend(&mut self, nodes: &[NodeId], forest: &mut DraftForest) -> Result<(), ExecutorError>;

    /// Says which nodes of the round the target accepted, ascending. Drafters of chains need not
    /// know: their caches hold accepted tokens where they belong.
    ///
    /// # Errors
    /// As [`Target::verify`].
    fn settle(&mut self, accepted: &[NodeId], forest: &DraftForest) -> Result<(), ExecutorError> {
        let _ = (accepted, forest);
        Ok(())
    }
}

/// Computes. Single-threaded towards its caller; may use many threads inside.
pub trait Executor: Send {
    /// Fixed properties.
    fn info(&self) -> &ExecutorInfo;

    /// The served model.
    fn target(&mut self) -> &mut dyn Target;

    /// What drafts; `None` where [`ExecutorInfo::drafter`] is.
    fn drafter(&mut self) -> Option<&mut dyn Drafter>;

    /// How long the device stood idle before the work of the last call: since the work of the
    /// call before it, whichever side that was of. `None` where device and caller are one.
    fn idle_before_last_call(&self) -> Option<Micros> {
        None
    }

    /// The logits (fp32, `vocab_size`) after the last input token of one row, for tests and
    /// golden files; runs the named model and fills its cache.
    ///
    /// # Errors
    /// As [`Target::verify`]; also where there is no such model.
    fn logits(&mut self, model: ModelRole, input: &SequenceInput) -> Result<Vec<f32>, ExecutorError>;
}
