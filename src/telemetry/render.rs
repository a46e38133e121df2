//! Renders [`Metrics`] in the Prometheus text format.

use super::metrics::{DRAFT_POSITIONS_MAX, Metrics};
use super::prometheus::{MetricKind, PrometheusText};

use MetricKind::{Counter, Gauge, Histogram};

impl Metrics {
    /// Renders the engine's part of the `/metrics` page.
    pub fn render(&self) -> String {
        let mut page = PrometheusText::new();
        self.render_gauges(&mut page);
        self.render_info(&mut page);
        self.render_requests(&mut page);
        self.render_speculation(&mut page);
        self.render_objectives(&mut page);
        self.render_latencies(&mut page);
        page.finish()
    }

    fn render_gauges(&self, page: &mut PrometheusText) {
        let gauges = &self.gauges;
        page.gauge("specserve_requests_running", "Requests in the running set.", gauges.running);
        page.gauge(
            "specserve_requests_waiting",
            "Requests waiting for admission to the running set.",
            gauges.waiting,
        );
        page.gauge(
            "specserve_waiting_prompt_tokens",
            "Prompt tokens of the waiting requests.",
            gauges.waiting_prompt_tokens,
        );
        page.family(
            "specserve_kv_cache_usage_ratio",
            Gauge,
            "Blocks of a model's KV pool held by requests over all its blocks, 0 to 1.",
        );
        for kv in &gauges.kv {
            let ratio = kv.blocks_held as f64 / kv.blocks_total.max(1) as f64;
            page.sample(&[("model", &kv.model)], ratio);
        }
        page.family(
            "specserve_memory_bytes",
            Gauge,
            "Memory of the executor as allocated: weights, KV pools, and hidden states that a draft head reads; \
             without the working memory of passes.",
        );
        for (part, bytes) in self.memory.parts() {
            page.sample(&[("part", part)], bytes);
        }
        page.gauge(
            "specserve_speculation_enabled",
            "1 while a draft model is active, 0 while decoding is plain.",
            u8::from(gauges.speculation_enabled),
        );
    }

    fn render_info(&self, page: &mut PrometheusText) {
        let block_tokens = self.config.block_tokens.to_string();
        page.family("specserve_cache_config_info", Gauge, "Shape of the KV pools, in the labels; always 1.");
        for kv in &self.gauges.kv {
            let blocks = kv.blocks_total.to_string();
            page.sample(&[("model", &kv.model), ("block_size", &block_tokens), ("num_blocks", &blocks)], 1);
        }
        page.family("specserve_engine_info", Gauge, "Build, model and policy, in the labels; always 1.")
            .sample(
                &[
                    ("version", env!("CARGO_PKG_VERSION")),
                    ("model", &self.config.model),
                    ("policy", &self.config.policy),
                ],
                1,
            );
    }

    fn render_requests(&self, page: &mut PrometheusText) {
        let (counters, failures) = (&self.counters, &self.failures);
        page.family(
            "specserve_request_success_total",
            Counter,
            "Requests that finished with a complete output.",
        )
        .sample(&[("finished_reason", "stop")], counters.finished_stop)
        .sample(&[("finished_reason", "length")], counters.finished_length);
        page.family(
            "specserve_request_failure_total",
            Counter,
            "Requests without a complete output: cancelled, failed, or rejected at admission.",
        );
        for (reason, count) in [
            ("cancelled", failures.cancelled),
            ("shutting_down", failures.shutting_down),
            ("numerical_error", failures.numerical),
            ("grammar_error", failures.nothing_allowed),
            ("engine_error", failures.engine),
            ("queue_full", failures.queue_full),
            ("unavailable", failures.unavailable),
            ("too_large", failures.too_large),
            ("slo_infeasible", failures.infeasible),
            ("slo_too_late", failures.too_late),
            ("queue_timeout", failures.queue_timeout),
        ] {
            page.sample(&[("reason", reason)], count);
        }
        page.counter(
            "specserve_requests_admitted_total",
            "Requests admitted to the queue.",
            counters.admitted,
        );
        page.counter(
            "specserve_prompt_tokens_total",
            "Prompt tokens of admitted requests.",
            counters.prompt_tokens,
        );
        page.counter(
            "specserve_generation_tokens_total",
            "Tokens generated, including those of requests that failed later.",
            counters.generation_tokens,
        );
        page.counter(
            "specserve_preemptions_total",
            "Requests preempted from running to waiting for lack of KV blocks.",
            counters.preemptions,
        );
        page.counter(
            "specserve_prefix_cache_queries_total",
            "Tokens of requests when they start or resume, looked up in the prefix cache.",
            counters.prefix_query_tokens,
        );
        page.counter(
            "specserve_prefix_cache_hits_total",
            "Tokens found in the prefix cache, which need no prefill. Hit rate = this / queries.",
            counters.prefix_hit_tokens,
        );
    }

