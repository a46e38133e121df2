//! Compatibility of target and draft: every token id must map to the same string in both.
#![forbid(unsafe_code)]

use super::Tokenizer;
use super::mismatch::Mismatch;
use crate::protocol::TokenId;

/// Compares the token lists of two tokenizers, id by id.
///
/// # Errors
/// The first difference.
pub fn same_token_list(target: &Tokenizer, draft: &Tokenizer) -> Result<(), Mismatch> {
    let (target_len, draft_len) = (target.list_len(), draft.list_len());
    for id in 0..target_len.min(draft_len) as TokenId {
        let (target, draft) = (target.token(id), draft.token(id));
        if target != draft {
            return Err(Mismatch::Token { id, target, draft });
        }
    }
    if target_len != draft_len {
        return Err(Mismatch::Size { target: target_len, draft: draft_len });
    }
    Ok(())
}
