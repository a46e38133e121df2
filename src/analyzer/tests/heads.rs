//! Draft heads: one that drafts a token per call, and one that drafts blocks.

use super::*;
use crate::analyzer::{StartProfile, analyze_at_start};
use crate::protocol::Proposal;

/// Drafts of a block.
const BLOCK: u32 = 6;

impl LawfulExecutor {
    /// A draft head whose rounds, calls and states take the times of [`head_law`].
    fn with_head(block_tokens: u32, clock: &FakeClock) -> LawfulExecutor {
        let needs = DrafterNeeds { block_tokens, ..DrafterNeeds::hidden_states(vec![1, 3]) };
        let info = ExecutorInfo { drafter: Some(needs), ..info() };
        let draft = LatencyModel::new(head_law()).expect("a law");
        LawfulExecutor { draft, ..LawfulExecutor::new(info, clock) }
    }

    /// As [`Drafter::start`] of a head: it reads all states, then drafts for the seeds that want it.
    pub(super) fn start_head(
        &mut self,
        seeds: &[DraftSeed],
        forest: &mut DraftForest,
    ) -> Result<(), ExecutorError> {
        let drafting: Vec<&DraftSeed> = seeds.iter().filter(|seed| seed.limit > 0).collect();
        let mut micros = self.draft.states_us(self.unread_tokens - drafting.len() as u64);
        self.unread_tokens = 0;
        if !drafting.is_empty() {
            let context_tokens = drafting.iter().map(|seed| u64::from(seed.input.start) + 1).sum();
            let rows = drafting.len() as u32;
            let work = Work { rows, context_tokens, attended_tokens: context_tokens, ..Work::default() };
            micros += self.draft.terms().round_us + self.draft.micros(&work);
            self.round_context = context_tokens;
        }
        self.spend(micros);
        self.inner.start(seeds, forest)?;
        let roots: Vec<NodeId> = forest.since(0).map(|(id, _)| id).collect();
        let block_tokens = self.info().drafter.as_ref().map_or(0, |needs| needs.block_tokens);
        for mut node in roots {
            for _ in 1..block_tokens {
                node = forest.add_child(node, Proposal { finite: true, ..Proposal::default() });
            }
        }
        Ok(())
    }
}

fn head_law() -> LatencyTerms {
    let head = Some(HeadTerms { drafts_per_call: 1, state_token_us: 4.0 });
    LatencyTerms { round_us: 90.0, head, ..draft_law() }
}

/// Found over true times of a call with so many rows and so much context.
fn call_ratio(found: &LatencyModel, more_us: f64, rows: u32, context_tokens: u64) -> f64 {
    let work = Work { rows, context_tokens, attended_tokens: context_tokens, ..Work::default() };
    let law = LatencyModel::new(head_law()).expect("a law");
    found.micros(&work) / (law.micros(&work) + more_us)
}

const CALLS: [(u32, u64); 3] = [(1, 60), (7, 1000), (40, 4000)];

#[test]
fn the_round_the_calls_and_the_reading_of_a_chain_head_are_recovered() {
    let clock = FakeClock::default();
    let mut executor = LawfulExecutor { noise: 0.02, ..LawfulExecutor::with_head(0, &clock) };
    let profile = analyzed(&mut executor, 60.0);
    assert!(profile.draft_error.expect("held out").mape < 0.02, "{:?}", profile.draft_error);
    let draft = profile.cost_model().expect("valid").draft.expect("a head");
    for (rows, context_tokens) in CALLS {
        let ratio = call_ratio(&draft, 0.0, rows, context_tokens);
        assert!((ratio - 1.0).abs() < 0.03, "{rows} rows are off by {ratio}");
    }
    let terms = draft.terms();
    assert!((terms.round_us / 90.0 - 1.0).abs() < 0.1, "{terms:?}");
    let head = terms.head.expect("it says that it is a head");
    assert!((head.state_token_us / 4.0 - 1.0).abs() < 0.05, "{terms:?}");
    assert_eq!((head.drafts_per_call, terms.prefill_attended_us), (1, 0.0));
}

#[test]
fn all_that_a_block_head_takes_is_its_one_call() {
    let clock = FakeClock::default();
    let mut executor = LawfulExecutor::with_head(BLOCK, &clock);
    let profile = analyzed(&mut executor, 60.0);
    let draft = profile.cost_model().expect("valid").draft.expect("a head");
    for (rows, context_tokens) in CALLS {
        let ratio = call_ratio(&draft, 90.0, rows, context_tokens);
        assert!((ratio - 1.0).abs() < 0.03, "{rows} rows are off by {ratio}");
    }
    let (terms, head) = (draft.terms(), draft.terms().head.expect("it says that it is a head"));
    assert_eq!((head.drafts_per_call, terms.round_us), (BLOCK, 0.0));
    assert!((head.state_token_us / 4.0 - 1.0).abs() < 0.05, "{terms:?}");
    assert!(profile.points.iter().all(|point| point.head_calls.is_none_or(|calls| calls == 1)));
}

