//! Errors of loading models, for the operator.
#![forbid(unsafe_code)]

use super::head_kind::HeadKind;
use super::mismatch::Mismatch;

/// Why a model cannot be loaded. Each variant names the file and the key, tensor or token
/// at fault.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The source is neither a path, a name on the hub, nor an embedded model.
    #[error(
        "unknown model source `{given}`; use a directory, a name on the Hugging Face hub (`org/name`) or \
         `embedded:tiny`"
    )]
    Source {
        /// The source as configured.
        given: String,
    },
    /// A name is neither a directory nor a model in the Hugging Face cache.
    #[error(
        "`{name}` is neither a directory nor a model in the Hugging Face cache (there is no {missing}{}); fetch \
         it with `specserve pull {name}`",
        similar.as_deref().unwrap_or_default()
    )]
    NotCached {
        /// The name.
        name: String,
        /// Path that was looked for.
        missing: String,
        /// A clause about a model with nearly this name in the cache.
        similar: Option<String>,
    },
    /// A model in the Hugging Face cache lacks files.
    #[error(
        "the Hugging Face cache holds only a part of `{name}`: {directory} has no {missing}; fetch the rest \
         with `specserve pull {name}`"
    )]
    IncompleteSnapshot {
        /// The name on the hub.
        name: String,
        /// Path of the directory.
        directory: String,
        /// Names of the missing files.
        missing: String,
    },
    /// The model is in the format of llama.cpp.
    #[error(
        "{file} is a GGUF file; specserve reads safetensors: fetch the original that it was made from \
         (`specserve pull org/name`), or convert it as docs/models.md says under GGUF"
    )]
    Gguf {
        /// Path of the file.
        file: String,
    },
    /// A file or the directory cannot be read.
    #[error("cannot read {file}: {source}")]
    Io {
        /// Path of the file.
        file: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file is implausibly large.
    #[error("{file} has {found_bytes} bytes; the limit is {bytes_max}")]
    TooLarge {
        /// Path of the file.
        file: String,
        /// Size in bytes.
        found_bytes: u64,
        /// Limit in bytes.
        bytes_max: u64,
    },
    /// A file is a placeholder of Git LFS.
    #[error(
        "{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in its directory, or \
         download the file again"
    )]
    GitLfsPointer {
        /// Path of the file.
        file: String,
    },
    /// A text file is not plain UTF-8.
    #[error("{file} {problem}")]
    Encoding {
        /// Path of the file.
        file: String,
        /// What it is instead, and what to do.
        problem: &'static str,
    },
    /// A file is not JSON.
    #[error("{file} is not valid JSON: {source}{}", json_advice(&source.to_string()))]
    Json {
        /// Path of the file.
        file: String,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A JSON file lacks a required key.
    #[error("{file} has no `{key}`")]
    MissingKey {
        /// Path of the file.
        file: String,
        /// Dotted path of the key.
        key: String,
    },
    /// The value of a key has the wrong type, is out of bounds, or is not supported.
    #[error("{file}: `{key}` is {value}: {problem}")]
    Value {
        /// Path of the file.
        file: String,
        /// Dotted path of the key.
        key: String,
        /// The value as JSON, truncated if long.
        value: String,
        /// What is wrong, or what is expected.
        problem: String,
    },
    /// config.json leaves something open or says it wrongly that a key of the deployment can say.
    #[error("{error}; {} {key} in the deployment's TOML", if error.is_absence() {
        "set it there, or"
    } else {
        "correct it there, or set"
    })]
    OpenToSetting {
        /// What is wrong with config.json.
        error: Box<ModelError>,
        /// Full name of the key.
        key: &'static str,
    },
    /// A key of the deployment does not fit what the directory holds.
    #[error("{key} is {value}: {problem}")]
    Setting {
        /// Full name of the key.
        key: &'static str,
        /// The value as TOML.
        value: String,
        /// What is wrong.
        problem: String,
    },
    /// The directory holds no safetensors weights.
    #[error("{directory} holds neither model.safetensors nor model.safetensors.index.json{hint}")]
    NoWeights {
        /// Path of the directory.
        directory: String,
        /// A hint about other weight files found; may be empty.
        hint: &'static str,
    },
    /// A safetensors file is damaged.
    #[error("{file} is not a complete safetensors file: {problem}")]
    Safetensors {
        /// Path of the file.
        file: String,
        /// What is wrong with the file.
        problem: String,
    },
    /// A tensor that config.json implies is missing.
    #[error("{file} has no tensor `{tensor}` {expected:?}")]
    MissingTensor {
        /// Path of the weight file, or of the index of a sharded model.
        file: String,
        /// Name of the tensor.
        tensor: String,
        /// Expected shape.
        expected: Vec<usize>,
    },
    /// A tensor's shape contradicts config.json.
    #[error("{file}: tensor `{tensor}` has shape {found:?}, but config.json implies {expected:?}")]
    Shape {
        /// Path of the weight file.
        file: String,
        /// Name of the tensor.
        tensor: String,
        /// Shape implied by config.json.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in an unsupported number format.
    #[error("{file}: tensor `{tensor}` is stored as {found}; supported: {supported}")]
    Dtype {
        /// Path of the weight file.
        file: String,
        /// Name of the tensor.
        tensor: String,
        /// Name of the format in safetensors.
        found: String,
        /// The formats that are read.
        supported: &'static str,
    },
    /// A tensor is not used by the configured architecture. Ignoring it could compute another
    /// function than the checkpoint's.
    #[error("{file}: tensor `{tensor}` is not part of the model that config.json describes")]
    UnexpectedTensor {
        /// Path of the weight file.
        file: String,
        /// Name of the tensor.
        tensor: String,
    },
    /// config.json ties the output head to the embedding, but both are stored and differ.
    #[error(
        "{file}: `lm_head.weight` differs from the embedding although config.json sets \
         `tie_word_embeddings`; set it to false to use the stored head"
    )]
    TiedHeadDiffers {
        /// Path of the head's weight file.
        file: String,
    },
    /// A draft head stands where a model is expected.
    #[error(
        "{directory} holds a draft head ({kind}), not a model: name it as draft.model beside the target that it \
         was made for"
    )]
    DraftHead {
        /// Path of the directory.
        directory: String,
        /// Kind of the head.
        kind: HeadKind,
    },
    /// A draft head's fusion does not take whole hidden states of the target.
    #[error(
        "{file}: tensor `{tensor}` has shape {found:?}; its columns must be a multiple of the target's hidden \
         size {target_hidden_size}, one for each hidden state that the head reads"
    )]
    FusionWidth {
        /// Path of the weight file.
        file: String,
        /// Name of the tensor.
        tensor: &'static str,
        /// Shape in the file.
        found: Vec<usize>,
        /// Hidden size of the target.
        target_hidden_size: usize,
    },
    /// The tokens of a draft head cannot be mapped to the target's.
    #[error("{file}: `d2t` must map each draft token to a token of the target, but there is {found}")]
    DraftVocabulary {
        /// Path of the weight file.
        file: String,
        /// What is there instead.
        found: String,
    },
    /// tokenizer.json is invalid.
    #[error("{file}: {problem}")]
    Tokenizer {
        /// Path of the file.
        file: String,
        /// What is wrong with the file.
        problem: String,
    },
    /// The chat template has an error.
    #[error("{file}: the chat template has an error: {problem}")]
    ChatTemplate {
        /// Path of the file with the template.
        file: String,
        /// Message of the template engine, with the line.
        problem: String,
    },
    /// Target and draft have different token lists.
    #[error("draft {draft} does not fit target {target}: {mismatch}")]
    Pair {
        /// Source of the target.
        target: String,
        /// Source of the draft.
        draft: String,
        /// First difference.
        mismatch: Mismatch,
    },
}

impl ModelError {
    /// This error about config.json, which the deployment can settle with `key`.
    pub(super) fn open_to_setting(self, key: &'static str) -> ModelError {
        ModelError::OpenToSetting { error: Box::new(self), key }
    }

    /// Whether a key of a JSON file is missing; `null` counts as that.
    fn is_absence(&self) -> bool {
        match self {
            ModelError::MissingKey { .. } => true,
            ModelError::Value { value, .. } => value == "null",
            _ => false,
        }
    }
}

/// Advice for a JSON error, if there is any: a clause to append to its message.
pub(super) fn json_advice(error: &str) -> &'static str {
    let half_pair = ["surrogate", "hex escape"].iter().any(|part| error.contains(part));
    if half_pair {
        "; a \\ud800 to \\udfff stands for half a character: write both halves, or leave it out"
    } else {
        ""
    }
}
