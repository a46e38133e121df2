use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::json;

use super::Directory;
use super::directory::{HIDDEN, MLP};
use crate::model::{ModelError, ModelRef, ModelSource, load};
use crate::protocol::ModelRole;

#[test]
fn a_source_is_a_path_a_name_on_the_hub_or_an_embedded_model_that_exists() {
    let parsed = |text: &str| ModelRef::parse(text).expect("a source");
    assert_eq!(parsed("embedded:tiny"), ModelRef::EmbeddedTiny);
    for path in ["./models/x", "/models/x", "models/x/", "x", "models", "a/b/c", "~/x"] {
        assert_eq!(parsed(path), ModelRef::Directory(path.into()));
    }
    for name in ["org/name", "org/name@v1.0"] {
        assert_eq!(parsed(name), ModelRef::Hub(name.parse().expect("a name")));
        assert_eq!(parsed(name).to_string(), name);
    }
    for text in ["", "embedded:", "embedded:huge"] {
        let error = ModelRef::parse(text).expect_err("it is refused").to_string();
        assert!(error.contains(&format!("`{text}`")), "{error}");
    }
}

#[test]
fn a_missing_directory_or_file_is_named() {
    let nowhere = ModelSource::Directory("/nowhere/at/all".into());
    let error = load(&nowhere, ModelRole::Target).expect_err("it is not there").to_string();
    assert!(error.contains("cannot read /nowhere/at/all: No such file"), "{error}");

    for name in ["config.json", "tokenizer.json"] {
        let made = Directory::new("llama");
        made.write_all();
        std::fs::remove_file(made.path(name)).expect("it was there");
        let error = made.load_as_written().expect_err("a file is missing").to_string();
        assert!(error.contains(&made.path(name).display().to_string()), "{error}");
    }
    let made = Directory::new("llama");
    made.write("config.json", made.config.to_string());
    let error = made.load_as_written().expect_err("no weights").to_string();
    assert!(error.ends_with("holds neither model.safetensors nor model.safetensors.index.json"), "{error}");
    made.write("pytorch_model.bin", "");
    let error = made.load_as_written().expect_err("no weights").to_string();
    assert!(error.contains("convert its pytorch_model.bin to safetensors first"), "{error}");
}

#[test]
fn a_file_instead_of_a_directory_is_rejected() {
    let made = Directory::new("llama");
    made.write_all();
    let source = ModelSource::Directory(made.path("config.json"));
    assert!(matches!(load(&source, ModelRole::Target), Err(ModelError::Io { .. })));
}

#[test]
fn gguf_is_refused_with_the_way_to_convert_it() {
    let made = Directory::new("llama");
    made.write("config.json", made.config.to_string());
    made.write("m.Q8_0.GGUF", "GGUF");
    let file = ModelSource::Directory(made.path("m.Q8_0.GGUF"));
    let named_only = ModelSource::Directory("/nowhere/m.gguf".into());
    for (source, name) in [(file, "m.Q8_0.GGUF"), (made.source(), "m.Q8_0.GGUF"), (named_only, "m.gguf")] {
        let error = load(&source, ModelRole::Target).expect_err("it is refused").to_string();
        assert!(error.contains(&format!("{name} is a GGUF file")), "{error}");
        assert!(error.contains("`specserve pull org/name`") && error.contains("docs/models.md"), "{error}");
    }
    made.load().expect("a GGUF file beside safetensors does not matter");
}

#[test]
fn json_that_is_broken_names_its_file() {
    for name in ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"] {
        let made = Directory::new("llama");
        made.write_all();
        made.write(name, "{\"version\": ");
        let error = made.load_as_written().expect_err("it is broken").to_string();
        assert!(error.contains(name) && error.contains("line 1"), "{error}");
    }
}

#[test]
fn a_git_lfs_pointer_in_place_of_a_file_is_named_with_the_way_out() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n";
    for name in ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"] {
        let made = Directory::new("llama");
        made.write_all();
        made.write(name, pointer);
        let error = made.load_as_written().expect_err("it is a pointer").to_string();
        assert!(
            error.contains(&format!("{name} is a Git LFS pointer")) && error.contains("git lfs pull"),
            "{error}"
        );
    }
}

#[test]
fn a_byte_order_mark_is_named_with_the_way_out() {
    for (bytes, expected) in [
        (&b"\xef\xbb\xbf{}"[..], "starts with a byte order mark: save it as UTF-8 without one"),
        (b"\xff\xfe{\0}\0", "is UTF-16: save it as UTF-8"),
    ] {
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            let made = Directory::new("llama");
            made.write_all();
            made.write(name, bytes);
            let error = made.load_as_written().expect_err("it is marked").to_string();
            assert!(error.contains(&format!("{name} {expected}")), "{error}");
        }
    }
}

