//! What becomes of requests whose objectives cannot be met.

use super::*;
use crate::pacing::LateAction;
use crate::policy::slo::Infeasible;

/// Draws the line for first tokens at a fixed speed of prefill.
#[derive(Clone, Debug)]
struct MillisecondAToken;

impl Policy for MillisecondAToken {
    fn name(&self) -> String {
        "a millisecond a token".to_owned()
    }

    fn plan(&self, view: &StepView, scratch: &mut Scratch) -> StepDecision {
        Fixed::NONE.plan(view, scratch)
    }

    fn check_feasible(&self, slo: &Slo, prompt_tokens: u32, _: u32) -> Result<(), Infeasible> {
        let best_us = f64::from(prompt_tokens) * 1000.0;
        match slo.ttft {
            Some(ttft) if (ttft.0 as f64) < best_us => {
                Err(Infeasible { objective: "ttft", asked_us: ttft.0 as f64, best_us })
            }
            _ => Ok(()),
        }
    }
}

fn in_time(submission: Submission, ttft_ms: u64) -> Submission {
    Submission { slo: Slo { ttft: Some(Micros::from_millis(ttft_ms)), tpot: None }, ..submission }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impossible_objective_is_refused_or_served_and_counted_as_configured() {
    for refuse_infeasible in [true, false] {
        let refusals = AdmissionPolicy { refuse_infeasible, refuse_late: false };
        let options = EngineOptions { refusals, ..options() };
        let engine =
            start_with(ShadowExecutor::new(shadow()), Box::new(Static::new(MillisecondAToken)), options);
        let answer = engine.handle().submit(in_time(submission(1, 50, 3), 49)).await;
        if refuse_infeasible {
            let refusal = answer.expect_err("50 ms is the best");
            assert!(
                matches!(&refusal, AdmissionError::Infeasible(why) if why.contains("50.000 ms")),
                "{refusal}"
            );
        } else {
            listen(answer.expect("served as well as may be")).await;
            eventually(engine.handle(), "it is counted", |state| {
                state["metrics"]["counters"]["best_effort"] == 1
            })
            .await;
        }
        listen(engine.handle().submit(in_time(submission(1, 50, 3), 50)).await.expect("just possible")).await;
        engine.shutdown(LONG).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_becomes_late_in_the_queue_ends_once_and_counts_as_rejected() {
    let mut options = options();
    options.limits.running_requests_max = 1;
    let executor = Box::new(Slow { shadow: ShadowExecutor::new(shadow()), step: Duration::from_millis(5) });
    let pacer = Pacer::new(gpu_like().cost_model().expect("valid")).with_late(LateAction::Reject);
    let learner: Box<dyn Learner> = Box::new(Static::new(Fixed::NONE));
    let build = move || Ok(EngineParts { executor, learner, pacer: Some(pacer) });
    let engine = Engine::start(build, options).expect("starts");
    let running = engine.handle().submit(submission(1, 50, 900)).await.expect("runs");
    eventually(engine.handle(), "it runs", |state| state["scheduler"]["running"] == 1).await;
    let arrival = engine.handle().now();
    let waits = Submission { arrival, ..in_time(submission(2, 60, 3), 100) };
    let (said, end) = listen(engine.handle().submit(waits).await.expect("it could be in time")).await;
    let ttft = Micros::from_millis(100);
    assert_eq!((said, end), (vec![], TokenEvent::Failed(RequestFailure::Late { ttft })));
    eventually(engine.handle(), "it is counted", |state| {
        let counters = &state["metrics"]["counters"];
        counters["rejected"] == 1 && counters["failed"] == 0
    })
    .await;
    drop(running);
    engine.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_the_queue_makes_late_is_refused_where_the_config_says_so() {
    let refusals = AdmissionPolicy { refuse_infeasible: true, refuse_late: true };
    let mut options = EngineOptions { refusals, ..options() };
    options.limits.running_requests_max = 1;
    let executor = Slow { shadow: ShadowExecutor::new(shadow()), step: Duration::from_millis(5) };
    let engine = start_with(executor, Box::new(Static::new(MillisecondAToken)), options);
    let running = engine.handle().submit(submission(1, 50, 900)).await.expect("runs");
    eventually(engine.handle(), "it runs", |state| state["scheduler"]["running"] == 1).await;
    let waiting = engine.handle().submit(in_time(submission(2, 60, 3), 100)).await.expect("is next");
    let refusal = engine.handle().submit(in_time(submission(3, 60, 3), 100)).await.expect_err("120 ms");
    assert!(matches!(&refusal, AdmissionError::TooLate(why) if why.contains("120.000 ms")), "{refusal}");
    drop((running, waiting));
    engine.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_before_the_long_prompts_that_wait_is_not_refused_for_them() {
    let refusals = AdmissionPolicy { refuse_infeasible: true, refuse_late: true };
    let mut options = EngineOptions { refusals, ..options() };
    options.limits.running_requests_max = 1;
    let executor = Box::new(Slow { shadow: ShadowExecutor::new(shadow()), step: Duration::from_millis(5) });
    let pacer = Pacer::new(gpu_like().cost_model().expect("valid")).with_late(LateAction::Reject);
    let learner: Box<dyn Learner> = Box::new(Static::new(MillisecondAToken));
    let build = move || Ok(EngineParts { executor, learner, pacer: Some(pacer) });
    let engine = Engine::start(build, options).expect("starts");
    let running = engine.handle().submit(submission(1, 50, 900)).await.expect("runs");
    eventually(engine.handle(), "it runs", |state| state["scheduler"]["running"] == 1).await;
    // they have no objective, so a request with one goes first
    let mut long = Vec::new();
    for seed in [2, 3] {
        long.push(engine.handle().submit(submission(seed, 900, 3)).await.expect("waits"));
    }
    // behind 1800 tokens it would be late
    let urgent = Submission { arrival: engine.handle().now(), ..in_time(submission(4, 60, 3), 1800) };
    let urgent_tokens = expected(&urgent);
    let urgent = engine.handle().submit(urgent).await.expect("it is next");
    drop(running);
    let (said, end) = listen(urgent).await;
    assert!(matches!(end, TokenEvent::Finished { .. }), "{end:?}");
    assert_eq!(said, urgent_tokens);
    drop(long);
    engine.shutdown(LONG).await;
}
