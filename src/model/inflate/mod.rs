//! Inflation: the same function at the cost of a larger model.
//!
//! Writes a model with the dimensions of, say, an 8B Llama that computes the same logits as a
//! model of a few million parameters: real text and acceptance at realistic cost, without
//! downloading weights. How each part grows:
//!
//! - **Residual stream** `h → h'`: the new channels stay 0, since nothing writes to them.
//!   RMSNorm then divides by `√(Σx²/h' + ε')`; with `ε' = ε·h/h'` that is the old divisor
//!   times `√(h/h')`, which the norm's weights take back. They are stored in fp32.
//! - **Attention**: new heads read random weights, but the output projection's columns for
//!   them are 0. Where queries per key head shrink, key heads are repeated. Where heads get
//!   wider by a factor m, rotary pair i moves to pair m·i, which turns at the same frequency;
//!   queries grow by √m to make up for the softmax scale.
//! - **MLP**: new rows of gate and up are random, their columns of down 0.
//! - **Layers**: new ones follow at the end, with output and down projections of 0.
//! - **Vocabulary**: new tokens are never sampled. One new channel of the residual stream
//!   holds a small constant (subtracted from ε', so that norms are unaffected), which only
//!   the head reads, with a hugely negative weight for new tokens.
//!
//! Factors that are multiplied by 0 are random filler, the same in every run. Sources of
//! inexactness: norm weights are rounded to fp32, and query weights to bf16 unless √m is a
//! power of two; a head tied to the embedding adds the same number, far below rounding, to
//! the logits of all real tokens.
#![forbid(unsafe_code)]

mod grown;
mod matrix;
mod plan;
mod shape;
mod staging;
#[cfg(test)]
mod tests;
mod writer;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::files::ModelFiles;
use super::{ModelError, ModelSource, load};
use crate::protocol::ModelRole;

pub use shape::{InflateShape, SHAPES};

use grown::Grown;
use staging::Staging;

/// Files that are copied unchanged if the source has them.
const COPIED_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"];

/// Options of an inflation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InflateOptions {
    /// Vocabulary size, instead of the shape's. Should be the same for target and draft of a
    /// pair, since the loader truncates the longer one.
    pub vocab_size: Option<usize>,
    /// Threads that generate and write weights.
    pub threads: usize,
    /// Size limit of a weight file, in bytes; tensors are never split.
    pub shard_bytes_max: u64,
}

impl Default for InflateOptions {
    fn default() -> InflateOptions {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        InflateOptions { vocab_size: None, threads, shard_bytes_max: 2 << 30 }
    }
}

/// How much of the weights is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflateProgress {
    /// Bytes written.
    pub bytes: u64,
    /// Bytes of the whole model.
    pub bytes_total: u64,
}

/// Called from the writing threads after each piece; `Break` ends the inflation.
pub type OnInflateProgress<'a> = &'a (dyn Fn(InflateProgress) -> ControlFlow<()> + Sync);

/// Summary of a completed inflation.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct InflateReport {
    /// Output directory.
    pub directory: PathBuf,
    /// Number of weight files.
    pub shards: usize,
    /// Total size of the weights, in bytes.
    pub weight_bytes: u64,
    /// Parameters of the source.
    pub parameters_before: u64,
    /// Parameters of the result.
    pub parameters_after: u64,
}

/// Why a model cannot be inflated.
#[derive(Debug, thiserror::Error)]
pub enum InflateError {
    /// The source cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The source does not fit into the shape.
    #[error("{source_name} does not fit into the shape {shape}: {problem}")]
    Shape {
        /// Name of the source.
        source_name: String,
        /// Name of the shape.
        shape: String,
        /// Why the source does not fit, with both numbers.
        problem: String,
    },
    /// The output directory is not empty.
    #[error("{directory} exists and is not empty; choose a new directory")]
    Occupied {
        /// Path of the directory.
        directory: PathBuf,
    },
    /// Writing failed.
    #[error("cannot write {file}: {source}")]
    Io {
        /// Path of the file.
        file: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// `on_progress` ended the inflation.
    #[error("the inflation was interrupted")]
    Interrupted,
}

/// Writes `source` (its `role`, if it is a pair) to `directory` in Hugging Face format with
/// the dimensions of `shape`. Memory use is small and independent of the result's size. The
/// directory appears when it is complete.
///
/// # Errors
/// See [`InflateError`]; a failed run leaves nothing.
pub fn inflate(
    source: &ModelSource,
    role: ModelRole,
    directory: &Path,
    shape: &InflateShape,
    options: &InflateOptions,
    on_progress: OnInflateProgress,
) -> Result<InflateReport, InflateError> {
    let model = load(source, role)?;
    let grown = Grown::new(&model, shape, options.vocab_size).map_err(|problem| InflateError::Shape {
        source_name: model.name.clone(),
        shape: shape.name.to_owned(),
        problem,
    })?;
    let staging = Staging::begin(directory)?;
    let files = ModelFiles::open(source, role)?;
    for name in COPIED_FILES.into_iter().filter(|name| files.has(name)) {
        write_file(&staging.path().join(name), &files.read(name)?)?;
    }
    let config = serde_json::to_vec_pretty(&grown.config_json(&files)?).unwrap_or_default();
    write_file(&staging.path().join("config.json"), &config)?;

    let tensors = plan::tensors(&model.loaded.weights, &grown);
    let before = plan::parameters(&model.loaded);
    let written = writer::write(staging.path(), &tensors, options, on_progress)?;
    staging.finish()?;
    Ok(InflateReport {
        directory: directory.to_owned(),
        shards: written.shards,
        weight_bytes: written.bytes,
        parameters_before: before,
        parameters_after: tensors.iter().map(plan::PlannedTensor::numbers).sum(),
    })
}

fn write_file(file: &Path, bytes: &[u8]) -> Result<(), InflateError> {
    std::fs::write(file, bytes).map_err(|source| InflateError::Io { file: file.to_owned(), source })
}
