//! The pair of small models embedded in the binary.
#![forbid(unsafe_code)]

use crate::protocol::ModelRole;

/// An embedded file of assets/.
#[derive(Debug)]
pub(super) struct EmbeddedFile {
    /// File name.
    pub(super) name: &'static str,
    /// File contents.
    pub(super) bytes: &'static [u8],
}

macro_rules! embedded_model {
    ($directory:literal) => {
        &[
            embedded_model!($directory, "config.json"),
            embedded_model!($directory, "generation_config.json"),
            embedded_model!($directory, "model.safetensors"),
            embedded_model!($directory, "tokenizer.json"),
            embedded_model!($directory, "tokenizer_config.json"),
            embedded_model!($directory, "chat_template.jinja"),
        ]
    };
    ($directory:literal, $name:literal) => {
        EmbeddedFile {
            name: $name,
            bytes: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/", $directory, "/", $name)),
        }
    };
}

static TINY_TARGET: &[EmbeddedFile] = embedded_model!("tiny/target");
static TINY_DRAFT: &[EmbeddedFile] = embedded_model!("tiny/draft");

/// Files of the pair's model for a role, with its name.
pub(super) fn tiny(role: ModelRole) -> (&'static str, &'static [EmbeddedFile]) {
    match role {
        ModelRole::Target => ("target", TINY_TARGET),
        ModelRole::Draft => ("draft", TINY_DRAFT),
    }
}
