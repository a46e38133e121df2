mod heads;
mod start;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::grid::{Shape, Tier, lead, shapes};
use super::workbench::Workbench;
use super::*;
use crate::executor::{Drafter, ShadowExecutor, ShadowOptions, Target};
use crate::model::random::{RandomOptions, random_model, small_spec};
use crate::protocol::{
    BlockId, Compaction, DraftForest, DraftSeed, DrafterNeeds, ExecutorInfo, NodeId, SequenceInput, Verdict,
    VerifyRow,
};
use crate::timing::ROUND_CALLS;
use crate::timing::cost_model::{LatencyModel, LatencyTerms, Work, prefill_attended};

/// A clock that only moves when the executor computes.
#[derive(Clone, Default)]
struct FakeClock(Arc<AtomicU64>);

impl Clock for FakeClock {
    fn now(&self) -> Micros {
        Micros(self.0.load(Ordering::Relaxed))
    }
}

/// Takes as long as two laws say; checks what it is given, as a real one would.
struct LawfulExecutor {
    inner: ShadowExecutor,
    clock: FakeClock,
    target: LatencyModel,
    draft: LatencyModel,
    /// Relative noise, at most.
    noise: f64,
    /// Slow-down after so many microseconds, as of a machine that heats up.
    slow: Option<(u64, f64)>,
    /// By a call's number and the time in microseconds: a factor on it, and microseconds more.
    disturbance: fn(u64, u64) -> (f64, f64),
    /// Factor on all times.
    scale: f64,
    round_context: u64,
    /// Tokens whose hidden states a head has not read.
    unread_tokens: u64,
    calls: u64,
    longest_us: u64,
}

impl LawfulExecutor {
    fn new(info: ExecutorInfo, clock: &FakeClock) -> LawfulExecutor {
        LawfulExecutor {
            inner: ShadowExecutor::new(ShadowOptions { info, ..ShadowOptions::small(512, 512) }),
            clock: clock.clone(),
            target: LatencyModel::new(target_law()).expect("a law"),
            draft: LatencyModel::new(draft_law()).expect("a law"),
            noise: 0.0,
            slow: None,
            disturbance: |_, _| (1.0, 0.0),
            scale: 1.0,
            round_context: 0,
            unread_tokens: 0,
            calls: 0,
            longest_us: 0,
        }
    }

    fn spend(&mut self, micros: f64) {
        self.calls += 1;
        let noise = 1.0 + self.noise * (((self.calls * 7919) % 101) as f64 / 50.0 - 1.0);
        let now = self.clock.now().0;
        let slow = self.slow.map_or(1.0, |(from, factor)| if now > from { factor } else { 1.0 });
        let (factor, more) = (self.disturbance)(self.calls, now);
        let spent = (self.scale * micros * noise * slow * factor + more).round() as u64;
        self.longest_us = self.longest_us.max(spent);
        self.clock.0.fetch_add(spent, Ordering::Relaxed);
    }
}

fn target_law() -> LatencyTerms {
    let rows: Vec<u32> = (0..=9).map(|power| 1 << power).collect();
    let micros = rows.iter().map(|&rows| 2000.0 + 15.0 * f64::from(rows)).collect();
    LatencyTerms {
        between: Between::Interpolate,
        rows,
        micros,
        context_token_us: 0.9,
        attended_token_us: 0.25,
        prefill_row: 0.9,
        prefill_step_us: 0.0,
        prefill_attended_us: 0.03,
        round_us: 0.0,
        head: None,
    }
}

fn draft_law() -> LatencyTerms {
    LatencyTerms {
        rows: vec![1, 64],
        micros: vec![300.0, 615.0],
        context_token_us: 0.2,
        attended_token_us: 0.0,
        ..target_law()
    }
}

/// One input of several tokens without drafts is a prefill.
fn work_of<'a>(inputs: impl Iterator<Item = (&'a SequenceInput, bool)>) -> Work {
    let mut work = Work::default();
    for (input, prefills) in inputs {
        let (tokens, context) = (input.tokens.len() as u32, u64::from(input.start) + 1);
        if prefills {
            work.prefill_tokens += tokens;
            work.prefill_attended_tokens += prefill_attended(input.start, tokens);
        } else {
            work.rows += tokens;
            work.context_tokens += context;
            work.attended_tokens += context * u64::from(tokens);
        }
    }
    work
}

impl Executor for LawfulExecutor {
    fn info(&self) -> &ExecutorInfo {
        self.inner.info()
    }

