//! Synthetic heads of every kind for one small target.

use safetensors::Dtype;
use serde_json::{Value as Json, json};

use crate::model::draft_head::DraftHead;
use crate::model::random::small_spec;
use crate::model::tests::directory::{Directory, HIDDEN, VOCAB};
use crate::model::{HeadSettings, ModelError, ModelSpec};

/// Layers of the target.
pub(super) const TARGET_LAYERS: usize = 8;
/// Hidden states that the heads read.
pub(super) const FEATURES: usize = 3;
/// Draft vocabulary of the EAGLE-3 heads.
pub(super) const DRAFT_VOCAB: usize = 4;
/// Block of the DSpark and DFlash heads.
pub(super) const BLOCK: usize = 5;
/// Rank of the Markov head.
pub(super) const RANK: usize = 2;

/// A head in the making, and the target that it is loaded for.
pub(super) struct Head {
    pub(super) made: Directory,
    pub(super) target: ModelSpec,
}

/// The target: hidden size 8, eight tokens, eight layers.
fn target() -> ModelSpec {
    ModelSpec { layers: TARGET_LAYERS, hidden_size: HIDDEN, ..small_spec(VOCAB) }
}

fn layer_config(layers: usize, model_type: &str) -> Json {
    let mut config = Directory::config(model_type);
    config["num_hidden_layers"] = layers.into();
    config["tie_word_embeddings"] = false.into();
    config
}

impl Head {
    fn new(config: Json) -> Head {
        Head { made: Directory::empty(config), target: target() }
    }

    fn add_layer(&mut self, prefix: &str, attention_inputs: usize, head_norms: bool) {
        self.made.add_layer(prefix, attention_inputs);
        if head_norms {
            self.made.add(&format!("{prefix}.self_attn.q_norm.weight"), &[4]);
            self.made.add(&format!("{prefix}.self_attn.k_norm.weight"), &[4]);
        }
    }

    /// Maps draft token `i` to the target's token `i + distances[i]`.
    pub(super) fn map_tokens(&mut self, distances: &[i64]) -> &mut Head {
        let bytes = distances.iter().flat_map(|distance| distance.to_le_bytes()).collect();
        self.made.tensors.insert("d2t".to_owned(), (Dtype::I64, vec![distances.len()]));
        self.made.contents.insert("d2t".to_owned(), bytes);
        self
    }

    /// An EAGLE-3 head as the release spells it: `midlayer`, layers 1, 4 and 6, every second token.
    pub(super) fn release() -> Head {
        let mut config = layer_config(1, "llama");
        config["architectures"] = json!(["LlamaForCausalLMEagle3"]);
        config["draft_vocab_size"] = DRAFT_VOCAB.into();
        config["eagle_config"] = json!({"eagle_aux_hidden_state_layer_ids": [1, 4, 6]});
        let mut head = Head::new(config);
        head.eagle3_tensors("midlayer", false);
        head
    }

    /// The same as the speculators library writes it.
    pub(super) fn speculators() -> Head {
        let config = json!({
            "architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3",
            "model_type": "speculators", "draft_vocab_size": DRAFT_VOCAB, "norm_before_residual": true,
            "eagle_aux_hidden_state_layer_ids": [1, 4, 6],
            "transformer_layer_config": layer_config(1, "qwen3"),
        });
        let mut head = Head::new(config);
        head.eagle3_tensors("layers.0", true);
        head
    }

    fn eagle3_tensors(&mut self, prefix: &str, head_norms: bool) {
        self.add_layer(prefix, 2 * HIDDEN, head_norms);
        self.made.add(&format!("{prefix}.hidden_norm.weight"), &[HIDDEN]);
        self.made.add("fc.weight", &[HIDDEN, FEATURES * HIDDEN]);
        self.made.add("norm.weight", &[HIDDEN]);
        self.made.add("lm_head.weight", &[DRAFT_VOCAB, HIDDEN]);
        self.map_tokens(&[0, 1, 2, 3]);
    }

