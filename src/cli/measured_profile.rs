//! A temporary profile for private daemons.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::error::CliError;
use super::host::DaemonHost;
use super::private::private_directory;
use crate::config::Config;
use crate::pacing::ServiceOrder;
use crate::policy::registry::PolicyName;

/// A profile shared by the daemons of one command; removed on drop.
pub struct MeasuredProfile {
    path: PathBuf,
    /// Held for its `Drop`.
    _directory: TempDir,
}

impl MeasuredProfile {
    /// Path of the profile.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Profiles once for all daemons, if a policy or the order of service needs a profile and the
    /// configuration has none.
    ///
    /// # Errors
    /// [`CliError`]: profiling fails, or the file cannot be written.
    pub async fn prepare<H: DaemonHost>(
        host: &H,
        config: &Config,
        policies: &[PolicyName],
        budget: Duration,
    ) -> Result<Option<MeasuredProfile>, CliError> {
        let by_slack = config.scheduler.order == ServiceOrder::Slo;
        let needed = by_slack || policies.iter().any(|policy| policy.needs_profile());
        if !needed || config.speculation.profile.is_some() {
            return Ok(None);
        }
        let measured = host.profile(config.clone(), budget, Box::new(|_| {})).await;
        let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
        let text = measured.map_err(|error| failed(&error))?.to_toml().map_err(|error| failed(&error))?;
        let directory = private_directory()?;
        let path = directory.path().join("profile.toml");
        std::fs::write(&path, text).map_err(|source| CliError::File { path: path.clone(), source })?;
        Ok(Some(MeasuredProfile { path, _directory: directory }))
    }
}
