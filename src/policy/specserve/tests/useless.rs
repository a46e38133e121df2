//! Drafts that do not pay: what they cost, and how speculation comes back when they do again.

use super::*;

/// Drafts that the target accepts one time in fifty, whatever the draft model says of them.
fn misaligned() -> World {
    World { acceptance: |_| 0.02, ..World::default() }
}

fn is_on(learner: &dyn Learner) -> bool {
    learner.state()["speculation"]["on"] == serde_json::Value::Bool(true)
}

#[test]
fn a_misaligned_draft_costs_less_than_half_a_percent_once_it_is_known() {
    for requests in [1, 8, 64] {
        let world = World { requests, ..misaligned() };
        let settled = |learner: &mut dyn Learner| {
            let mut under_way = Run::new(&world, 42);
            under_way.steps(learner, 500);
            under_way.steps(learner, 4000).rate()
        };
        let (ours, plain) = (settled(&mut learner()), settled(&mut plain()));
        // The budget of probes. They use it up, 0.47 % of the time at any seed and batch size, and the
        // tokens they gain repay hardly any of it.
        assert!(ours >= 0.995 * plain, "batch {requests}: {ours} of {plain} tokens a second");
    }
}

#[test]
fn speculation_comes_back_in_full_when_the_draft_becomes_good_again() {
    let (good, bad) = (World::default(), misaligned());
    let mut learner = learner();
    let mut under_way = Run::new(&good, 7);
    under_way.steps(&mut learner, 400);
    let before = under_way.steps(&mut learner, 400).tokens_per_step();

    under_way.enter(&bad);
    under_way.steps(&mut learner, 200);
    assert!(!is_on(&learner), "it does not pay, so it is off");

    under_way.enter(&good);
    let mut waited = 0;
    while !is_on(&learner) {
        under_way.steps(&mut learner, 1);
        waited += 1;
        assert!(waited < 6000, "the gate stays closed");
    }
    under_way.steps(&mut learner, 400);
    let after = under_way.steps(&mut learner, 400).tokens_per_step();
    assert!(after >= 0.95 * before, "{after} of {before} tokens a step, on again after {waited} steps");
}
