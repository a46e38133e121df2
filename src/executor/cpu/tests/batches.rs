//! Nothing that goes with a row can be seen in its numbers.

use super::*;

/// The row under test: three committed tokens and four drafts behind a prefill of 45.
fn subject(blocks: &[u32]) -> VerifyRow {
    chain(blocks, &text(1, 52)[45..], 45, 4)
}

const SUBJECT: [u32; 4] = [20, 3, 17, 40];

fn prefilled(threads: usize) -> CpuExecutor {
    let mut executor = executor(threads);
    executor.logits(ModelRole::Target, &input(&SUBJECT, &text(1, 45), 0)).unwrap();
    executor
}

/// Batch mates number `index`: prefill, decode, verification and a prefill that ends early.
fn mate(index: u32) -> VerifyRow {
    let blocks = [if index < 3 { index } else { index + 1 }];
    let blocks = if blocks[0] >= 17 { [blocks[0] + 24] } else { blocks };
    match index % 4 {
        0 => chain(&blocks, &text(index, 11), 0, 0),
        1 => chain(&blocks, &text(index, 1), 0, 0),
        2 => chain(&blocks, &text(index, 6), 0, 5),
        _ => VerifyRow { next: Some(0), ..chain(&blocks, &text(index, 16), 0, 0) },
    }
}

#[test]
fn a_rows_logits_are_the_same_bits_in_every_mix_and_on_any_number_of_threads() {
    let alone = all_logits(&mut prefilled(1), &[subject(&SUBJECT)]);
    assert_eq!(alone.len(), 5);
    for threads in [1, 2] {
        for size in [1, 2, 7, 32] {
            let mut executor = prefilled(threads);
            let mut rows: Vec<VerifyRow> = (0..size - 1).map(mate).collect();
            let index = rows.len() / 2;
            rows.insert(index, subject(&SUBJECT));
            let before: usize =
                rows[..index].iter().filter(|row| row.samples()).map(|row| row.drafts as usize + 1).sum();
            let logits = all_logits(&mut executor, &rows);
            assert_eq!(logits[before..before + 5], alone, "{threads} threads, {size} rows");
            let verdict = verify(&mut executor, &rows)[index].clone();
            assert_eq!(verdict, verify(&mut prefilled(1), &[subject(&SUBJECT)])[0]);
        }
    }
}

#[test]
fn a_prompt_in_chunks_is_the_same_bits_as_at_once() {
    let tokens = text(5, 331);
    let blocks: Vec<u32> = (0..21).map(|i| (i * 5 + 2) % 64).collect();
    let whole = executor(2).logits(ModelRole::Target, &input(&blocks, &tokens, 0)).unwrap();
    for chunk in [1, 16, 53, 300] {
        let mut executor = executor(2);
        let mut last = Vec::new();
        for (index, part) in tokens.chunks(chunk).enumerate() {
            last = executor.logits(ModelRole::Target, &input(&blocks, part, (index * chunk) as u32)).unwrap();
        }
        assert_eq!(last, whole, "chunks of {chunk}");
    }
}

#[test]
fn scattered_blocks_give_the_same_bits_as_neighbouring_ones() {
    let tokens = text(6, 90);
    let neighbours: Vec<u32> = (0..6).collect();
    let plain = executor(2).logits(ModelRole::Target, &input(&neighbours, &tokens, 0)).unwrap();
    let scattered =
        executor(2).logits(ModelRole::Target, &input(&[61, 2, 33, 0, 59, 7], &tokens, 0)).unwrap();
    assert_eq!(plain, scattered);
}

#[test]
fn a_warm_up_changes_no_result_and_fits_into_the_smallest_caches() {
    let tokens = text(3, 40);
    let logits = |mut executor: CpuExecutor, warm: bool| {
        if warm {
            executor.warm_up().unwrap();
        }
        [ModelRole::Target, ModelRole::Draft]
            .map(|role| executor.logits(role, &input(&[1, 0, 2], &tokens, 0)).unwrap())
    };
    assert_eq!(logits(executor(2), true), logits(executor(2), false));
    let least = CpuOptions { target_blocks: 1, draft_blocks: 0, batch_tokens_max: 3, ..options(1) };
    CpuExecutor::new(least, target(), None).unwrap().warm_up().unwrap();
}

#[test]
fn what_a_block_held_before_is_never_seen() {
    let tokens = text(8, 21);
    let clean = executor(2).logits(ModelRole::Target, &input(&[4, 5], &tokens, 0)).unwrap();
    let mut used = executor(2);
    for layer in 0..2 {
        used.target.layers.cache.layer_mut(layer).fill(f32::NAN);
    }
    assert_eq!(used.logits(ModelRole::Target, &input(&[4, 5], &tokens, 0)).unwrap(), clean);
}

