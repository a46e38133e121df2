//! Why a model could not be loaded: written for the operator who named it.
#![forbid(unsafe_code)]

use super::mismatch::Mismatch;

/// A model that can't be served. Every variant names the file, and in it the key,
/// tensor or token, that has to change.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The source is neither a path nor a model compiled into the program.
    #[error("unknown model source `{given}`: give a directory or `embedded:tiny`")]
    Source {
        /// What the operator wrote.
        given: String,
    },
    /// A file or the directory can't be read.
    #[error("cannot read {file}: {source}")]
    Io {
        /// Its path.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is larger than anything of its kind.
    #[error("{file} has {found_bytes} bytes; at most {bytes_max} are read")]
    TooLarge {
        /// Its path.
        file: String,
        /// Its size in bytes.
        found_bytes: u64,
        /// The bound in bytes.
        bytes_max: u64,
    },
    /// A file is not JSON.
    #[error("{file} is not valid JSON: {source}")]
    Json {
        /// Its path.
        file: String,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// A JSON file lacks a key that must be there.
    #[error("{file} has no `{key}`")]
    MissingKey {
        /// Its path.
        file: String,
        /// The key, with dots between levels.
        key: String,
    },
    /// A key holds something of the wrong kind, out of bounds, or not supported.
    #[error("{file}: `{key}` is {value}: {problem}")]
    Value {
        /// Its path.
        file: String,
        /// The key, with dots between levels.
        key: String,
        /// What stands there, as JSON, cut when long.
        value: String,
        /// What would be right.
        problem: String,
    },
    /// The directory holds no weights that can be read.
    #[error("{directory} holds neither model.safetensors nor model.safetensors.index.json{hint}")]
    NoWeights {
        /// The directory.
        directory: String,
        /// What was found instead.
        hint: &'static str,
    },
    /// A safetensors file is damaged.
    #[error("{file} is not a complete safetensors file: {problem}")]
    Safetensors {
        /// Its path.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor that config.json promises is not there.
    #[error("{file} has no tensor `{tensor}` {expected:?}")]
    MissingTensor {
        /// The weight file, or the index of a sharded model.
        file: String,
        /// Its name.
        tensor: String,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor's shape is not what config.json says.
    #[error("{file}: tensor `{tensor}` has shape {found:?}, config.json asks for {expected:?}")]
    Shape {
        /// The weight file.
        file: String,
        /// Its name.
        tensor: String,
        /// The shape by config.json.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor's numbers are stored in a format that can't be computed with.
    #[error("{file}: tensor `{tensor}` is stored as {found}; BF16, F16 or F32 are read")]
    Dtype {
        /// The weight file.
        file: String,
        /// Its name.
        tensor: String,
        /// The format's name in safetensors.
        found: String,
    },
    /// A tensor would be ignored, and so the model would compute something else
    /// than its weights say.
    #[error("{file}: tensor `{tensor}` has no place in the model that config.json describes")]
    UnexpectedTensor {
        /// The weight file.
        file: String,
        /// Its name.
        tensor: String,
    },
    /// config.json ties the output head to the embedding, but both are stored and differ.
    #[error(
        "{file}: `lm_head.weight` differs from the embedding although config.json sets \
         `tie_word_embeddings`; set it to false to use the stored head"
    )]
    TiedHeadDiffers {
        /// The weight file of the head.
        file: String,
    },
    /// tokenizer.json can't be used.
    #[error("{file}: {problem}")]
    Tokenizer {
        /// Its path.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The chat template has an error.
    #[error("{file}: the chat template has an error: {problem}")]
    ChatTemplate {
        /// The file that holds it.
        file: String,
        /// The template engine's message, with the line.
        problem: String,
    },
    /// Target and draft don't fit together.
    #[error("draft {draft} does not fit target {target}: {mismatch}")]
    Pair {
        /// The target's source.
        target: String,
        /// The draft's source.
        draft: String,
        /// The first difference.
        mismatch: Mismatch,
    },
}
