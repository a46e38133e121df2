//! A simulated deployment for tests: a batch of endless requests, the machine's true step times and
//! the drafts' true acceptance.

use super::{Learner, Policy, Scratch};
use crate::protocol::{
    DecodeView, DraftCounts, DraftedRow, Micros, Proposal, RequestId, Step, StepDecision, StepReport,
    StepView,
};
use crate::random::SplitMix64;
use crate::timing::correction::TimeModel;
use crate::timing::cost_model::{CostModel, HeadTerms, Work};
use crate::timing::profile::tests::gpu_like;

/// What is true in the world.
pub(crate) struct World {
    /// Requests in the batch.
    pub(crate) requests: usize,
    /// TPOT objective of all of them.
    pub(crate) tpot: Option<Micros>,
    /// The machine's times over the profile's: target, draft.
    pub(crate) slow: (f64, f64),
    /// Draft probability of a token, from a uniform number.
    pub(crate) confidence: fn(f32) -> f32,
    /// True chance that a draft with this probability is accepted.
    pub(crate) acceptance: fn(f32) -> f32,
    /// Whether a draft head makes all drafts of a step in one call, or a draft model one in each.
    pub(crate) blocks: bool,
}

impl Default for World {
    fn default() -> World {
        World {
            requests: 8,
            tpot: None,
            slow: (1.0, 1.0),
            confidence: |uniform| 1.0 - 0.8 * uniform * uniform,
            acceptance: |q| q,
            blocks: false,
        }
    }
}

/// The times of a block head that drafts up to eight tokens in a call that takes `micros` for a row.
pub(crate) fn cost_of_blocks(micros: f64) -> CostModel {
    let mut profile = gpu_like();
    let draft = profile.draft.as_mut().unwrap();
    draft.micros.iter_mut().for_each(|call_us| *call_us += micros - 400.0);
    draft.head = Some(HeadTerms { drafts_per_call: 8, state_token_us: 0.1 });
    profile.cost_model().unwrap()
}

/// Time for a row of the blocks of a [`World`], in microseconds.
pub(crate) const BLOCK_US: f64 = 1500.0;

/// What happened.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) tokens: u64,
    pub(crate) micros: f64,
    pub(crate) drafted: u64,
    pub(crate) verified: u64,
    pub(crate) accepted: u64,
    /// Changes between steps that draft and steps that do not.
    pub(crate) switches: u64,
    pub(crate) steps: u64,
}

impl Outcome {
    /// Tokens per second.
    pub(crate) fn rate(&self) -> f64 {
        self.tokens as f64 / self.micros * 1e6
    }

    /// Tokens per step, of all requests.
    pub(crate) fn tokens_per_step(&self) -> f64 {
        self.tokens as f64 / self.steps as f64
    }
}

/// The world under way.
pub(crate) struct Run<'a> {
    world: &'a World,
    truth: TimeModel,
    random: SplitMix64,
    now: f64,
    rows: Vec<DecodeView>,
    was_drafting: Option<bool>,
    scratch: Scratch,
}

