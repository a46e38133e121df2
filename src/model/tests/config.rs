use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::Directory;
use crate::model::config_json::parse_config;
use crate::model::{HeadSettings, load_pair_within};

/// Sets keys of a model's config.json and gives the error of loading it.
fn refused(model_type: &str, changes: Json) -> String {
    changed(model_type, changes).error()
}

fn changed(model_type: &str, changes: Json) -> Directory {
    let mut made = Directory::new(model_type);
    for (key, value) in changes.as_object().expect("an object") {
        made.set(key, value.clone());
    }
    made
}

#[test]
fn unimplemented_settings_are_rejected_by_key_and_value() {
    let window = json!({"sliding_window": 32});
    let qwen_window = json!({"sliding_window": 32, "use_sliding_window": true, "max_window_layers": 1});
    let layer_types = json!({"sliding_window": 32, "layer_types": ["full_attention", "sliding_attention"]});
    for (model_type, changes, expected) in [
        ("llama", json!({"model_type": "mixtral"}), "`model_type` is \"mixtral\": not supported"),
        ("llama", json!({"hidden_act": "gelu"}), "`hidden_act` is \"gelu\""),
        (
            "llama",
            json!({"quantization_config": {"quant_method": "gptq"}}),
            "`quantization_config` is {\"quant_method\":\"gptq\"}",
        ),
        ("qwen3", json!({"num_experts": 8}), "`num_experts` is 8: mixtures of experts"),
        ("mistral", window, "`sliding_window` is 32: sliding-window attention is not supported"),
        ("qwen2", qwen_window, "`sliding_window` is 32"),
        ("mistral", layer_types, "`sliding_window` is 32"),
        ("mistral", json!({"attention_bias": true}), "`attention_bias` is true: mistral has no"),
        ("qwen2", json!({"mlp_bias": true}), "`mlp_bias` is true: qwen2 has no"),
    ] {
        let error = refused(model_type, changes);
        assert!(error.contains("config.json: ") && error.contains(expected), "{error}");
    }
}

#[test]
fn a_sliding_window_that_hides_nothing_is_no_obstacle() {
    for (model_type, changes) in [
        ("mistral", json!({"sliding_window": null})),
        ("mistral", json!({"sliding_window": 64})),
        ("qwen2", json!({"sliding_window": 32, "use_sliding_window": false})),
        ("qwen2", json!({"sliding_window": 32, "use_sliding_window": true, "max_window_layers": 2})),
        (
            "qwen3",
            json!({"sliding_window": 32, "use_sliding_window": true,
                         "layer_types": ["full_attention", "full_attention"]}),
        ),
    ] {
        changed(model_type, changes).load().expect("it loads");
    }
}

#[test]
fn a_window_that_transformers_applies_is_refused_even_if_the_file_does_not_name_it() {
    let long = json!({"max_position_embeddings": 32_768});
    let error = refused("mistral", long.clone());
    assert!(error.contains("`sliding_window` is null: sliding-window attention is not supported"), "{error}");
    assert!(
        error.contains("window of 4096 tokens; set target.context_tokens_max to at most 4096"),
        "{error}"
    );
    changed("llama", long.clone()).load().expect("a llama has no window");
    changed("qwen2", long).load().expect("a qwen2 has none unless it says so");
    let full = json!({"sliding_window": 16, "layer_types": ["full_attention", "full_attention"]});
    assert!(refused("mistral", full).contains("to at most 16"), "layer_types has no effect on a mistral");
    let more_layers = json!({"sliding_window": 16, "use_sliding_window": true});
    changed("qwen3", more_layers).load().expect("the first 28 layers do not slide");
}

#[test]
fn a_capped_context_makes_room_for_a_model_with_a_sliding_window() {
    let made = changed("mistral", json!({"sliding_window": 32}));
    made.write_all();
    let load = |cap| load_pair_within(&made.source(), None, &HeadSettings::default(), Some(cap));
    assert_eq!(load(32).expect("nothing is hidden").target.loaded.spec.context_tokens_max, 32);
    load(33).expect_err("the window would hide a token");
}

#[test]
fn a_missing_key_is_named() {
    for key in [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ] {
        let mut made = Directory::new("llama");
        made.config.as_object_mut().expect("an object").remove(key);
        let error = made.error();
        assert!(error.ends_with(&format!("config.json has no `{key}`")), "{error}");
    }
}

