//! The analyzer: measures a backend and records draft acceptance.
//!
//! It drives an [`Executor`] through the engine's own calls over a grid of batch shapes (`grid.rs`),
//! in sweeps that visit every shape in a different order, so that a machine that warms up or slows
//! down does not look like a trend over rows. Medians over sweeps are fitted (docs/policy.md,
//! "Time"). Some points are held out of a second fit, whose error on them is reported.
//! docs/analyzer.md describes the method and the file.
//!
//! May import: protocol, stats, random, model, timing, replay, executor.
#![forbid(unsafe_code)]

mod fingerprint;
mod grid;
mod measure;
mod record;
mod start;
#[cfg(test)]
mod tests;
mod workbench;

use std::sync::Arc;

pub use fingerprint::{Machine, fingerprint, model_digest};
pub use record::{RecordJob, RecordOptions, RecordPrompt, RecordText, record};
pub use start::{StartProfile, analyze_at_start};

use crate::executor::{Drafter, Executor};
use crate::protocol::{Clock, ExecutorError, ExecutorInfo, Micros, ModelRole, SamplingParams, TokenId};
use crate::timing::cost_model::{Between, HeadTerms, LatencyTerms};
use crate::timing::fit::{Fit, fit};
use crate::timing::profile::{Fingerprint, Profile};
use crate::timing::{PROFILE_FORMAT, ProfileError, ProfilePoint};

/// What a step is taken to cost beside the models before any step has been seen, in
/// microseconds; the engine learns the true value within a few steps.
pub const HOST_US: f64 = 60.0;
/// One in so many points is held out of the fit that the reported error is of.
const HOLD_OUT_EVERY: usize = 5;

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum AnalyzerError {
    /// The executor failed.
    #[error("a measured pass failed: {0}")]
    Executor(#[from] ExecutorError),
    /// The measurements can't be fitted.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The caches are too small for anything.
    #[error("the KV caches hold no sequence that could be measured: raise kv.memory_mib_max")]
    NoRoom,
    /// There are no tokens to feed.
    #[error("there is no text to measure with")]
    NoText,
}

/// How to measure.
#[derive(Clone, Debug)]
pub struct AnalyzerOptions {
    /// Time for everything. It is exceeded only where the shapes without which there is no model
    /// take longer once.
    pub budget: Micros,
    /// Time that these may take as well. Only the first pass of each model exceeds it.
    pub limit: Micros,
    /// Tokens of a text; sequences are cut from it. All below the vocabulary's size.
    pub text: Vec<TokenId>,
    /// How tokens are chosen in the measured passes.
    pub sampling: Arc<SamplingParams>,
}

impl AnalyzerOptions {
    /// A `limit` that binds nothing.
    pub const NO_LIMIT: Micros = Micros(u64::MAX / 4);
}

/// Called with the progress.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress);

/// How far the analyzer is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Share of the work done, 0 to 1.
    pub share: f64,
    /// Passes measured so far.
    pub passes: u64,
    /// Batch shapes that are being measured.
    pub shapes: usize,
}

/// Measures `executor` and fits its time model.
///
/// # Errors
/// [`AnalyzerError`].
pub fn analyze(
    executor: &mut dyn Executor,
    clock: &dyn Clock,
    fingerprint: Fingerprint,
    options: &AnalyzerOptions,
    on_progress: OnProgress<'_>,
) -> Result<Profile, AnalyzerError> {
    let info = executor.info().clone();
    let points = measured(executor, clock, options, on_progress)?;
    let between = between(&fingerprint);
    let target = fit(&points, ModelRole::Target, between, HOLD_OUT_EVERY)?;
    let draft = info
        .drafts_on_device()
        .then(|| fit(&points, ModelRole::Draft, between, HOLD_OUT_EVERY))
        .transpose()?;
    Ok(measured_profile(&info, fingerprint, target, draft, points))
}

/// The profile of fits to measured points.
fn measured_profile(
    info: &ExecutorInfo,
    fingerprint: Fingerprint,
    target: Fit,
    draft: Option<Fit>,
    points: Vec<ProfilePoint>,
) -> Profile {
    Profile {
        format: PROFILE_FORMAT,
        origin: "measured".to_owned(),
        host_us: HOST_US,
        fingerprint,
        target: target.terms,
        target_error: Some(target.held_out),
        draft_error: draft.as_ref().map(|draft| draft.held_out),
        draft: draft.map(|draft| of_drafter(info, draft.terms)),
        reliability: None,
        points,
    }
}

/// The executor's drafter.
fn drafter(executor: &mut dyn Executor) -> Result<&mut dyn Drafter, ExecutorError> {
    executor.drafter().ok_or_else(|| ExecutorError::Malformed("there is no drafter".to_owned()))
}

/// Drafts that one call of the executor's drafter makes for a sequence at most.
fn drafts_per_call(info: &ExecutorInfo) -> u32 {
    let block_tokens = info.drafter.as_ref().map_or(0, |needs| needs.block_tokens);
    block_tokens.min(info.draft_tokens_max).max(1)
}

/// The terms of the executor's drafter, which say what it is beside how long it takes.
fn of_drafter(info: &ExecutorInfo, terms: LatencyTerms) -> LatencyTerms {
    let state_token_us = terms.head.map_or(0.0, |head| head.state_token_us);
    let head = HeadTerms { drafts_per_call: drafts_per_call(info), state_token_us };
    LatencyTerms { head: info.has_draft_head().then_some(head), ..terms }
}

/// Measures the shapes of the grid that there is time for.
fn measured(
    executor: &mut dyn Executor,
    clock: &dyn Clock,
    options: &AnalyzerOptions,
    on_progress: OnProgress<'_>,
) -> Result<Vec<ProfilePoint>, AnalyzerError> {
    let shapes = grid::shapes(executor.info());
    if shapes.is_empty() {
        return Err(AnalyzerError::NoRoom);
    }
    if options.text.is_empty() {
        return Err(AnalyzerError::NoText);
    }
    measure::run(executor, clock, shapes, options, on_progress)
}

/// A GPU pads a batch to the next captured size; a CPU computes just its rows.
fn between(fingerprint: &Fingerprint) -> Between {
    if fingerprint.backend == "cuda" { Between::Pad } else { Between::Interpolate }
}
