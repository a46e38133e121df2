//! Response bodies of the generation routes.

use serde_json::{Value, json};

use super::answer::Completion;
use super::request::Endpoint;
use crate::protocol::{FinishReason, RequestId, RequestSummary, unix_time};

/// Fields common to all bodies of one response.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub endpoint: Endpoint,
    pub id: String,
    pub created_unix_s: u64,
    pub model: String,
    pub prompt_tokens: u32,
    pub seed: u64,
}

impl Envelope {
    /// Creates the envelope of a newly admitted request.
    pub fn new(endpoint: Endpoint, id: RequestId, model: &str, prompt_tokens: u32, seed: u64) -> Envelope {
        let since_epoch = unix_time();
        let prefix = match endpoint {
            Endpoint::Completions => "cmpl",
            Endpoint::Chat => "chatcmpl",
        };
        // Request numbers restart with the process; the time keeps ids unique across restarts.
        let id = format!("{prefix}-{:x}-{id}", since_epoch.as_micros());
        let (model, created_unix_s) = (model.to_owned(), since_epoch.as_secs());
        Envelope { endpoint, id, created_unix_s, model, prompt_tokens, seed }
    }

    /// The body of a response in one piece; `text` is the complete text.
    pub fn whole(&self, text: &str, completion: &Completion) -> Value {
        let choice = match self.endpoint {
            Endpoint::Completions => json!({"index": 0, "text": text}),
            Endpoint::Chat => json!({
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": null},
            }),
        };
        let object = match self.endpoint {
            Endpoint::Completions => "text_completion",
            Endpoint::Chat => "chat.completion",
        };
        let mut body = self.body(object, json!([closed(choice, Some(completion.reason))]));
        body["usage"] = self.usage(completion.output_tokens);
        body["metrics"] = self.metrics(completion.summary.as_ref());
        body
    }

    /// A streamed chunk with the next text delta; the first chunk of a chat carries the role.
    pub fn chunk(&self, text: &str, first: bool, reason: Option<FinishReason>) -> Value {
        let choice = match self.endpoint {
            Endpoint::Completions => json!({"index": 0, "text": text}),
            Endpoint::Chat if first => json!({"index": 0, "delta": {"role": "assistant", "content": text}}),
            Endpoint::Chat if text.is_empty() => json!({"index": 0, "delta": {}}),
            Endpoint::Chat => json!({"index": 0, "delta": {"content": text}}),
        };
        self.body(self.chunk_object(), json!([closed(choice, reason)]))
    }

    /// The final chunk of a stream, which carries the usage and no text.
    pub fn usage_chunk(&self, completion: &Completion) -> Value {
        let mut body = self.body(self.chunk_object(), json!([]));
        body["usage"] = self.usage(completion.output_tokens);
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

    /// The engine's timings and speculation counts, and the seed that reproduces the output.
    pub fn metrics(&self, summary: Option<&RequestSummary>) -> Value {
        let Some(summary) = summary else { return json!({"seed": self.seed}) };
        let speculation = &summary.speculation;
        let steps = f64::from(speculation.steps);
        let mean_acceptance_length =
            (speculation.steps > 0).then(|| 1.0 + f64::from(speculation.accepted) / steps);
        json!({
            "queue_ms": summary.queue_time().as_millis_f64(),
            "ttft_ms": summary.ttft().as_millis_f64(),
            "tpot_ms": summary.tpot().map(|tpot| tpot.as_millis_f64()),
            "speculative_decoding": {
                "steps": speculation.steps,
                "drafted": speculation.drafted,
                "verified": speculation.verified,
                "accepted": speculation.accepted,
                "mean_acceptance_length": mean_acceptance_length,
            },
            "preemptions": summary.preemptions,
            "seed": self.seed,
        })
    }
}

fn closed(mut choice: Value, reason: Option<FinishReason>) -> Value {
    choice["logprobs"] = Value::Null;
    choice["finish_reason"] = json!(reason);
    choice
}
