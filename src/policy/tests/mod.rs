//! The traits themselves, and the [`world`] in which the policies' tests run.

pub(crate) mod world;

use std::sync::Arc;

use super::*;
use crate::protocol::StepReport;

#[test]
fn a_static_learner_publishes_one_policy_whatever_it_observes() {
    let mut learner = Static::new(Fixed { draft_tokens: 3 });
    let before = learner.snapshot();
    learner.observe(&StepReport::default());
    assert!(Arc::ptr_eq(&before, &learner.snapshot()));
    assert_eq!((learner.name(), learner.predict(&StepReport::default())), ("fixed:3".to_owned(), None));
    assert_eq!(learner.state(), serde_json::json!({ "policy": "fixed:3" }));
}