    fn target(&mut self) -> &mut dyn Target {
        self
    }

    fn drafter(&mut self) -> Option<&mut dyn Drafter> {
        Some(self)
    }

    fn logits(&mut self, model: ModelRole, input: &SequenceInput) -> Result<Vec<f32>, ExecutorError> {
        self.inner.logits(model, input)
    }
}

impl Target for LawfulExecutor {
    fn verify(&mut self, rows: &[VerifyRow], out: &mut Vec<Verdict>) -> Result<(), ExecutorError> {
        let work = work_of(
            rows.iter()
                .map(|row| (&row.input, row.drafts == 0 && (row.input.tokens.len() > 1 || !row.samples()))),
        );
        self.spend(self.target.micros(&work));
        let committed = rows.iter().map(|row| row.input.tokens.len() as u64 - u64::from(row.drafts));
        self.unread_tokens += committed.sum::<u64>();
        self.inner.verify(rows, out)
    }

    fn compact(&mut self, moves: &[Compaction]) -> Result<(), ExecutorError> {
        self.inner.compact(moves)
    }
}

impl Drafter for LawfulExecutor {
    fn start(&mut self, seeds: &[DraftSeed], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        if self.info().has_draft_head() {
            return self.start_head(seeds, forest);
        }
        let mut work = Work::default();
        for input in seeds.iter().map(|seed| &seed.input) {
            let missed = input.tokens.len() as u32 - 1;
            let context = u64::from(input.start + missed) + 1;
            work.rows += 1;
            work.context_tokens += context;
            work.attended_tokens += context;
            work.prefill_tokens += missed;
            work.prefill_attended_tokens += prefill_attended(input.start, missed);
        }
        self.round_context = work.context_tokens;
        self.spend(self.draft.micros(&work));
        self.inner.start(seeds, forest)
    }

    fn extend(&mut self, nodes: &[NodeId], forest: &mut DraftForest) -> Result<(), ExecutorError> {
        let (rows, context_tokens) = (nodes.len() as u32, self.round_context);
        let work = Work { rows, context_tokens, attended_tokens: context_tokens, ..Work::default() };
        self.spend(self.draft.micros(&work));
        self.inner.extend(nodes, forest)
    }
}

fn info() -> ExecutorInfo {
    let small = ShadowOptions::small(512, 512).info;
    ExecutorInfo { context_tokens_max: 2048, draft_tokens_max: 8, ..small }
}

fn options(budget_s: f64) -> AnalyzerOptions {
    AnalyzerOptions {
        budget: Micros::from_secs_f64(budget_s),
        limit: AnalyzerOptions::NO_LIMIT,
        text: (0..997).collect(),
        sampling: Arc::new(SamplingParams::greedy()),
    }
}

fn analyzed(executor: &mut LawfulExecutor, budget_s: f64) -> Profile {
    let clock = executor.clock.clone();
    let fingerprint = Fingerprint { backend: "cpu".to_owned(), ..Fingerprint::default() };
    analyze(executor, &clock, fingerprint, &options(budget_s), &mut |_| {}).expect("a profile")
}

/// Largest relative error of a profile's model against the law, over works it did not measure.
fn worst_error(profile: &Profile) -> f64 {
    let (cost, law) = (profile.cost_model().expect("valid"), LatencyModel::new(target_law()).expect("a law"));
    let mut worst = 0.0f64;
    for rows in [1u32, 5, 10, 20, 50, 100, 300] {
        for (sequences, context) in [(1u64, 100u64), (4, 300), (16, 250), (30, 40)] {
            for prefill_tokens in [0, 48, 150] {
                let work = Work {
                    rows,
                    context_tokens: sequences * context,
                    attended_tokens: u64::from(rows) * context,
                    prefill_tokens,
                    prefill_attended_tokens: prefill_attended(77, prefill_tokens),
                };
                worst = worst.max((cost.target.micros(&work) / law.micros(&work) - 1.0).abs());
            }
        }
    }
    worst
}

