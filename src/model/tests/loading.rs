use safetensors::Dtype as Stored;
use serde_json::{Value as Json, json};

use super::Directory;
use super::directory::{HIDDEN, LAYERS, MLP, VOCAB, data, tokenizer_json};
use crate::model::{
    ChatInput, DraftWeights, Dtype, ModelSource, RecommendedSampling, Rope, RopeScaling, Tensor, load,
    load_pair,
};
use crate::protocol::ModelRole;

fn holds(tensor: &Tensor, name: &str, shape: &[usize]) {
    assert_eq!(tensor.shape, shape, "{name}");
    assert_eq!(tensor.bytes(), data(name, Stored::BF16, shape), "{name}");
}

#[test]
fn every_weight_of_a_llama_is_mapped_to_its_field() {
    let model = Directory::new("llama").load().expect("it loads");
    let weights = &model.loaded.weights;
    holds(&weights.embedding, "model.embed_tokens.weight", &[VOCAB, HIDDEN]);
    holds(&weights.head, "model.embed_tokens.weight", &[VOCAB, HIDDEN]);
    holds(&weights.final_norm, "model.norm.weight", &[HIDDEN]);
    assert!(weights.tied_head);
    assert_eq!(weights.layers.len(), LAYERS);
    for (number, layer) in weights.layers.iter().enumerate() {
        let name = |part: &str| format!("model.layers.{number}.{part}.weight");
        holds(&layer.attention_norm, &name("input_layernorm"), &[HIDDEN]);
        holds(&layer.query.weight, &name("self_attn.q_proj"), &[8, HIDDEN]);
        holds(&layer.key.weight, &name("self_attn.k_proj"), &[4, HIDDEN]);
        holds(&layer.value.weight, &name("self_attn.v_proj"), &[4, HIDDEN]);
        holds(&layer.output.weight, &name("self_attn.o_proj"), &[HIDDEN, 8]);
        holds(&layer.mlp_norm, &name("post_attention_layernorm"), &[HIDDEN]);
        holds(&layer.gate.weight, &name("mlp.gate_proj"), &[MLP, HIDDEN]);
        holds(&layer.up.weight, &name("mlp.up_proj"), &[MLP, HIDDEN]);
        holds(&layer.down.weight, &name("mlp.down_proj"), &[HIDDEN, MLP]);
        assert!(layer.query.bias.is_none() && layer.query_norm.is_none() && layer.down.bias.is_none());
    }
}

#[test]
fn the_spec_matches_the_config() {
    let spec = Directory::new("mistral").load().expect("it loads").loaded.spec;
    assert_eq!((spec.model_type.as_str(), spec.vocab_size, spec.hidden_size), ("mistral", VOCAB, HIDDEN));
    assert_eq!((spec.intermediate_size, spec.layers, spec.heads, spec.kv_heads), (MLP, LAYERS, 2, 1));
    assert_eq!((spec.head_dim, spec.context_tokens_max, spec.rms_norm_eps), (4, 64, 1e-5));
    assert_eq!(spec.rope, Rope { theta: 500.0, scaling: RopeScaling::Default });
}

#[test]
fn a_qwen2_has_biases_on_query_key_and_value_only() {
    let model = Directory::new("qwen2").load().expect("it loads");
    let layer = &model.loaded.weights.layers[1];
    let bias = layer.query.bias.as_ref().expect("a query bias");
    holds(bias, "model.layers.1.self_attn.q_proj.bias", &[8]);
    assert!(layer.key.bias.is_some() && layer.value.bias.is_some());
    assert!(layer.output.bias.is_none() && layer.gate.bias.is_none());
}

#[test]
fn a_qwen3_has_norms_on_query_and_key_heads() {
    let model = Directory::new("qwen3").load().expect("it loads");
    let layer = &model.loaded.weights.layers[0];
    holds(layer.query_norm.as_ref().expect("a query norm"), "model.layers.0.self_attn.q_norm.weight", &[4]);
    holds(layer.key_norm.as_ref().expect("a key norm"), "model.layers.0.self_attn.k_norm.weight", &[4]);
    assert!(layer.query.bias.is_none());
}