#[test]
fn a_value_of_the_wrong_kind_or_out_of_bounds_is_shown() {
    for (key, value, expected) in [
        ("hidden_size", json!("8"), "`hidden_size` is \"8\": expected a whole number"),
        ("hidden_size", json!(0), "`hidden_size` is 0"),
        ("hidden_size", json!(-8), "`hidden_size` is -8"),
        ("vocab_size", json!(1_u64 << 40), "`vocab_size` is 1099511627776"),
        ("num_hidden_layers", json!(1.5), "`num_hidden_layers` is 1.5"),
        ("num_key_value_heads", json!(3), "`num_key_value_heads` is 3: must divide `num_attention_heads` 2"),
        ("head_dim", json!(5), "`head_dim` is 5: results in heads of odd width"),
        ("rms_norm_eps", json!(0), "`rms_norm_eps` is 0"),
        ("tie_word_embeddings", json!("yes"), "`tie_word_embeddings` is \"yes\""),
        ("eos_token_id", json!(8), "`eos_token_id` is 8: expected token ids below `vocab_size` 8"),
        ("eos_token_id", json!([2, "x"]), "`eos_token_id` is [2,\"x\"]"),
        ("layer_types", json!(7), "`layer_types` is 7: expected a list"),
    ] {
        let model_type = if key == "layer_types" { "qwen2" } else { "llama" };
        let window = json!({key: value, "sliding_window": 32, "use_sliding_window": true});
        let error = refused(model_type, window);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_long_value_is_cut_in_the_message() {
    let error = refused("llama", json!({"hidden_act": "é".repeat(5_000)}));
    assert!(error.chars().count() < 400 && error.contains('…'), "{error}");
}

#[test]
fn head_width_and_key_heads_are_derived_where_the_config_leaves_them_out() {
    let mut made = Directory::new("llama");
    made.config.as_object_mut().expect("an object").remove("head_dim");
    assert_eq!(made.load().expect("it loads").loaded.spec.head_dim, 4);
    made.set("num_attention_heads", json!(3)).set("num_key_value_heads", json!(3));
    let error = made.error();
    assert!(error.contains("`hidden_size` is 8: must be a multiple of `num_attention_heads` 3"), "{error}");

    let mut made = Directory::new("llama");
    made.config.as_object_mut().expect("an object").remove("num_key_value_heads");
    let error = made.error();
    assert!(error.contains("k_proj.weight` has shape [4, 8], but config.json implies [8, 8]"), "{error}");
    let mut made = Directory::new("qwen2");
    made.config.as_object_mut().expect("an object").remove("num_key_value_heads");
    let error = made.error();
    assert!(error.contains("has no `num_key_value_heads`"), "{error}");
}

#[test]
fn a_qwen3_without_head_dim_has_heads_of_128() {
    let mut made = Directory::new("qwen3");
    made.config.as_object_mut().expect("an object").remove("head_dim");
    let error = made.error();
    assert!(error.contains("q_proj.weight` has shape [8, 8], but config.json implies [256, 8]"), "{error}");
}

#[test]
fn a_config_that_is_no_object_is_refused() {
    let mut made = Directory::new("llama");
    made.config = json!([1]);
    let error = made.error();
    assert!(error.contains("`(root)` is [1]: expected an object"), "{error}");
}

fn any_json() -> impl Strategy<Value = Json> {
    let numbers = [0, 1, -1, i64::MAX, i64::MIN, 1 << 31, 1 << 21];
    prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        prop::sample::select(numbers.to_vec()).prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        ".{0,8}".prop_map(Json::from),
        prop::collection::vec(any::<u32>(), 0..4).prop_map(Json::from),
        any::<f64>().prop_map(|factor| json!({"rope_type": "linear", "factor": factor})),
        any::<[f64; 4]>().prop_map(|[a, b, c, d]| {
            json!({"rope_type": "llama3", "factor": a, "low_freq_factor": b, "high_freq_factor": c,
                   "original_max_position_embeddings": d})
        }),
    ]
}

proptest! {
    #[test]
    fn any_value_under_any_key_is_taken_or_refused(
        keys in prop::collection::vec((prop::sample::select(KEYS.to_vec()), any_json()), 1..4),
        model_type in prop::sample::select(vec!["llama", "mistral", "qwen2", "qwen3"]),
    ) {
        let mut config = Directory::config(model_type);
        for (key, value) in keys {
            config[key] = value;
        }
        if let Ok(parsed) = parse_config("config.json", &config, None) {
            let spec = parsed.spec;
            prop_assert!(spec.heads % spec.kv_heads == 0 && spec.head_dim % 2 == 0 && spec.vocab_size > 0);
            prop_assert!(parsed.eos.iter().all(|id| (*id as usize) < spec.vocab_size));
            prop_assert!(spec.rms_norm_eps > 0.0 && spec.rms_norm_eps <= 1.0);
            let frequencies = spec.rope.inverse_frequencies(8);
            prop_assert!(frequencies.iter().all(|f| (0.0..=1.0).contains(f)), "{frequencies:?}");
        }
    }
}

const KEYS: [&str; 20] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "tie_word_embeddings",
    "attention_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "eos_token_id",
];