#[test]
fn a_known_law_is_recovered_within_two_percent() {
    let clock = FakeClock::default();
    let mut executor = LawfulExecutor { noise: 0.04, ..LawfulExecutor::new(info(), &clock) };
    let profile = analyzed(&mut executor, 60.0);
    let worst = worst_error(&profile);
    assert!(worst < 0.02, "target is off by {worst}");
    let draft = profile.cost_model().expect("valid").draft.expect("a draft");
    let law = LatencyModel::new(draft_law()).expect("a law");
    for (rows, context) in [(1, 60), (7, 1000), (40, 4000)] {
        let work = Work { rows, context_tokens: context, attended_tokens: context, ..Work::default() };
        let ratio = draft.micros(&work) / law.micros(&work);
        assert!((ratio - 1.0).abs() < 0.02, "draft at {rows} rows is off by {ratio}");
    }
    for error in [profile.target_error, profile.draft_error] {
        let error = error.expect("points were held out");
        assert!(error.points >= 10 && error.mape < 0.02 && error.p99 < 0.06, "{error:?}");
    }
}

#[test]
fn a_few_seconds_give_a_usable_model() {
    let clock = FakeClock::default();
    let mut executor = LawfulExecutor::new(info(), &clock);
    let profile = analyzed(&mut executor, 2.0);
    let worst = worst_error(&profile);
    assert!(worst < 0.06, "{worst}");
    assert!(profile.points.iter().any(|point| point.prefill_tokens > 0));
}

#[test]
fn the_reported_error_is_of_points_that_the_fit_has_not_seen() {
    // A law that the model can't express: every third context costs double.
    let clock = FakeClock::default();
    let mut executor = LawfulExecutor::new(info(), &clock);
    let mut profile = analyzed(&mut executor, 20.0);
    let honest = profile.target_error.expect("held out");
    for (index, point) in profile.points.iter_mut().enumerate() {
        point.micros *= if index % 3 == 0 { 2.0 } else { 1.0 };
    }
    let bent = fit(&profile.points, ModelRole::Target, Between::Interpolate, HOLD_OUT_EVERY).expect("fits");
    assert!(bent.held_out.mape > 0.1 && honest.mape < 0.01, "{bent:?} {honest:?}");
    assert!(bent.held_out.points * 4 < profile.points.len() as u32);
}

#[test]
fn a_machine_that_slows_down_midway_leaves_no_trend_over_rows() {
    let clock = FakeClock::default();
    let mut executor =
        LawfulExecutor { slow: Some((30_000_000, 1.5)), ..LawfulExecutor::new(info(), &clock) };
    let profile = analyzed(&mut executor, 60.0);
    let law = LatencyModel::new(target_law()).expect("a law");
    let found = profile.cost_model().expect("valid").target;
    let ratios: Vec<f64> = [1, 8, 64, 256].map(|rows| found.rows_us(rows) / law.rows_us(rows)).to_vec();
    let spread = ratios.iter().fold(0.0f64, |most, ratio| most.max((ratio / ratios[0] - 1.0).abs()));
    assert!(spread < 0.1, "{ratios:?}");
}

#[test]
fn the_budget_is_kept_to_within_one_pass_once_the_coarse_grid_is_through() {
    for budget_s in [3.0, 12.0, 30.0] {
        let clock = FakeClock::default();
        let mut executor = LawfulExecutor::new(info(), &clock);
        analyzed(&mut executor, budget_s);
        let round_us = executor.longest_us * u64::from(ROUND_CALLS);
        let (spent, budget) = (clock.now().0, Micros::from_secs_f64(budget_s).0);
        assert!(spent <= budget + round_us, "{spent} µs of {budget}");
        assert!(spent * 3 > budget * 2, "{spent} µs of {budget}: time is left unused");
    }
}

#[test]
fn even_no_budget_gives_one_pass_over_the_shapes_that_a_model_needs() {
    let clock = FakeClock::default();
    let mut executor = LawfulExecutor::new(info(), &clock);
    let profile = analyzed(&mut executor, 0.0);
    let least = shapes(&info()).iter().filter(|shape| shape.tier == Tier::Least).count();
    assert_eq!(profile.points.len(), least);
    for terms in [&profile.target, profile.draft.as_ref().expect("there is a draft")] {
        assert!(terms.rows.len() >= 4, "{terms:?}");
    }
    let cost = profile.cost_model().expect("valid");
    // Passes with 8, 16 and 64 tokens of prefill settle its price to a few percent. A draft call
    // with catch-up begins a round as well, and so few calls tell the one from the other to some
    // 10 µs only, of 79 for 16 tokens.
    assert_prefill_is_priced(&cost.target, target_law(), 0.05);
    assert_prefill_is_priced(&cost.draft.expect("there is a draft"), draft_law(), 0.15);
}

