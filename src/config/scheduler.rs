//! `[scheduler]`: limits of the running set and the queue.

use super::reader::{Integer, Section};
use super::render::Entry;

const RUNNING_REQUESTS_MAX: Integer = Integer::new("running_requests_max", 32, 1, 1024);
const QUEUE_REQUESTS_MAX: Integer = Integer::new("queue_requests_max", 256, 1, 1 << 20);
const QUEUE_PROMPT_TOKENS_MAX: Integer = Integer::new("queue_prompt_tokens_max", 65_536, 1, 1 << 32);
const PREFILL_CHUNK_TOKENS_MAX: Integer = Integer::new("prefill_chunk_tokens_max", 256, 1, 65_536);

/// Limits of the running set and the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Most running requests.
    pub running_requests_max: u32,
    /// Most waiting requests.
    pub queue_requests_max: u32,
    /// Most prompt tokens of all waiting requests together.
    pub queue_prompt_tokens_max: u64,
    /// Most prefill tokens per step, over all requests.
    pub prefill_chunk_tokens_max: u32,
}

impl SchedulerConfig {
    pub(super) fn read(mut section: Section<'_>) -> SchedulerConfig {
        let config = SchedulerConfig {
            running_requests_max: section.integer(&RUNNING_REQUESTS_MAX) as u32,
            queue_requests_max: section.integer(&QUEUE_REQUESTS_MAX) as u32,
            queue_prompt_tokens_max: section.integer(&QUEUE_PROMPT_TOKENS_MAX),
            prefill_chunk_tokens_max: section.integer(&PREFILL_CHUNK_TOKENS_MAX) as u32,
        };
        section.finish();
        config
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        vec![
            Entry::integer(&RUNNING_REQUESTS_MAX, u64::from(self.running_requests_max)),
            Entry::integer(&QUEUE_REQUESTS_MAX, u64::from(self.queue_requests_max)),
            Entry::integer(&QUEUE_PROMPT_TOKENS_MAX, self.queue_prompt_tokens_max),
            Entry::integer(&PREFILL_CHUNK_TOKENS_MAX, u64::from(self.prefill_chunk_tokens_max)),
        ]
    }
}