#[test]
fn half_a_surrogate_pair_in_json_is_named_with_the_way_out() {
    for (name, json) in [
        ("tokenizer_config.json", r#"{"chat_template": "\ud83d"}"#),
        ("tokenizer.json", r#"{"version": "\ud83d\u0041"}"#),
        ("generation_config.json", r#"{"x": "\ude00"}"#),
    ] {
        let made = Directory::new("llama");
        made.write_all();
        made.write(name, json);
        let error = made.load_as_written().expect_err("it is no text").to_string();
        assert!(error.contains(name) && error.contains("stands for half a character"), "{error}");
    }
}

#[test]
fn a_safetensors_file_cut_anywhere_is_refused() {
    let made = Directory::new("llama");
    made.write_all();
    let bytes = made.weights(|_| true);
    for len in [0, 1, 7, 8, 9, 100, bytes.len() / 2, bytes.len() - 1] {
        made.write("model.safetensors", &bytes[..len]);
        let error = made.load_as_written().expect_err("it is cut").to_string();
        assert!(error.contains("model.safetensors is not a complete safetensors file"), "{len}: {error}");
        assert!(error.contains(&format!("the file has {len} bytes")), "{error}");
    }
}

#[test]
fn a_header_that_lies_is_refused() {
    let made = Directory::new("llama");
    made.write_all();
    let mut huge = made.weights(|_| true);
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let overlapping = {
        let header = json!({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}});
        with_header(&header.to_string(), 12)
    };
    let overflowing = {
        let header = json!({"a": {"dtype": "F32", "shape": [1_u64 << 62, 4], "data_offsets": [0, 4]}});
        with_header(&header.to_string(), 4)
    };
    let unheard = {
        let header = json!({"a": {"dtype": "Q4_0", "shape": [2], "data_offsets": [0, 4]}});
        with_header(&header.to_string(), 4)
    };
    for bytes in [huge, overlapping, overflowing, unheard, with_header("not json", 0)] {
        made.write("model.safetensors", bytes);
        let error = made.load_as_written().expect_err("the header lies");
        assert!(matches!(error, ModelError::Safetensors { .. }), "{error}");
    }
}

fn with_header(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}

#[test]
fn a_missing_tensor_is_named_with_its_shape() {
    let mut made = Directory::new("llama");
    made.tensors.remove("model.layers.1.mlp.up_proj.weight");
    let error = made.error();
    assert!(
        error.ends_with("model.safetensors has no tensor `model.layers.1.mlp.up_proj.weight` [12, 8]"),
        "{error}"
    );

    let mut made = Directory::new("llama");
    made.set("tie_word_embeddings", json!(false));
    let error = made.error();
    assert!(error.contains("has no tensor `lm_head.weight`"), "{error}");
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let mut made = Directory::new("llama");
    made.add("model.layers.0.mlp.down_proj.weight", &[MLP, HIDDEN]);
    let error = made.error();
    assert!(
        error.contains(
            "model.safetensors: tensor `model.layers.0.mlp.down_proj.weight` has shape [12, 8], \
             but config.json implies [8, 12]"
        ),
        "{error}"
    );
}

#[test]
fn a_number_format_that_is_not_read_is_named() {
    for dtype in [Dtype::F64, Dtype::I8, Dtype::F8_E4M3] {
        let mut made = Directory::new("llama");
        made.tensors.insert("model.norm.weight".to_owned(), (dtype, vec![HIDDEN]));
        let error = made.error();
        assert!(error.contains(&format!("`model.norm.weight` is stored as {dtype:?}")), "{error}");
    }
}

#[test]
fn unused_tensors_are_rejected_but_derived_ones_are_not() {
    let mut made = Directory::new("llama");
    made.add("model.layers.0.self_attn.rotary_emb.inv_freq", &[2]);
    made.load().expect("early checkpoints carry the frequencies");
    made.add("model.layers.0.self_attn.q_proj.bias", &[8]);
    let error = made.error();
    assert!(
        error.contains("tensor `model.layers.0.self_attn.q_proj.bias` is not part of the model"),
        "{error}"
    );
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let made = Directory::new("llama");
    made.write("config.json", made.config.to_string());
    made.write("shard.safetensors", made.weights(|name| name != "model.norm.weight"));
    let write_index = |shard: &str| {
        let map: serde_json::Map<_, _> =
            made.tensors.keys().map(|name| (name.clone(), shard.into())).collect();
        made.write("model.safetensors.index.json", json!({"weight_map": map}).to_string());
    };
    write_index("shard.safetensors");
    let error = made.load_as_written().expect_err("a tensor is missing").to_string();
    assert!(error.contains("shard.safetensors") && error.contains("lists `model.norm.weight`"), "{error}");
    write_index("gone.safetensors");
    let error = made.load_as_written().expect_err("a shard is missing").to_string();
    assert!(error.contains("gone.safetensors"), "{error}");
    for outside in ["../shard.safetensors", "/etc/passwd", "a/b", "..", ""] {
        write_index(outside);
        let error = made.load_as_written().expect_err("it points outside").to_string();
        assert!(error.contains("name of a file in the same directory"), "{error}");
    }
    made.write("model.safetensors.index.json", "{}");
    let error = made.load_as_written().expect_err("no map").to_string();
    assert!(error.contains("has no `weight_map`"), "{error}");
}

#[test]
fn a_chat_template_with_an_error_stops_the_start() {
    let made = Directory::new("llama");
    made.write("chat_template.jinja", "{% for message in messages %}");
    let error = made.error();
    assert!(error.contains("chat_template.jinja: the chat template has an error"), "{error}");
    std::fs::remove_file(made.path("chat_template.jinja")).expect("it was there");
    for broken in [json!(7), json!([{"name": "default"}]), json!([{"name": "x", "template": "y"}])] {
        made.write("tokenizer_config.json", json!({"chat_template": broken}).to_string());
        let error = made.error();
        assert!(error.contains("tokenizer_config.json"), "{error}");
    }
    made.write("tokenizer_config.json", json!({"bos_token": 5}).to_string());
    let error = made.error();
    assert!(error.contains("`bos_token` is 5"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Bytes 0 to 1000 hold the header's length and the header's beginning.
    #[test]
    fn a_damaged_header_is_read_or_refused(position in 0_usize..1000, byte in any::<u8>()) {
        let made = Directory::new("llama");
        made.write_all();
        let mut bytes = made.weights(|_| true);
        bytes[position] = byte;
        made.write("model.safetensors", bytes);
        if let Err(error) = made.load_as_written() {
            prop_assert!(error.to_string().contains("model.safetensors"));
        }
    }
}