    fn render_speculation(&self, page: &mut PrometheusText) {
        let counters = &self.counters;
        for (name, help, count) in [
            ("specserve_steps_total", "Engine steps.", counters.steps),
            (
                "specserve_sequence_steps_total",
                "Decoding sequences summed over steps. Mean acceptance length = 1 + accepted / this.",
                counters.sequence_steps,
            ),
            (
                "specserve_spec_decode_num_drafts_total",
                "Sequences that drafted at least one token, summed over steps.",
                counters.drafts,
            ),
            (
                "specserve_spec_decode_draft_tokens_total",
                "Tokens proposed by the draft model, whether verified or not.",
                counters.drafted,
            ),
            (
                "specserve_spec_decode_verified_tokens_total",
                "Draft tokens verified by the target; fewer than drafted if pruned.",
                counters.verified,
            ),
            (
                "specserve_spec_decode_accepted_tokens_total",
                "Draft tokens equal to the target's own samples. Acceptance rate = this / verified.",
                counters.accepted,
            ),
        ] {
            page.counter(name, help, count);
        }
        page.family(
            "specserve_spec_decode_accepted_tokens_per_position_total",
            Counter,
            "Accepted draft tokens by position in the draft, from 0; the last label includes deeper ones.",
        );
        for position in 0..DRAFT_POSITIONS_MAX {
            page.sample(&[("position", &position.to_string())], self.accepted_per_position[position]);
        }
        self.render_confidence(page);
    }

    fn render_confidence(&self, page: &mut PrometheusText) {
        page.family(
            "specserve_confidence_calibration_error",
            Gauge,
            "Expected calibration error over about the last 6000 drafts that were verified behind accepted ones, \
             0 to 1. draft: the drafter's confidence; calibrated: the policy's acceptance probability, \
             predicted before the outcome.",
        );
        let errors = self.confidence_errors();
        for (confidence, error) in [("draft", errors.draft), ("calibrated", errors.calibrated)] {
            if let Some(error) = error {
                page.sample(&[("confidence", confidence)], error);
            }
        }
    }

    fn render_objectives(&self, page: &mut PrometheusText) {
        let counters = &self.counters;
        let kinds =
            [("ttft", counters.slo_ttft), ("tpot", counters.slo_tpot), ("request", counters.slo_request)];
        page.family(
            "specserve_slo_attained_total",
            Counter,
            "Finished requests within their bound. ttft, tpot: requests that have this bound; \
             request: all its bounds, requests without any included. Goodput = rate of kind request.",
        );
        for (kind, counts) in kinds {
            page.sample(&[("kind", kind)], counts.attained);
        }
        page.counter(
            "specserve_slo_infeasible_total",
            "Admitted requests whose objective plain decoding on an idle machine could not meet; served best-effort.",
            counters.best_effort,
        );
        page.family(
            "specserve_slo_violated_total",
            Counter,
            "Finished requests that missed their objective, by kind as for the attained ones.",
        );
        for (kind, counts) in kinds {
            page.sample(&[("kind", kind)], counts.violated);
        }
    }

    fn render_latencies(&self, page: &mut PrometheusText) {
        let latencies = &self.latencies;
        for (name, help, histogram) in [
            (
                "specserve_time_to_first_token_seconds",
                "Arrival at the socket to first token, of finished requests.",
                &latencies.ttft,
            ),
            (
                "specserve_request_time_per_output_token_seconds",
                "(Last token - first token) / (tokens - 1) of each finished request.",
                &latencies.tpot,
            ),
            (
                "specserve_inter_token_latency_seconds",
                "Gaps between the chunks of a request's output; a chunk holds the tokens of one step.",
                &latencies.itl,
            ),
            (
                "specserve_e2e_request_latency_seconds",
                "Arrival at the socket to last token, of finished requests.",
                &latencies.e2e,
            ),
            (
                "specserve_request_queue_time_seconds",
                "Arrival at the socket to the first step, of finished requests.",
                &latencies.queue,
            ),
            (
                "specserve_step_seconds",
                "End of one step to the end of the next while the engine is busy.",
                &latencies.step,
            ),
        ] {
            page.family(name, Histogram, help).latencies(&[], histogram);
        }
        page.family(
            "specserve_step_time_seconds",
            Histogram,
            "Parts of a step: draft model (steps that draft), target model, and the remaining host time.",
        );
        page.latencies(&[("kind", "draft")], &latencies.step_draft);
        page.latencies(&[("kind", "target")], &latencies.step_target);
        page.latencies(&[("kind", "host")], &latencies.step_host);
        page.family(
            "specserve_device_idle_seconds",
            Histogram,
            "Device idle time, of backends that report it: between two steps while the engine is busy, and within a step.",
        );
        page.latencies(&[("kind", "between_steps")], &latencies.idle_before);
        page.latencies(&[("kind", "within_step")], &latencies.idle_within);
        self.render_predictions(page);
    }

    fn render_predictions(&self, page: &mut PrometheusText) {
        page.family(
            "specserve_step_predicted_seconds",
            Histogram,
            "Step time predicted by the policy's time model, to compare with specserve_step_seconds.",
        );
        page.latencies(&[], &self.latencies.step_predicted);
        page.family(
            "specserve_step_prediction_error_ratio",
            Gauge,
            "|observed - predicted| / observed of step times since start, by quantile.",
        );
        if let Some(error) = self.prediction_error() {
            page.sample(&[("quantile", "0.5")], error.p50);
            page.sample(&[("quantile", "0.99")], error.p99);
        }
    }
}
