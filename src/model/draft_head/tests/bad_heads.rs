//! Heads that are refused, each with the file, the key or tensor, and what is wrong.

use safetensors::Dtype;
use serde_json::json;

use super::synthetic::{DRAFT_VOCAB, FEATURES, Head, RANK, TARGET_LAYERS};
use crate::model::tests::directory::{HIDDEN, VOCAB};

const LAYER_IDS: &str = "eagle_config/eagle_aux_hidden_state_layer_ids";

type Change = fn(&mut Head) -> &mut Head;

/// Checks that each of these changes makes a head that is refused with these words.
fn refused(head: fn() -> Head, cases: &[(Change, &[&str])]) {
    for (number, (change, words)) in cases.iter().enumerate() {
        let mut head = head();
        change(&mut head);
        let error = head.error();
        for word in *words {
            assert!(error.contains(word), "case {number}: {word:?} is not in {error:?}");
        }
    }
}

#[test]
fn kinds_of_heads_that_are_not_supported_are_refused_by_name() {
    let supported = "EAGLE-3, DFlash and DSpark are";
    refused(
        Head::release,
        &[
            (
                |h| h.set("architectures", json!(["Qwen3NextMTP"])),
                &["`architectures`", "MTP heads", supported],
            ),
            (|h| h.set("architectures", json!(["DeepseekV3ForCausalLMNextN"])), &["MTP heads"]),
            (|h| h.set("architectures", json!(["LlamaForCausalLMEagle"])), &["EAGLE-1 or EAGLE-2 heads"]),
            (|h| h.set("architectures", json!(["PEagleDraftModel"])), &["P-EAGLE heads"]),
            (|h| h.set("architectures", json!(["MedusaModel"])), &["Medusa heads", supported]),
            (|h| h.set("speculators_model_type", json!("mtp")), &["`speculators_model_type`", "mtp heads"]),
            (|h| h.set("speculators_model_type", json!("peagle")), &["peagle heads", supported]),
            (|h| h.set("speculators_model_type", json!(3)), &["expected a string"]),
            (
                |h| h.set("architectures", json!(["LlamaForCausalLM"])).remove("midlayer.hidden_norm.weight"),
                &["EAGLE-1 or EAGLE-2 heads"],
            ),
            (
                |h| h.set("architectures", json!([])).remove("fc.weight").add("mtp.fc.weight", &[8, 16]),
                &["MTP heads"],
            ),
        ],
    );
}

#[test]
fn layers_that_cannot_be_placed_in_the_target_are_refused() {
    refused(
        Head::release,
        &[
            (
                |h| h.set(LAYER_IDS, json!([1, 4, TARGET_LAYERS])),
                &[
                    "config.json: `eagle_config.eagle_aux_hidden_state_layer_ids`",
                    "enters layer 8",
                    "has 8 layers",
                ],
            ),
            (|h| h.set(LAYER_IDS, json!([1, 4])), &["lists 2 layers, but `fc.weight` takes 3"]),
            (|h| h.set(LAYER_IDS, json!([1, 4, 4])), &["names a layer twice"]),
            (|h| h.set(LAYER_IDS, json!([-1, 1, 4])), &["whole numbers from 0 on"]),
            (|h| h.set(LAYER_IDS, json!([1.5, 1, 4])), &["expected a list of layers"]),
            (|h| h.set(LAYER_IDS, json!("1,4,6")), &["expected a list of layers"]),
            (|h| h.set(LAYER_IDS, json!([])), &["expected a list of layers"]),
            (
                |h| h.set("eagle_aux_hidden_state_layer_ids", json!([1, 4, 7])),
                &["differs from another value of this key"],
            ),
            (|h| h.set("target_layer_ids", json!([1, 4, 6])), &["names other layers than another key"]),
            (
                |h| h.set("aux_hidden_state_layer_ids", json!([1, 4, 6])),
                &["how it counts layers is not known", "`target_layer_ids`"],
            ),
            (
                |h| h.unset("eagle_config").add("fc.weight", &[HIDDEN, 2 * HIDDEN]),
                &["missing, and `fc.weight` takes 2 hidden states"],
            ),
            (
                |h| {
                    h.unset("eagle_config");
                    h.target.layers = 4;
                    h
                },
                &["a target of 4 layers is too short"],
            ),
        ],
    );
    refused(
        Head::dspark,
        &[
            (|h| h.set("target_layer_ids", json!([0, 3, 7])), &["`target_layer_ids`", "enters layer 8"]),
            (|h| h.set("target_layer_ids", json!([-2, 3, 5])), &["whole numbers from -1 on"]),
            (|h| h.unset("target_layer_ids"), &["has no `target_layer_ids`"]),
        ],
    );
}

