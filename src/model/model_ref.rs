//! Values of `model = "…"` in the configuration.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::{HubCache, HubName, ModelError, ModelSource, gguf};

/// What names a model in a configuration or an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// A Hugging Face directory.
    Directory(PathBuf),
    /// A Hugging Face directory of this relative path, if there is one; else a model of the hub.
    Hub(HubName),
    /// `embedded:tiny`: the pair embedded in the binary. As target it refers to the larger
    /// model, as draft to the smaller one.
    EmbeddedTiny,
}

impl ModelRef {
    /// Parses `embedded:tiny`, a path, or a name on the hub. Does not access the file system.
    ///
    /// # Errors
    /// [`ModelError::Source`] for an empty text or an `embedded:` name that does not exist.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        match text {
            "embedded:tiny" => Ok(Self::EmbeddedTiny),
            "" => Err(ModelError::Source { given: text.to_owned() }),
            unknown if unknown.starts_with("embedded:") => {
                Err(ModelError::Source { given: unknown.to_owned() })
            }
            path => Ok(path.parse().map_or_else(|_| Self::Directory(path.into()), Self::Hub)),
        }
    }

    /// Finds the model on this machine: a directory at this path, else in `cache`.
    ///
    /// # Errors
    /// As [`HubCache::locate`]; [`ModelError::Gguf`] for a path of such a file.
    pub fn locate(&self, cache: &HubCache) -> Result<ModelSource, ModelError> {
        match self {
            Self::EmbeddedTiny => Ok(ModelSource::EmbeddedTiny),
            Self::Directory(path) => Ok(ModelSource::Directory(path.clone())),
            Self::Hub(name) => {
                let path = PathBuf::from(name.to_string());
                gguf::refuse_file(&path)?;
                // a file is no model, but the loader says so better than the cache
                match Path::exists(&path) {
                    true => Ok(ModelSource::Directory(path)),
                    false => Ok(ModelSource::Snapshot { name: name.clone(), directory: cache.locate(name)? }),
                }
            }
        }
    }
}

impl std::fmt::Display for ModelRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Hub(name) => write!(f, "{name}"),
            Self::EmbeddedTiny => f.write_str("embedded:tiny"),
        }
    }
}
