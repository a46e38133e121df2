//! Data types shared by all rooms: ids, time, requests and their events, sampling parameters,
//! the data of the executor interface, and the data of a step.
//!
//! The bottom layer of the crate: plain data with accessors (docs/ARCHITECTURE.md, "Layers").
//!
//! May import: nothing.
#![forbid(unsafe_code)]

mod admission;
mod batch;
mod constraint;
mod ids;
mod request;
mod sampling_params;
mod step;
mod time;
mod tree;

pub use admission::{AdmissionError, Generation, Submission};
pub use batch::{
    Compaction, DraftForest, DraftNode, DraftSeed, DrafterNeeds, ExecutorError, ExecutorInfo, ExecutorMemory,
    History, ModelRole, NodeId, Proposal, RowRole, SequenceInput, Verdict, VerifyRow,
};
pub use constraint::{ConstraintState, TokenConstraint, TokenMask};
pub use ids::{BLOCK_TOKENS, BlockId, RequestId, TokenId, blocks_for};
pub use request::{
    FinishReason, GenerationRequest, RequestFailure, RequestSummary, RequestTimes, Slo, SpeculationStats,
    Termination, TokenEvent,
};
pub use sampling_params::{
    MIN_P_BOUNDS, REPETITION_PENALTY_BOUNDS, SamplingParams, TEMPERATURE_BOUNDS, TOP_K_BOUNDS, TOP_P_BOUNDS,
};
pub use step::{
    DecodeView, DeviceIdle, DraftCounts, ExaminedDraft, Intent, PrefillView, Step, StepDecision, StepReport,
    StepView,
};
pub use time::{Clock, Micros, MonotonicClock, unix_time};
pub use tree::{DraftOutcome, DraftPlace, DraftSet, DraftShape, DraftedRow, OpenDraft, WrongChoice};
