//! Fetches the content of one file: goes on where an earlier try ended, and checks its hash.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::client::{Client, RemoteFile, network};
use super::error::HubError;
use super::progress::{OnPull, PullEvent};
use super::settings::Patience;
use super::store::{self, BlobLock, failed};
use super::tag::{Hasher, Kind};
use crate::model::CachedRepository;

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Puts the content of `file` into the cache, if it is not there, and returns how many bytes were
/// fetched for that.
pub(super) fn fetch(
    client: &Client<'_>,
    repository: &CachedRepository,
    file: &RemoteFile,
    patience: &Patience,
    on: &mut OnPull<'_>,
) -> Result<u64, HubError> {
    let blob = store::blob(repository, &file.tag);
    on(PullEvent::File { path: &file.path });
    if is_there(&blob, file)? {
        on(PullEvent::Bytes(file.bytes));
        return Ok(0);
    }
    let is_text = [".json", ".jinja"].into_iter().any(|end| file.path.ends_with(end));
    if !is_text && file.tag.kind() == Kind::Opaque {
        return Err(HubError::NoHash { url: file.url.clone(), tag: file.tag.as_str().to_owned() });
    }
    let _lock = BlobLock::take(repository, &file.tag, || on(PullEvent::Waits { path: &file.path }))?;
    // another process may have fetched it meanwhile
    if is_there(&blob, file)? {
        on(PullEvent::Bytes(file.bytes));
        return Ok(0);
    }
    let mut part = Part::open(store::incomplete_blob(repository, &file.tag), file, on)?;
    let fetched = part.complete(client, patience, on)?;
    part.finish(&blob)?;
    Ok(fetched)
}

fn is_there(blob: &Path, file: &RemoteFile) -> Result<bool, HubError> {
    Ok(store::size(blob)? == Some(file.bytes))
}

/// A partially downloaded file.
struct Part<'a> {
    remote: &'a RemoteFile,
    path: PathBuf,
    file: File,
    /// Bytes so far.
    len: u64,
    /// Hash of them.
    hasher: Hasher,
}

impl<'a> Part<'a> {
    /// Opens what earlier tries have left, or begins.
    fn open(path: PathBuf, remote: &'a RemoteFile, on: &mut OnPull<'_>) -> Result<Part<'a>, HubError> {
        store::create_parent(&path)?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|source| failed(&path, source))?;
        let mut part = Part { hasher: remote.tag.hasher(remote.bytes), remote, path, file, len: 0 };
        part.read_back(on)?;
        Ok(part)
    }

    fn read_back(&mut self, on: &mut OnPull<'_>) -> Result<(), HubError> {
        if store::size(&self.path)?.is_some_and(|bytes| bytes > self.remote.bytes) {
            return self.begin_again(on);
        }
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = self.file.read(&mut piece).map_err(|source| failed(&self.path, source))?;
            if read == 0 {
                return Ok(());
            }
            self.take(&piece[..read], on);
        }
    }

    fn take(&mut self, bytes: &[u8], on: &mut OnPull<'_>) {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        on(PullEvent::Bytes(bytes.len() as u64));
    }

    fn begin_again(&mut self, on: &mut OnPull<'_>) -> Result<(), HubError> {
        self.file.set_len(0).map_err(|source| failed(&self.path, source))?;
        self.file.seek(SeekFrom::Start(0)).map_err(|source| failed(&self.path, source))?;
        on(PullEvent::Lost(self.len));
        self.len = 0;
        self.hasher = self.remote.tag.hasher(self.remote.bytes);
        Ok(())
    }

    /// Fetches what is missing, and returns how many bytes that took. Gives up after some tries in
    /// a row that yield nothing.
    fn complete(
        &mut self,
        client: &Client<'_>,
        patience: &Patience,
        on: &mut OnPull<'_>,
    ) -> Result<u64, HubError> {
        let (mut fetched, mut failures) = (0, 0);
        while self.len < self.remote.bytes {
            let mut received = 0;
            let result = self.receive(client, &mut received, on);
            fetched += received;
            failures = if received > 0 { 0 } else { failures + 1 };
            match result {
                Ok(()) => {}
                Err(error) if error.may_pass() && failures < patience.tries => {
                    on(PullEvent::Retries { path: &self.remote.path, problem: &error });
                    patience.pause_after(failures);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(fetched)
    }

    /// Receives what one connection yields, and counts its bytes in `received`.
    fn receive(
        &mut self,
        client: &Client<'_>,
        received: &mut u64,
        on: &mut OnPull<'_>,
    ) -> Result<(), HubError> {
        let mut content = client.content(self.remote, self.len)?;
        if content.start < self.len {
            self.begin_again(on)?;
        }
        let broken = |problem: &dyn std::fmt::Display| network(&self.remote.url, problem);
        let mut piece = vec![0; PIECE_BYTES];
        while self.len < self.remote.bytes {
            let read = content.bytes.read(&mut piece).map_err(|error| broken(&error))?;
            if read == 0 {
                return Err(broken(&format!("it ended after {} of {} bytes", self.len, self.remote.bytes)));
            }
            if self.len + read as u64 > self.remote.bytes {
                let problem = format!("it sends more than the {} bytes that it announced", self.remote.bytes);
                return Err(HubError::Answer { url: self.remote.url.clone(), problem });
            }
            self.file.write_all(&piece[..read]).map_err(|source| failed(&self.path, source))?;
            *received += read as u64;
            self.take(&piece[..read], on);
        }
        Ok(())
    }

    /// Checks the hash and gives the content its name in the cache. A wrong one is removed.
    fn finish(self, blob: &Path) -> Result<(), HubError> {
        let expected = self.remote.tag.as_str();
        if let Some(found) = self.hasher.finish().filter(|found| !found.eq_ignore_ascii_case(expected)) {
            std::fs::remove_file(&self.path).map_err(|source| failed(&self.path, source))?;
            let (file, expected) = (self.remote.path.clone(), expected.to_owned());
            return Err(HubError::Hash { file, expected, found });
        }
        // a name that survives a crash of the machine must have its content
        self.file.sync_all().map_err(|source| failed(&self.path, source))?;
        std::fs::rename(&self.path, blob).map_err(|source| failed(blob, source))
    }
}
