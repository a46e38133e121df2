//! The target's samples define a path: x₀ after the committed tokens, x₁ after x₀, and so
//! on. A sample is a function of its prefix, and the walk samples only at prefixes on
//! the path (asserted at each call). So it suffices to enumerate paths instead of whole
//! tables of samples, and the result holds for every table, hence for every noise,
//! target and draft. A pruned tree is a smaller tree, so enumerating all trees up to a
//! size covers every pruning.

use crate::protocol::TokenId;
use crate::sampling::{SampledToken, walk_chain, walk_tree};

/// All sequences of `len` numbers, the i-th below `bounds(i)`.
fn sequences(len: usize, bounds: impl Fn(usize) -> u32) -> Vec<Vec<u32>> {
    (0..len).fold(vec![Vec::new()], |all, i| {
        all.into_iter().flat_map(|s| (0..bounds(i)).map(move |n| [s.as_slice(), &[n]].concat())).collect()
    })
}

/// The length of the longest branch that spells the path's beginning; `None` where
/// siblings with the same token make the branch ambiguous.
fn longest_match(drafts: &[TokenId], parents: &[u32], path: &[TokenId]) -> Option<usize> {
    let mut depth_of_place = vec![Some(0)];
    for d in 0..drafts.len() {
        if (0..d).any(|e| parents[e] == parents[d] && drafts[e] == drafts[d]) {
            return None;
        }
        let depth = depth_of_place[parents[d] as usize];
        depth_of_place.push(depth.filter(|&depth| path[depth] == drafts[d]).map(|depth| depth + 1));
    }
    depth_of_place.into_iter().flatten().max()
}

fn check_tree(drafts: &[TokenId], parents: &[u32], path: &[TokenId]) {
    let verdict = walk_tree(drafts, parents, |node, branch| {
        let prefix: Vec<TokenId> = branch.iter().map(|&d| drafts[d]).collect();
        assert_eq!(prefix, path[..branch.len()], "only prefixes on the path are sampled");
        assert_eq!(node, branch.last().map_or(0, |d| d + 1));
        SampledToken { token: path[branch.len()], finite: true }
    });
    assert_eq!(verdict.tokens, path[..verdict.tokens.len()]);
    assert_eq!(verdict.accepted as usize, verdict.path.len());
    assert!(verdict.path.is_sorted());
    if let Some(longest) = longest_match(drafts, parents, path) {
        assert_eq!(verdict.accepted as usize, longest, "every acceptable draft is accepted");
    }
}

#[test]
fn every_tree_yields_a_beginning_of_the_targets_path() {
    for (vocab, nodes_max) in [(2, 4), (3, 3)] {
        for nodes in 0..=nodes_max {
            let paths = sequences(nodes + 1, |_| vocab);
            for parents in sequences(nodes, |d| d as u32 + 1) {
                for drafts in sequences(nodes, |_| vocab) {
                    paths.iter().for_each(|path| check_tree(&drafts, &parents, path));
                }
            }
        }
    }
}

#[test]
fn every_chain_yields_a_beginning_of_the_targets_path() {
    for (vocab, len_max) in [(2, 6), (3, 4), (4, 3)] {
        for len in 0..=len_max {
            for path in sequences(len + 1, |_| vocab) {
                for drafts in sequences(len, |_| vocab) {
                    let verdict = walk_chain(&drafts, |index| {
                        assert_eq!(drafts[..index], path[..index], "only prefixes on the path are sampled");
                        SampledToken { token: path[index], finite: true }
                    });
                    let longest = drafts.iter().zip(&path).take_while(|(d, x)| d == x).count();
                    assert_eq!(verdict.tokens, path[..=longest]);
                    assert_eq!(verdict.accepted as usize, longest);
                }
            }
        }
    }
}
