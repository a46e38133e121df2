//! Fields of the OpenAI API and of other servers that this one has no use for.
//!
//! Clients written for another server send its fields, most of them at values that ask for nothing.
//! Those are taken. A value that would change the answer is refused rather than ignored.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, brief, whole};

/// Values of a field that ask for nothing.
struct Neutral {
    fields: &'static [&'static str],
    accepts: fn(&Value) -> bool,
}

/// Known fields by their neutral values. Documented in docs/api.md.
const KNOWN: &[Neutral] = &[
    // These do not concern the output.
    Neutral {
        fields: &[
            "cache_prompt",
            "metadata",
            "parallel_tool_calls",
            "prompt_cache_key",
            "prompt_cache_retention",
            "request_id",
            "rid",
            "safety_identifier",
            "service_tier",
            "session_id",
            "store",
            "user",
        ],
        accepts: |_| true,
    },
    Neutral {
        fields: &[
            "continue_final_message",
            "echo",
            "include_stop_str_in_output",
            "logprobs",
            "no_stop_trim",
            "return_cached_tokens_details",
            "return_hidden_states",
            "return_logprob",
            "return_meta_info",
            "return_progress",
            "return_prompt_token_ids",
            "return_routed_experts",
            "return_token_strs",
            "return_token_ids",
            "return_tokens_as_token_ids",
            "timings_per_token",
            "use_beam_search",
        ],
        accepts: |value| *value == json!(false),
    },
    Neutral {
        fields: &[
            "add_generation_prompt",
            "detokenize",
            "include_reasoning",
            "separate_reasoning",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "stream_reasoning",
        ],
        accepts: |value| *value == json!(true),
    },
    Neutral {
        fields: &[
            "data_parallel_rank",
            "dry_multiplier",
            "dynatemp_range",
            "mirostat",
            "n_probs",
            "priority",
            "routed_dp_rank",
            "top_a",
            "top_logprobs",
            "xtc_probability",
        ],
        accepts: |value| whole(value) == Some(0),
    },
    Neutral {
        fields: &["best_of", "length_penalty", "n", "repeat_penalty", "tfs_z", "typical_p"],
        accepts: |value| whole(value) == Some(1),
    },
    Neutral { fields: &["id_slot"], accepts: |value| whole(value) == Some(-1) },
    Neutral {
        fields: &[
            "allowed_token_ids",
            "bad_words",
            "chat_template_kwargs",
            "custom_params",
            "documents",
            "functions",
            "kv_transfer_params",
            "logits_processors",
            "media_io_kwargs",
            "mm_processor_kwargs",
            "session_params",
            "stop_regex",
            "suffix",
            "tools",
            "vllm_xargs",
        ],
        accepts: is_empty,
    },
    Neutral {
        fields: &["function_call", "reasoning_effort", "tool_choice"],
        accepts: |value| *value == json!("none"),
    },
    Neutral { fields: &["verbosity"], accepts: |value| *value == json!("medium") },
    Neutral { fields: &["thinking"], accepts: |value| *value == json!({"type": "disabled"}) },
    Neutral { fields: &["modalities"], accepts: |value| *value == json!(["text"]) },
    // Any value asks for something.
    Neutral {
        fields: &[
            "audio",
            "bootstrap_host",
            "bootstrap_port",
            "bootstrap_room",
            "cache_salt",
            "chat_template",
            "custom_logit_processor",
            "ebnf",
            "extra_key",
            "grammar",
            "json_schema",
            "lora_path",
            "prediction",
            "prompt_embeds",
            "prompt_logprobs",
            "regex",
            "repetition_detection",
            "speculative",
            "structural_tag",
            "thinking_token_budget",
            "truncate_prompt_tokens",
            "web_search_options",
        ],
        accepts: |_| false,
    },
];

/// Drops the known fields that hold a neutral value.
///
/// # Errors
/// 400 for another value, naming the field.
pub fn drop_neutral(fields: &mut Fields) -> Result<(), ApiError> {
    for Neutral { fields: names, accepts } in KNOWN {
        for name in *names {
            if let Some(value) = fields.take(name).filter(|value| !accepts(value)) {
                let message = format!("{name} = {} is not supported", brief(&value));
                return Err(ApiError::unsupported(*name, message));
            }
        }
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fields::UnknownFields;

    fn names() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().flat_map(|group| group.fields).copied()
    }

    #[test]
    fn no_field_is_listed_twice() {
        let mut sorted: Vec<_> = names().collect();
        sorted.sort_unstable();
        let count = sorted.len();
        sorted.dedup();
        assert_eq!(sorted.len(), count);
    }

    #[test]
    fn the_docs_name_every_field_that_is_taken_at_a_neutral_value_only() {
        let docs = include_str!("../../docs/api.md");
        let section = docs.split("\n### Fields of other servers\n").nth(1).expect("the section");
        let section = section.split("\n## ").next().expect("split yields one part at least");
        let documented = section.split('`').skip(1).step_by(2);
        let documented: Vec<&str> = documented.filter(|word| names().any(|name| name == *word)).collect();
        for name in names() {
            let count = documented.iter().filter(|&&word| word == name).count();
            assert_eq!(count, 1, "docs/api.md names {name} {count} times");
        }
    }

    #[test]
    fn a_field_at_its_neutral_value_is_dropped_and_at_another_one_refused() {
        let check = |name: &str, value: &Value| {
            let body = json!({name: value}).to_string();
            let mut fields = Fields::from_body(body.as_bytes(), UnknownFields::Refuse).unwrap();
            let dropped = drop_neutral(&mut fields);
            dropped.map(|()| fields.finish().unwrap()).map_err(|error| error.param)
        };
        for (name, neutral, other) in [
            ("echo", json!(false), json!(true)),
            ("skip_special_tokens", json!(true), json!(false)),
            ("top_logprobs", json!(0), json!(2)),
            ("n", json!(1.0), json!(2)),
            ("tools", json!([]), json!([{}])),
            ("suffix", json!(""), json!("end")),
            ("vllm_xargs", json!({}), json!({"a": 1})),
            ("reasoning_effort", json!("none"), json!("low")),
            ("verbosity", json!("medium"), json!("low")),
            ("modalities", json!(["text"]), json!(["audio"])),
            ("structural_tag", Value::Null, json!({"json": {}})),
        ] {
            assert_eq!(check(name, &neutral), Ok(()), "{name}");
            assert_eq!(check(name, &other), Err(Some(name.to_owned())), "{name}");
        }
        assert_eq!(check("store", &json!(true)), Ok(()));
    }
}
