//! Files that are not what their names say, and what to do about them.
#![forbid(unsafe_code)]

use super::ModelError;

/// How a file begins that Git LFS has left in place of the real one.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

const BYTE_ORDER_MARKS: [(&[u8], &str); 3] = [
    (b"\xef\xbb\xbf", "starts with a byte order mark: save it as UTF-8 without one"),
    (b"\xff\xfe", "is UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16: save it as UTF-8"),
];

/// Refuses a Git LFS pointer in place of a file.
pub(super) fn refuse_lfs_pointer(file: &str, bytes: &[u8]) -> Result<(), ModelError> {
    match bytes.starts_with(LFS_POINTER) {
        true => Err(ModelError::GitLfsPointer { file: file.to_owned() }),
        false => Ok(()),
    }
}

/// Refuses a Git LFS pointer, and text in another encoding than plain UTF-8.
pub(super) fn refuse_unplain_text(file: &str, bytes: &[u8]) -> Result<(), ModelError> {
    refuse_lfs_pointer(file, bytes)?;
    match BYTE_ORDER_MARKS.iter().find(|(mark, _)| bytes.starts_with(mark)) {
        Some((_, problem)) => Err(ModelError::Encoding { file: file.to_owned(), problem }),
        None => Ok(()),
    }
}
