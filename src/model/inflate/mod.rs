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
//! Draft heads grow in the same way, for their target inflated to the same shape and vocabulary;
//! what they read of it are its source's streams and the constant:
//!
//! - **Layers they read** keep their indices, since the target's new layers follow at the end.
//! - **Fusion**: the columns of the constant are 0, but for a new row that hands it on. So the
//!   head's own stream holds the constant as embeddings and the target's stream do, through a
//!   chain of EAGLE-3 passes too: every norm has the same ε', and an output head of the head's
//!   own pushes new draft tokens down as the target's does.
//! - **Attention**: query, key and value of EAGLE-3 read two streams side by side, and both grow.
//!   Norms of query and key heads find their numbers at the rotary pairs; new ones are 0 in
//!   queries, too. Their weights, in fp32, take the place of the factor √m on queries.
//! - **Draft vocabulary**: new draft tokens draft new tokens of the target, in order.
//! - **Markov head**: the new columns of w1 are 0, those of w2 filler. **Confidence head**: 0 for
//!   what is new.
//!
//! Factors that are multiplied by 0 are random filler, the same in every run. Sources of
//! inexactness: norm weights are rounded to fp32, and query weights to bf16 unless √m is a
//! power of two or they are normalised; a head tied to the embedding adds the same number, far
//! below rounding, to the logits of all real tokens. Norms of query and key heads get ε' as well,
//! where ε·d/d' would be right: their numbers change by a share of about ε over twice their mean
//! square. The constant that ε' accounts for is that of a target with the head's epsilon: the
//! head's norms miss theirs by half the difference to the target's.
#![forbid(unsafe_code)]

mod grown;
mod grown_head;
mod head_plan;
mod matrix;
mod plan;
mod role;
mod shape;
mod staging;
#[cfg(test)]
mod tests;
mod writer;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::files::{CONFIG, ModelFiles};
use super::safetensors_file::TensorFiles;
use super::{DraftHead, HeadKind, ModelError, ModelSource, load};
use crate::protocol::ModelRole;

pub use role::InflateRole;
pub use shape::{InflateShape, SHAPES};

use grown::Grown;
use grown_head::GrownHead;
use plan::PlannedTensor;
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
    /// Size of the draft vocabulary, instead of the usual one, of a head that has its own.
    pub draft_vocab_size: Option<usize>,
    /// Threads that generate and write weights.
    pub threads: usize,
    /// Size limit of a weight file, in bytes; tensors are never split.
    pub shard_bytes_max: u64,
}

impl Default for InflateOptions {
    fn default() -> InflateOptions {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        InflateOptions { vocab_size: None, draft_vocab_size: None, threads, shard_bytes_max: 2 << 30 }
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
    /// The source is something else than its role says.
    #[error("{source_name} holds {}, not {}{}", role::what(*held), role::what(*wanted), role::advice(*held))]
    Role {
        /// Name of the source.
        source_name: String,
        /// What it holds: a head of this kind, or a model.
        held: Option<HeadKind>,
        /// What its role says.
        wanted: Option<HeadKind>,
    },
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

/// What is to be written.
struct Inflation {
    config: Value,
    tensors: Vec<PlannedTensor>,
    parameters_before: u64,
}

/// Writes `source` (its `role`, if it is a pair) to `directory` in Hugging Face format with
/// the dimensions of `shape`; of a draft head, that is the shape of its target. Memory use is
/// small and independent of the result's size. The directory appears when it is complete.
///
/// # Errors
/// See [`InflateError`]; a failed run leaves nothing.
pub fn inflate(
    source: &ModelSource,
    role: InflateRole,
    directory: &Path,
    shape: &InflateShape,
    options: &InflateOptions,
    on_progress: OnInflateProgress,
) -> Result<InflateReport, InflateError> {
    let Inflation { config, tensors, parameters_before } = match role {
        InflateRole::Target => of_model(source, ModelRole::Target, shape, options)?,
        InflateRole::Draft => of_model(source, ModelRole::Draft, shape, options)?,
        InflateRole::Eagle3 => of_head(source, HeadKind::Eagle3, shape, options)?,
        InflateRole::DSpark => of_head(source, HeadKind::DSpark, shape, options)?,
    };
    let staging = Staging::begin(directory)?;
    let files = ModelFiles::open(source, role.of_pair())?;
    for name in COPIED_FILES.into_iter().filter(|name| files.has(name)) {
        write_file(&staging.path().join(name), &files.read(name)?)?;
    }
    let config = serde_json::to_vec_pretty(&config).unwrap_or_default();
    write_file(&staging.path().join(CONFIG), &config)?;
    let written = writer::write(staging.path(), &tensors, options, on_progress)?;
    staging.finish()?;
    Ok(InflateReport {
        directory: directory.to_owned(),
        shards: written.shards,
        weight_bytes: written.bytes,
        parameters_before,
        parameters_after: tensors.iter().map(PlannedTensor::parameters).sum(),
    })
}

fn of_model(
    source: &ModelSource,
    role: ModelRole,
    shape: &InflateShape,
    options: &InflateOptions,
) -> Result<Inflation, InflateError> {
    if options.draft_vocab_size.is_some() {
        return Err(no_fit(source, shape)("a model has no draft vocabulary".to_owned()));
    }
    let model = match load(source, role) {
        Err(ModelError::DraftHead { kind, .. }) => {
            let source_name = source.to_string();
            return Err(InflateError::Role { source_name, held: Some(kind), wanted: None });
        }
        loaded => loaded?,
    };
    let grown = Grown::new(&model, shape, options.vocab_size).map_err(no_fit(source, shape))?;
    Ok(Inflation {
        config: grown.config_json(&ModelFiles::open(source, role)?)?,
        tensors: plan::tensors(&model.loaded.weights, &grown),
        parameters_before: plan::parameters(&model.loaded),
    })
}

fn of_head(
    source: &ModelSource,
    kind: HeadKind,
    shape: &InflateShape,
    options: &InflateOptions,
) -> Result<Inflation, InflateError> {
    let head = DraftHead::load(source, None)?;
    let held = head.as_ref().map(DraftHead::kind);
    let Some(head) = head.filter(|head| head.kind() == kind) else {
        return Err(InflateError::Role { source_name: source.to_string(), held, wanted: Some(kind) });
    };
    let grown = GrownHead::new(&head, shape, options).map_err(no_fit(source, shape))?;
    let files = ModelFiles::open(source, ModelRole::Draft)?;
    Ok(Inflation {
        config: grown.config_json(&files)?,
        tensors: head_plan::tensors(&head, &grown, &TensorFiles::open(&files)?),
        parameters_before: head_plan::parameters(&head),
    })
}

fn no_fit(source: &ModelSource, shape: &InflateShape) -> impl FnOnce(String) -> InflateError {
    let (source_name, shape) = (source.name(), shape.name.to_owned());
    |problem| InflateError::Shape { source_name, shape, problem }
}

fn write_file(file: &Path, bytes: &[u8]) -> Result<(), InflateError> {
    std::fs::write(file, bytes).map_err(|source| InflateError::Io { file: file.to_owned(), source })
}
