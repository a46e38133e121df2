//! `[executor]`: the backend and its batch limits.

use std::time::Duration;

use super::reader::{Integer, Section};
use super::render::Entry;

const THREADS: Integer = Integer::new("threads", 0, 0, 1024);
const BATCH_TOKENS_MAX: Integer = Integer::new("batch_tokens_max", 512, 1, 65_536);
const BATCH_SEQUENCES_MAX: Integer = Integer::new("batch_sequences_max", 64, 1, 1024);
const STEP_TIMEOUT_MS: Integer = Integer::new("step_timeout_ms", 30_000, 100, 600_000);
const GPU: Integer = Integer::new("gpu", 0, 0, 63);
const BACKEND_BOUND: &str = "\"cpu\" or \"cuda\"";

/// The executor's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The CPU's vector units.
    Cpu,
    /// An NVIDIA GPU; requires a build with the feature `cuda`.
    Cuda,
}

impl Backend {
    /// Name in the config.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
        }
    }

    fn parse(text: &str) -> Result<Backend, String> {
        match text {
            "cpu" => Ok(Backend::Cpu),
            "cuda" => Ok(Backend::Cuda),
            _ => Err("is not a backend".to_owned()),
        }
    }
}

/// Backend and batch limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorConfig {
    /// Device that runs the models.
    pub backend: Backend,
    /// Threads of the CPU backend; 0 means one per core.
    pub threads: usize,
    /// Index of the CUDA backend's GPU, among those that CUDA_VISIBLE_DEVICES exposes.
    pub gpu: u32,
    /// Most input tokens of one forward pass, over all sequences.
    pub batch_tokens_max: u32,
    /// Most sequences of one forward pass.
    pub batch_sequences_max: u32,
    /// A step that takes longer counts as a device hang.
    pub step_timeout: Duration,
}

impl ExecutorConfig {
    pub(super) fn read(mut section: Section<'_>) -> ExecutorConfig {
        let config = ExecutorConfig {
            backend: section
                .parsed("backend", &format!("give {BACKEND_BOUND}"), Backend::parse)
                .unwrap_or(Backend::Cpu),
            threads: section.integer(&THREADS) as usize,
            gpu: section.integer(&GPU) as u32,
            batch_tokens_max: section.integer(&BATCH_TOKENS_MAX) as u32,
            batch_sequences_max: section.integer(&BATCH_SEQUENCES_MAX) as u32,
            step_timeout: Duration::from_millis(section.integer(&STEP_TIMEOUT_MS)),
        };
        section.finish();
        config
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        vec![
            Entry::text("backend", self.backend.name(), BACKEND_BOUND),
            Entry::integer(&THREADS, self.threads as u64),
            Entry::integer(&GPU, self.gpu.into()),
            Entry::integer(&BATCH_TOKENS_MAX, u64::from(self.batch_tokens_max)),
            Entry::integer(&BATCH_SEQUENCES_MAX, u64::from(self.batch_sequences_max)),
            Entry::integer(&STEP_TIMEOUT_MS, self.step_timeout.as_millis() as u64),
        ]
    }
}
