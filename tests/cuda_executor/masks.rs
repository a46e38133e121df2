//! Token masks: verification under them and constrained requests, against the CPU executor.

use std::sync::Arc;

use specserve::executor::Executor;
use specserve::policy::{Fixed, Static};
use specserve::protocol::{
    GenerationRequest, ModelRole, SamplingParams, TokenConstraint, TokenId, TokenMask, Verdict, VerifyRow,
};

use super::common::{EvenAtEven, cpu, embedded, play, request};
use super::driver::Sequence;
use super::{alone, executor, prompts, same_up_to_ties, sampled, small};

/// The CPU executor's target blocks: room for all sequences of a test.
const CPU_BLOCKS: u32 = 512;

fn constrained(params: SamplingParams, vocab_size: u32) -> SamplingParams {
    let constraint: Option<Arc<dyn TokenConstraint>> = Some(Arc::new(EvenAtEven { vocab_size }));
    SamplingParams { constraint, ..params }
}

/// A row of a constrained sequence. Each node's mask is for the output with the drafts on its path.
fn masked_row(sequence: &Sequence, drafts: &[TokenId], tree: Option<&[u32]>) -> VerifyRow {
    let constraint = sequence.sampling.constraint.as_ref().expect("a constrained sequence");
    let mut outputs = vec![sequence.output().to_vec()];
    for (index, &draft) in drafts.iter().enumerate() {
        let parent = tree.map_or(index, |parents| parents[index] as usize);
        outputs.push([&outputs[parent][..], &[draft]].concat());
    }
    let masks = outputs.iter().map(|output| constraint.mask(output)).collect();
    VerifyRow { tree: tree.map(<[u32]>::to_vec), masks, ..sequence.verify_row(drafts) }
}

fn verify(executor: &mut dyn Executor, row: &VerifyRow) -> Verdict {
    let mut verdicts = Vec::new();
    executor.target().verify(std::slice::from_ref(row), &mut verdicts).expect("the target runs");
    verdicts.remove(0)
}

#[test]
#[ignore = "needs a CUDA device"]
fn verification_under_masks_gives_the_cpu_s_verdicts() {
    let _alone = alone();
    let mut executor = executor();
    let mut cpu = cpu(embedded(ModelRole::Target), None, CPU_BLOCKS);
    let vocab_size = cpu.info().vocab_size;
    let mut ties = 0;
    for (index, prompt) in prompts().iter().enumerate().take(if small() { 1 } else { 10 }) {
        for temperature in [0.0, 0.8] {
            let params = constrained(sampled(temperature, index as u64), vocab_size);
            let sequence = Sequence::new(index as u64, prompt, params.clone(), 512);
            let free = verify(&mut cpu, &sequence.verify_row(&[])).tokens[0];
            let mut plain = sequence.clone();
            while plain.output().len() < 5 {
                let verdict = verify(&mut cpu, &masked_row(&plain, &[], None));
                plain.commit(&verdict, 0);
            }
            let truth = plain.output();
            let wrong = |token: TokenId, by: TokenId| (token + by) % vocab_size;

            // A right chain, a draft that its mask forbids, one that it allows, and what the target
            // would say without a mask.
            let mut rows = vec![
                (masked_row(&sequence, &truth[..4], None), 4),
                (masked_row(&sequence, &[truth[0], truth[1], wrong(truth[2], 1), truth[3]], None), 2),
                (masked_row(&sequence, &[truth[0], truth[1], wrong(truth[2], 2), truth[3]], None), 2),
                (masked_row(&sequence, &[free], None), u32::from(free == truth[0])),
            ];
            // A wrong sibling before each right node.
            let drafts = [
                wrong(truth[0], 1),
                truth[0],
                wrong(truth[1], 1),
                truth[1],
                wrong(truth[0], 2),
                truth[2],
                wrong(truth[3], 1),
            ];
            rows.push((masked_row(&sequence, &drafts, Some(&[0, 0, 2, 2, 1, 4, 6])), 3));
            for (case, (row, accepted)) in rows.iter().enumerate() {
                let what = format!("prompt {index}, t {temperature}, case {case}");
                let want = verify(&mut cpu, row);
                assert_eq!((want.accepted, &want.tokens[..]), (*accepted, &truth[..=*accepted as usize]));
                let got = verify(&mut executor, row);
                let allowed = got.tokens.iter().step_by(2).all(|token| token.is_multiple_of(2));
                assert!(allowed, "{what}: {:?}", got.tokens);
                let pair = [&want.tokens[..], &got.tokens];
                if same_up_to_ties(&mut executor, prompt, &params, pair, &what) {
                    ties += 1;
                } else {
                    assert_eq!(got, want, "{what}");
                }
            }
            // Nothing is allowed behind the committed tokens.
            let mut nothing = rows[0].0.clone();
            nothing.masks[0] = Some(Arc::new(TokenMask::none(vocab_size)));
            assert_eq!(verify(&mut executor, &nothing), Verdict::default());
        }
    }
    println!("masked verification: {ties} verdicts left the CPU's at a near-tie");
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_constrained_request_has_the_cpu_s_tokens_with_and_without_drafts() {
    let _alone = alone();
    let mut executor = executor();
    let mut cpu = cpu(embedded(ModelRole::Target), None, CPU_BLOCKS);
    let vocab_size = cpu.info().vocab_size;
    let (requests, tokens_max) = if small() { (1, 6) } else { (8, 40) };
    let mut ties = 0;
    for temperature in [0.0, 0.8] {
        // Every other request is free.
        let requests: Vec<GenerationRequest> = (0..requests)
            .map(|number| {
                let free = sampled(temperature, 0);
                let params = if number % 2 == 0 { constrained(free, vocab_size) } else { free };
                request(number, tokens_max, params)
            })
            .collect();
        let reference = play(&mut cpu, Box::new(Static::new(Fixed::NONE)), 1, &requests);
        // One request at a time: at most sixteen rows, for which rows do not interact.
        let plain = play(&mut executor, Box::new(Static::new(Fixed::NONE)), 1, &requests);
        for request in &requests {
            let [want, got] = [&reference, &plain].map(|played| &played[&request.id].tokens[..]);
            let what = format!("t {temperature} request {}", request.id);
            ties += u32::from(same_up_to_ties(
                &mut executor,
                &request.prompt,
                &request.sampling,
                [want, got],
                &what,
            ));
            let evens = got.iter().step_by(2).all(|token| token.is_multiple_of(2));
            assert!(evens || request.sampling.constraint.is_none(), "{what}: {got:?}");
        }
        for draft_tokens in 1..=4 {
            let ours = play(&mut executor, Box::new(Static::new(Fixed { draft_tokens })), 1, &requests);
            let mut accepted = 0;
            for request in &requests {
                let [plain, ours] = [&plain[&request.id], &ours[&request.id]];
                assert_eq!(ours.tokens, plain.tokens, "t {temperature} k {draft_tokens} {}", request.id);
                if request.sampling.constraint.is_some() {
                    accepted += ours.summary.speculation.accepted;
                }
            }
            assert!(accepted > 0 || small(), "masked drafts are accepted, t {temperature} k {draft_tokens}");
        }
    }
    println!("constrained requests: {ties} texts left the CPU's at a near-tie");
}
