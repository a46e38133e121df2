//! Draft heads: small drafters that read the hidden states of their target.
//!
//! Two families are read, in the layouts that their training code writes:
//!
//! - EAGLE-3 (Li et al., arXiv 2503.01840): one transformer layer that drafts a token per pass
//!   ([`Eagle3Head`]).
//! - DFlash and DSpark: a few layers that draft a block of tokens in one pass ([`BlockHead`]);
//!   DSpark adds a Markov head and a confidence head.
//!
//! What config.json leaves open is refused rather than guessed: a head that computes another
//! function than it was trained for loses acceptance and says nothing. The deployment can say it
//! instead ([`HeadSettings`]). Heads of other kinds are refused by name.
#![forbid(unsafe_code)]

mod block;
mod eagle3;
mod features;
mod interface;
mod kind;
mod layout;
mod tensors;
#[cfg(test)]
mod tests;

pub use block::{BlockHead, ConfidenceHead, MarkovHead};
pub(super) use eagle3::layer_prefix;
pub use eagle3::{Eagle3Head, FeatureNorm};
pub use features::Features;
pub use interface::Interface;
pub(super) use kind::recognise;

use super::files::{CONFIG, ModelFiles};
use super::json_file::JsonObject;
use super::safetensors_file::TensorFiles;
use super::{DraftKind, HeadKind, HeadSettings, KIND, ModelError, ModelSource, ModelSpec};
use crate::protocol::ModelRole;

/// A head of either family, with its mapped weights.
#[derive(Clone, Debug)]
pub enum DraftHead {
    /// Drafts a token per pass.
    Eagle3(Box<Eagle3Head>),
    /// Drafts a block per pass.
    Block(Box<BlockHead>),
}

impl DraftHead {
    /// Loads the head of `source`, which is to draft for `target`; without a target, what depends
    /// on it is not checked. `None` if the directory holds no head: an ordinary model, for example.
    ///
    /// # Errors
    /// A file cannot be read, config.json says something that is not supported or leaves something
    /// open, a tensor is missing, has another shape or is not part of the head, or the head does
    /// not fit the target.
    pub fn load(source: &ModelSource, target: Option<&ModelSpec>) -> Result<Option<DraftHead>, ModelError> {
        DraftHead::load_with(source, target, &HeadSettings::default())
    }

    /// [`load`](DraftHead::load), with `settings` that go before what config.json says. `None` if
    /// they say that the directory holds a model, or if it does and they don't say.
    ///
    /// # Errors
    /// Those of `load`; a setting that does not fit the head, or means nothing for what the
    /// directory holds.
    pub fn load_with(
        source: &ModelSource,
        target: Option<&ModelSpec>,
        settings: &HeadSettings,
    ) -> Result<Option<DraftHead>, ModelError> {
        let files = ModelFiles::open(source, ModelRole::Draft)?;
        let json = files.read_json(CONFIG)?;
        let path = files.path_of(CONFIG);
        let config = JsonObject::root(&path, &json)?;
        let tensors = TensorFiles::open(&files)?;
        let kind = match settings.kind {
            Some(kind) => kind,
            None => match recognise(&config, &tensors).map_err(|error| error.open_to_setting(KIND))? {
                Some(kind) => DraftKind::Head(kind),
                None => DraftKind::Model,
            },
        };
        refuse_misplaced(settings, kind, &files)?;
        Ok(match kind {
            DraftKind::Model => None,
            DraftKind::Head(HeadKind::Eagle3) => {
                Some(DraftHead::Eagle3(Box::new(eagle3::read(&config, &tensors, target, settings)?)))
            }
            DraftKind::Head(kind) => {
                Some(DraftHead::Block(Box::new(block::read(kind, &config, &tensors, target, settings)?)))
            }
        })
    }

    /// Which kind of head it is.
    pub fn kind(&self) -> HeadKind {
        match self {
            DraftHead::Eagle3(_) => HeadKind::Eagle3,
            DraftHead::Block(head) => head.kind,
        }
    }

    /// Shape of its transformer layers; `vocab_size` is the target's.
    pub fn spec(&self) -> &ModelSpec {
        match self {
            DraftHead::Eagle3(head) => &head.spec,
            DraftHead::Block(head) => &head.spec,
        }
    }

    /// Hidden states and tokens.
    pub fn interface(&self) -> &Interface {
        match self {
            DraftHead::Eagle3(head) => &head.interface,
            DraftHead::Block(head) => &head.interface,
        }
    }
}

/// Refuses settings that would be ignored.
fn refuse_misplaced(settings: &HeadSettings, kind: DraftKind, files: &ModelFiles) -> Result<(), ModelError> {
    let Some(misplaced) = settings.misplaced(kind).into_iter().next() else { return Ok(()) };
    let problem = format!("only {} have it, and {} holds {kind}; remove it", misplaced.whose, files.place());
    Err(ModelError::Setting { key: misplaced.key, value: misplaced.value, problem })
}