/// Up to the longest prefill of the least shapes, and beside few rows and many.
fn assert_prefill_is_priced(found: &LatencyModel, law: LatencyTerms, tolerance: f64) {
    let law = LatencyModel::new(law).expect("a law");
    for (rows, tokens) in [(1, 16), (1, 32), (1, 64), (8, 64), (32, 16), (32, 64)] {
        let price_us = |model: &LatencyModel| model.prefill_us(rows, tokens, prefill_attended(0, tokens));
        let ratio = price_us(found) / price_us(&law);
        assert!((ratio - 1.0).abs() < tolerance, "{tokens} tokens beside {rows} rows are off by {ratio}");
    }
}

#[test]
fn progress_only_grows_and_ends_near_one() {
    let clock = FakeClock::default();
    let mut executor = LawfulExecutor::new(info(), &clock);
    let mut shares = Vec::new();
    let mut note = |progress: Progress| shares.push(progress.share);
    analyze(&mut executor, &clock, Fingerprint::default(), &options(10.0), &mut note).expect("a profile");
    assert!(shares.windows(2).all(|pair| pair[0] <= pair[1]));
    assert!(shares.last().is_some_and(|&last| last > 0.9 && last <= 1.0));
}

#[test]
fn shapes_cover_rows_contexts_queries_and_chunks_and_fit_the_executor() {
    let info = info();
    let shapes = shapes(&info);
    let target: Vec<&Shape> =
        shapes.iter().filter(|shape| shape.model == ModelRole::Target && shape.prefill_tokens == 0).collect();
    for rows in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 512] {
        assert!(target.iter().any(|shape| shape.rows == rows), "{rows} rows");
    }
    for queries in 1..=9 {
        assert!(target.iter().any(|shape| shape.queries() == queries), "{queries} queries");
    }
    let contexts: std::collections::BTreeSet<u32> = target.iter().map(|shape| shape.context_tokens).collect();
    assert!(contexts.len() >= 4 && contexts.iter().any(|&context| context > 1500), "{contexts:?}");
    let workbench = Workbench::new(&info, options(1.0).text, options(1.0).sampling);
    for shape in &shapes {
        let inputs: Vec<SequenceInput> = match shape.model {
            ModelRole::Target => workbench.verify_rows(shape).into_iter().map(|row| row.input).collect(),
            ModelRole::Draft => workbench.draft_seeds(shape).into_iter().map(|seed| seed.input).collect(),
        };
        let mut blocks: Vec<BlockId> = inputs.iter().flat_map(|input| input.blocks.clone()).collect();
        let count = blocks.len();
        blocks.sort_unstable();
        blocks.dedup();
        assert_eq!(blocks.len(), count, "{shape:?} shares a block");
        assert!(blocks.last().is_none_or(|last| last.0 < 512));
        let tokens: usize = inputs.iter().map(|input| input.tokens.len()).sum();
        assert_eq!(tokens as u32, shape.rows + shape.prefill_tokens);
    }
}

#[test]
fn verification_is_measured_after_drafting_and_drafting_after_a_pass_of_the_target() {
    let info = info();
    let mut led = 0;
    for shape in shapes(&info) {
        let Some(lead) = lead(&info, &shape) else { continue };
        led += 1;
        assert_ne!(lead.model, shape.model);
        assert!(lead.prefill_tokens == 0 && (shape.model == ModelRole::Draft || shape.queries() > 1));
    }
    assert!(led > 20);
    let alone = ExecutorInfo { drafter: None, ..info };
    assert!(shapes(&alone).iter().all(|shape| lead(&alone, shape).is_none()));
}

#[test]
fn the_coarse_grid_has_every_length_of_draft_and_asks_for_little_context() {
    let coarse = shapes(&info()).into_iter().filter(|shape| shape.tier == Tier::Coarse).collect::<Vec<_>>();
    for queries in 2..=9 {
        let alone = |shape: &&Shape| shape.sequences == 1 && shape.queries() == queries;
        assert!(coarse.iter().any(|shape| alone(&shape)), "{queries}");
    }
    let mut decoding = coarse.iter().filter(|shape| shape.prefill_tokens == 0);
    let context = |shape: &Shape| shape.sequences * shape.context_tokens;
    assert!(decoding.all(|shape| context(shape) <= 2048 || shape.context_tokens == 32));
}