impl<'a> Run<'a> {
    pub(crate) fn new(world: &'a World, seed: u64) -> Run<'a> {
        let row = |index: usize| DecodeView {
            request: RequestId(index as u64),
            context_tokens: 200 + index as u32,
            output_tokens: 1,
            since_first_token: Micros::ZERO,
            tpot: world.tpot,
            weight: 1.0,
            draft_lag_tokens: 1,
            drafts_max: 8,
            temperature: 0.0,
        };
        Run {
            world,
            truth: TimeModel::new(match world.blocks {
                true => cost_of_blocks(BLOCK_US),
                false => gpu_like().cost_model().unwrap(),
            }),
            random: SplitMix64::new(seed),
            now: 0.0,
            rows: (0..world.requests).map(row).collect(),
            was_drafting: None,
            scratch: Scratch::default(),
        }
    }

    /// Goes on where something else is true, with the same requests.
    pub(crate) fn enter(&mut self, world: &'a World) {
        assert_eq!(world.requests, self.world.requests, "the requests stay");
        self.world = world;
    }

    fn uniform(&mut self) -> f32 {
        self.random.uniform()
    }

    /// Runs `steps` steps, from each of which `learner` learns.
    pub(crate) fn steps(&mut self, learner: &mut dyn Learner, steps: u32) -> Outcome {
        let mut outcome = Outcome::default();
        for _ in 0..steps {
            let report = self.step(learner);
            let drafting = !report.drafted.is_empty();
            outcome.switches += u64::from(self.was_drafting.is_some_and(|was| was != drafting));
            self.was_drafting = Some(drafting);
            outcome.micros += report.step_time.0 as f64;
            outcome.drafted += report.drafted.iter().map(|row| row.proposals.len() as u64).sum::<u64>();
            outcome.verified += report.counts.iter().map(|counts| u64::from(counts.verified)).sum::<u64>();
            outcome.accepted += report.counts.iter().map(|counts| u64::from(counts.accepted)).sum::<u64>();
            outcome.tokens += report.counts.iter().map(|counts| u64::from(counts.accepted) + 1).sum::<u64>();
            outcome.steps += 1;
            learner.observe(&report);
        }
        outcome
    }

    /// Runs one step, from which `learner` does not learn.
    pub(crate) fn step(&mut self, learner: &dyn Learner) -> StepReport {
        let policy = &*learner.snapshot();
        let view = StepView {
            now: Micros(self.now as u64),
            decoding: self.rows.clone(),
            prefilling: Vec::new(),
            waiting: 0,
            prefill_tokens_max: 0,
        };
        let granted = policy.plan(&view, &mut self.scratch);
        let (drafted, draft_calls) = self.draft(policy, &view, &granted);
        let mut lengths = Vec::new();
        policy.select(Step { view: &view, granted: &granted }, &drafted, &mut self.scratch, &mut lengths);
        let mut verified = vec![0; self.rows.len()];
        for (row, &length) in drafted.iter().zip(&lengths) {
            assert!(length as usize <= row.proposals.len(), "verified more than drafted");
            verified[row.decoding as usize] = length;
        }
        let accepted = self.accept(&drafted, &verified);
        let (draft_us, target_us) = self.times(&view, &draft_calls, &verified);
        let step_us = draft_us + target_us + 60.0;
        self.commit(&drafted, &accepted, step_us);
        let counts = verified.iter().zip(&accepted);
        let counts = counts.map(|(&verified, &accepted)| DraftCounts { verified, accepted }).collect();
        StepReport {
            view,
            granted,
            drafted,
            outcomes: Vec::new(),
            counts,
            draft_calls,
            prefill_tokens: 0,
            prefill_attended_tokens: 0,
            draft_time: Micros(draft_us as u64),
            target_time: Micros(target_us as u64),
            step_time: Micros(step_us as u64),
            device_idle: None,
            finished: Vec::new(),
        }
    }

    fn draft(
        &mut self,
        policy: &dyn Policy,
        view: &StepView,
        granted: &StepDecision,
    ) -> (Vec<DraftedRow>, Vec<(u32, u32)>) {
        let drafting = granted.drafts.iter().enumerate().filter(|(_, drafts)| **drafts > 0);
        let mut rows: Vec<DraftedRow> =
            drafting.map(|(index, _)| DraftedRow::chain(index as u32, Vec::new())).collect();
        let lag: u32 = rows.iter().map(|row| view.decoding[row.decoding as usize].draft_lag_tokens).sum();
        let mut going: Vec<u32> = (0..rows.len() as u32).collect();
        let mut calls = Vec::new();
        while !going.is_empty() {
            let input = if calls.is_empty() { lag } else { going.len() as u32 };
            calls.push((going.len() as u32, input));
            for &index in &going {
                let row = &mut rows[index as usize];
                let drafts = if self.world.blocks { granted.drafts[row.decoding as usize] } else { 1 };
                row.proposals.extend((0..drafts).map(|_| {
                    let probability = (self.world.confidence)(self.random.uniform());
                    Proposal { probability, finite: true, ..Proposal::default() }
                }));
            }
            let below = |index: &u32| {
                let row = &rows[*index as usize];
                (row.proposals.len() as u32) < granted.drafts[row.decoding as usize]
            };
            let active: Vec<u32> = going.iter().copied().filter(below).collect();
            let mut keep = Vec::new();
            if !active.is_empty() {
                policy.extend(Step { view, granted }, &rows, &active, &mut self.scratch, &mut keep);
            }
            assert!(keep.iter().all(|index| active.contains(index)), "went on with a stopped row");
            going = keep;
        }
        (rows, calls)
    }

    fn accept(&mut self, drafted: &[DraftedRow], verified: &[u32]) -> Vec<u32> {
        let mut accepted = vec![0; self.rows.len()];
        for row in drafted {
            let index = row.decoding as usize;
            for proposal in &row.proposals[..verified[index] as usize] {
                if self.uniform() >= (self.world.acceptance)(proposal.probability) {
                    break;
                }
                accepted[index] += 1;
            }
        }
        accepted
    }

    fn times(&self, view: &StepView, calls: &[(u32, u32)], verified: &[u32]) -> (f64, f64) {
        let context_tokens = view.decoding.iter().map(|row| u64::from(row.context_tokens)).sum();
        let rows = (view.decoding.len() as u32) + verified.iter().sum::<u32>();
        let work = Work { rows, context_tokens, attended_tokens: context_tokens, ..Work::default() };
        let draft: f64 = calls
            .iter()
            .map(|&(rows, input)| {
                let share = context_tokens * u64::from(rows) / view.decoding.len() as u64;
                self.truth.draft_call_us(rows, share) + self.truth.catch_up_us(rows, input - rows, 0)
            })
            .sum();
        (draft * self.world.slow.1, self.truth.target_us(&work) * self.world.slow.0)
    }

    fn commit(&mut self, drafted: &[DraftedRow], accepted: &[u32], step_us: f64) {
        self.now += step_us;
        for (index, row) in self.rows.iter_mut().enumerate() {
            let drafts = drafted.iter().find(|row| row.decoding as usize == index);
            let seen = match drafts {
                Some(drafts) => row.context_tokens + accepted[index].min(drafts.proposals.len() as u32 - 1),
                None => row.context_tokens - row.draft_lag_tokens,
            };
            row.context_tokens += accepted[index] + 1;
            row.output_tokens += accepted[index] + 1;
            row.draft_lag_tokens = row.context_tokens - seen;
            row.since_first_token = Micros(self.now as u64);
            // An endless context would drown everything else.
            if row.context_tokens > 600 {
                (row.context_tokens, row.draft_lag_tokens) = (200, row.draft_lag_tokens.min(200));
            }
        }
    }
}