    /// A DSpark head of two layers as DeepSpec writes it: the outputs of layers 0, 3 and 5.
    pub(super) fn dspark() -> Head {
        let mut config = layer_config(2, "qwen3");
        config["architectures"] = json!(["Qwen3DSparkModel"]);
        config["target_layer_ids"] = json!([0, 3, 5]);
        config["block_size"] = BLOCK.into();
        config["mask_token_id"] = 1.into();
        config["markov_rank"] = RANK.into();
        let mut head = Head::new(config);
        head.block_tensors();
        head.made.add("markov_head.markov_w1.weight", &[VOCAB, RANK]);
        head.made.add("markov_head.markov_w2.weight", &[VOCAB, RANK]);
        head.made.add("confidence_head.proj.weight", &[1, HIDDEN + RANK]);
        head.made.add("confidence_head.proj.bias", &[1]);
        head
    }

    /// A DFlash head as z-lab writes it, with its keys in `dflash_config`.
    pub(super) fn dflash() -> Head {
        let mut config = layer_config(2, "qwen3");
        config["architectures"] = json!(["DFlashDraftModel"]);
        config["block_size"] = BLOCK.into();
        config["dflash_config"] = json!({"mask_token_id": 1, "target_layer_ids": [0, 3, 5]});
        let mut head = Head::new(config);
        head.block_tensors();
        head
    }

    fn block_tensors(&mut self) {
        for layer in 0..2 {
            self.add_layer(&format!("layers.{layer}"), HIDDEN, true);
        }
        self.made.add("fc.weight", &[HIDDEN, FEATURES * HIDDEN]);
        self.made.add("hidden_norm.weight", &[HIDDEN]);
        self.made.add("norm.weight", &[HIDDEN]);
    }

    /// The object of config.json that holds the last part of a path with slashes, and that part.
    fn parent<'k>(&mut self, path: &'k str) -> (&mut serde_json::Map<String, Json>, &'k str) {
        let (parent, key) =
            path.rsplit_once('/').map_or((String::new(), path), |(parent, key)| (format!("/{parent}"), key));
        let object = self.made.config.pointer_mut(&parent).and_then(Json::as_object_mut);
        (object.expect("an object"), key)
    }

    /// Sets a key of config.json, given as a path with slashes.
    pub(super) fn set(&mut self, path: &str, value: Json) -> &mut Head {
        let (object, key) = self.parent(path);
        object.insert(key.to_owned(), value);
        self
    }

    /// Removes a key of config.json.
    pub(super) fn unset(&mut self, path: &str) -> &mut Head {
        let (object, key) = self.parent(path);
        object.remove(key).expect("the key was there");
        self
    }

    pub(super) fn add(&mut self, name: &str, shape: &[usize]) -> &mut Head {
        self.made.add(name, shape);
        self
    }

    pub(super) fn remove(&mut self, name: &str) -> &mut Head {
        self.made.tensors.remove(name).expect("the tensor was there");
        self
    }

    pub(super) fn load_alone(&self) -> Result<Option<DraftHead>, ModelError> {
        self.made.write_all();
        DraftHead::load(&self.made.source(), None)
    }

    pub(super) fn load(&self) -> DraftHead {
        self.load_with(&HeadSettings::default())
    }

    /// The head as the deployment's settings have it.
    pub(super) fn load_with(&self, settings: &HeadSettings) -> DraftHead {
        self.made.write_all();
        let loaded = DraftHead::load_with(&self.made.source(), Some(&self.target), settings);
        loaded.expect("the head loads").expect("it is a head")
    }

    /// The message of the error that loading for the target ends with.
    pub(super) fn error(&self) -> String {
        self.error_with(&HeadSettings::default())
    }

    /// The same, with settings of the deployment.
    pub(super) fn error_with(&self, settings: &HeadSettings) -> String {
        self.made.write_all();
        let loaded = DraftHead::load_with(&self.made.source(), Some(&self.target), settings);
        loaded.expect_err("the head must be refused").to_string()
    }
}
