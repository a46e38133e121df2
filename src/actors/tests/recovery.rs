//! What a fault in the speculative part of a step costs: drafts for a while, and no token.

use super::*;
use crate::protocol::{DraftedRow, Step};

/// Panics in `extend` until `remaining` is used up, then drafts four tokens.
#[derive(Clone, Debug)]
struct PanicsInExtend {
    remaining: Arc<AtomicU32>,
}

impl Policy for PanicsInExtend {
    fn name(&self) -> String {
        "panics in extend".to_owned()
    }

    fn plan(&self, view: &StepView, scratch: &mut Scratch) -> StepDecision {
        Fixed { draft_tokens: 4 }.plan(view, scratch)
    }

    fn extend(&self, _: Step<'_>, _: &[DraftedRow], active: &[u32], _: &mut Scratch, keep: &mut Vec<u32>) {
        let left = self.remaining.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        assert!(left.is_err(), "a bug in the policy");
        keep.extend_from_slice(active);
    }
}

/// Panics in `plan` until `remaining` is used up.
#[derive(Clone, Debug)]
struct PanicsInPlan {
    remaining: Arc<AtomicU32>,
}

impl Policy for PanicsInPlan {
    fn name(&self) -> String {
        "panics in plan".to_owned()
    }

    fn plan(&self, view: &StepView, scratch: &mut Scratch) -> StepDecision {
        let left = self.remaining.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        assert!(left.is_err(), "a bug in the policy");
        Fixed { draft_tokens: 4 }.plan(view, scratch)
    }
}

/// Learns nothing and panics when it should.
#[derive(Debug)]
struct PanicsInObserve;

impl Learner for PanicsInObserve {
    fn observe(&mut self, _: &crate::protocol::StepReport) {
        panic!("a bug in the learner")
    }

    fn snapshot(&self) -> Arc<dyn Policy> {
        Arc::new(Fixed { draft_tokens: 4 })
    }
}

/// A shadow whose drafter fails the first `failures` times.
struct FailsToDraft {
    shadow: ShadowExecutor,
    failures: u32,
}

impl Executor for FailsToDraft {
    fn info(&self) -> &ExecutorInfo {
        self.shadow.info()
    }
    fn target(&mut self) -> &mut dyn Target {
        self.shadow.target()
    }
    fn drafter(&mut self) -> Option<&mut dyn Drafter> {
        Some(self)
    }
    fn logits(&mut self, model: ModelRole, input: &SequenceInput) -> Result<Vec<f32>, ExecutorError> {
        self.shadow.logits(model, input)
    }
}

impl Drafter for FailsToDraft {
    fn start(&mut self, seeds: &[DraftSeed], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        if self.failures > 0 {
            self.failures -= 1;
            return Err(ExecutorError::Device("the draft model lost its memory".to_owned()));
        }
        self.shadow.start(seeds, forest)
    }
    fn extend(&mut self, nodes: &[NodeId], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        self.shadow.extend(nodes, forest)
    }
}

/// Serves one long request and checks its tokens, that a fault was seen, and that drafting resumed.
async fn recovers(engine: Engine, fault: &str) {
    let one = submission(1, 30, 900);
    let wanted = expected(&one);
    let (said, end) = listen(engine.handle().submit(one).await.expect("admitted")).await;
    assert_eq!(said, wanted, "no token is lost or changed");
    assert!(matches!(end, TokenEvent::Finished { .. }), "{end:?}");
    let two = submission(2, 30, 200);
    let wanted = expected(&two);
    let drafted =
        || async { engine.handle().state().await["metrics"]["counters"]["drafted"].as_u64().unwrap_or(0) };
    let before = drafted().await;
    for _ in 0..500 {
        assert_eq!(listen(engine.handle().submit(two.clone()).await.expect("admitted")).await.0, wanted);
        if drafted().await > before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(drafted().await > before, "it drafts again");
    let state = engine.handle().state().await;
    let last = state["drafter"]["last_fault"].as_str().expect("a fault").to_owned();
    assert!(last.contains(fault), "{last}");
    assert!(engine.shutdown(LONG).await);
}

fn twice() -> Arc<AtomicU32> {
    Arc::new(AtomicU32::new(2))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_panics_in_extend_costs_drafts_for_a_while_and_no_token() {
    let learner = Box::new(Static::new(PanicsInExtend { remaining: twice() }));
    let engine = start_with(ShadowExecutor::new(shadow()), learner, options());
    recovers(engine, "the policy panicked in `extend`: a bug in the policy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_panics_in_plan_costs_drafts_for_a_while_and_no_token() {
    let learner = Box::new(Static::new(PanicsInPlan { remaining: twice() }));
    let engine = start_with(ShadowExecutor::new(shadow()), learner, options());
    recovers(engine, "the policy panicked in `plan`: a bug in the policy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draft_executor_that_fails_costs_drafts_for_a_while_and_no_token() {
    let executor = FailsToDraft { shadow: ShadowExecutor::new(shadow()), failures: 2 };
    let engine = start_with(executor, Box::new(Static::new(Fixed { draft_tokens: 4 })), options());
    recovers(engine, "the drafter failed: the device failed: the draft model lost its memory").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_panics_leaves_the_engine_serving() {
    let engine = start_with(ShadowExecutor::new(shadow()), Box::new(PanicsInObserve), options());
    let one = submission(1, 30, 300);
    let wanted = expected(&one);
    assert_eq!(listen(engine.handle().submit(one).await.expect("admitted")).await.0, wanted);
    eventually(engine.handle(), "the fault is shown", |state| {
        state["drafter"]["last_fault"] == "the policy panicked in `observe`: a bug in the learner"
    })
    .await;
    assert!(engine.shutdown(LONG).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_makes_no_sense_is_a_device_error_and_never_committed() {
    // claims to have accepted a draft that it was never given
    let executor = Lies { shadow: ShadowExecutor::new(shadow()), lie: |verdicts| verdicts[0].accepted += 1 };
    let engine = start_with(executor, Box::new(Static::new(Fixed { draft_tokens: 4 })), options());
    let (said, end) = listen(engine.handle().submit(submission(1, 30, 5)).await.expect("admitted")).await;
    assert!(said.is_empty(), "{said:?}");
    assert!(
        matches!(&end, TokenEvent::Failed(RequestFailure::Engine(why)) if why.contains("1 accepted of 0")),
        "{end:?}"
    );
    engine.shutdown(LONG).await;
}
