//! Atomic writes to the cache.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::error::HubError;
use super::tag::Tag;
use crate::model::CachedRepository;

/// Mode of a new file, less what the user's mask takes away.
const FILE_MODE: u32 = 0o666;

/// The right to write one blob, held until dropped.
pub(super) struct BlobLock {
    /// Kept for its drop, which unlocks it.
    _file: File,
}

impl BlobLock {
    /// Locks the blob `tag`; calls `waits` if another process has locked it.
    pub(super) fn take(
        repository: &CachedRepository,
        tag: &Tag,
        waits: impl FnOnce(),
    ) -> Result<BlobLock, HubError> {
        let path = repository.lock(tag.as_str());
        create_parent(&path)?;
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|source| failed(&path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                waits();
                file.lock().map_err(|source| failed(&path, source))?;
            }
            Err(fs::TryLockError::Error(source)) => return Err(failed(&path, source)),
        }
        Ok(BlobLock { _file: file })
    }
}

/// Where the content of `tag` lies once it is whole.
pub(super) fn blob(repository: &CachedRepository, tag: &Tag) -> PathBuf {
    repository.blobs().join(tag.as_str())
}

/// Where the content of `tag` is collected.
pub(super) fn incomplete_blob(repository: &CachedRepository, tag: &Tag) -> PathBuf {
    repository.blobs().join(format!("{}.incomplete", tag.as_str()))
}

/// Makes the file `path` of the commit's snapshot a link to the blob `tag`, relative, so that a
/// cache may be moved.
pub(super) fn link(
    repository: &CachedRepository,
    commit: &str,
    path: &str,
    tag: &Tag,
) -> Result<(), HubError> {
    let link = repository.snapshot(commit).join(path);
    let depth = 2 + path.matches('/').count();
    let target = format!("{}blobs/{}", "../".repeat(depth), tag.as_str());
    if fs::read_link(&link).is_ok_and(|found| found == Path::new(&target)) {
        return Ok(());
    }
    let directory = create_parent(&link)?;
    let made = tempfile::Builder::new().make_in(directory, |place| symlink(&target, place));
    let made = made.map_err(|source| failed(&link, source))?;
    made.into_temp_path().persist(&link).map_err(|error| failed(&link, error.error))
}

/// Makes `revision` refer to `commit`.
pub(super) fn refer(repository: &CachedRepository, revision: &str, commit: &str) -> Result<(), HubError> {
    let path = repository.reference(revision);
    if fs::read_to_string(&path).is_ok_and(|found| found == commit) {
        return Ok(());
    }
    let directory = create_parent(&path)?;
    let written = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(FILE_MODE))
        .tempfile_in(directory)
        .and_then(|mut file| file.write_all(commit.as_bytes()).map(|()| file));
    let written = written.map_err(|source| failed(&path, source))?;
    written.persist(&path).map(|_| ()).map_err(|error| failed(&path, error.error))
}

/// Creates the directory of `path`.
pub(super) fn create_parent(path: &Path) -> Result<&Path, HubError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|source| failed(parent, source))?;
    Ok(parent)
}

/// Size of a file; `None` if there is none.
pub(super) fn size(path: &Path) -> Result<Option<u64>, HubError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed(path, source)),
    }
}

/// Free bytes of the file system that `directory` is on, for this user.
pub(super) fn free_bytes(directory: &Path) -> Result<u64, HubError> {
    let found = rustix::fs::statvfs(directory).map_err(|error| failed(directory, error.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// A file that could not be read or written.
pub(super) fn failed(path: &Path, source: std::io::Error) -> HubError {
    HubError::File { path: path.to_owned(), source }
}
