//! Drafter-invariant verification.
//!
//! Given parameters and seed, the token that the target samples after a prefix is a
//! function of that prefix alone, because the noise is fixed by seed and position. A
//! draft token is accepted iff it equals the target's sample, and the emitted token is
//! always the target's sample. So the output does not depend on the drafts; they only
//! determine how many of its tokens one forward pass yields.

use crate::protocol::{TokenId, Verdict};

use super::SampledToken;

/// Verifies a chain of drafts.
///
/// `sample(i)` returns the token that the target samples after the last committed token
/// and the first `i` drafts. It is called with ascending `i` and never past a rejected
/// draft. A sample that is not finite ends the walk with an empty verdict.
pub fn walk_chain(drafts: &[TokenId], mut sample: impl FnMut(usize) -> SampledToken) -> Verdict {
    let mut tokens = Vec::with_capacity(drafts.len() + 1);
    for index in 0..=drafts.len() {
        let sampled = sample(index);
        if !sampled.finite {
            return Verdict::default();
        }
        tokens.push(sampled.token);
        if drafts.get(index) != Some(&sampled.token) {
            break;
        }
    }
    Verdict { accepted: tokens.len() as u32 - 1, tokens, path: Vec::new(), finite: true }
}

/// Verifies a tree of drafts: descends from the root to the child that holds the
/// target's sample, for as long as there is one.
///
/// `parents[d]` is draft `d`'s parent as in [`VerifyRow::tree`](crate::protocol::VerifyRow::tree):
/// 0 for the last committed token, `j > 0` for draft `j - 1`; parents precede their
/// children. Of siblings with the same token, the first is taken.
/// `sample(node, path)` returns the target's sample after `node`, where node 0 is the
/// root and node `j` is draft `j - 1`; `path` lists the drafts (0-based, ascending)
/// from the root to that node. A sample that is not finite ends the walk as in
/// [`walk_chain`].
pub fn walk_tree(
    drafts: &[TokenId],
    parents: &[u32],
    mut sample: impl FnMut(usize, &[usize]) -> SampledToken,
) -> Verdict {
    debug_assert!(parents.len() == drafts.len() && parents.iter().enumerate().all(|(d, &p)| p as usize <= d));
    let (mut tokens, mut path, mut node) = (Vec::new(), Vec::new(), 0);
    loop {
        let sampled = sample(node, &path);
        if !sampled.finite {
            return Verdict::default();
        }
        tokens.push(sampled.token);
        // Children follow their parents, so starting at the parent guarantees termination.
        let child = (node..drafts.len().min(parents.len()))
            .find(|&d| parents[d] as usize == node && drafts[d] == sampled.token);
        let Some(child) = child else { break };
        path.push(child);
        node = child + 1;
    }
    let path = path.into_iter().map(|d| d as u32).collect();
    Verdict { accepted: tokens.len() as u32 - 1, tokens, path, finite: true }
}

#[cfg(test)]
mod tests;