#[test]
fn a_llama_with_the_bias_flags_has_biases_everywhere() {
    let mut made = Directory::new("llama");
    made.set("attention_bias", json!(true)).set("mlp_bias", json!(true));
    made.add_to_layers(&[
        ("q_proj.bias", 8),
        ("k_proj.bias", 4),
        ("v_proj.bias", 4),
        ("o_proj.bias", HIDDEN),
    ]);
    for layer in 0..LAYERS {
        for (name, len) in [("gate_proj", MLP), ("up_proj", MLP), ("down_proj", HIDDEN)] {
            made.add(&format!("model.layers.{layer}.mlp.{name}.bias"), &[len]);
        }
    }
    let model = made.load().expect("it loads");
    let layer = &model.loaded.weights.layers[0];
    for linear in [&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate, &layer.up, &layer.down]
    {
        assert!(linear.bias.is_some());
    }
}

#[test]
fn a_separate_head_is_used_when_the_config_does_not_tie() {
    let mut made = Directory::new("llama");
    made.config.as_object_mut().expect("an object").remove("tie_word_embeddings");
    made.add("lm_head.weight", &[VOCAB, HIDDEN]);
    let model = made.load().expect("it loads");
    assert!(!model.loaded.weights.tied_head);
    holds(&model.loaded.weights.head, "lm_head.weight", &[VOCAB, HIDDEN]);
}

#[test]
fn a_tied_head_that_is_stored_again_must_be_the_same() {
    let mut made = Directory::new("llama");
    made.add("lm_head.weight", &[VOCAB, HIDDEN]);
    let error = made.error();
    assert!(error.contains("model.safetensors: `lm_head.weight` differs"), "{error}");

    let mut bytes = made.weights(|_| true);
    let embedding = data("model.embed_tokens.weight", Stored::BF16, &[VOCAB, HIDDEN]);
    let head = data("lm_head.weight", Stored::BF16, &[VOCAB, HIDDEN]);
    let at = bytes.windows(head.len()).position(|window| window == head).expect("the head is stored");
    bytes[at..at + head.len()].copy_from_slice(&embedding);
    made.write("model.safetensors", bytes);
    let model = made.load_as_written().expect("it loads");
    assert!(model.loaded.weights.tied_head);
}

#[test]
fn all_three_number_formats_are_read_side_by_side() {
    let mut made = Directory::new("llama");
    made.tensors.insert("model.norm.weight".to_owned(), (Stored::F32, vec![HIDDEN]));
    made.tensors.insert("model.layers.0.mlp.up_proj.weight".to_owned(), (Stored::F16, vec![MLP, HIDDEN]));
    let weights = made.load().expect("it loads").loaded.weights;
    assert_eq!(weights.final_norm.dtype, Dtype::F32);
    assert_eq!(weights.final_norm.bytes().len(), HIDDEN * 4);
    assert_eq!(weights.layers[0].up.weight.dtype, Dtype::F16);
    assert_eq!(weights.layers[1].up.weight.dtype, Dtype::Bf16);
}

