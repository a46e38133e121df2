//! A NaN in one sequence does not affect the others.

use specserve::executor::cuda::CudaExecutor;
use specserve::executor::{DraftChains, Target};
use specserve::model::random::poisoned;
use specserve::model::{DraftWeights, ModelSource, load_pair};
use specserve::protocol::{DraftSeed, Proposal, TokenId, Verdict, VerifyRow};

use crate::driver::{Sequence, generate};
use crate::{alone, options, sampled};

/// Its embedding is NaN in both models.
const POISON: TokenId = 3000;
/// Tokens of the prompts: three of them make 15 rows, for which rows do not interact and
/// results are comparable bit for bit.
const PROMPT: usize = 5;

fn executor() -> CudaExecutor {
    let pair = load_pair(&ModelSource::EmbeddedTiny, Some(&ModelSource::EmbeddedTiny)).expect("embedded");
    let target = poisoned(pair.target.loaded, POISON);
    let draft = pair.draft.as_ref().and_then(DraftWeights::model);
    let draft = draft.map(|draft| DraftWeights::from(poisoned(draft.clone(), POISON)));
    CudaExecutor::new(&target, draft.as_ref(), options()).expect("a CUDA device")
}

/// Three sequences; the second holds the poison.
fn sequences(temperature: f32) -> Vec<Sequence> {
    (0..3)
        .map(|index| {
            let mut prompt: Vec<TokenId> = (0..PROMPT).map(|i| 300 + 41 * index + 7 * i as TokenId).collect();
            if index == 1 {
                prompt[PROMPT / 2] = POISON;
            }
            Sequence::new(u64::from(index), &prompt, sampled(temperature, u64::from(index)), 64)
        })
        .collect()
}

#[test]
#[ignore = "needs a CUDA device"]
fn only_the_sequence_with_a_nan_ends() {
    let _alone = alone();
    for temperature in [0.0, 0.8] {
        let mut executor = executor();
        let mut all = sequences(temperature);
        let rows: Vec<VerifyRow> = all.iter().map(|sequence| sequence.verify_row(&[])).collect();
        let mut verdicts = Vec::new();
        executor.verify(&rows, &mut verdicts).expect("the batch runs");
        assert_eq!(verdicts[1], Verdict::default(), "not finite, no tokens");
        for index in [0, 2] {
            all[index].commit(&verdicts[index], 0);
        }
        // The others go on; a new sequence gets the blocks of the one that ended.
        let mut heir = sequences(temperature).swap_remove(0);
        (heir.id, heir.blocks) = (7, all[1].blocks.clone());
        all[1] = heir;
        generate(&mut executor, &mut all, 3, 30);

        for (index, sequence) in all.iter().enumerate() {
            let alone = if index == 1 { 0 } else { index };
            let mut plain = [sequences(temperature).swap_remove(alone)];
            generate(&mut self::executor(), &mut plain, 0, 30);
            assert_eq!(plain[0].tokens, sequence.tokens, "t {temperature}, sequence {index}");
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn only_the_draft_with_a_nan_proposes_nothing() {
    let mut executor_chains = DraftChains::default();
    let mut alone_chains = DraftChains::default();
    let _alone = alone();
    let mut executor = executor();
    let rows: Vec<DraftSeed> = sequences(0.8)
        .iter()
        .map(|sequence| DraftSeed { row: 0, input: sequence.input(0, &[]), limit: 8, mask: None })
        .collect();
    let mut proposals = Vec::new();
    executor_chains.start(&mut executor, &rows, &mut proposals).expect("the draft runs");
    assert_eq!(proposals[1], Proposal::default());
    let (mut alone, mut expected) = (self::executor(), Vec::new());
    for index in [0, 2] {
        alone_chains.start(&mut alone, &rows[index..=index], &mut expected).expect("the draft runs");
        assert!(proposals[index].finite);
        let (got, want) = (&proposals[index], &expected[0]);
        assert_eq!((got.token, got.runner_up), (want.token, want.runner_up), "sequence {index}");
        // The split of sums over the vocabulary depends on the number of rows.
        assert!((got.probability - want.probability).abs() < 1e-5, "{got:?}, not {want:?}");
    }
    executor_chains.extend(&mut executor, &[0, 2], &mut proposals).expect("the others go on");
    assert!(proposals.iter().all(|proposal| proposal.finite));
}
