//! What a deployment says about its draft where config.json leaves it open or names it wrongly.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::head_kind::{DraftKind, HeadKind};

/// Full name of [`HeadSettings::kind`] in the deployment's TOML.
pub const KIND: &str = "draft.kind";
/// Full name of [`HeadSettings::norm_before_residual`] there.
pub const NORM_BEFORE_RESIDUAL: &str = "draft.norm_before_residual";
/// Full name of [`HeadSettings::hidden_state_layers`] there.
pub const HIDDEN_STATE_LAYERS: &str = "draft.hidden_state_layers";

/// Settings of a draft that go before what its files say; `None` leaves it to the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeadSettings {
    /// What the directory holds.
    pub kind: Option<DraftKind>,
    /// The residual of an EAGLE-3 layer is the normalised fusion.
    pub norm_before_residual: Option<bool>,
    /// The layers of the target, from 0, that the streams enter which a head reads, in the order in
    /// which its fusion takes them.
    pub hidden_state_layers: Option<Vec<usize>>,
}

/// A setting that means nothing for the draft that it is given for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misplaced {
    /// Full name of the key.
    pub key: &'static str,
    /// Its value as TOML.
    pub value: String,
    /// What has such a setting, in the plural.
    pub whose: &'static str,
}

impl HeadSettings {
    /// The settings that mean nothing for a draft of this kind.
    pub fn misplaced(&self, kind: DraftKind) -> Vec<Misplaced> {
        let is_eagle3 = kind == DraftKind::Head(HeadKind::Eagle3);
        let norm = self.norm_before_residual.filter(|_| !is_eagle3).map(|norm| Misplaced {
            key: NORM_BEFORE_RESIDUAL,
            value: norm.to_string(),
            whose: "EAGLE-3 heads",
        });
        let layers = self.hidden_state_layers.as_ref().filter(|_| kind == DraftKind::Model);
        let layers = layers.map(|layers| Misplaced {
            key: HIDDEN_STATE_LAYERS,
            value: format!("{layers:?}"),
            whose: "draft heads",
        });
        norm.into_iter().chain(layers).collect()
    }
}

/// Whether a list of layers names one of them twice.
pub fn names_a_layer_twice(layers: &[usize]) -> bool {
    layers.iter().collect::<BTreeSet<_>>().len() < layers.len()
}
