//! Requests that cannot be in time, under a virtual clock.

use super::super::*;
use super::timed::{Timed, limits, pacer};
use crate::pacing::LateAction;
use crate::protocol::{Micros, Slo};
use crate::simulate::virtual_executor::VirtualExecutor;

const SLOTS: u32 = 4;

/// A request of 200 prompt tokens, 5 ms of prefill, that arrives at once.
fn request(id: u64, ttft: Option<Micros>) -> GenerationRequest {
    GenerationRequest { slo: Slo { ttft, tpot: None }, ..super::timed::request(id, 200) }
}

/// All terminal events, in order, of requests in the order of their arrival.
fn serve(requests: Vec<GenerationRequest>, late: LateAction, slots: u32) -> Vec<Delivery> {
    let mut timed = Timed::new(limits(slots), Some(pacer().with_late(late)));
    timed.serve(requests);
    timed.ends
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
