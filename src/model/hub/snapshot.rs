//! Which files a model of the hub consists of, and which of them a snapshot lacks.
#![forbid(unsafe_code)]

use std::path::Path;

use crate::model::ModelError;
use crate::model::files::CONFIG;
use crate::model::files::ModelFiles;
use crate::model::safetensors_file::{self, INDEX, SINGLE};
use crate::model::tokenizer::TOKENIZER;

/// Files that a directory of weights needs to be a model.
pub const REQUIRED_FILES: [&str; 2] = [CONFIG, TOKENIZER];
/// The weights of a model that is not sharded.
pub const WEIGHTS_FILE: &str = SINGLE;
/// The list of a sharded model's weight files.
pub const WEIGHTS_INDEX: &str = INDEX;

/// The weight files that the index of a sharded model in `directory` names.
///
/// # Errors
/// If the index cannot be read, or names something else than files beside it.
pub fn shards(directory: &Path) -> Result<Vec<String>, ModelError> {
    safetensors_file::shards(&ModelFiles::Directory(directory.to_owned()))
}

/// Files that the loader needs and `directory` does not hold. What else may be wrong with the
/// directory, such as an index that cannot be read, the loader reports better.
pub(super) fn missing_files(directory: &Path) -> Vec<String> {
    let has = |name: &str| directory.join(name).is_file();
    let mut needed: Vec<String> = REQUIRED_FILES.map(ToOwned::to_owned).to_vec();
    if has(WEIGHTS_INDEX) && !has(WEIGHTS_FILE) {
        needed.extend(shards(directory).unwrap_or_default());
    } else if !safetensors_file::OTHER_WEIGHTS.into_iter().any(has) {
        needed.push(WEIGHTS_FILE.to_owned());
    }
    needed.retain(|name| !has(name));
    needed
}