#[test]
fn sizes_that_do_not_match_the_target_s_are_refused() {
    refused(
        Head::release,
        &[
            (
                |h| {
                    h.target.hidden_size = 16;
                    h
                },
                &["`hidden_size` is 8", "the target's is 16", "another target"],
            ),
            (
                |h| h.set("target_hidden_size", json!(16)),
                &["`target_hidden_size` is 16", "the target's is 8"],
            ),
            (
                |h| {
                    h.target.vocab_size = 9;
                    h
                },
                &["`vocab_size` is 8", "the target has 9 tokens"],
            ),
            (|h| h.add("fc.weight", &[HIDDEN, 20]), &["`fc.weight`", "[8, 20]", "multiple", "hidden size 8"]),
            (|h| h.add("fc.weight", &[HIDDEN, 0]), &["`fc.weight`", "[8, 0]"]),
            (|h| h.add("fc.weight", &[HIDDEN]), &["`fc.weight`", "[8]"]),
            (|h| h.add("fc.weight", &[4, FEATURES * HIDDEN]), &["has shape [4, 24]", "implies [8, 24]"]),
            (
                |h| {
                    h.target.hidden_size = 16;
                    h.set("target_hidden_size", json!(16)).add("fc.weight", &[HIDDEN, FEATURES * 16])
                },
                &["`hidden_size` is 8", "no `embed_tokens.weight`", "embedding is 16 wide"],
            ),
            (|h| h.set("draft_vocab_size", json!(VOCAB + 1)), &["`draft_vocab_size` is 9", "from 1 to 8"]),
            (|h| h.set("num_hidden_layers", json!(2)), &["`num_hidden_layers` is 2", "have one layer"]),
        ],
    );
}

#[test]
fn token_maps_that_leave_the_target_s_vocabulary_are_refused() {
    let what = "`d2t` must map each draft token";
    refused(
        Head::release,
        &[
            (|h| h.map_tokens(&[0, 1, 2, 5]), &["draft token 3 at the distance 5", "8 tokens"]),
            (|h| h.map_tokens(&[-1, 1, 2, 3]), &["draft token 0 at the distance -1"]),
            (|h| h.map_tokens(&[0, 1, 2, i64::MAX]), &["draft token 3"]),
            (|h| h.map_tokens(&[1, 0, 2, 3]), &["two draft tokens for the target's token 1"]),
            (|h| h.map_tokens(&[0, 1, 2]), &["tensor `d2t` has shape [3]", "implies [4]"]),
            (
                |h| h.remove("d2t"),
                &["model.safetensors", "a draft vocabulary of 4 tokens beside the target's of 8"],
            ),
            (
                |h| {
                    h.made.tensors.insert("d2t".to_owned(), (Dtype::I32, vec![DRAFT_VOCAB]));
                    h.made.contents.remove("d2t");
                    h
                },
                &["tensor `d2t` is stored as I32; supported: I64"],
            ),
        ],
    );
    let mut unmapped = Head::release();
    unmapped.remove("d2t");
    assert!(unmapped.error().contains(what));
}

#[test]
fn what_config_json_leaves_open_is_refused_with_what_to_set() {
    refused(
        Head::speculators,
        &[
            (
                |h| h.unset("norm_before_residual"),
                &["`norm_before_residual`", "vLLM for true", "the head was trained with one"],
            ),
            (|h| h.set("norm_before_residual", json!("yes")), &["expected true or false"]),
            (
                |h| h.set("fc_norm", json!(true)).set("norm_before_fc", json!(true)),
                &["`fc_norm`", "excludes `norm_before_fc`"],
            ),
            (|h| h.set("norm_before_fc", json!(true)), &["has no tensor `input_norm.weight` [24]"]),
            (|h| h.set("fc_norm", json!(true)), &["has no tensor `fc_norm.0.weight` [8]"]),
            (
                |h| {
                    h.set(
                        "transformer_layer_config/rope_scaling",
                        json!({"rope_type": "yarn", "factor": 2.0}),
                    )
                },
                &["rope_scaling"],
            ),
            (|h| h.set("transformer_layer_config/model_type", json!("gemma3")), &["`llama` and `qwen3` are"]),
            (
                |h| h.set("transformer_layer_config/attention_bias", json!(true)),
                &["with biases are not supported"],
            ),
            (|h| h.set("transformer_layer_config/hidden_act", json!("gelu")), &["`silu` is"]),
            (
                |h| h.unset("transformer_layer_config/hidden_size"),
                &["has no `transformer_layer_config.hidden_size`"],
            ),
            (|h| h.set("transformer_layer_config", json!(1)), &["expected an object"]),
        ],
    );
}

