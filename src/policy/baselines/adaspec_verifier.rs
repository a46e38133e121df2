//! AdaSpec's confidence-prior verifier alone (arXiv 2503.05096), with the release's defects fixed.
//!
//! Always drafts the full length, then verifies the globally best set of drafts by raw draft
//! probability over the whole staircase: throughput only, no objectives. This is what vLLM's
//! adaptive verification does (vllm-project/vllm #52228), and what pruning is worth without
//! stopping the draft early.
//!
//! `adaspec-verifier:K` drafts `K` tokens, `adaspec-verifier` alone as many as the engine allows.
//! In vLLM, `K` is configured, and the drafters it was made for make all drafts in one pass: a
//! longer draft costs them next to nothing. So it does a block head here. Each token of a draft model
//! or a chain head is a pass, so that the full length is dear, and the fair `K` is the best one.

use std::sync::Arc;

use super::draft_everywhere;
use crate::policy::planner::{Buffers, Curve, Problem, Row, solve};
use crate::policy::survival::POSITIONS_MAX;
use crate::policy::{Policy, Scratch};
use crate::protocol::{DraftedRow, Step, StepDecision, StepView};
use crate::timing::cost_model::{CostModel, ROWS_MAX};

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct AdaSpecVerifier {
    cost: Arc<CostModel>,
    draft_tokens_max: u32,
    /// `K`, if the name has one.
    configured: Option<u32>,
}

/// The verifier's part of [`Scratch`].
#[derive(Debug, Default)]
pub struct VerifierBuffers {
    planner: Buffers,
    rows: Vec<Row>,
    survival: Vec<f32>,
    lengths: Vec<u32>,
}

impl AdaSpecVerifier {
    /// `adaspec-verifier`. Starts from the profile's times.
    pub fn new(cost: CostModel, draft_tokens_max: u32) -> AdaSpecVerifier {
        AdaSpecVerifier { cost: Arc::new(cost), draft_tokens_max, configured: None }
    }

    /// `adaspec-verifier:K`, with `K` of 1 to 32. Starts from the profile's times.
    pub fn with_draft_tokens(cost: CostModel, draft_tokens: u32) -> AdaSpecVerifier {
        AdaSpecVerifier { configured: Some(draft_tokens), ..AdaSpecVerifier::new(cost, draft_tokens) }
    }

    /// Drafts per sequence and step.
    fn draft_tokens(&self) -> u32 {
        if self.cost.draft.is_none() {
            return 0;
        }
        self.configured.unwrap_or(self.draft_tokens_max).min(POSITIONS_MAX as u32)
    }

    fn solve(&self, view: &StepView, drafted: &[DraftedRow], buffers: &mut VerifierBuffers) {
        let VerifierBuffers { planner, rows, survival, lengths } = buffers;
        let batch = view.decoding.len();
        let target = &self.cost.target;
        let token_us = target.terms().attended_token_us;
        rows.clear();
        rows.extend(view.decoding.iter().map(|row| Row {
            weight: 1.0,
            query_us: (token_us * f64::from(row.context_tokens)) as f32,
            positions: 0,
            made: 0,
        }));
        survival.clear();
        survival.resize(batch * POSITIONS_MAX, 0.0);
        for row in drafted {
            let index = row.decoding as usize;
            rows[index].positions = row.proposals.len().min(POSITIONS_MAX) as u32;
            rows[index].made = rows[index].positions;
            let mut alive = 1.0;
            for (depth, proposal) in row.proposals.iter().take(POSITIONS_MAX).enumerate() {
                alive *= proposal.probability;
                survival[depth * batch + index] = alive;
            }
        }
        let calls = rows.iter().map(|row| row.positions).max().unwrap_or(0);
        let stair_us = target.rows_us(batch as u32);
        let problem = Problem {
            requests: rows.len(),
            rows,
            survival,
            target: Curve { table: target.table_from(0), factor: 1.0, row_us: 0.0 },
            draft: Curve::ZERO,
            priced_us: super::symmetric_us(&self.cost, view, calls, batch as u32) - stair_us,
            priced_tokens: 0.0,
            rows_max: ROWS_MAX as u32,
        };
        solve(&problem, planner, lengths);
    }
}

impl Policy for AdaSpecVerifier {
    fn name(&self) -> String {
        match self.configured {
            None => "adaspec-verifier".to_owned(),
            Some(draft_tokens) => format!("adaspec-verifier:{draft_tokens}"),
        }
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        draft_everywhere(view, self.draft_tokens())
    }

    fn select(&self, step: Step<'_>, rows: &[DraftedRow], scratch: &mut Scratch, lengths: &mut Vec<u32>) {
        let buffers = &mut scratch.verifier;
        self.solve(step.view, rows, buffers);
        lengths.extend(rows.iter().map(|row| buffers.lengths[row.decoding as usize]));
    }
}
