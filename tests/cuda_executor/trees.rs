//! Trees of drafts on a GPU.

use specserve::executor::cuda::{CudaExecutor, CudaOptions, KvBudget};
use specserve::model::DraftWeights;
use specserve::policy::{Fixed, Learner, Static};
use specserve::protocol::{GenerationRequest, ModelRole, SamplingParams};

use super::common::tree_policies::{Bushy, Full};
use super::common::{Played, drafters, embedded, play, request};
use super::{alone, executor, same_up_to_ties, small};

fn requests(count: usize, temperature: f32, repetition_penalty: f32) -> Vec<GenerationRequest> {
    let sampling = SamplingParams { temperature, repetition_penalty, ..SamplingParams::greedy() };
    (0..count).map(|number| request(number, 32, sampling.clone())).collect()
}

/// What `requests` are answered, at most `batch` at a time.
fn answers(
    drafter: Option<&DraftWeights>,
    blocks: u32,
    batch: u32,
    learner: Box<dyn Learner>,
    requests: &[GenerationRequest],
) -> Vec<Played> {
    let kv = KvBudget::Blocks { target: blocks, draft: 512 };
    let options = CudaOptions { kv, draft_tokens_max: 8, batch_sequences_max: 64, ..CudaOptions::default() };
    let mut executor =
        CudaExecutor::new(&embedded(ModelRole::Target), drafter, options).expect("a CUDA device");
    play(&mut executor, learner, batch, requests).into_values().collect()
}

#[test]
#[ignore = "needs a CUDA device"]
fn trees_emit_what_plain_decoding_emits() {
    let _alone = alone();
    let mut judge = executor();
    for (temperature, penalty) in [(0.0, 1.0), (0.8, 1.0), (0.8, 1.3)] {
        let all = requests(if small() { 2 } else { 32 }, temperature, penalty);
        let plain = answers(None, 512, 1, Box::new(Static::new(Fixed::NONE)), &all);
        for (name, drafter) in drafters() {
            for (batch, drafts, blocks) in [(1, 8, 512), (2, 5, 512), (7, 8, 512), (32, 8, 512), (32, 4, 40)]
            {
                let ours = answers(Some(&drafter), blocks, batch, Bushy::of(drafts), &all);
                let mut ties = 0;
                for ((request, ours), plain) in all.iter().zip(&ours).zip(&plain) {
                    let (ours, plain) = (&ours.tokens, &plain.tokens);
                    let what = format!("{name} t {temperature} batch {batch} request {}", request.id);
                    if batch == 1 {
                        assert_eq!(ours, plain, "{what}: alone, bit for bit");
                    }
                    let pair = [&plain[..], &ours[..]];
                    let sampling = &request.sampling;
                    ties += u32::from(same_up_to_ties(&mut judge, &request.prompt, sampling, pair, &what));
                }
                let accepted: u32 = ours.iter().map(|played| played.summary.speculation.accepted).sum();
                println!(
                    "{name} t {temperature} batch {batch} blocks {blocks}: {ties} near-ties, {accepted} accepted"
                );
                assert!(accepted > 0);
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_draft_that_followed_a_runner_up_knows_what_was_accepted() {
    let _alone = alone();
    let target: DraftWeights = embedded(ModelRole::Target).into();
    for temperature in [0.0, 0.8] {
        let all = requests(7, temperature, 1.0);
        for batch in [1, 7] {
            let ours = answers(Some(&target), 512, batch, Full::of(6), &all);
            let steps: u32 = ours.iter().map(|one| one.summary.speculation.steps).sum();
            let full: u32 = ours
                .iter()
                .map(|one| one.summary.speculation.steps_by_accepted.get(2).copied().unwrap_or(0))
                .sum();
            // all but the last step of each, and near-ties between the two sizes of batches
            assert!(f64::from(full) >= 0.95 * f64::from(steps) - 7.0, "{full} of {steps} at {batch}");
        }
    }
}
