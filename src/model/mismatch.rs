//! How the token lists of a target and a draft differ.
#![forbid(unsafe_code)]

use crate::protocol::TokenId;

/// The first difference between the token lists of a target and a draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// An id stands for different strings.
    Token {
        /// The lowest such id.
        id: TokenId,
        /// The target's string; `None` where the id is no token.
        target: Option<String>,
        /// The draft's string.
        draft: Option<String>,
    },
    /// One list is the beginning of the other.
    Size {
        /// Tokens of the target.
        target: usize,
        /// Tokens of the draft.
        draft: usize,
    },
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |token: &Option<String>| match token {
            Some(token) => format!("{token:?}"),
            None => "no token".to_owned(),
        };
        match self {
            Self::Token { id, target, draft } => {
                let (target, draft) = (shown(target), shown(draft));
                write!(
                    f,
                    "their token lists differ first at id {id}: {target} in the target, {draft} in the draft"
                )
            }
            Self::Size { target, draft } => {
                write!(f, "the target has {target} tokens, the draft {draft}; those that both have are equal")
            }
        }
    }
}

impl std::error::Error for Mismatch {}
