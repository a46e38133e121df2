//! Files that appear complete or not at all.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::error::CliError;

/// Mode of a new file, before the umask.
const NEW_FILE: u32 = 0o666;

/// Writes `bytes` to `path` through a temporary file beside it, so that neither an error nor an
/// interruption leaves a part of them. Creates the directory. What is no regular file, such as a
/// pipe, is written to directly.
///
/// # Errors
/// [`CliError::File`]. The file that was there before is then unchanged.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    replace(path, bytes).map_err(|source| CliError::File { path: path.to_owned(), source })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let permissions = match std::fs::metadata(path) {
        Ok(old) if !old.is_file() => return std::fs::write(path, bytes),
        Ok(old) => old.permissions(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Permissions::from_mode(NEW_FILE),
        Err(error) => return Err(error),
    };
    // a link stays, and what it names is replaced
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(directory)?;
    let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::cli::testing::ScratchDirectory;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).expect("a directory");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_stays_beside_it() {
        let directory = ScratchDirectory::new();
        let path = directory.path().join("new/file");
        write_whole(&path, b"one").expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("its owner may");
        let inode = || std::fs::metadata(&path).expect("there").ino();
        let before = inode();
        write_whole(&path, b"two").expect("written again");
        assert_ne!(inode(), before, "the old file is never written to");
        assert_eq!(std::fs::read(&path).expect("there"), b"two");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
        assert_eq!(names(&directory.path().join("new")), ["file"]);
    }

    #[test]
    fn a_link_stays_a_link() {
        let directory = ScratchDirectory::new();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        std::fs::write(&real, "old").expect("written");
        std::os::unix::fs::symlink(&real, &link).expect("linked");
        write_whole(&link, b"new").expect("written");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&real).expect("there"), b"new");
    }

    #[test]
    fn what_is_no_file_is_written_to_and_not_replaced() {
        write_whole(Path::new("/dev/null"), b"x").expect("swallowed");
        let null = std::fs::metadata("/dev/null").expect("still there");
        assert!(!null.is_file());
    }

    #[test]
    fn an_error_names_the_path_and_leaves_nothing() {
        let directory = ScratchDirectory::new();
        let path = directory.path().join("directory");
        std::fs::create_dir(&path).expect("made");
        let error = write_whole(&path, b"x").expect_err("a directory");
        assert!(error.to_string().contains("directory: "), "{error}");
        assert_eq!(names(directory.path()), ["directory"]);
    }
}
