//! specserve: an LLM serving daemon with adaptive speculative decoding.
//!
//! Start with docs/ARCHITECTURE.md, which walks one request through these modules.

pub mod actors;
pub mod analyzer;
pub mod api;
pub mod charts;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod drafting;
pub mod engine;
pub mod executor;
pub mod grammar;
pub mod hub;
pub mod kv;
pub mod model;
pub mod pacing;
pub mod policy;
pub mod protocol;
pub mod random;
pub mod replay;
pub mod sampling;
pub mod scheduler;
pub mod simulate;
mod stats;
pub mod step;
pub mod telemetry;
pub mod timing;
