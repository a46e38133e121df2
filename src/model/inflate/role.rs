//! What is inflated.

use super::super::HeadKind;
use crate::protocol::ModelRole;

/// What a source is inflated as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflateRole {
    /// A model; of a pair, the target.
    Target,
    /// A model; of a pair, the draft model.
    Draft,
    /// An EAGLE-3 head.
    Eagle3,
    /// A DSpark head.
    DSpark,
}

impl InflateRole {
    /// Which files of a pair it means.
    pub(super) fn of_pair(self) -> ModelRole {
        match self {
            InflateRole::Target => ModelRole::Target,
            InflateRole::Draft | InflateRole::Eagle3 | InflateRole::DSpark => ModelRole::Draft,
        }
    }
}

/// A head of this kind, or a model, in words.
pub(super) fn what(head: Option<HeadKind>) -> String {
    head.map_or_else(|| "a model".to_owned(), |kind| format!("a draft head ({kind})"))
}

/// How that is inflated: a clause to append.
pub(super) fn advice(held: Option<HeadKind>) -> &'static str {
    match held {
        None => ": inflate it with the role target or draft",
        Some(HeadKind::Eagle3) => ": inflate it with the role eagle3",
        Some(HeadKind::DSpark) => ": inflate it with the role dspark",
        Some(HeadKind::DFlash) => ", which cannot be inflated",
    }
}
