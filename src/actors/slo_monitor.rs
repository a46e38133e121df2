//! The SLO monitor: measures latencies against objectives, counts, and renders metrics and state.

use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde_json::{Value, json};

use super::messages::{EndedRequest, SloMonitorMessage, StepObservation};
use crate::kv::PoolUsage;
use crate::protocol::{ExecutorMemory, TokenEvent};
use crate::scheduler::SchedulerGauges;
use crate::telemetry::{Gauges, KvGauge, Metrics, MetricsConfig};

/// The actor.
pub struct SloMonitor;

/// What the monitor needs.
pub struct SloMonitorArguments {
    /// What the metrics say of the deployment.
    pub metrics: MetricsConfig,
    /// Whether the executor has a drafter.
    pub has_drafter: bool,
    /// The executor's memory.
    pub memory: ExecutorMemory,
}

/// Its state.
pub struct SloMonitorState {
    metrics: Metrics,
    scheduler: SchedulerGauges,
    preemptions: u64,
    drafter_alive: bool,
    has_drafter: bool,
}

impl Actor for SloMonitor {
    type Msg = SloMonitorMessage;
    type State = SloMonitorState;
    type Arguments = SloMonitorArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<SloMonitorMessage>,
        arguments: SloMonitorArguments,
    ) -> Result<SloMonitorState, ActorProcessingErr> {
        let mut metrics = Metrics::new(arguments.metrics);
        metrics.set_memory(arguments.memory);
        Ok(SloMonitorState {
            metrics,
            scheduler: SchedulerGauges::default(),
            preemptions: 0,
            drafter_alive: true,
            has_drafter: arguments.has_drafter,
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<SloMonitorMessage>,
        message: SloMonitorMessage,
        state: &mut SloMonitorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SloMonitorMessage::Admitted { prompt_tokens, best_effort } => {
                state.metrics.record_admitted(prompt_tokens);
                if best_effort {
                    state.metrics.record_best_effort();
                }
            }
            SloMonitorMessage::Rejected(reason) => state.metrics.record_rejected(reason),
            SloMonitorMessage::Step(observation) => state.record(&observation),
            SloMonitorMessage::Gauges(gauges) => state.show(*gauges),
            SloMonitorMessage::Ended(ended) => state.close(&ended),
            SloMonitorMessage::DrafterAlive(alive) => {
                state.drafter_alive = alive;
                state.show(state.scheduler);
            }
            // the caller may have gone
            SloMonitorMessage::State(reply) => _ = reply.send(state.describe()),
            SloMonitorMessage::Metrics(reply) => _ = reply.send(state.metrics.render()),
        }
        Ok(())
    }
}

impl SloMonitorState {
    fn record(&mut self, observation: &StepObservation) {
        self.metrics.record_step(&observation.report);
        for &(tokens, gap) in &observation.outputs {
            self.metrics.record_output(tokens, gap);
        }
        if let Some(predicted) = observation.predicted {
            self.metrics.record_prediction(predicted, observation.report.step_time);
        }
        self.metrics.set_calibrated_error(observation.calibration_error);
        self.show(observation.gauges);
    }

    fn show(&mut self, scheduler: SchedulerGauges) {
        for _ in self.preemptions..scheduler.preemptions {
            self.metrics.record_preemption();
        }
        self.preemptions = scheduler.preemptions;
        self.metrics.set_prefix_cache(scheduler.prefix_query_tokens, scheduler.prefix_hit_tokens);
        self.scheduler = scheduler;
        let kv = |model: &str, usage: PoolUsage| KvGauge {
            model: model.to_owned(),
            blocks_held: usage.held.into(),
            blocks_total: usage.total.into(),
        };
        self.metrics.set_gauges(Gauges {
            running: scheduler.running.into(),
            waiting: scheduler.waiting.into(),
            waiting_prompt_tokens: scheduler.waiting_tokens,
            kv: vec![kv("target", scheduler.target_kv), kv("draft", scheduler.draft_kv)],
            speculation_enabled: self.drafter_alive && self.has_drafter,
        });
    }

    fn close(&mut self, ended: &EndedRequest) {
        match &ended.event {
            TokenEvent::Finished { reason, summary } => {
                self.metrics.record_finished(summary, *reason, &ended.slo);
            }
            TokenEvent::Failed(failure) => self.metrics.record_failed(failure),
            TokenEvent::Tokens(_) => {}
        }
    }

    fn describe(&self) -> Value {
        json!({
            "scheduler": self.scheduler,
            "drafter_alive": self.drafter_alive,
            "metrics": self.metrics.summary(),
        })
    }
}
