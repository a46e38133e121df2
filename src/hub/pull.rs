//! A pull: which files, in which order.

use std::path::PathBuf;

use super::blob;
use super::client::{Client, RemoteFile};
use super::error::HubError;
use super::plan::{is_required, plan};
use super::progress::{OnPull, PullEvent};
use super::settings::HubSettings;
use super::store;
use crate::model::{CachedRepository, HubName, WEIGHTS_FILE, is_commit, shards};

/// A finished pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullReport {
    /// The directory with the model's files.
    pub directory: PathBuf,
    /// The commit of the revision; `None` without the network.
    pub commit: Option<String>,
    /// The files, in the order in which they were fetched.
    pub files: Vec<PulledFile>,
}

/// One file of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledFile {
    /// Its path in the repository.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// How much of it came over the network in this pull.
    pub fetched_bytes: u64,
}

/// Fetches what the cache lacks of `name`. Blocks; ending the process at any time leaves only what
/// the next pull can use.
///
/// # Errors
/// Any [`HubError`].
pub fn pull(settings: &HubSettings, name: &HubName, on: &mut OnPull<'_>) -> Result<PullReport, HubError> {
    if settings.offline {
        let directory = settings.cache.locate(name).map_err(HubError::Offline)?;
        return Ok(PullReport { directory, commit: None, files: Vec::new() });
    }
    let client = Client::new(settings, name)?;
    let listing = client.listing()?;
    let plan = plan(name, &listing.files)?;
    let repository = settings.cache.repository(name);
    let directory = repository.snapshot(&listing.commit);
    let mut transfer = Transfer {
        client,
        settings,
        repository,
        commit: listing.commit,
        announced: 0,
        files: Vec::new(),
        on,
    };
    transfer.fetch(&plan.described)?;
    let weights = if plan.sharded { shards(&directory)? } else { vec![WEIGHTS_FILE.to_owned()] };
    transfer.fetch(&weights)?;
    if !is_commit(name.revision()) {
        store::refer(&transfer.repository, name.revision(), &transfer.commit)?;
    }
    Ok(PullReport { directory, commit: Some(transfer.commit), files: transfer.files })
}

/// A pull that is under way.
struct Transfer<'a, 'on> {
    client: Client<'a>,
    settings: &'a HubSettings,
    repository: CachedRepository,
    commit: String,
    /// Bytes of all files that are known of.
    announced: u64,
    files: Vec<PulledFile>,
    on: &'a mut OnPull<'on>,
}

impl Transfer<'_, '_> {
    fn fetch(&mut self, paths: &[String]) -> Result<(), HubError> {
        let mut remotes = Vec::with_capacity(paths.len());
        for path in paths {
            match self.describe(path)? {
                Some(remote) => remotes.push(remote),
                None if is_required(path) => {
                    let (name, problem) = (self.client.name().to_string(), format!("has no {path}"));
                    return Err(HubError::Unfit { name, problem });
                }
                None => {}
            }
        }
        self.announced += remotes.iter().map(|remote| remote.bytes).sum::<u64>();
        (self.on)(PullEvent::Total(self.announced));
        self.check_space(&remotes)?;
        for remote in remotes {
            let patience = &self.settings.patience;
            let fetched_bytes = blob::fetch(&self.client, &self.repository, &remote, patience, self.on)?;
            store::link(&self.repository, &self.commit, &remote.path, &remote.tag)?;
            self.files.push(PulledFile { path: remote.path, bytes: remote.bytes, fetched_bytes });
        }
        Ok(())
    }

    /// Asks for a file's tag and size; again if the connection fails.
    fn describe(&mut self, path: &str) -> Result<Option<RemoteFile>, HubError> {
        let patience = &self.settings.patience;
        let mut failures = 0;
        loop {
            match self.client.describe(&self.commit, path) {
                Err(problem) if problem.may_pass() && failures + 1 < patience.tries => {
                    (self.on)(PullEvent::Retries { path, problem: &problem });
                    failures += 1;
                    patience.pause_after(failures);
                }
                answer => return answer,
            }
        }
    }

    /// Refuses what the disk has no room for, before anything is fetched.
    fn check_space(&self, remotes: &[RemoteFile]) -> Result<(), HubError> {
        let mut needed_bytes = 0;
        for remote in remotes {
            let there = store::size(&store::blob(&self.repository, &remote.tag))?;
            let begun = store::size(&store::incomplete_blob(&self.repository, &remote.tag))?;
            needed_bytes += remote.bytes.saturating_sub(there.or(begun).unwrap_or(0));
        }
        if needed_bytes == 0 {
            return Ok(());
        }
        let directory = self.repository.blobs();
        std::fs::create_dir_all(&directory).map_err(|source| store::failed(&directory, source))?;
        match store::free_bytes(&directory)? {
            free_bytes if free_bytes < needed_bytes => {
                Err(HubError::Space { directory, needed_bytes, free_bytes })
            }
            _ => Ok(()),
        }
    }
}