#[test]
fn a_short_block_is_as_long_as_the_target_verifies() {
    let clock = FakeClock::default();
    let mut executor = LawfulExecutor::with_head(12, &clock);
    let profile = analyzed(&mut executor, 3.0);
    let head = profile.draft.expect("a head").head.expect("it says that it is a head");
    assert_eq!(head.drafts_per_call, info().draft_tokens_max);
}

#[test]
fn a_head_drafts_behind_states_of_the_target_in_the_blocks_that_it_drafts_in() {
    let clock = FakeClock::default();
    let info = LawfulExecutor::with_head(0, &clock).info().clone();
    let workbench = Workbench::new(&info, options(1.0).text, options(1.0).sampling);
    let rounds: Vec<Shape> =
        shapes(&info).into_iter().filter(|shape| shape.model == ModelRole::Draft).collect();
    assert!(rounds.iter().any(|shape| shape.head_calls == Some(ROUND_CALLS) && shape.rows == 64));
    assert!(rounds.iter().any(|shape| shape.prefill_tokens == 256 && shape.head_calls == Some(1)));
    for shape in rounds {
        assert_eq!(lead(&info, &shape), None, "the states come first: {shape:?}");
        let (seeds, states) = (workbench.draft_seeds(&shape), workbench.states(&shape));
        assert_eq!((seeds.len(), states.len()), (shape.rows as usize, shape.rows as usize));
        for (index, (seed, row)) in seeds.iter().zip(&states).enumerate() {
            let tokens = if index == 0 { shape.prefill_tokens + 1 } else { 1 };
            assert_eq!(row.input.tokens.len() as u32, tokens);
            assert_eq!(row.input.start + tokens, seed.input.start, "{shape:?}");
            assert_eq!(row.next, Some(seed.input.tokens[0]));
            assert_eq!((seed.input.tokens.len(), &row.input.blocks), (1, &seed.input.blocks));
        }
    }
}

#[test]
fn verification_is_measured_after_a_round_of_the_head() {
    let clock = FakeClock::default();
    for (block_tokens, calls) in [(0, ROUND_CALLS), (BLOCK, 1)] {
        let info = LawfulExecutor::with_head(block_tokens, &clock).info().clone();
        let verify = |shape: &&Shape| shape.model == ModelRole::Target && shape.queries() == 4;
        let shapes = shapes(&info);
        let lead = lead(&info, shapes.iter().find(verify).expect("a verification")).expect("it fits");
        assert_eq!((lead.model, lead.head_calls), (ModelRole::Draft, Some(calls)));
    }
}

#[test]
fn at_the_start_a_head_is_measured_and_in_doubt_modelled_with_caution() {
    for (block_tokens, drafts_per_call) in [(0, 1), (BLOCK, BLOCK)] {
        let started = |disturbance| {
            let clock = FakeClock::default();
            let executor = LawfulExecutor::with_head(block_tokens, &clock);
            let mut executor = LawfulExecutor { disturbance, ..executor };
            let options = AnalyzerOptions { limit: Micros::from_secs_f64(5.0), ..options(1.5) };
            let fingerprint = Fingerprint { backend: "cpu".to_owned(), ..Fingerprint::default() };
            analyze_at_start(&mut executor, &clock, fingerprint, &options, &mut |_| {}).expect("a profile")
        };
        let drafts = |start: &StartProfile| {
            let terms = start.profile.draft.clone().expect("a head");
            (terms.head.expect("it says that it is a head").drafts_per_call, terms.micros[0])
        };
        let quiet = started(|_, _| (1.0, 0.0));
        assert_eq!((quiet.attempts, quiet.doubts.as_slice()), (1, &[][..]));
        let (found, row_us) = drafts(&quiet);
        assert!(found == drafts_per_call && (280.0..420.0).contains(&row_us), "{row_us}");
        let busy =
            started(|call, _| (100f64.powf(f64::from(crate::random::SplitMix64::new(call).uniform())), 0.0));
        assert!(busy.profile.origin.starts_with("modelled"), "{:?}", busy.profile.origin);
        assert_eq!(drafts(&busy).0, drafts_per_call);
    }
}