#[test]
fn block_tables_are_scattered_the_same_way_every_time() {
    let workbench = || Workbench::new(&info(), options(1.0).text, options(1.0).sampling);
    let shape = shapes(&info())[3];
    let blocks = |workbench: Workbench| workbench.verify_rows(&shape)[0].input.blocks.clone();
    assert_eq!(blocks(workbench()), blocks(workbench()));
    let long = Shape { rows: 1, sequences: 1, context_tokens: 1600, ..shape };
    let table = workbench().verify_rows(&long)[0].input.blocks.clone();
    let neighbours = table.windows(2).filter(|pair| pair[0].0 + 1 == pair[1].0).count();
    assert!(table.len() == 100 && neighbours < 5, "{neighbours}");
}

#[test]
fn an_executor_without_draft_small_caches_or_one_sequence_is_measured_as_far_as_it_goes() {
    for info in [
        ExecutorInfo { drafter: None, ..info() },
        ExecutorInfo { target_blocks: 3, drafter: Some(DrafterNeeds::kv_cache(3)), ..info() },
        ExecutorInfo { batch_sequences_max: 1, batch_tokens_max: 4, ..info() },
    ] {
        let clock = FakeClock::default();
        let has_draft = info.has_draft_model();
        let mut executor = LawfulExecutor::new(info, &clock);
        let profile = analyzed(&mut executor, 5.0);
        assert_eq!(profile.draft.is_some(), has_draft);
        assert!(profile.target.micros[0] > 1500.0);
    }
}

#[test]
fn no_room_no_text_and_failing_passes_are_errors() {
    let clock = FakeClock::default();
    let run = |info: ExecutorInfo, options: AnalyzerOptions| {
        let mut executor = LawfulExecutor::new(info, &clock);
        analyze(&mut executor, &clock, Fingerprint::default(), &options, &mut |_| {})
    };
    let none = ExecutorInfo { target_blocks: 0, drafter: None, ..info() };
    assert!(matches!(run(none, options(1.0)), Err(AnalyzerError::NoRoom)));
    let silent = AnalyzerOptions { text: Vec::new(), ..options(1.0) };
    assert!(matches!(run(info(), silent), Err(AnalyzerError::NoText)));
    let foreign = AnalyzerOptions { text: vec![5000], ..options(1.0) };
    let mut broken = ShadowExecutor::new(ShadowOptions {
        info: info(),
        fails_at_call: Some(100),
        ..ShadowOptions::small(512, 512)
    });
    let failed = analyze(&mut broken, &clock, Fingerprint::default(), &foreign, &mut |_| {});
    assert!(matches!(failed, Err(AnalyzerError::Executor(_))));
}

#[test]
fn digests_tell_models_apart_and_stay() {
    let spec = small_spec(64);
    let model = random_model(&spec, 1, RandomOptions::default());
    assert_eq!(model_digest(&model), model_digest(&random_model(&spec, 1, RandomOptions::default())));
    let mut others = vec![
        random_model(&spec, 2, RandomOptions::default()),
        random_model(&small_spec(65), 1, RandomOptions::default()),
        random_model(&spec, 1, RandomOptions { qkv_bias: true, ..RandomOptions::default() }),
    ];
    let mut stretched = model.clone();
    stretched.spec.rope.theta = 1e6;
    others.push(stretched);
    let mut digests: Vec<String> = others.iter().chain([&model]).map(model_digest).collect();
    assert!(digests.iter().all(|digest| digest.len() == 16));
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 5);
}

#[test]
fn a_digest_does_not_change_from_version_to_version() {
    let every_part = RandomOptions {
        qkv_bias: true,
        other_bias: true,
        head_norms: true,
        tied_head: false,
        ..RandomOptions::default()
    };
    assert_eq!(model_digest(&random_model(&small_spec(64), 1, every_part)), "f8d3698cc58bcfd8");
}

#[test]
fn a_fingerprint_names_the_machine_and_both_models() {
    let machine = Machine {
        backend: "cpu".to_owned(),
        device: "a processor".to_owned(),
        driver: String::new(),
        threads: 2,
    };
    let (target, draft) = (random_model(&small_spec(64), 1, RandomOptions::default()), {
        random_model(&small_spec(64), 2, RandomOptions::default())
    });
    let both = fingerprint(machine.clone(), &target, Some(&draft.clone().into()));
    assert_eq!((both.dtype.as_str(), both.threads), ("bf16", 2));
    let swapped = fingerprint(machine.clone(), &draft, Some(&target.clone().into()));
    let differences = both.differences(&swapped);
    assert!(differences.len() == 2 && differences[0].starts_with("target model was"), "{differences:?}");
    assert_eq!(both.differences(&fingerprint(machine, &target, None)).len(), 1);
}
