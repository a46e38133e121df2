//! Where a model's files come from: a directory, or the program itself.
#![deny(unsafe_code)]

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::embedded::{self, EmbeddedFile};
use super::{ModelError, ModelSource, TensorBytes, TensorFile, gguf, stand_in};
use crate::protocol::ModelRole;

/// The file that describes a model.
pub(super) const CONFIG: &str = "config.json";

/// Largest configuration, tokenizer or template file, in bytes. The largest tokenizers in
/// use are about 35 MB.
const TEXT_FILE_BYTES_MAX: u64 = 256 << 20;

/// The files of one model.
#[derive(Debug)]
pub(super) enum ModelFiles {
    /// A Hugging Face directory.
    Directory(PathBuf),
    /// Embedded in the binary.
    Embedded {
        /// Name of the source in errors.
        name: String,
        /// The embedded files.
        files: &'static [EmbeddedFile],
    },
}

impl ModelFiles {
    /// Opens the files of `source` for `role`.
    ///
    /// # Errors
    /// If the directory cannot be read, is not a directory, or holds a model in another format.
    pub(super) fn open(source: &ModelSource, role: ModelRole) -> Result<Self, ModelError> {
        match source {
            ModelSource::EmbeddedTiny => {
                let (part, files) = embedded::tiny(role);
                Ok(Self::Embedded { name: format!("{source}/{part}"), files })
            }
            ModelSource::Directory(path) | ModelSource::Snapshot { directory: path, .. } => {
                gguf::refuse_file(path)?;
                gguf::refuse_directory(path)?;
                std::fs::read_dir(path).map_err(|source| io_error(path, source))?;
                Ok(Self::Directory(path.clone()))
            }
        }
    }

    /// Name of the source, for errors.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Directory(path) => path.display().to_string(),
            Self::Embedded { name, .. } => name.clone(),
        }
    }

    /// Path of a file, for errors.
    pub(super) fn path_of(&self, name: &str) -> String {
        match self {
            Self::Directory(path) => path.join(name).display().to_string(),
            Self::Embedded { name: place, .. } => format!("{place}/{name}"),
        }
    }

    /// Whether the file exists.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(path) => path.join(name).is_file(),
            Self::Embedded { files, .. } => find(files, name).is_some(),
        }
    }

    /// Names of the files in a subdirectory; empty if it does not exist.
    pub(super) fn list(&self, subdirectory: &str) -> Result<Vec<String>, ModelError> {
        let Self::Directory(path) = self else { return Ok(Vec::new()) };
        let path = path.join(subdirectory);
        if !path.is_dir() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(&path).map_err(|source| io_error(&path, source))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| io_error(&path, source))?;
            names.extend(entry.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    /// Reads a configuration or text file.
    pub(super) fn read(&self, name: &str) -> Result<Cow<'static, [u8]>, ModelError> {
        match self {
            Self::Embedded { files, .. } => {
                find(files, name).map(Cow::Borrowed).ok_or_else(|| self.not_found(name))
            }
            Self::Directory(path) => {
                let path = path.join(name);
                let bytes = std::fs::metadata(&path).map_err(|source| io_error(&path, source))?.len();
                if bytes > TEXT_FILE_BYTES_MAX {
                    let file = path.display().to_string();
                    let bytes_max = TEXT_FILE_BYTES_MAX;
                    return Err(ModelError::TooLarge { file, found_bytes: bytes, bytes_max });
                }
                let bytes = std::fs::read(&path).map_err(|source| io_error(&path, source))?;
                stand_in::refuse_unplain_text(&self.path_of(name), &bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// Reads a JSON file.
    pub(super) fn read_json(&self, name: &str) -> Result<Value, ModelError> {
        serde_json::from_slice(&self.read(name)?)
            .map_err(|source| ModelError::Json { file: self.path_of(name), source })
    }

    /// Reads a JSON file that may be absent.
    pub(super) fn read_json_if_there(&self, name: &str) -> Result<Option<Value>, ModelError> {
        if self.has(name) { self.read_json(name).map(Some) } else { Ok(None) }
    }

    /// Reads a text file.
    pub(super) fn read_text(&self, name: &str) -> Result<String, ModelError> {
        String::from_utf8(self.read(name)?.into_owned()).map_err(|error| ModelError::Io {
            file: self.path_of(name),
            source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
        })
    }

    /// Maps a weight file into memory. Pages are loaded on access and shared with other
    /// processes.
    pub(super) fn map(&self, name: &str) -> Result<TensorBytes, ModelError> {
        match self {
            Self::Embedded { files, .. } => {
                let bytes = find(files, name).ok_or_else(|| self.not_found(name))?;
                Ok(Arc::new(bytes))
            }
            Self::Directory(path) => {
                let bytes = map_file(&path.join(name))?;
                stand_in::refuse_lfs_pointer(&self.path_of(name), (*bytes).as_ref())?;
                Ok(bytes)
            }
        }
    }

    fn not_found(&self, name: &str) -> ModelError {
        ModelError::Io { file: self.path_of(name), source: std::io::ErrorKind::NotFound.into() }
    }
}

/// A weight file in memory.
struct MappedFile(memmap2::Mmap);

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl TensorFile for MappedFile {
    #[cfg(unix)]
    #[expect(unsafe_code, reason = "memmap2 cannot know that the pages are those of a file")]
    fn give_back(&self, range: Range<usize>) {
        let advice = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: the mapping is private, of a file, and never written. Pages that are dropped are
        // read from the file again, with the bytes that they had, under the same condition as in
        // `map_file`: no process modifies the file.
        let given = unsafe { self.0.unchecked_advise_range(advice, range.start, range.len()) };
        if let Err(error) = given {
            tracing::debug!(%error, "weights stay in memory after they were copied");
        }
    }
}

#[expect(unsafe_code, reason = "memory maps are unsafe by nature; the only one is here")]
fn map_file(path: &Path) -> Result<TensorBytes, ModelError> {
    let file = File::open(path).map_err(|source| io_error(path, source))?;
    // SAFETY: the mapping is private, read-only, and only read as plain bytes. If another
    // process modifies the file, the weights change; if it truncates the file, a read
    // raises SIGBUS. `load` documents that operators must do neither.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|source| io_error(path, source))?;
    Ok(Arc::new(MappedFile(map)))
}

fn find(files: &[EmbeddedFile], name: &str) -> Option<&'static [u8]> {
    files.iter().find(|file| file.name == name).map(|file| file.bytes)
}

fn io_error(path: &Path, source: std::io::Error) -> ModelError {
    ModelError::Io { file: path.display().to_string(), source }
}
