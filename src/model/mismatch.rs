//! Differences between the token lists of target and draft.
#![forbid(unsafe_code)]

use crate::protocol::TokenId;

/// The first difference between the token lists of target and draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// An id maps to different strings.
    Token {
        /// Lowest such id.
        id: TokenId,
        /// The target's string; `None` if the id is not a token.
        target: Option<String>,
        /// The draft's string; `None` if the id is not a token.
        draft: Option<String>,
    },
    /// One list is a prefix of the other.
    Size {
        /// Size of the target's list.
        target: usize,
        /// Size of the draft's list.
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
