use super::*;

fn token(token: TokenId) -> SampledToken {
    SampledToken { token, finite: true }
}

#[test]
fn a_chain_is_accepted_up_to_the_first_difference() {
    let own = [5, 6, 7, 8];
    let cases: [(&[TokenId], usize); 5] =
        [(&[], 0), (&[5, 6, 7], 3), (&[5, 6, 9], 2), (&[9, 6, 7], 0), (&[5, 9, 7], 1)];
    for (drafts, accepted) in cases {
        let mut asked = Vec::new();
        let verdict = walk_chain(drafts, |index| {
            asked.push(index);
            token(own[index])
        });
        assert_eq!(verdict.tokens, own[..=accepted]);
        assert_eq!((verdict.accepted as usize, verdict.finite), (accepted, true));
        assert!(verdict.path.is_empty());
        assert!(asked.into_iter().eq(0..=accepted), "nothing is sampled past a rejected draft");
    }
}

#[test]
fn a_sample_that_is_not_finite_yields_no_tokens() {
    for broken in 0..3 {
        let chain = walk_chain(&[1, 1], |index| SampledToken { token: 1, finite: index != broken });
        let tree = walk_tree(&[1, 1], &[0, 1], |node, _| SampledToken { token: 1, finite: node != broken });
        assert_eq!(chain, Verdict { finite: false, ..Verdict::default() });
        assert_eq!(tree, chain);
    }
    let behind = walk_chain(&[2, 1], |index| SampledToken { token: 1, finite: index == 0 });
    assert_eq!(
        (behind.tokens, behind.finite),
        (vec![1], true),
        "logits past a rejected draft are never read"
    );
}

#[test]
fn a_tree_is_walked_along_the_targets_samples() {
    // 0: 5        1: 6      2: 7 (under 5)   3: 8 (under 5)   4: 9 (under 8)
    let (drafts, parents) = ([5, 6, 7, 8, 9], [0, 0, 1, 1, 4]);
    let walk = |own: [TokenId; 4]| {
        walk_tree(&drafts, &parents, |node, path| {
            assert_eq!(path.last().map_or(0, |d| d + 1), node);
            token(own[path.len()])
        })
    };
    let expect = |tokens: &[TokenId], path: &[u32]| Verdict {
        tokens: tokens.to_vec(),
        accepted: path.len() as u32,
        path: path.to_vec(),
        finite: true,
    };
    assert_eq!(walk([5, 8, 9, 1]), expect(&[5, 8, 9, 1], &[0, 3, 4]));
    assert_eq!(walk([5, 7, 9, 1]), expect(&[5, 7, 9], &[0, 2]));
    assert_eq!(walk([6, 7, 9, 1]), expect(&[6, 7], &[1]));
    assert_eq!(walk([8, 7, 9, 1]), expect(&[8], &[]));
}

#[test]
fn of_siblings_with_one_token_the_first_is_taken() {
    let verdict = walk_tree(&[5, 5, 6, 6], &[0, 0, 2, 1], |_, path| token([5, 6, 7][path.len()]));
    assert_eq!(verdict.path, [0, 3]);
}

#[test]
fn a_tree_without_drafts_gives_the_targets_token() {
    let verdict = walk_tree(&[], &[], |_, _| token(4));
    assert_eq!((verdict.tokens, verdict.accepted), (vec![4], 0));
}

#[test]
fn a_chain_is_a_tree_of_width_one() {
    let own = [1, 0, 1, 1];
    for bits in 0..8u32 {
        for len in 0..=3 {
            let drafts: Vec<TokenId> = (0..len).map(|i| bits >> i & 1).collect();
            let parents: Vec<u32> = (0..len).collect();
            let chain = walk_chain(&drafts, |index| token(own[index]));
            let tree = walk_tree(&drafts, &parents, |node, _| token(own[node]));
            assert_eq!((&chain.tokens, chain.accepted), (&tree.tokens, tree.accepted));
            assert!(tree.path.into_iter().eq(0..chain.accepted));
        }
    }
}