#[test]
fn missing_and_stray_tensors_are_refused() {
    refused(
        Head::release,
        &[
            (
                |h| h.add("midlayer.self_attn.q_norm.weight", &[4]),
                &["has no tensor `midlayer.self_attn.k_norm.weight` [4]"],
            ),
            (
                |h| h.set("model_type", json!("qwen3")),
                &["has no tensor `midlayer.self_attn.q_norm.weight` [4]"],
            ),
            (|h| h.remove("norm.weight"), &["has no tensor `norm.weight` [8]"]),
            (|h| h.remove("midlayer.hidden_norm.weight"), &["`midlayer.hidden_norm.weight`"]),
            (|h| h.remove("lm_head.weight"), &["has no tensor `lm_head.weight` [4, 8]"]),
            (|h| h.remove("fc.weight"), &["has no tensor `fc.weight`"]),
            (
                |h| h.add("midlayer.self_attn.q_proj.weight", &[8, HIDDEN]),
                &["`midlayer.self_attn.q_proj.weight` has shape [8, 8]", "implies [8, 16]"],
            ),
            (|h| h.add("input_norm.weight", &[24]), &["`input_norm.weight` is not part of the model"]),
            (|h| h.add("midlayer.self_attn.q_proj.bias", &[8]), &["q_proj.bias` is not part of"]),
            (|h| h.add("layers.1.mlp.up_proj.weight", &[12, 8]), &["`layers.1.mlp.up_proj.weight`"]),
            (|h| h.add("embed_tokens.weight", &[VOCAB + 1, HIDDEN]), &["implies [8, 8]"]),
        ],
    );
}

#[test]
fn blocks_that_cannot_be_drafted_are_refused() {
    refused(
        Head::dspark,
        &[
            (|h| h.set("block_size", json!(1)), &["`block_size` is 1", "the anchor and at least one mask"]),
            (|h| h.set("block_size", json!(65)), &["`block_size`", "from 1 to 64"]),
            (|h| h.unset("block_size"), &["has no `block_size`"]),
            (|h| h.set("mask_token_id", json!(VOCAB)), &["`mask_token_id` is 8", "a token below 8"]),
            (|h| h.set("mask_token_id", json!(-1)), &["a token below 8"]),
            (|h| h.unset("mask_token_id"), &["has no `mask_token_id`"]),
            (|h| h.set("markov_head_type", json!("gated")), &["`markov_head_type`", "`vanilla` is"]),
            (|h| h.set("markov_head_type", json!("rnn")), &["`vanilla` is"]),
            (|h| h.unset("markov_rank"), &["has no `markov_rank`"]),
            (
                |h| h.set("markov_rank", json!(RANK + 1)),
                &["`markov_head.markov_w1.weight` has shape [8, 2]", "implies [8, 3]"],
            ),
            (|h| h.remove("confidence_head.proj.weight"), &["`confidence_head.proj.weight` [1, 10]"]),
            (
                |h| h.set("confidence_head_with_markov", json!(false)),
                &["`confidence_head.proj.weight` has shape [1, 10]", "implies [1, 8]"],
            ),
            (
                |h| h.set("enable_confidence_head", json!(false)),
                &["`confidence_head.proj.bias` is not part of the model"],
            ),
            (|h| h.set("sample_from_anchor", json!(1)), &["expected true or false"]),
            (|h| h.set("sliding_window_non_causal", json!(true)), &["windows inside a block"]),
            (
                |h| {
                    h.set("use_sliding_window", json!(true))
                        .set("max_window_layers", json!(0))
                        .set("sliding_window", json!(16))
                },
                &["`sliding_window` is 16"],
            ),
            (
                |h| h.set("dflash_config", json!({"block_size": 9})),
                &["`dflash_config.block_size` is 9", "differs"],
            ),
        ],
    );
    refused(
        Head::dflash,
        &[(|h| h.add("markov_head.markov_w1.weight", &[VOCAB, RANK]), &["is not part of the model"])],
    );
}
