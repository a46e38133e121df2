//! The cache that Hugging Face's programs share: which model of the hub lies where.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::snapshot::missing_files;
use crate::model::hub_name::{HubName, is_commit};
use crate::model::{ModelError, gguf};

/// A Hugging Face cache, with a directory `models--org--name` for each repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubCache {
    root: PathBuf,
}

/// The part of a cache that belongs to one repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedRepository {
    directory: PathBuf,
    locks: PathBuf,
}

impl HubCache {
    /// The cache in the directory `root`, which need not exist.
    pub fn at(root: PathBuf) -> HubCache {
        HubCache { root }
    }

    /// The cache that this process's environment names.
    pub fn of_process() -> HubCache {
        HubCache::of_variables(&|name| std::env::var_os(name), std::env::home_dir())
    }

    /// The cache that environment variables name, as in Hugging Face's programs: `HF_HUB_CACHE`,
    /// else `hub` in [`hub_home`].
    pub fn of_variables(variable: &dyn Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> HubCache {
        let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].into_iter().find_map(|name| {
            let path = variable(name).filter(|path| !path.is_empty())?;
            Some(expanded(path.into(), home.as_deref()))
        });
        HubCache { root: named.unwrap_or_else(|| hub_home(variable, home).join("hub")) }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The part of `name`'s repository.
    pub fn repository(&self, name: &HubName) -> CachedRepository {
        let directory = name.cache_directory();
        CachedRepository {
            locks: self.root.join(".locks").join(&directory),
            directory: self.root.join(directory),
        }
    }

    /// The directory with the files of `name`, all of them.
    ///
    /// # Errors
    /// [`ModelError::NotCached`] and [`ModelError::IncompleteSnapshot`], with what was looked for
    /// where; [`ModelError::Gguf`] for a model in another format.
    pub fn locate(&self, name: &HubName) -> Result<PathBuf, ModelError> {
        let repository = self.repository(name);
        let not_cached = |missing: &Path| ModelError::NotCached {
            name: name.to_string(),
            missing: missing.display().to_string(),
            similar: self.spelled_differently(name).map(|other| format!("; there is `{other}`")),
        };
        if !repository.directory.is_dir() {
            return Err(not_cached(&repository.directory));
        }
        let commit = repository.commit(name.revision())?;
        let commit = commit.ok_or_else(|| not_cached(&repository.reference(name.revision())))?;
        let snapshot = repository.snapshot(&commit);
        if !snapshot.is_dir() {
            return Err(not_cached(&snapshot));
        }
        gguf::refuse_directory(&snapshot)?;
        match missing_files(&snapshot) {
            missing if missing.is_empty() => Ok(snapshot),
            missing => Err(ModelError::IncompleteSnapshot {
                name: name.to_string(),
                directory: snapshot.display().to_string(),
                missing: missing.join(", "),
            }),
        }
    }

    /// A repository in the cache whose name differs from `name` in upper and lower case only.
    fn spelled_differently(&self, name: &HubName) -> Option<String> {
        let wanted = name.cache_directory();
        let entries = std::fs::read_dir(&self.root).ok()?.flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let found =
            names.into_iter().find(|found| *found != wanted && found.eq_ignore_ascii_case(&wanted))?;
        found.strip_prefix("models--").map(|repository| repository.replacen("--", "/", 1))
    }
}

impl CachedRepository {
    /// The file that holds the commit of a branch or tag.
    pub fn reference(&self, revision: &str) -> PathBuf {
        self.directory.join("refs").join(revision)
    }

    /// The directory with the files of a commit, as links to blobs.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.directory.join("snapshots").join(commit)
    }

    /// The directory of the files' contents, each named by its tag.
    pub fn blobs(&self) -> PathBuf {
        self.directory.join("blobs")
    }

    /// The file that a process locks while it writes the blob `tag`.
    pub fn lock(&self, tag: &str) -> PathBuf {
        self.locks.join(format!("{tag}.lock"))
    }

    /// The commit of a revision, if the cache knows it.
    ///
    /// # Errors
    /// [`ModelError::Io`] if the file that says so cannot be read or holds no commit.
    pub fn commit(&self, revision: &str) -> Result<Option<String>, ModelError> {
        if is_commit(revision) {
            return Ok(Some(revision.to_owned()));
        }
        let file = self.reference(revision);
        let failed = |source| ModelError::Io { file: file.display().to_string(), source };
        match std::fs::read_to_string(&file) {
            Ok(text) if is_commit(text.trim()) => Ok(Some(text.trim().to_owned())),
            Ok(_) => Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, "it holds no commit"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

/// The directory of Hugging Face's programs: `HF_HOME`, else `huggingface` in the user's caches.
/// A process without a home directory has `/`, as is usual for daemons.
pub fn hub_home(variable: &dyn Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> PathBuf {
    let path = |name| variable(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(own) = path("HF_HOME") {
        return expanded(own, home.as_deref());
    }
    let caches = path("XDG_CACHE_HOME").map(|caches| expanded(caches, home.as_deref()));
    caches.unwrap_or_else(|| home.unwrap_or_else(|| "/".into()).join(".cache")).join("huggingface")
}

/// `path` with the home directory in place of a leading `~`, which shells leave in assignments
/// such as those of service files.
fn expanded(path: PathBuf, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}
