//! Values of `model = "…"` in the configuration.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::ModelError;

/// Location of a model.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(into = "String")]
pub enum ModelSource {
    /// A Hugging Face directory.
    Directory(PathBuf),
    /// `embedded:tiny`: the pair embedded in the binary. As target it refers to the larger
    /// model, as draft to the smaller one.
    EmbeddedTiny,
}

impl ModelSource {
    /// Parses `embedded:tiny` or a path. Does not access the file system.
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
            path => Ok(Self::Directory(PathBuf::from(path))),
        }
    }

    /// Default model name in the API: the last component of the path.
    pub fn name(&self) -> String {
        match self {
            Self::EmbeddedTiny => "embedded:tiny".to_owned(),
            Self::Directory(path) => {
                let last = path.canonicalize().ok().and_then(|full| full.file_name().map(ToOwned::to_owned));
                last.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
            }
        }
    }
}

impl std::fmt::Display for ModelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::EmbeddedTiny => f.write_str("embedded:tiny"),
            Self::Directory(path) => write!(f, "{}", path.display()),
        }
    }
}

impl From<ModelSource> for String {
    fn from(source: ModelSource) -> String {
        source.to_string()
    }
}
