//! Pulls from a small hub of this machine.

mod refused;
pub(crate) mod server;
mod transfer;

use std::path::Path;

use server::{Faults, Hub};

use super::{HubError, PullEvent, PullReport, pull};
use crate::model::{HubName, load};
use crate::protocol::ModelRole;

/// Weights that take several pieces to send.
fn weights() -> Vec<u8> {
    (0..700_000_u32).map(|i| (i % 251) as u8).collect()
}

/// A hub with a model that is complete by its file names.
fn hub(faults: Faults) -> Hub {
    let files = [
        ("README.md", &b"# A model"[..]),
        ("config.json", b"{}"),
        ("generation_config.json", b"{\"temperature\": 1}"),
        ("model.safetensors", &weights()),
        ("pytorch_model.bin", b"not wanted"),
        ("tokenizer.json", b"{\"a\": 1}"),
        ("additional_chat_templates/tools.jinja", b"{{ tools }}"),
    ];
    Hub::new(&files, faults)
}

fn name(text: &str) -> HubName {
    text.parse().expect("a name")
}

fn pulled(hub: &Hub) -> Result<PullReport, HubError> {
    pull(&hub.settings, &name("org/name"), &mut |_| {})
}

fn error(hub: &Hub) -> String {
    pulled(hub).expect_err("it fails").to_string()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("a file")
}

/// Names of the files in a directory.
fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let names = entries.map(|entry| entry.expect("listed").file_name().into_string().expect("text"));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}
