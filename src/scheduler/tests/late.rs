//! Requests that cannot be in time, under a virtual clock.

use std::sync::Arc;

use super::super::*;
use crate::engine::EngineCore;
use crate::pacing::LateAction;
use crate::policy::{Fixed, Scratch, Static};
use crate::protocol::{Clock, ExecutorInfo, Micros, SamplingParams, Slo};
use crate::simulate::DraftQuality;
use crate::simulate::virtual_executor::{
    TimeError, VOCAB_SIZE, VirtualClock, VirtualExecutor, VirtualOptions,
};
use crate::step;
use crate::timing::profile::tests::gpu_like;

const SLOTS: u32 = 4;
const BLOCKS: u32 = 4096;

/// A request of 200 prompt tokens, 5 ms of prefill, that arrives at once.
fn request(id: u64, ttft: Option<Micros>) -> GenerationRequest {
    GenerationRequest {
        id: RequestId(id),
        prompt: VirtualExecutor::prompt(RequestId(id), 200),
        max_tokens: 40,
        sampling: Arc::new(SamplingParams::greedy()),
        stop_tokens: Arc::from([]),
        slo: Slo { ttft, tpot: None },
        class: 0,
        weight: 1.0,
        arrival: Micros::ZERO,
    }
}

fn executor(limits: &SchedulerLimits, clock: Arc<VirtualClock>) -> VirtualExecutor {
    let info = ExecutorInfo {
        backend: "virtual".to_owned(),
        device: "a test".to_owned(),
        vocab_size: VOCAB_SIZE,
        context_tokens_max: 1024,
        block_tokens: 16,
        target_blocks: BLOCKS,
        drafter: None,
        batch_tokens_max: limits.batch_tokens_max,
        batch_sequences_max: limits.running_requests_max,
        draft_tokens_max: 0,
    };
    let options = VirtualOptions {
        info,
        cost: gpu_like().cost_model().expect("valid"),
        error: TimeError::NONE,
        acceptance: DraftQuality::typical().options(&[]),
        seed: 1,
    };
    VirtualExecutor::new(options, clock)
}

/// All terminal events, in order, of requests in the order of their arrival.
fn serve(requests: Vec<GenerationRequest>, late: LateAction, slots: u32) -> Vec<Delivery> {
    let limits = SchedulerLimits {
        running_requests_max: slots,
        prefill_chunk_tokens_max: 256,
        batch_tokens_max: 512,
        draft_tokens_max: 0,
        target_blocks: BLOCKS,
        drafter: None,
    };
    let clock = Arc::new(VirtualClock::default());
    let mut executor = executor(&limits, clock.clone());
    let pacer = Pacer::new(gpu_like().cost_model().expect("valid")).with_late(late);
    let scheduler = Scheduler::new(limits).paced(pacer);
    let mut core = EngineCore::new(scheduler, Box::new(Static::new(Fixed::NONE)));
    let mut arrivals = requests.into_iter().peekable();
    let mut ends = Vec::new();
    loop {
        while let Some(request) = arrivals.next_if(|request| request.arrival <= clock.now()) {
            core.enqueue(request);
        }
        let plan = core.begin(clock.now());
        ends.extend(core.take_refused());
        core.scheduler().assert_conserved();
        let Some(plan) = plan else { break };
        let result = step::run(&mut executor, plan, &mut Scratch::default(), &*clock).expect("runs");
        executor.spend_host_time();
        let finished = core.finish(result, clock.now()).expect("it is in flight");
        core.settle(&finished.report);
        ends.extend(finished.deliveries.into_iter().filter(|(_, event)| event.is_terminal()));
    }
    assert!(core.scheduler().is_idle() && arrivals.next().is_none());
    ends
}

fn refused(end: &TokenEvent) -> bool {
    matches!(end, TokenEvent::Failed(RequestFailure::Late { .. }))
}

#[test]
fn of_sixty_at_once_those_that_can_be_in_time_are_and_the_others_are_refused_once() {
    let slo = Slo { ttft: Some(Micros::from_millis(1000)), tpot: None };
    let ends = serve((0..60).map(|id| request(id, slo.ttft)).collect(), LateAction::Reject, SLOTS);
    let mut ids: Vec<u64> = ends.iter().map(|(id, _)| id.0).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..60).collect::<Vec<_>>(), "each ends once");
    let served: Vec<_> = ends.iter().filter(|(_, end)| !refused(end)).collect();
    for (id, end) in &served {
        let TokenEvent::Finished { summary, .. } = end else { panic!("{id} ended with {end:?}") };
        assert!(slo.is_attained_by(summary), "{id} was let in and is late: {summary:?}");
    }
    // four slots, each a little more than 280 ms of decoding
    assert!((12..=16).contains(&served.len()), "{} served", served.len());
}

#[test]
fn where_late_requests_are_not_refused_all_sixty_are_served() {
    for late in [LateAction::Queue, LateAction::Demote] {
        let ends =
            serve((0..60).map(|id| request(id, Some(Micros::from_millis(1000)))).collect(), late, SLOTS);
        assert!(ends.len() == 60 && !ends.iter().any(|(_, end)| refused(end)), "{late:?}");
    }
}

#[test]
fn requests_without_an_objective_or_with_one_that_no_machine_could_meet_are_not_refused() {
    let hopeless = Some(Micros::from_millis(1));
    let requests = (0..20).map(|id| request(id, if id % 2 == 0 { None } else { hopeless })).collect();
    let ends = serve(requests, LateAction::Reject, SLOTS);
    assert!(ends.len() == 20 && !ends.iter().any(|(_, end)| refused(end)));
}

#[test]
fn the_refusal_names_the_objective() {
    let ends = serve(
        (0..60).map(|id| request(id, Some(Micros::from_millis(250)))).collect(),
        LateAction::Reject,
        SLOTS,
    );
    let failure = ends.iter().find_map(|(_, end)| match end {
        TokenEvent::Failed(failure) => Some(failure.to_string()),
        _ => None,
    });
    assert!(failure.is_some_and(|text| text.contains("TTFT objective of 250 ms")));
}

#[test]
fn a_request_that_was_begun_is_served_even_if_an_urgent_one_made_it_late() {
    let background = GenerationRequest { class: 1, ..request(0, None) };
    let begun = GenerationRequest {
        prompt: VirtualExecutor::prompt(RequestId(1), 900),
        class: 1,
        arrival: Micros(1),
        ..request(1, Some(Micros::from_millis(150)))
    };
    let urgent = GenerationRequest { arrival: Micros::from_millis(20), ..request(2, None) };
    let ends = serve(vec![background, begun, urgent], LateAction::Reject, 2);
    let Some((_, TokenEvent::Finished { summary, .. })) = ends.iter().find(|(id, _)| id.0 == 1) else {
        panic!("it was refused: {ends:?}")
    };
    assert!(summary.preemptions == 1 && summary.ttft() > Micros::from_millis(150), "{summary:?}");
}
