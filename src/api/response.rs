//! Response bodies of the generation routes.

use serde_json::{Value, json};

use super::answer::Completion;
use super::backend::BackendInfo;
use super::chat_message;
use super::reasoning_tokens::ReasoningTokens;
use super::reply::{Message, Part};
use super::request::Endpoint;
use crate::protocol::{FinishReason, RequestId, RequestSummary, SpeculationStats, unix_time};

/// Fields common to all bodies of one response.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub endpoint: Endpoint,
    pub id: String,
    pub created_unix_s: u64,
    pub model: String,
    pub prompt_tokens: u32,
    pub seed: u64,
    /// Most draft tokens of a step; 0 without a drafter.
    pub draft_tokens_max: u32,
    /// Tokens of the reasoning, if they are counted.
    pub reasoning_tokens: Option<ReasoningTokens>,
}

impl Envelope {
    /// Creates the envelope of a newly admitted request.
    pub fn new(
        endpoint: Endpoint,
        id: RequestId,
        info: &BackendInfo,
        prompt_tokens: u32,
        seed: u64,
    ) -> Envelope {
        let since_epoch = unix_time();
        let prefix = match endpoint {
            Endpoint::Completions => "cmpl",
            Endpoint::Chat => "chatcmpl",
        };
        // Request numbers restart with the process; the time keeps ids unique across restarts.
        let id = format!("{prefix}-{:x}-{id}", since_epoch.as_micros());
        let (model, created_unix_s) = (info.model.clone(), since_epoch.as_secs());
        let draft_tokens_max = info.draft_tokens_max;
        Envelope {
            endpoint,
            id,
            created_unix_s,
            model,
            prompt_tokens,
            seed,
            draft_tokens_max,
            reasoning_tokens: None,
        }
    }

    /// Adds the count of the reasoning's tokens to the usage.
    #[must_use]
    pub fn with_reasoning_tokens(self, reasoning_tokens: Option<ReasoningTokens>) -> Envelope {
        Envelope { reasoning_tokens, ..self }
    }

    /// The body of a response in one piece.
    pub fn whole(&self, message: &Message, completion: &Completion) -> Value {
        let choice = match self.endpoint {
            Endpoint::Completions => json!({"index": 0, "text": message.content}),
            Endpoint::Chat => json!({"index": 0, "message": chat_message::whole(message)}),
        };
        let object = match self.endpoint {
            Endpoint::Completions => "text_completion",
            Endpoint::Chat => "chat.completion",
        };
        let mut body = self.body(
            object,
            json!([closed(choice, Some(reason_name(completion.reason, !message.calls.is_empty())))]),
        );
        body["usage"] = self.final_usage(completion);
        body["metrics"] = self.metrics(completion.summary.as_ref());
        body
    }

    /// A streamed chunk with the next part; the first chunk of a chat carries the role.
    pub fn chunk(&self, part: &Part, first: bool) -> Value {
        let choice = match (self.endpoint, part) {
            (Endpoint::Chat, part) => json!({"index": 0, "delta": chat_message::delta(part, first)}),
            (Endpoint::Completions, Part::Content(text)) => json!({"index": 0, "text": text}),
            (Endpoint::Completions, other) => unreachable!("a completion is text, not {other:?}"),
        };
        self.body(self.chunk_object(), json!([closed(choice, None)]))
    }

    /// The streamed chunk that ends an answer, with or without tool calls.
    pub fn last_chunk(&self, reason: FinishReason, calls: bool) -> Value {
        let choice = match self.endpoint {
            Endpoint::Completions => json!({"index": 0, "text": ""}),
            Endpoint::Chat => json!({"index": 0, "delta": {}}),
        };
        self.body(self.chunk_object(), json!([closed(choice, Some(reason_name(reason, calls)))]))
    }

    /// The final chunk of a stream, which carries the usage and no text.
    pub fn usage_chunk(&self, completion: &Completion) -> Value {
        let mut body = self.body(self.chunk_object(), json!([]));
        body["usage"] = self.final_usage(completion);
        body
    }

    fn chunk_object(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Completions => "text_completion",
            Endpoint::Chat => "chat.completion.chunk",
        }
    }

    fn body(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created_unix_s,
            "model": self.model,
            "choices": choices,
        })
    }

    /// Token usage after `output_tokens` of output.
    pub fn usage(&self, output_tokens: u32) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": u64::from(self.prompt_tokens) + u64::from(output_tokens),
        })
    }

    /// Token usage of a complete answer, with the prompt tokens that the prefix cache held.
    fn final_usage(&self, completion: &Completion) -> Value {
        let mut usage = self.usage(completion.output_tokens);
        if let Some(summary) = &completion.summary {
            usage["prompt_tokens_details"] = json!({"cached_tokens": summary.cached_tokens});
        }
        if let Some(tokens) = &self.reasoning_tokens {
            usage["completion_tokens_details"] = json!({"reasoning_tokens": tokens.get()});
        }
        usage
    }

    /// The engine's timings and speculation counts, and the seed that reproduces the output.
    pub fn metrics(&self, summary: Option<&RequestSummary>) -> Value {
        let Some(summary) = summary else { return json!({"seed": self.seed}) };
        json!({
            "queue_ms": summary.queue_time().as_millis_f64(),
            "ttft_ms": summary.ttft().as_millis_f64(),
            "tpot_ms": summary.tpot().map(|tpot| tpot.as_millis_f64()),
            "speculative_decoding": self.speculation(&summary.speculation),
            "preemptions": summary.preemptions,
            "seed": self.seed,
        })
    }

    /// Acceptance in the form of vLLM, which AIPerf reads: draft tokens are those that the target
    /// verified. The last field, tokens proposed, pruned ones included, is our own.
    fn speculation(&self, stats: &SpeculationStats) -> Value {
        let mut histogram = stats.steps_by_accepted.clone();
        histogram.resize(histogram.len().max(self.draft_tokens_max as usize + 1), 0);
        json!({
            "mean_acceptance_length": 1.0 + ratio(stats.accepted, stats.steps),
            "draft_acceptance_rate": ratio(stats.accepted, stats.verified),
            "acceptance_histogram": histogram,
            "num_spec_steps": stats.steps,
            "num_accepted_draft_tokens": stats.accepted,
            "num_draft_tokens": stats.verified,
            "num_spec_tokens": self.draft_tokens_max,
            "num_proposed_draft_tokens": stats.drafted,
        })
    }
}

/// 0 if there is nothing to divide.
fn ratio(part: u32, whole: u32) -> f64 {
    f64::from(part) / f64::from(whole.max(1))
}

/// The finish reason of an answer: calls are why it ended, unless it was cut off.
fn reason_name(reason: FinishReason, calls: bool) -> &'static str {
    if calls && reason == FinishReason::Stop { "tool_calls" } else { reason.name() }
}

fn closed(mut choice: Value, reason: Option<&str>) -> Value {
    choice["logprobs"] = Value::Null;
    choice["finish_reason"] = json!(reason);
    choice
}