/// A tree of nine nodes, and the path from the root to each.
const PARENTS: [u32; 9] = [0, 0, 1, 1, 2, 3, 6, 0, 5];

fn path_to(node: usize) -> Vec<usize> {
    let mut path = vec![node];
    while PARENTS[path[0]] > 0 {
        path.insert(0, PARENTS[path[0]] as usize - 1);
    }
    path
}

#[test]
fn a_tree_nodes_logits_are_the_same_bits_as_its_paths_chain() {
    let tokens = text(2, 60);
    let (committed, drafts) = (&tokens[45..47], &tokens[47..56]);
    let mut executor = prefilled(2);
    let row = VerifyRow { tree: Some(PARENTS.to_vec()), ..chain(&SUBJECT, &tokens[45..56], 45, 9) };
    let tree = all_logits(&mut executor, &[row]);
    for node in 0..9 {
        let mut path = committed.to_vec();
        path.extend(path_to(node).iter().map(|&draft| drafts[draft]));
        let chain = all_logits(&mut prefilled(1), &[chain(&SUBJECT, &path, 45, 0)]);
        assert_eq!(tree[node + 1], chain[0], "node {node}");
    }
}

#[test]
fn a_compacted_path_equals_its_recomputation() {
    let tokens = text(2, 60);
    let mut executor = prefilled(2);
    let row = VerifyRow { tree: Some(PARENTS.to_vec()), ..chain(&SUBJECT, &tokens[45..56], 45, 9) };
    verify(&mut executor, &[row]);
    // Node 6's path is drafts 0, 2, 5, 6.
    assert_eq!(path_to(6), [0, 2, 5, 6]);
    let compaction = Compaction { blocks: SUBJECT.map(BlockId).to_vec(), first: 47, path: vec![0, 2, 5, 6] };
    executor.compact(&[compaction]).unwrap();
    let next = executor.logits(ModelRole::Target, &input(&SUBJECT, &[9], 51)).unwrap();
    let path = [45, 46, 47, 49, 52, 53].map(|index| tokens[index]);
    let mut plain = prefilled(1);
    plain.logits(ModelRole::Target, &input(&SUBJECT, &path, 45)).unwrap();
    assert_eq!(next, plain.logits(ModelRole::Target, &input(&SUBJECT, &[9], 51)).unwrap());
}

#[test]
fn a_tree_accepts_the_path_that_the_target_says() {
    let mut executor = prefilled(2);
    let said = verify(&mut executor, &[chain(&SUBJECT, &[8], 45, 0)])[0].tokens[0];
    let then = verify(&mut executor, &[chain(&SUBJECT, &[8, said], 45, 0)])[0].tokens[0];
    let wrong = (said + 1) % VOCAB as u32;
    let row = VerifyRow { tree: Some(vec![0, 0, 2]), ..chain(&SUBJECT, &[8, wrong, said, then], 45, 3) };
    let verdict = verify(&mut executor, &[row])[0].clone();
    assert_eq!((verdict.accepted, verdict.path.as_slice()), (2, &[1, 2][..]));
    assert_eq!(verdict.tokens[..2], [said, then]);
}

#[test]
fn a_nan_weight_fails_only_the_rows_that_meet_it() {
    let mut model =
        random_model(&small_spec(VOCAB), 4, RandomOptions { tied_head: false, ..RandomOptions::default() });
    let mut bytes = model.weights.embedding.bytes().to_vec();
    bytes[50 * 64 * 2..][..2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    model.weights.embedding.range = 0..bytes.len();
    model.weights.embedding.file = Arc::new(bytes);
    let mut executor = CpuExecutor::new(options(2), model, None).unwrap();
    let rows = [chain(&[0], &[1, 2, 3], 0, 0), chain(&[1], &[4, 50, 6], 0, 0), chain(&[2], &[7, 8], 0, 0)];
    let verdicts = verify(&mut executor, &rows);
    assert_eq!(verdicts.iter().map(|verdict| verdict.finite).collect::<Vec<_>>(), [true, false, true]);
    assert!(verdicts[1].tokens.is_empty());
    assert_eq!(verdicts[0].tokens.len(), 1);
}

#[test]
fn a_row_that_does_not_sample_yields_nothing() {
    let row = VerifyRow { next: Some(3), ..chain(&[0], &[1, 2], 0, 0) };
    assert_eq!(verify(&mut executor(1), &[row]), [Verdict { finite: true, ..Verdict::default() }]);
}

#[test]
fn an_empty_batch_is_no_work() {
    assert_eq!(verify(&mut executor(2), &[]), []);
}