#[test]
fn shards_are_joined_by_their_index() {
    let made = Directory::new("llama");
    made.write("config.json", made.config.to_string());
    let first = |name: &str| name.contains("layers.0");
    made.write("model-00001-of-00002.safetensors", made.weights(first));
    made.write("model-00002-of-00002.safetensors", made.weights(|name| !first(name)));
    let map: serde_json::Map<_, _> = made
        .tensors
        .keys()
        .map(|name| {
            (name.clone(), format!("model-0000{}-of-00002.safetensors", 2 - usize::from(first(name))).into())
        })
        .collect();
    made.write("model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}).to_string());
    let weights = made.load_as_written().expect("it loads").loaded.weights;
    holds(&weights.layers[0].up.weight, "model.layers.0.mlp.up_proj.weight", &[MLP, HIDDEN]);
    holds(&weights.layers[1].up.weight, "model.layers.1.mlp.up_proj.weight", &[MLP, HIDDEN]);
}

#[test]
fn end_tokens_come_from_generation_config_before_config() {
    let mut made = Directory::new("llama");
    assert_eq!(made.load().expect("it loads").eos, [2]);
    made.write("generation_config.json", json!({"eos_token_id": [3, 1]}).to_string());
    assert_eq!(made.load().expect("it loads").eos, [3, 1]);
    made.write("generation_config.json", json!({"temperature": 0.7}).to_string());
    assert_eq!(made.load().expect("it loads").eos, [2]);
    made.set("eos_token_id", json!(null));
    assert!(made.load().expect("it loads").eos.is_empty());
}

#[test]
fn the_tokenizers_own_end_token_ends_an_output_too() {
    let made = Directory::new("llama");
    made.write("generation_config.json", json!({"eos_token_id": [3]}).to_string());
    made.write("tokenizer_config.json", json!({"eos_token": "e"}).to_string());
    assert_eq!(made.load().expect("it loads").eos, [3, 4]);
    made.write("tokenizer_config.json", json!({"eos_token": {"content": "d"}}).to_string());
    assert_eq!(made.load().expect("it loads").eos, [3], "once");
    made.write("tokenizer_config.json", json!({"eos_token": "no token of this tokenizer"}).to_string());
    assert_eq!(made.load().expect("it loads").eos, [3]);
}

#[test]
fn special_tokens_come_from_the_map_and_from_the_tokenizers_class() {
    let made = Directory::new("llama");
    made.write("chat_template.jinja", "{{ bos_token }}|{{ eos_token }}|{{ image_token }}");
    let rendered = |config: Json, map: Json| {
        made.write("tokenizer_config.json", config.to_string());
        made.write("special_tokens_map.json", map.to_string());
        let template = made.load().expect("it loads").chat_template.expect("there is one");
        template.render(&ChatInput::default()).expect("it renders")
    };
    let map = json!({"bos_token": {"content": "<b>"}, "eos_token": "<e>"});
    assert_eq!(rendered(json!({}), map.clone()), "<b>|<e>|");
    assert_eq!(rendered(json!({"bos_token": "<other>"}), map.clone()), "<b>|<e>|");
    let newer = json!({"bos_token": "<other>", "added_tokens_decoder": {}, "image_token": "<i>"});
    assert_eq!(rendered(newer, map), "<other>||<i>", "the map is older than the list of added tokens");
    let class = |name: &str| json!({"tokenizer_class": name, "eos_token": null});
    assert_eq!(rendered(class("LlamaTokenizerFast"), json!({})), "<s>||");
    assert_eq!(
        rendered(json!({"tokenizer_class": "GPT2Tokenizer"}), json!({})),
        "<|endoftext|>|<|endoftext|>|"
    );
    assert_eq!(rendered(json!({"tokenizer_class": "Qwen2Tokenizer"}), json!({})), "|<|endoftext|>|");
    assert_eq!(rendered(json!({"tokenizer_class": "PreTrainedTokenizerFast"}), json!({})), "||");
}

#[test]
fn tokens_that_only_the_tokenizers_configuration_adds_are_tokens() {
    let added = |id: usize, content: &str, special: bool| {
        json!({"added_tokens_decoder": {id.to_string(): {"content": content, "special": special}}})
            .to_string()
    };
    let made = Directory::new("llama");
    made.write("tokenizer.json", tokenizer_json(6).to_string());
    made.write("tokenizer_config.json", added(6, "<call>", true));
    let tokenizer = made.load().expect("it loads").tokenizer;
    assert_eq!(tokenizer.encode("a<call>b", false), Ok(vec![0, 6, 1]));
    assert_eq!((tokenizer.special_token_id("<call>"), tokenizer.is_silent(6)), (Some(6), true));

    made.write("tokenizer_config.json", added(1, "b", true));
    assert!(made.load().expect("it loads").tokenizer.is_silent(1), "it becomes special");
    made.write("tokenizer_config.json", added(7, "<call>", true));
    let error = made.error();
    assert!(
        error.contains("tokenizer_config.json") && error.contains("\"<call>\" is to be token 7"),
        "{error}"
    );

    made.write("tokenizer_config.json", "{}");
    made.write("added_tokens.json", json!({"<call>": 6}).to_string());
    let tokenizer = made.load().expect("it loads").tokenizer;
    assert_eq!((tokenizer.encode("<call>", false), tokenizer.is_silent(6)), (Ok(vec![6]), false));
}

#[test]
fn a_models_sampling_parameters_are_loaded_with_it() {
    let made = Directory::new("llama");
    assert_eq!(made.load().expect("it loads").sampling, RecommendedSampling::default());
    made.write("generation_config.json", json!({"top_k": 20}).to_string());
    let expected = RecommendedSampling { top_k: Some(20), ..RecommendedSampling::default() };
    assert_eq!(made.load().expect("it loads").sampling, expected);
}

#[test]
fn the_chat_template_is_found_wherever_it_lies() {
    let made = Directory::new("llama");
    let render = || {
        let model = made.load().expect("it loads");
        model.chat_template.map(|template| template.render(&ChatInput::default()).expect("it renders"))
    };
    assert_eq!(render(), None);
    let named = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "list{{ eos_token }}"}]);
    made.write(
        "tokenizer_config.json",
        json!({"chat_template": named, "eos_token": {"content": "</s>"}}).to_string(),
    );
    assert_eq!(render().as_deref(), Some("list</s>"));
    made.write(
        "tokenizer_config.json",
        json!({"chat_template": "text{{ bos_token }}", "bos_token": "<s>", "eos_token": null}).to_string(),
    );
    assert_eq!(render().as_deref(), Some("text<s>"));
    made.write("chat_template.jinja", "file{{ bos_token }}\n");
    assert_eq!(render().as_deref(), Some("file<s>"));
}

