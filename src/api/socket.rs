//! The Unix socket: bound without a window of wrong permissions, removed only while ours.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longest path that fits a Unix socket address, in bytes.
pub const PATH_BYTES_MAX: usize = 107;

/// Listen backlog, in connections.
const BACKLOG: i32 = 1024;

/// Attempts at the directory lock, and the pause between them, while another daemon binds.
const LOCK_ATTEMPTS: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Where to listen and who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Path of the socket.
    pub path: PathBuf,
    /// Permission bits, 0o600 for example.
    pub mode: u32,
    /// User ids that may connect, among those that the mode admits; `None` for all.
    pub users: Option<Vec<u32>>,
}

/// Why the socket could not be set up, for the operator.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path exceeds the length of a socket address.
    #[error("socket path {path:?} is {actual} bytes long; at most {PATH_BYTES_MAX} fit a socket address")]
    PathTooLong {
        /// The socket's path.
        path: PathBuf,
        /// Length of the path, in bytes.
        actual: usize,
    },
    /// The directory is missing, not a directory, or locked.
    #[error("the socket's directory {path:?} cannot be used: {source}")]
    Directory {
        /// The socket's directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Any user could replace the socket.
    #[error(
        "the socket's directory {path:?} is world-writable without the sticky bit; use a private directory"
    )]
    DirectoryUnsafe {
        /// The socket's directory.
        path: PathBuf,
    },
    /// Another process is listening on the path.
    #[error("another process is listening on {path:?}")]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// The path holds something other than a socket.
    #[error("{path:?} is {what}, not a socket; remove it or choose another path")]
    NotASocket {
        /// The socket's path.
        path: PathBuf,
        /// Kind of file found at the path.
        what: &'static str,
    },
    /// A system call failed.
    #[error("{action} socket {path:?} failed: {source}")]
    System {
        /// The attempted operation.
        action: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A listening socket in the file system, removed when dropped if it is still ours.
#[derive(Debug)]
pub struct BoundSocket {
    listener: UnixListener,
    file: SocketFile,
    users: Option<Vec<u32>>,
}

/// The socket's file. Dropping it removes the file, unless another socket has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl BoundSocket {
    /// Binds and listens. A stale socket of a dead process is replaced; anything else at the
    /// path is an error.
    ///
    /// The file is created with at most mode 0600, then gets its final mode, and only then
    /// starts to listen: no client can connect before the mode is final.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(options: &SocketOptions) -> Result<BoundSocket, SocketError> {
        let path = &options.path;
        let actual = path.as_os_str().len();
        if actual > PATH_BYTES_MAX {
            return Err(SocketError::PathTooLong { path: path.clone(), actual });
        }
        // Held until the socket listens, so that of two daemons starting at once only one
        // replaces a stale socket.
        let _lock = lock_directory(path)?;
        remove_stale(path)?;
        let socket = bind_closed(path).map_err(|source| system("binding", path, source))?;
        let file = SocketFile::at(path).map_err(|source| system("inspecting", path, source))?;
        fs::set_permissions(path, fs::Permissions::from_mode(options.mode))
            .map_err(|source| system("setting the mode of", path, source))?;
        rustix::net::listen(&socket, BACKLOG).map_err(|error| system("listening on", path, error.into()))?;
        Ok(BoundSocket { listener: UnixListener::from(socket), file, users: options.users.clone() })
    }

    /// Splits into the non-blocking listener, the guard of its file and the allowed user ids.
    pub fn into_parts(self) -> (UnixListener, SocketFile, Option<Vec<u32>>) {
        (self.listener, self.file, self.users)
    }
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<SocketFile> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(SocketFile { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode));
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("failed to remove socket {:?}: {error}", self.path);
        }
    }
}

/// Binds a socket to `path` without listening. On Linux the mode of the
/// descriptor, less the umask, becomes the mode of the file.
fn bind_closed(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Opens the socket's directory and locks it against other daemons that bind there.
fn lock_directory(path: &Path) -> Result<OwnedFd, SocketError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let unusable = |source: io::Error| SocketError::Directory { path: parent.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(parent, flags, Mode::empty()).map_err(|error| unusable(error.into()))?;
    let mode = rustix::fs::fstat(&directory).map_err(|error| unusable(error.into()))?.st_mode;
    let mode = Mode::from_raw_mode(mode);
    if mode.contains(Mode::WOTH) && !mode.contains(Mode::SVTX) {
        return Err(SocketError::DirectoryUnsafe { path: parent.to_owned() });
    }
    for _ in 0..LOCK_ATTEMPTS {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(unusable(error.into())),
        }
    }
    Err(unusable(io::Error::new(io::ErrorKind::WouldBlock, "another process holds its lock")))
}

