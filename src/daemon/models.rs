//! Loads the models of a config.

use crate::config::{Config, DraftConfig};
use crate::model::{HubCache, ModelError, ModelPair, load_pair_within};

/// Loads the configured models; those of the hub from the cache that this process's environment
/// names. Blocks.
///
/// # Errors
/// Any [`ModelError`].
pub(super) fn load_models(config: &Config) -> Result<ModelPair, ModelError> {
    let draft = config.draft.as_ref().and_then(DraftConfig::model);
    let cache = HubCache::of_process();
    let target = config.target.model.locate(&cache)?;
    let draft = draft.map(|model| model.locate(&cache)).transpose()?;
    let context_cap = config.target.context_tokens_max.map(|tokens| tokens as usize);
    let settings = config.draft.as_ref().map(DraftConfig::settings).unwrap_or_default();
    load_pair_within(&target, draft.as_ref(), &settings, context_cap)
}
