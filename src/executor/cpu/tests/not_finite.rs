//! A NaN in one sequence is that sequence's alone.

use super::*;
use crate::model::random::poisoned;
use crate::protocol::Proposal;

/// Its embedding is NaN in both models.
const POISON: TokenId = 77;

fn poisoned_executor() -> CpuExecutor {
    let draft = random_model(&small_spec(VOCAB), 2, RandomOptions::default());
    CpuExecutor::new(options(2), poisoned(target(), POISON), Some(poisoned(draft, POISON).into())).unwrap()
}

/// A text without the poison, or with it in the middle.
fn tokens(seed: u32, poison: bool) -> Vec<TokenId> {
    let mut tokens: Vec<TokenId> = text(seed, 9).into_iter().map(|token| token % POISON).collect();
    if poison {
        tokens[4] = POISON;
    }
    tokens
}

#[test]
fn only_the_sequence_with_a_nan_ends() {
    let mut executor = poisoned_executor();
    let row = |seed: u32, blocks: &[u32], poison| chain(blocks, &tokens(seed, poison), 0, 2);
    let rows = [row(1, &[4], false), row(2, &[9], true), row(3, &[6], false)];
    let verdicts = verify(&mut executor, &rows);
    assert_eq!(verdicts[1], Verdict::default(), "not finite, no tokens");
    for index in [0, 2] {
        assert!(verdicts[index].finite);
        let alone = verify(&mut poisoned_executor(), &rows[index..=index]);
        assert_eq!(verdicts[index..=index], alone);
    }
    // Whoever gets the sequence's block next finds no trace of it.
    let heir = row(4, &[9], false);
    let alone = verify(&mut poisoned_executor(), std::slice::from_ref(&heir));
    assert_eq!(verify(&mut executor, &[heir]), alone);
}

#[test]
fn only_the_draft_with_a_nan_proposes_nothing() {
    let mut executor_chains = DraftChains::default();
    let mut alone_chains = DraftChains::default();
    let mut executor = poisoned_executor();
    let rows: Vec<DraftSeed> = [(1, 4, false), (2, 9, true), (3, 6, false)]
        .into_iter()
        .map(|(seed, block, poison)| DraftSeed {
            row: 0,
            input: input(&[block], &tokens(seed, poison), 0),
            limit: 8,
            mask: None,
        })
        .collect();
    let mut proposals = Vec::new();
    executor_chains.start(&mut executor, &rows, &mut proposals).unwrap();
    assert_eq!(proposals[1], Proposal::default());
    let (mut alone, mut expected) = (poisoned_executor(), Vec::new());
    for index in [0, 2] {
        alone_chains.start(&mut alone, &rows[index..=index], &mut expected).unwrap();
        assert!(proposals[index].finite);
        assert_eq!(proposals[index], expected[0]);
    }
    executor_chains.extend(&mut executor, &[0, 2], &mut proposals).unwrap();
    assert!(proposals.iter().all(|proposal| proposal.finite));
}
