use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value as Json, json};

use crate::model::{Model, ModelError, ModelSource, load};
use crate::protocol::ModelRole;

/// Rows of the embedding; the tokenizer has three tokens fewer.
pub(in crate::model) const VOCAB: usize = 8;
/// Width of the residual stream.
pub(in crate::model) const HIDDEN: usize = 8;
/// Width of the MLP.
pub(in crate::model) const MLP: usize = 12;
/// Layers.
pub(in crate::model) const LAYERS: usize = 2;

/// A model in the making: its files are written when it is loaded.
pub(in crate::model) struct Directory {
    /// Kept for its drop.
    root: tempfile::TempDir,
    pub(in crate::model) config: Json,
    pub(in crate::model) tensors: BTreeMap<String, (Dtype, Vec<usize>)>,
    /// Bytes of tensors whose contents matter.
    pub(in crate::model) contents: BTreeMap<String, Vec<u8>>,
}

impl Directory {
    /// A directory with this config.json and no tensors yet.
    pub(in crate::model) fn empty(config: Json) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        Self { root, config, tensors: BTreeMap::new(), contents: BTreeMap::new() }
    }

    /// A model of two layers with two query heads and one key head of width 4.
    pub(in crate::model) fn new(model_type: &str) -> Self {
        let mut made = Self::empty(Self::config(model_type));
        made.add("model.embed_tokens.weight", &[VOCAB, HIDDEN]);
        made.add("model.norm.weight", &[HIDDEN]);
        (0..LAYERS).for_each(|layer| made.add_layer(&format!("model.layers.{layer}"), HIDDEN));
        match model_type {
            "qwen2" => made.add_to_layers(&[("q_proj.bias", 8), ("k_proj.bias", 4), ("v_proj.bias", 4)]),
            "qwen3" => made.add_to_layers(&[("q_norm.weight", 4), ("k_norm.weight", 4)]),
            _ => {}
        }
        made.write("tokenizer.json", tokenizer_json(VOCAB - 3).to_string());
        made
    }

    /// Its config.json.
    pub(in crate::model) fn config(model_type: &str) -> Json {
        json!({
            "model_type": model_type, "vocab_size": VOCAB, "hidden_size": HIDDEN,
            "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "rope_theta": 500.0, "tie_word_embeddings": true,
            "hidden_act": "silu", "eos_token_id": 2
        })
    }

    /// Adds a bf16 tensor.
    pub(in crate::model) fn add(&mut self, name: &str, shape: &[usize]) {
        self.tensors.insert(name.to_owned(), (Dtype::BF16, shape.to_vec()));
    }

    /// Adds a layer with two query heads and one key head of width 4, whose attention reads
    /// `attention_inputs` numbers.
    pub(in crate::model) fn add_layer(&mut self, prefix: &str, attention_inputs: usize) {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![8, attention_inputs]),
            ("self_attn.k_proj", vec![4, attention_inputs]),
            ("self_attn.v_proj", vec![4, attention_inputs]),
            ("self_attn.o_proj", vec![HIDDEN, 8]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![MLP, HIDDEN]),
            ("mlp.up_proj", vec![MLP, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, MLP]),
        ] {
            self.add(&format!("{prefix}.{name}.weight"), &shape);
        }
    }

    /// Adds vectors to every layer's attention.
    pub(in crate::model) fn add_to_layers(&mut self, vectors: &[(&str, usize)]) {
        for layer in 0..LAYERS {
            for (name, len) in vectors {
                self.add(&format!("model.layers.{layer}.self_attn.{name}"), &[*len]);
            }
        }
    }

    /// Sets a key of config.json.
    pub(in crate::model) fn set(&mut self, key: &str, value: Json) -> &mut Self {
        self.config[key] = value;
        self
    }

    pub(in crate::model) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(in crate::model) fn source(&self) -> ModelSource {
        ModelSource::Directory(self.root.path().to_owned())
    }

    pub(in crate::model) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).expect("the file is written");
    }

    /// Writes config.json and one weight file.
    pub(in crate::model) fn write_all(&self) {
        self.write("config.json", self.config.to_string());
        self.write("model.safetensors", self.weights(|_| true));
    }

    /// A weight file with the tensors that `chosen` chooses. Their bytes tell them apart.
    pub(in crate::model) fn weights(&self, chosen: impl Fn(&str) -> bool) -> Vec<u8> {
        let tensors: Vec<_> = self.tensors.iter().filter(|(name, _)| chosen(name)).collect();
        let bytes = |name: &str, dtype, shape: &[usize]| {
            self.contents.get(name).cloned().unwrap_or_else(|| data(name, dtype, shape))
        };
        let data: Vec<Vec<u8>> =
            tensors.iter().map(|(name, (dtype, shape))| bytes(name, *dtype, shape)).collect();
        let views = tensors.iter().zip(&data).map(|((name, (dtype, shape)), data)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("a well-formed tensor"))
        });
        safetensors::serialize(views, None).expect("the tensors serialise")
    }

    /// Writes what is not written yet and loads it.
    pub(in crate::model) fn load(&self) -> Result<Model, ModelError> {
        self.write_all();
        self.load_as_written()
    }

    pub(in crate::model) fn load_as_written(&self) -> Result<Model, ModelError> {
        load(&self.source(), ModelRole::Target)
    }

    /// The message of the error that loading ends with.
    pub(in crate::model) fn error(&self) -> String {
        self.load().expect_err("the model must be refused").to_string()
    }
}

/// The bytes that a synthetic tensor holds.
pub(in crate::model) fn data(name: &str, dtype: Dtype, shape: &[usize]) -> Vec<u8> {
    let seed = name.bytes().fold(7_u8, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte));
    let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
    (0..len).map(|i| seed.wrapping_add(i as u8)).collect()
}

/// A byte-level tokenizer whose tokens are the first `tokens` letters.
pub(in crate::model) fn tokenizer_json(tokens: usize) -> Json {
    let vocab: serde_json::Map<String, Json> =
        (0..tokens).map(|id| (char::from(b'a' + id as u8).to_string(), id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
                  "byte_fallback": false, "vocab": vocab, "merges": []}
    })
}
