//! Kinds of drafts: models, and heads of several kinds.
#![forbid(unsafe_code)]

/// A kind of draft head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// EAGLE-3: one layer, a token per pass.
    Eagle3,
    /// DFlash: a block per pass, each token independent of the others.
    DFlash,
    /// DSpark: DFlash with a Markov head and a confidence head.
    DSpark,
}

impl std::fmt::Display for HeadKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            HeadKind::Eagle3 => "EAGLE-3",
            HeadKind::DFlash => "DFlash",
            HeadKind::DSpark => "DSpark",
        })
    }
}

/// What drafts: a model of its own, or a draft head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftKind {
    /// A model with the target's token list.
    Model,
    /// A head that reads the target's hidden states.
    Head(HeadKind),
}

impl DraftKind {
    /// Every kind.
    pub const ALL: [DraftKind; 4] = [
        DraftKind::Model,
        DraftKind::Head(HeadKind::Eagle3),
        DraftKind::Head(HeadKind::DFlash),
        DraftKind::Head(HeadKind::DSpark),
    ];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            DraftKind::Model => "model",
            DraftKind::Head(HeadKind::Eagle3) => "eagle3",
            DraftKind::Head(HeadKind::DFlash) => "dflash",
            DraftKind::Head(HeadKind::DSpark) => "dspark",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<DraftKind> {
        DraftKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl std::fmt::Display for DraftKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DraftKind::Model => f.write_str("a model"),
            DraftKind::Head(kind) => write!(f, "a draft head ({kind})"),
        }
    }
}
