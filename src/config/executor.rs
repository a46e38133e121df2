//! `[executor]`: what computes, and how much in one call.

use std::time::Duration;

use super::reader::{Integer, Section};
use super::render::Entry;

const THREADS: Integer = Integer::new("threads", 0, 0, 1024);
const BATCH_TOKENS_MAX: Integer = Integer::new("batch_tokens_max", 512, 1, 65_536);
const BATCH_SEQUENCES_MAX: Integer = Integer::new("batch_sequences_max", 64, 1, 1024);
const STEP_TIMEOUT_MS: Integer = Integer::new("step_timeout_ms", 30_000, 100, 600_000);
const GPU: Integer = Integer::new("gpu", 0, 0, 63);
const BACKEND_BOUND: &str = "\"cpu\" or \"cuda\"";

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The processor's own vector units.
    Cpu,
    /// An NVIDIA GPU; needs a build with the feature `cuda`.
    Cuda,
}

impl Backend {
    /// As the config spells it.
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

/// The executor and the size of its calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorConfig {
    /// What computes.
    pub backend: Backend,
    /// Threads of the CPU backend; 0: one for each core.
    pub threads: usize,
    /// Which GPU the CUDA backend takes, as CUDA_VISIBLE_DEVICES leaves them.
    pub gpu: u32,
    /// Most input tokens in one call, over all sequences.
    pub batch_tokens_max: u32,
    /// Most sequences in one call.
    pub batch_sequences_max: u32,
    /// A step that takes longer than this means that the device hangs.
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
