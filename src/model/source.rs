//! Where a model lies.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::HubName;

/// Location of a model; [`ModelRef`](super::ModelRef) names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A Hugging Face directory.
    Directory(PathBuf),
    /// A model of the hub, in a cache.
    Snapshot {
        /// Its name on the hub.
        name: HubName,
        /// The Hugging Face directory.
        directory: PathBuf,
    },
    /// The pair embedded in the binary: as target the larger model, as draft the smaller one.
    EmbeddedTiny,
}

impl ModelSource {
    /// The model's own name: on the hub, or the last component of the path.
    pub fn name(&self) -> String {
        match self {
            Self::EmbeddedTiny => "embedded:tiny".to_owned(),
            Self::Snapshot { name, .. } => name.name().to_owned(),
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
            Self::Snapshot { name, .. } => write!(f, "{name}"),
            Self::Directory(path) => write!(f, "{}", path.display()),
        }
    }
}
