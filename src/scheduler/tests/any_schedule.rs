//! Random schedules under a policy that does as it likes.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::*;
use super::game::{Game, expect, limits, request};
use crate::executor::ShadowOptions;
use crate::policy::{Policy, Scratch, Static, chains};
use crate::protocol::{
    DraftSet, DraftShape, DraftedRow, Intent, Micros, OpenDraft, SamplingParams, Step, StepDecision, StepView,
};

/// A policy that asks for the impossible and drafts by whim.
#[derive(Clone, Debug)]
struct Whim {
    seed: u64,
}

impl Whim {
    fn roll(&self, salt: u64, sides: u32) -> u32 {
        let x = (self.seed ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((x >> 33) % u64::from(sides)) as u32
    }
}

impl Policy for Whim {
    fn name(&self) -> String {
        "whim".to_owned()
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        let drafts = (0..view.decoding.len() as u64).map(|row| self.roll(view.now.0 + row, 1000)).collect();
        StepDecision {
            intent: Intent::default(),
            drafts,
            prefill_tokens: self.roll(view.now.0, 3) * 40,
            warm_draft: self.roll(view.now.0, 2) == 0,
            shape: if self.roll(view.now.0, 5) < 3 { DraftShape::Tree } else { DraftShape::Chain },
            ..StepDecision::default()
        }
    }

    fn expand(
        &self,
        step: Step<'_>,
        rows: &[DraftedRow],
        open: &[OpenDraft],
        scratch: &mut Scratch,
        keep: &mut Vec<u32>,
    ) {
        if step.granted.shape == DraftShape::Chain {
            return chains::expand(self, step, rows, open, scratch, keep);
        }
        let salt = |draft: &OpenDraft| step.view.now.0 ^ u64::from(draft.row * 64 + draft.draft);
        keep.extend(
            (0..).zip(open).filter(|(_, draft)| self.roll(salt(draft), 4) > 0).map(|(index, _)| index),
        );
    }

    fn choose(&self, step: Step<'_>, rows: &[DraftedRow], scratch: &mut Scratch, chosen: &mut Vec<DraftSet>) {
        if step.granted.shape == DraftShape::Chain {
            return chains::choose(self, step, rows, scratch, chosen);
        }
        for row in rows {
            let mut set = DraftSet::default();
            let salt = |draft: usize| step.view.now.0 ^ u64::from(row.decoding * 64 + draft as u32);
            (0..64).filter(|&draft| self.roll(salt(draft), 5) > 0).for_each(|draft| set.insert(draft));
            chosen.push(set);
        }
    }

    fn extend(&self, step: Step<'_>, _: &[DraftedRow], active: &[u32], _: &mut Scratch, keep: &mut Vec<u32>) {
        keep.extend(active.iter().filter(|&&row| self.roll(step.view.now.0 ^ u64::from(row), 4) > 0));
    }

    fn select(&self, step: Step<'_>, rows: &[DraftedRow], _: &mut Scratch, lengths: &mut Vec<u32>) {
        lengths.extend(rows.iter().map(|row| self.roll(step.view.now.0 ^ u64::from(row.decoding), 9)));
    }
}

#[derive(Clone, Debug)]
enum Move {
    Arrive { prompt: u32, output: u32, class: u8, seeded: bool },
    Step,
    CancelOne(u64),
    CancelInFlight(u64),
    Abandon,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        3 => (1..90u32, 1..50u32, 0..3u8, any::<bool>())
            .prop_map(|(prompt, output, class, seeded)| Move::Arrive { prompt, output, class, seeded }),
        6 => Just(Move::Step),
        1 => (0..40u64).prop_map(Move::CancelOne),
        1 => (0..40u64).prop_map(Move::CancelInFlight),
        1 => Just(Move::Abandon),
    ];
    proptest::collection::vec(one, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Invariants 1 to 3 over random arrivals, cancels, lost steps and shortages, under a
    /// policy that does as it likes and any bounds. The shadow refuses a batch that exceeds them.
    #[test]
    fn any_schedule_conserves_blocks_ends_each_request_once_and_never_changes_a_word(
        moves in moves(),
        target_blocks in 9..40u32,
        draft_blocks in 0..40u32,
        running in 1..9u32,
        room in 1..100u32,
        chunk in 1..65u32,
        seed in any::<u64>(),
    ) {
        // without blocks of its own it is a head, which shares the target's
        let branches = seed % 3 > 0;
        let drafter = match draft_blocks {
            0 => DrafterNeeds::hidden_states(vec![1]),
            blocks => DrafterNeeds { branches, ..DrafterNeeds::kv_cache(blocks) },
        };
        let limits = SchedulerLimits {
            running_requests_max: running,
            batch_tokens_max: running + room,
            prefill_chunk_tokens_max: chunk,
            drafter: Some(drafter.clone()),
            ..limits(target_blocks)
        };
        let mut options = ShadowOptions::small(target_blocks, draft_blocks);
        options.info.drafter = Some(drafter);
        // of the longest request
        options.info.context_tokens_max = 89 + 49;
        let mut game = Game::led_by(Box::new(Static::new(Whim { seed })), limits, options);
        let mut requests = Vec::new();
        for step in moves {
            match step {
                Move::Arrive { prompt, output, class, seeded } => {
                    let id = requests.len() as u64;
                    let mut request = GenerationRequest { class, ..request(id % 3, prompt, output) };
                    request.id = RequestId(id);
                    request.arrival = Micros(id);
                    if seeded {
                        request.sampling =
                            Arc::new(SamplingParams { temperature: 1.0, seed: id, ..SamplingParams::greedy() });
                    }
                    game.arrive(request.clone());
                    requests.push(request);
                }
                Move::Step => { game.step(); }
                Move::CancelOne(id) => game.cancel(RequestId(id)),
                Move::CancelInFlight(id) => {
                    if let Some(plan) = game.plan() {
                        game.cancel(RequestId(id));
                        game.finish(plan);
                    }
                }
                Move::Abandon => {
                    if game.plan().is_some() {
                        let deliveries = game.core.abandon_step();
                        game.record(deliveries);
                    }
                }
            }
        }
        game.play_out();
        prop_assert_eq!(game.ends.len(), requests.len());
        prop_assert_eq!(game.core.scheduler().gauges().target_kv.held, 0);
        prop_assert_eq!(game.core.scheduler().gauges().draft_kv.held, 0);
        for request in &requests {
            let expected = expect(&game, request);
            let said = game.outputs.get(&request.id).cloned().unwrap_or_default();
            prop_assert_eq!(&said[..], &expected[..said.len()]);
            if game.finish_reason(request.id).is_some() {
                prop_assert_eq!(said.len(), expected.len());
            }
        }
    }
}
