//! Loads the models of a config.

use crate::config::{Config, DraftConfig};
use crate::model::{ModelError, ModelPair, load_pair_within};

/// Loads the configured models. Blocks.
///
/// # Errors
/// Any [`ModelError`].
pub(super) fn load_models(config: &Config) -> Result<ModelPair, ModelError> {
    let draft = config.draft.as_ref().and_then(DraftConfig::model);
    let context_cap = config.target.context_tokens_max.map(|tokens| tokens as usize);
    load_pair_within(&config.target.model, draft, context_cap)
}
