//! Batches and options that break the rules.

use super::*;

fn refused(row: VerifyRow) -> String {
    let mut executor = executor(1);
    match executor.verify(&[row], &mut Vec::new()) {
        Err(ExecutorError::Malformed(what)) => {
            let fine = verify(&mut executor, &[chain(&[0], &[1], 0, 0)]);
            assert!(fine[0].finite, "the executor goes on after a malformed batch");
            what
        }
        other => panic!("taken as {other:?}"),
    }
}

#[test]
fn a_row_that_breaks_a_rule_is_refused_by_name() {
    let other_vocabulary = Some(Arc::new(crate::protocol::TokenMask::none(VOCAB as u32 + 1)));
    let tree = |parents: &[u32]| VerifyRow { tree: Some(parents.to_vec()), ..chain(&[0], &[1, 2, 3], 0, 2) };
    let cases = [
        (chain(&[0], &[], 0, 0), "no input tokens"),
        (chain(&[0], &[VOCAB as u32], 0, 0), "outside the vocabulary"),
        (chain(&[0], &text(1, 17), 0, 0), "the blocks cover 16"),
        (chain(&[0], &[1], 16, 0), "the blocks cover 16"),
        (chain(&[64], &[1], 0, 0), "outside the pool"),
        (chain(&(0..33).collect::<Vec<_>>(), &[1], 512, 0), "the context has 512"),
        (chain(&[0; 40], &text(1, 601), 0, 0), "at most 600"),
        (chain(&[0, 0], &text(1, 32), 0, 0), "write to block 0"),
        (chain(&[0], &[1, 2], 0, 2), "2 drafts among 2"),
        (chain(&(0..9).collect::<Vec<_>>(), &text(1, 70), 0, 65), "65 drafts, at most 64"),
        (VerifyRow { sample: false, ..chain(&[0], &[1, 2], 0, 1) }, "does not sample"),
        (VerifyRow { masks: vec![None; 3], ..chain(&[0], &[1, 2], 0, 1) }, "3 masks for 1 drafts"),
        (VerifyRow { masks: vec![other_vocabulary], ..chain(&[0], &[1], 0, 0) }, "another vocabulary"),
        (tree(&[0]), "1 parents for 2 drafts"),
        (tree(&[0, 2]), "draft 1 stands before its parent"),
        (tree(&[1, 0]), "draft 0 stands before its parent"),
    ];
    for (row, expected) in cases {
        let what = refused(row);
        assert!(what.contains(expected), "{what:?} does not say {expected:?}");
        assert!(what.contains("request 7"), "{what:?} does not name the request");
    }
}

#[test]
fn penalties_without_a_history_are_refused() {
    let mut row = chain(&[0], &[1], 0, 0);
    row.input.sampling = Arc::new(SamplingParams { presence_penalty: 0.5, ..SamplingParams::greedy() });
    assert!(refused(row).contains("history"));
}

#[test]
fn two_sequences_may_not_write_to_one_block() {
    let mut executor = executor(2);
    let rows = [chain(&[5], &[1], 0, 0), chain(&[6, 5], &[1], 17, 0)];
    assert!(matches!(executor.verify(&rows, &mut Vec::new()), Err(ExecutorError::Malformed(_))));
    // Reading a shared prefix is fine.
    let rows = [chain(&[5, 1], &[1], 17, 0), chain(&[5, 2], &[1], 17, 0)];
    executor.verify(&rows, &mut Vec::new()).unwrap();
}

#[test]
fn more_sequences_than_the_bound_are_refused() {
    let rows: Vec<VerifyRow> = (0..41).map(|block| chain(&[block], &[1], 0, 0)).collect();
    assert!(matches!(executor(1).verify(&rows, &mut Vec::new()), Err(ExecutorError::Malformed(_))));
}

#[test]
fn compactions_outside_the_sequence_are_refused() {
    let mut executor = executor(1);
    let one = |path: &[u32], first| Compaction { blocks: vec![0, 1], first, path: path.to_vec() };
    for bad in [one(&[1, 1], 0), one(&[2, 1], 0), one(&[0, 4], 28), one(&[0], 600)] {
        assert!(matches!(executor.compact(&[bad]), Err(ExecutorError::Malformed(_))));
    }
    executor.compact(&[one(&[], 0), one(&[0, 3], 28)]).unwrap();
}

#[test]
fn options_out_of_range_are_refused() {
    let with = |change: fn(&mut CpuOptions)| {
        let mut options = options(1);
        change(&mut options);
        CpuExecutor::new(options, target(), None).err().map(|error| error.to_string())
    };
    assert_eq!(with(|_| ()), None);
    for (change, expected) in [
        ((|o| o.threads = 0) as fn(&mut CpuOptions), "threads is 0"),
        (|o| o.block_tokens = 24, "block_tokens is 24"),
        (|o| o.target_blocks = 0, "target_blocks is 0"),
        (|o| o.draft_tokens_max = 65, "draft_tokens_max is 65"),
    ] {
        let error = with(change).expect("refused");
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let mut spec = small_spec(VOCAB);
    spec.hidden_size = 40;
    let narrow = random_model(&spec, 1, RandomOptions::default());
    assert!(matches!(CpuExecutor::new(options(1), narrow, None), Err(CpuError::Unsupported(_))));
    let other = random_model(&small_spec(VOCAB + 1), 1, RandomOptions::default());
    assert!(matches!(CpuExecutor::new(options(1), target(), Some(other)), Err(CpuError::Unsupported(_))));
}
