//! `[scheduler]`: order of service, limits of the running set and the queue.

use std::time::Duration;

use super::reader::{Integer, Section};
use super::render::Entry;
use crate::pacing::ServiceOrder;
use crate::policy::registry::PolicyName;

const RUNNING_REQUESTS_MAX: Integer = Integer::new("running_requests_max", 32, 1, 1024);
const QUEUE_REQUESTS_MAX: Integer = Integer::new("queue_requests_max", 256, 1, 1 << 20);
const QUEUE_PROMPT_TOKENS_MAX: Integer = Integer::new("queue_prompt_tokens_max", 65_536, 1, 1 << 32);
const QUEUE_WAIT_MS_MAX: Integer = Integer::new("queue_wait_ms_max", 60_000, 100, 86_400_000);
const PREFILL_CHUNK_TOKENS_MAX: Integer = Integer::new("prefill_chunk_tokens_max", 256, 1, 65_536);
const ORDER_BOUND: &str = "\"fifo\" or \"slo\"";

/// Order of service, limits of the running set and the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// In which order requests are served.
    pub order: ServiceOrder,
    /// Most running requests.
    pub running_requests_max: u32,
    /// Most waiting requests.
    pub queue_requests_max: u32,
    /// Most prompt tokens of all waiting requests together.
    pub queue_prompt_tokens_max: u64,
    /// Longest wait from a request's arrival to the first step that includes it.
    pub queue_wait_max: Duration,
    /// Most prefill tokens per step, over all requests. By slack, a step may take more where
    /// `executor.batch_tokens_max` has room for it beside all drafts.
    pub prefill_chunk_tokens_max: u32,
}

impl SchedulerConfig {
    /// Reads the section. Where it names no order the default depends on the policy, which is
    /// read later: see [`order_with`](Self::order_with).
    pub(super) fn read(mut section: Section<'_>) -> (SchedulerConfig, Option<ServiceOrder>) {
        let order = section.parsed("order", &format!("give {ORDER_BOUND}"), |text| {
            text.parse::<ServiceOrder>().map_err(|_| "is not an order".to_owned())
        });
        let config = SchedulerConfig {
            order: order.unwrap_or(ServiceOrder::Fifo),
            running_requests_max: section.integer(&RUNNING_REQUESTS_MAX) as u32,
            queue_requests_max: section.integer(&QUEUE_REQUESTS_MAX) as u32,
            queue_prompt_tokens_max: section.integer(&QUEUE_PROMPT_TOKENS_MAX),
            queue_wait_max: Duration::from_millis(section.integer(&QUEUE_WAIT_MS_MAX)),
            prefill_chunk_tokens_max: section.integer(&PREFILL_CHUNK_TOKENS_MAX) as u32,
        };
        section.finish();
        (config, order)
    }

    /// The order where none is configured: by slack where the policy has step times anyway and was
    /// made for it.
    pub fn order_with(policy: PolicyName) -> ServiceOrder {
        match policy {
            PolicyName::SpecServe => ServiceOrder::Slo,
            _ => ServiceOrder::Fifo,
        }
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        vec![
            Entry::text("order", self.order.name(), ORDER_BOUND),
            Entry::integer(&RUNNING_REQUESTS_MAX, u64::from(self.running_requests_max)),
            Entry::integer(&QUEUE_REQUESTS_MAX, u64::from(self.queue_requests_max)),
            Entry::integer(&QUEUE_PROMPT_TOKENS_MAX, self.queue_prompt_tokens_max),
            Entry::integer(&QUEUE_WAIT_MS_MAX, self.queue_wait_max.as_millis() as u64),
            Entry::integer(&PREFILL_CHUNK_TOKENS_MAX, u64::from(self.prefill_chunk_tokens_max)),
        ]
    }
}
