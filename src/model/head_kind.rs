//! Kinds of draft heads.
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
