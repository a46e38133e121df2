//! The output directory appears complete or not at all.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::InflateError;

/// Mode of a new directory, before the umask.
const NEW_DIRECTORY: u32 = 0o777;
/// A directory without it is not a model.
const CONFIG: &str = "config.json";

/// A directory under construction. It goes with everything in it if dropped before
/// [`finish`](Self::finish).
pub(super) struct Staging {
    work: TempDir,
    out: PathBuf,
    /// Whether `out` exists, empty. It may be a mount point, so it is filled and not replaced.
    exists: bool,
}

impl Staging {
    /// Begins a directory that will be `out`, which must not exist or be empty.
    pub(super) fn begin(out: &Path) -> Result<Staging, InflateError> {
        let exists = is_there_and_empty(out)?;
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
        let place = if exists { out } else { parent.unwrap_or_else(|| Path::new(".")) };
        if !exists {
            std::fs::create_dir_all(place).map_err(failed(place))?;
        }
        let name = out.file_name().unwrap_or(OsStr::new("model"));
        let work = tempfile::Builder::new()
            .prefix(&format!(".{}.", name.to_string_lossy()))
            .permissions(Permissions::from_mode(NEW_DIRECTORY))
            .tempdir_in(place)
            .map_err(failed(place))?;
        Ok(Staging { work, out: out.to_owned(), exists })
    }

    /// Where to write.
    pub(super) fn path(&self) -> &Path {
        self.work.path()
    }

    /// Puts the directory in its place.
    pub(super) fn finish(self) -> Result<(), InflateError> {
        if self.exists {
            return self.fill();
        }
        std::fs::rename(self.work.path(), &self.out).map_err(failed(&self.out))?;
        // it is in its place: there is nothing left to remove
        let _ = self.work.keep();
        Ok(())
    }

    /// Moves the files up, the configuration last.
    fn fill(self) -> Result<(), InflateError> {
        let list = std::fs::read_dir(self.work.path()).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut names: Vec<_> =
            list.map_err(failed(self.work.path()))?.iter().map(std::fs::DirEntry::file_name).collect();
        names.sort_by_key(|name| name == CONFIG);
        for name in names {
            let to = self.out.join(&name);
            std::fs::rename(self.work.path().join(&name), &to).map_err(failed(&to))?;
        }
        self.work.close().map_err(failed(&self.out))
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> InflateError {
    let file = path.to_owned();
    |source| InflateError::Io { file, source }
}

fn is_there_and_empty(directory: &Path) -> Result<bool, InflateError> {
    match std::fs::read_dir(directory) {
        // a link that leads nowhere is there, too
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !directory.is_symlink() => Ok(false),
        Err(error) => Err(failed(directory)(error)),
        Ok(mut entries) => match entries.next() {
            None => Ok(true),
            Some(_) => Err(InflateError::Occupied { directory: directory.to_owned() }),
        },
    }
}