#[test]
fn a_model_is_named_after_its_directory() {
    let made = Directory::new("llama");
    let name = made.load().expect("it loads").name;
    assert_eq!(
        Some(name),
        made.path("").canonicalize().expect("a path").file_name().map(|n| n.to_string_lossy().into())
    );
}

#[test]
fn embedded_tiny_means_another_model_for_each_role() {
    let pair =
        load_pair(&ModelSource::EmbeddedTiny, Some(&ModelSource::EmbeddedTiny)).expect("the pair loads");
    let target = &pair.target.loaded;
    let draft = pair.draft.as_ref().and_then(DraftWeights::model).expect("a draft");
    assert_eq!((target.spec.layers, target.spec.hidden_size), (6, 384));
    assert_eq!((draft.spec.layers, draft.spec.hidden_size), (3, 128));
    assert_eq!((pair.target.name.as_str(), pair.target.eos.as_slice()), ("embedded:tiny", [0, 2].as_slice()));
    assert_eq!(target.weights.embedding.bytes().len(), 4096 * 384 * 2);
    assert!(target.weights.tied_head);
}

#[test]
fn a_draft_with_another_token_list_is_refused() {
    let made = Directory::new("llama");
    made.write_all();
    let error = load_pair(&ModelSource::EmbeddedTiny, Some(&made.source())).expect_err("the lists differ");
    let error = error.to_string();
    assert!(error.contains("id 0: \"<|endoftext|>\" in the target, \"a\" in the draft"), "{error}");
}

#[test]
fn padding_rows_that_only_one_of_a_pair_has_are_cut() {
    let (target, mut draft) = (Directory::new("llama"), Directory::new("llama"));
    draft.set("vocab_size", json!(VOCAB - 2)).set("tie_word_embeddings", json!(false));
    draft.add("model.embed_tokens.weight", &[VOCAB - 2, HIDDEN]);
    draft.add("lm_head.weight", &[VOCAB - 2, HIDDEN]);
    target.write_all();
    draft.write_all();
    for (a, b) in [(&target, &draft), (&draft, &target)] {
        let pair = load_pair(&a.source(), Some(&b.source())).expect("the pair loads");
        let draft = pair.draft.as_ref().and_then(DraftWeights::model).expect("a draft");
        for loaded in [&pair.target.loaded, draft] {
            assert_eq!(loaded.spec.vocab_size, VOCAB - 2);
            for matrix in [&loaded.weights.embedding, &loaded.weights.head] {
                assert_eq!(matrix.shape, [VOCAB - 2, HIDDEN]);
                assert_eq!(matrix.bytes().len(), (VOCAB - 2) * HIDDEN * 2);
            }
        }
    }
    let alone = load(&target.source(), ModelRole::Target).expect("it loads");
    assert_eq!(alone.loaded.spec.vocab_size, VOCAB);
}

#[test]
fn a_token_without_a_row_in_the_embedding_is_refused() {
    let made = Directory::new("llama");
    made.write("tokenizer.json", tokenizer_json(VOCAB + 1).to_string());
    let error = made.error();
    assert!(error.contains("tokenizer.json: token 8 (\"i\") has no row"), "{error}");
}
