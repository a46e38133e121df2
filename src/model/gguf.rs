//! Refuses GGUF, the format of llama.cpp, with the way out.
#![forbid(unsafe_code)]

use std::path::Path;

use super::ModelError;

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Refuses a path that is a GGUF file or, by its name, would be one.
pub(super) fn refuse_file(path: &Path) -> Result<(), ModelError> {
    match is_gguf(path) && !path.is_dir() {
        true => Err(ModelError::Gguf { file: path.display().to_string() }),
        false => Ok(()),
    }
}

/// Refuses a directory with GGUF files and no safetensors. One that cannot be read is left to
/// others.
pub(super) fn refuse_directory(directory: &Path) -> Result<(), ModelError> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
    let paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    let safetensors = |path: &Path| path.extension().is_some_and(|extension| extension == "safetensors");
    if paths.iter().any(|path| safetensors(path)) {
        return Ok(());
    }
    paths.iter().min_by_key(|path| (!is_gguf(path), *path)).map_or(Ok(()), |path| refuse_file(path))
}