/// Removes a stale socket at `path`, that is, one that refuses connections.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(system("inspecting", path, source)),
    };
    if !kind.is_socket() {
        let what = if kind.is_symlink() {
            "a symbolic link"
        } else if kind.is_dir() {
            "a directory"
        } else {
            "a file"
        };
        return Err(SocketError::NotASocket { path: path.to_owned(), what });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| system("removing stale", path, source))
        }
        // A full backlog means that a busy process is listening.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(SocketError::InUse { path: path.to_owned() })
        }
        Err(source) => Err(system("probing", path, source)),
    }
}

fn system(action: &'static str, path: &Path, source: io::Error) -> SocketError {
    SocketError::System { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(path: &Path) -> SocketOptions {
        SocketOptions { path: path.to_owned(), mode: 0o600, users: None }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_socket_is_private_from_the_moment_it_exists_and_closed_until_it_has_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _socket = bind_closed(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        let refused = UnixStream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_listening_socket_has_exactly_the_configured_mode() {
        let directory = tempfile::tempdir().unwrap();
        for wanted in [0o600, 0o660, 0o666] {
            let path = directory.path().join(format!("{wanted:o}"));
            let _socket = BoundSocket::bind(&SocketOptions { mode: wanted, ..options(&path) }).unwrap();
            assert_eq!(mode(&path), wanted);
            UnixStream::connect(&path).unwrap();
        }
    }

    #[test]
    fn a_socket_without_a_listener_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let _socket = BoundSocket::bind(&options(&path)).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_with_a_listener_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _first = BoundSocket::bind(&options(&path)).unwrap();
        assert!(matches!(BoundSocket::bind(&options(&path)), Err(SocketError::InUse { .. })));
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn files_directories_and_links_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link, dangling) =
            (directory.path().join("f"), directory.path().join("l"), directory.path().join("d"));
        fs::write(&file, "precious").unwrap();
        drop(UnixListener::bind(directory.path().join("stale")).unwrap());
        std::os::unix::fs::symlink(directory.path().join("stale"), &link).unwrap();
        std::os::unix::fs::symlink(directory.path().join("nothing"), &dangling).unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        for path in [&file, &link, &dangling, &directory.path().join("sub")] {
            let error = BoundSocket::bind(&options(path)).unwrap_err();
            assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
            assert!(fs::symlink_metadata(path).is_ok());
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        assert!(directory.path().join("stale").exists());
    }

    #[test]
    fn a_path_of_the_longest_length_binds_and_one_byte_more_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let room = PATH_BYTES_MAX - directory.path().as_os_str().len() - 1;
        let fits = directory.path().join("x".repeat(room));
        let _socket = BoundSocket::bind(&options(&fits)).unwrap();
        UnixStream::connect(&fits).unwrap();
        let error = BoundSocket::bind(&options(&directory.path().join("x".repeat(room + 1)))).unwrap_err();
        assert!(error.to_string().contains("is 108 bytes long; at most 107"), "{error}");
    }

    #[test]
    fn a_missing_or_unsafe_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let missing = BoundSocket::bind(&options(&directory.path().join("no/s"))).unwrap_err();
        assert!(matches!(missing, SocketError::Directory { .. }), "{missing}");
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let error = BoundSocket::bind(&options(&open.join("s"))).unwrap_err();
        assert!(matches!(error, SocketError::DirectoryUnsafe { .. }), "{error}");
    }

    #[test]
    fn the_file_is_removed_with_its_socket_unless_it_was_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(BoundSocket::bind(&options(&path)).unwrap());
        assert!(!path.exists());
        let first = BoundSocket::bind(&options(&path)).unwrap();
        fs::rename(&path, directory.path().join("moved")).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn one_of_several_racing_daemons_takes_a_stale_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let racers: Vec<_> = (0..8)
            .map(|_| {
                let options = options(&path);
                std::thread::spawn(move || BoundSocket::bind(&options))
            })
            .collect();
        let outcomes: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
        UnixStream::connect(&path).unwrap();
    }
}
