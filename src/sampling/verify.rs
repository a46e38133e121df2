//! Drafter-invariant verification: what of a draft the target would have said too.
//!
//! The target's choice for the position after a prefix is a function of that prefix
//! alone (parameters and seed given): the noise is fixed by seed and position. A
//! draft token is accepted iff it equals that choice, and what is emitted is always
//! the choice itself. So the output is the path of the target's choices, however
//! the drafts came about; a draft only decides how much of the path one pass reveals.

use crate::protocol::{TokenId, Verdict};

use super::Choice;

/// Walks a chain of drafts.
///
/// `choose(i)` is the target's choice at place `i`: place 0 is behind the last
/// committed token, place `i` is behind `drafts[i - 1]`. It is called for places in
/// ascending order and for no place behind a rejected draft. A choice that is not
/// finite ends the walk, and the verdict then has no tokens.
pub fn walk_chain(drafts: &[TokenId], mut choose: impl FnMut(usize) -> Choice) -> Verdict {
    let mut tokens = Vec::with_capacity(drafts.len() + 1);
    for place in 0..=drafts.len() {
        let choice = choose(place);
        if !choice.finite {
            return Verdict::default();
        }
        tokens.push(choice.token);
        if drafts.get(place) != Some(&choice.token) {
            break;
        }
    }
    Verdict { accepted: tokens.len() as u32 - 1, tokens, path: Vec::new(), finite: true }
}

/// Walks a tree of drafts from its root to the child whose token is the target's
/// choice, as long as there is one.
///
/// `parents[d]` is draft `d`'s parent as in [`VerifyRow::tree`](crate::protocol::VerifyRow::tree):
/// 0 for the last committed token, `j > 0` for draft `j - 1`; parents stand before
/// their children. Of siblings with the same token the first counts.
/// `choose(place, path)` is the target's choice at `place`, where place 0 is the root
/// and place `j` is behind draft `j - 1`; `path` lists the drafts (0-based, ascending)
/// from the root down to that place. Not finite: as in [`walk_chain`].
pub fn walk_tree(
    drafts: &[TokenId],
    parents: &[u32],
    mut choose: impl FnMut(usize, &[usize]) -> Choice,
) -> Verdict {
    debug_assert!(parents.len() == drafts.len() && parents.iter().enumerate().all(|(d, &p)| p as usize <= d));
    let (mut tokens, mut path, mut place) = (Vec::new(), Vec::new(), 0);
    loop {
        let choice = choose(place, &path);
        if !choice.finite {
            return Verdict::default();
        }
        tokens.push(choice.token);
        // A child stands behind its parent, so the search starts there and the walk ends.
        let child = (place..drafts.len().min(parents.len()))
            .find(|&d| parents[d] as usize == place && drafts[d] == choice.token);
        let Some(child) = child else { break };
        path.push(child);
        place = child + 1;
    }
    let path = path.into_iter().map(|d| d as u32).collect();
    Verdict { accepted: tokens.len() as u32 - 1, tokens, path, finite: true }
}

#[cfg(test)]
mod tests;
