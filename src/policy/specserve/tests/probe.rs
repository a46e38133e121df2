//! Probing: speculation is off, and a request in turn drafts a little to measure acceptance.

use super::*;
use crate::protocol::{DraftCounts, StepReport};
use crate::timing::cost_model::{Between, LatencyModel, LatencyTerms};

/// A policy whose draft model is too slow to pay, after a plain step of `seconds`.
fn closed_for(seconds: u64) -> SpecServe {
    let slow = LatencyTerms::staircase(Between::Interpolate, &[1, 1001], &[50_000.0; 2]);
    let cost =
        CostModel { draft: Some(LatencyModel::new(slow).unwrap()), ..gpu_like().cost_model().unwrap() };
    let mut policy = SpecServe::new(cost, None, SpecServeOptions::default());
    let plain = StepReport {
        view: batch(1),
        granted: StepDecision { drafts: vec![0], ..StepDecision::default() },
        step_time: Micros::from_millis(1000 * seconds),
        ..StepReport::default()
    };
    policy.gate.observe(&plain);
    policy
}

/// A policy that has learned that drafts with this probability are always rejected.
fn disappointed_by(draft: Proposal) -> SpecServe {
    let mut policy = policy();
    let rejected = StepReport {
        view: batch(1),
        drafted: vec![DraftedRow::chain(0, vec![draft])],
        counts: vec![DraftCounts { verified: 1, accepted: 0 }],
        ..StepReport::default()
    };
    (0..200).for_each(|_| policy.calibration.observe(&rejected));
    policy
}

fn batch(requests: usize) -> StepView {
    StepView { decoding: vec![row(100, None); requests], ..StepView::default() }
}

#[test]
fn a_probe_drafts_two_tokens_for_one_request_and_says_so() {
    // a probe takes two draft calls of 50 ms, 0.5 % of 20 s
    let decision = closed_for(25).plan(&batch(3), &mut Scratch::default());
    assert_eq!((decision.intent, decision.drafts), (Intent::Probe, vec![2, 0, 0]));
    let early = closed_for(15).plan(&batch(3), &mut Scratch::default());
    assert_eq!((early.intent, early.drafts), (Intent::Draft, vec![0, 0, 0]));
}

#[test]
fn a_probe_goes_on_and_is_verified_whatever_its_drafts_promise() {
    let bad = Proposal { probability: 0.01, finite: true, ..Proposal::default() };
    let (policy, view) = (disappointed_by(bad), batch(1));
    let decide = |intent| {
        let granted = StepDecision { intent, drafts: vec![2], ..StepDecision::default() };
        let step = Step { view: &view, granted: &granted };
        let rows = [DraftedRow::chain(0, vec![bad])];
        let (mut keep, mut lengths) = (Vec::new(), Vec::new());
        policy.extend(step, &rows, &[0], &mut Scratch::default(), &mut keep);
        policy.select(step, &rows, &mut Scratch::default(), &mut lengths);
        (keep, lengths)
    };
    assert_eq!(decide(Intent::Probe), (vec![0], vec![1]));
    assert_eq!(decide(Intent::Draft), (vec![], vec![0]));
}

#[test]
fn a_bad_draft_is_probed_now_and_then_without_turning_speculation_on() {
    let bad = World { acceptance: |_| 0.01, ..World::default() };
    let mut learner = learner();
    let mut under_way = Run::new(&bad, 4);
    under_way.steps(&mut learner, 1500);
    let mut probes = 0;
    for _ in 0..1500 {
        let before = learner.state()["speculation"].clone();
        let report = under_way.step(&learner);
        learner.observe(&report);
        if report.granted.intent == Intent::Probe {
            let after = learner.state()["speculation"].clone();
            assert_eq!((report.drafted.len(), report.drafted[0].proposals.len()), (1, 2));
            assert_eq!(
                report.counts.iter().map(|counts| counts.verified).sum::<u32>(),
                2,
                "all of it is verified"
            );
            assert_eq!((&before["on"], &after["on"]), (&false.into(), &false.into()));
            assert_eq!(after["probes"].as_u64(), before["probes"].as_u64().map(|probes| probes + 1));
            probes += 1;
        }
    }
    assert!(probes > 0);
}
