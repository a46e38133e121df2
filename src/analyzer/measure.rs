//! Sweeps over the grid within a budget of time.

use super::grid::{Shape, Tier, lead};
use super::workbench::{Workbench, shuffle};
use super::{AnalyzerError, AnalyzerOptions, Progress, drafter};
use crate::executor::{DraftChains, Executor};
use crate::protocol::{
    Clock, DraftSeed, ExecutorError, ExecutorInfo, Micros, ModelRole, Proposal, Verdict, VerifyRow,
};
use crate::stats::quantile::{median, nearest_rank};
use crate::timing::ProfilePoint;

/// Most sweeps; more make medians no better.
const SWEEPS_MAX: usize = 24;
/// The full grid is taken if the time allows at least so many sweeps over it.
const FULL_SWEEPS_MIN: f64 = 3.0;
/// Share of the budget that writing the caches once may take.
const FILL_SHARE: f64 = 0.15;
/// What a pass costs however small it is, in tokens; only for estimating.
const PASS_TOKENS: f64 = 16.0;
/// Shapes of at most so many tokens are measured as they are in service: after what the
/// engine runs before them, and several times in a row. There the step before was alike, and
/// left weights and KV in the processor's caches; here it was any other. On Zen 3 a decode
/// step takes 2.5 times as long right after a large prefill, and the fourth one after it is
/// the first that costs what all others do.
const SMALL_TOKENS_MAX: u32 = 64;
/// Times that a small shape runs unseen, and then seen, at each visit ...
const UNSEEN_TIMES: usize = 4;
/// ... see [`UNSEEN_TIMES`].
const SEEN_TIMES: usize = 3;
/// ... unless it takes long: models that fill no cache gain nothing by it.
const VISIT: Micros = Micros(8_000);

/// A median this many times as long as the shortest time is one of a machine that does other work
/// as well.
const DISTURBED: f64 = 2.0;
/// The quantile that counts then.
const UNDISTURBED_SHARE: f64 = 0.25;

/// Measures `shapes` and returns the typical time of each, in the order of the grid.
pub fn run(
    executor: &mut dyn Executor,
    clock: &dyn Clock,
    shapes: Vec<Shape>,
    options: &AnalyzerOptions,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Vec<ProfilePoint>, AnalyzerError> {
    let info = executor.info().clone();
    let workbench = Workbench::new(&info, options.text.clone(), options.sampling.clone());
    let start = clock.now();
    let mut session = Session {
        bench: Bench::new(executor, clock),
        deadline: start + options.budget,
        limit: start + options.limit,
        paces: Vec::new(),
        start,
        passes: 0,
        on_progress,
    };
    let mut cells: Vec<Cell> = shapes.into_iter().map(|shape| Cell::new(&info, &workbench, shape)).collect();
    session.probe(&cells)?;
    session.fill(&workbench, start + scaled(options.budget, FILL_SHARE))?;
    if let Some(full_sweep_s) = session.warm_up(&mut cells)? {
        let left = session.deadline.saturating_sub(session.bench.clock.now());
        let full = left.as_secs_f64() >= FULL_SWEEPS_MIN * full_sweep_s;
        session.sweeps(&mut cells, if full { Tier::Full } else { Tier::Coarse })?;
    }
    Ok(cells.into_iter().filter_map(|cell| Some(cell.shape.point(typical(cell.times)?))).collect())
}

/// Runs `shapes` in turn, `times` times each, as far as there is time until `until`. Returns the
/// shortest time of each: what disturbs a reading makes it longer.
pub fn readings(
    executor: &mut dyn Executor,
    clock: &dyn Clock,
    shapes: &[Shape],
    options: &AnalyzerOptions,
    times: usize,
    until: Micros,
) -> Result<Vec<ProfilePoint>, AnalyzerError> {
    let info = executor.info().clone();
    let workbench = Workbench::new(&info, options.text.clone(), options.sampling.clone());
    let mut bench = Bench::new(executor, clock);
    let mut cells: Vec<Cell> = shapes.iter().map(|&shape| Cell::new(&info, &workbench, shape)).collect();
    for round in 0..times {
        for cell in &mut cells {
            if bench.clock.now() >= until {
                break;
            }
            // the first run after another shape finds the caches full of that one's data
            for _ in 0..UNSEEN_TIMES.min(round) {
                bench.once(cell)?;
            }
            cell.times.extend(bench.once(cell)?);
        }
    }
    let shortest = |times: Vec<f64>| times.into_iter().min_by(f64::total_cmp);
    Ok(cells.into_iter().filter_map(|cell| Some(cell.shape.point(shortest(cell.times)?))).collect())
}

/// The median, if the times are alike. Else the machine was busy with other things during part of
/// them, which adds whole time slices: then the lower quartile.
fn typical(mut times: Vec<f64>) -> Option<f64> {
    let shortest = times.iter().copied().min_by(f64::total_cmp)?;
    let middle = median(times.clone())?;
    if middle <= DISTURBED * shortest {
        return Some(middle);
    }
    nearest_rank(&mut times, UNDISTURBED_SHARE, f64::total_cmp)
}

fn scaled(span: Micros, share: f64) -> Micros {
    Micros::from_secs_f64(span.as_secs_f64() * share)
}

/// Work of a pass, in tokens.
fn work(tokens: u32) -> f64 {
    f64::from(tokens) + PASS_TOKENS
}

/// Work of a sweep over some cells, in tokens.
fn tokens<'a>(cells: impl Iterator<Item = &'a Cell>, times: impl Fn(&Cell) -> usize) -> f64 {
    cells.map(|cell| work(cell.shape.tokens()) * times(cell) as f64).sum::<f64>().max(1.0)
}

/// A shape, its batch with what comes before it, and the times seen so far in microseconds.
struct Cell {
    shape: Shape,
    lead: Option<Batch>,
    batch: Batch,
    times: Vec<f64>,
}

impl Cell {
    fn new(info: &ExecutorInfo, workbench: &Workbench, shape: Shape) -> Cell {
        let lead = Some(shape).filter(Cell::is_small).and_then(|shape| lead(info, &shape));
        let lead = lead.map(|lead| Batch::new(workbench, &lead));
        Cell { lead, batch: Batch::new(workbench, &shape), shape, times: Vec::new() }
    }

    fn is_small(shape: &Shape) -> bool {
        shape.tokens() <= SMALL_TOKENS_MAX
    }

    /// Times that it runs at most at each visit, unseen and seen.
    fn visit(&self) -> (usize, usize) {
        if Cell::is_small(&self.shape) { (UNSEEN_TIMES, SEEN_TIMES) } else { (0, 1) }
    }
}

/// A batch that is ready to run.
enum Batch {
    Verify(Vec<VerifyRow>),
    Draft { round: Round, states: Option<States> },
}

/// A drafting round.
struct Round {
    seeds: Vec<DraftSeed>,
    calls: u32,
    keep: Vec<u32>,
}

/// What comes before a round of a draft head: it reads what other batches have left, and the target
/// computes the states of this round.
struct States {
    /// Seeds that want no proposal.
    idle: Vec<DraftSeed>,
    rows: Vec<VerifyRow>,
}

impl Batch {
    fn new(workbench: &Workbench, shape: &Shape) -> Batch {
        match shape.model {
            ModelRole::Target => Batch::Verify(workbench.verify_rows(shape)),
            ModelRole::Draft => {
                let seeds = workbench.draft_seeds(shape);
                let states = shape.head_calls.map(|_| States {
                    idle: seeds.iter().take(1).map(|seed| DraftSeed { limit: 0, ..seed.clone() }).collect(),
                    rows: workbench.states(shape),
                });
                let keep = (0..shape.sequences).collect();
                Batch::Draft { round: Round { seeds, calls: shape.calls(), keep }, states }
            }
        }
    }
}

/// The executor with a stopwatch.
struct Bench<'a> {
    executor: &'a mut dyn Executor,
    clock: &'a dyn Clock,
    chains: DraftChains,
    proposals: Vec<Proposal>,
    verdicts: Vec<Verdict>,
}

impl<'a> Bench<'a> {
    fn new(executor: &'a mut dyn Executor, clock: &'a dyn Clock) -> Bench<'a> {
        Bench { executor, clock, chains: DraftChains::default(), proposals: Vec::new(), verdicts: Vec::new() }
    }

    /// Runs a cell's batch after what comes before it; microseconds of the batch alone.
    fn once(&mut self, cell: &Cell) -> Result<Option<f64>, ExecutorError> {
        if let Some(lead) = &cell.lead {
            self.time(lead)?;
        }
        self.time(&cell.batch)
    }

    /// Runs a batch; microseconds of one call, `None` when a round ended early because a
    /// proposal was not finite.
    fn time(&mut self, batch: &Batch) -> Result<Option<f64>, ExecutorError> {
        if let Batch::Draft { states: Some(states), .. } = batch {
            self.chains.start(drafter(self.executor)?, &states.idle, &mut self.proposals)?;
            self.verify(&states.rows)?;
        }
        let start = self.clock.now();
        let calls = match batch {
            Batch::Verify(rows) => {
                self.verify(rows)?;
                1
            }
            Batch::Draft { round, .. } => {
                if !self.draft(round)? {
                    return Ok(None);
                }
                round.calls
            }
        };
        let micros = (self.clock.now() - start).0 as f64 / f64::from(calls);
        Ok((micros > 0.0).then_some(micros))
    }

    fn verify(&mut self, rows: &[VerifyRow]) -> Result<(), ExecutorError> {
        self.verdicts.clear();
        self.executor.target().verify(rows, &mut self.verdicts)
    }

    /// Whether all calls of the round were made, and all seeds that want proposals got some.
    fn draft(&mut self, round: &Round) -> Result<bool, ExecutorError> {
        let drafter = drafter(self.executor)?;
        self.chains.start(drafter, &round.seeds, &mut self.proposals)?;
        for _ in 1..round.calls {
            if !self.proposals.iter().all(|proposal| proposal.finite) {
                return Ok(false);
            }
            self.chains.extend(drafter, &round.keep, &mut self.proposals)?;
        }
        let proposed = self.proposals.iter().all(|proposal| proposal.finite);
        Ok(proposed || round.seeds.iter().all(|seed| seed.limit == 0))
    }
}

/// A bench with a deadline.
struct Session<'a, 'b> {
    bench: Bench<'a>,
    start: Micros,
    deadline: Micros,
    /// When even the shapes that are needed are given up.
    limit: Micros,
    /// Seconds per token, by the last pass of each model.
    paces: Vec<(ModelRole, f64)>,
    passes: u64,
    on_progress: &'b mut dyn FnMut(Progress),
}

impl Session<'_, '_> {
    /// Runs a cell; the time of its batch in microseconds.
    fn run(&mut self, cell: &Cell) -> Result<Option<f64>, ExecutorError> {
        let start = self.bench.clock.now();
        let micros = self.bench.once(cell)?;
        let spent = (self.bench.clock.now() - start).as_secs_f64();
        let model = cell.shape.model;
        self.paces.retain(|(known, _)| *known != model);
        self.paces.push((model, spent / work(cell.shape.tokens())));
        Ok(micros)
    }

    /// Whether a pass over so many tokens would probably be over by `until`. One of a model that
    /// has not run yet always is.
    fn has_time(&self, model: ModelRole, tokens: u32, until: Micros) -> bool {
        let pace = self.paces.iter().find(|(known, _)| *known == model);
        let span = pace.map_or(Micros::ZERO, |(_, pace)| Micros::from_secs_f64(pace * work(tokens)));
        self.bench.clock.now() + span < until
    }

    /// Runs the smallest shape of each model once, to see how long its passes take.
    fn probe(&mut self, cells: &[Cell]) -> Result<(), ExecutorError> {
        for model in [ModelRole::Target, ModelRole::Draft] {
            let own = cells.iter().filter(|cell| cell.shape.model == model);
            if let Some(smallest) = own.min_by_key(|cell| (cell.shape.tier, cell.shape.tokens())) {
                self.run(smallest)?;
            }
        }
        Ok(())
    }

    /// Writes every block once, as far as `until` allows.
    fn fill(&mut self, workbench: &Workbench, until: Micros) -> Result<(), ExecutorError> {
        let info = self.bench.executor.info().clone();
        for (model, input) in workbench.fill(&info) {
            if !self.has_time(model, input.tokens.len() as u32, until) {
                break;
            }
            let batch = match model {
                ModelRole::Target => {
                    let next = input.tokens.first().copied();
                    Batch::Verify(vec![VerifyRow::prefill(input, next)])
                }
                ModelRole::Draft => {
                    let seeds = vec![DraftSeed { row: 0, input, limit: 0, mask: None }];
                    Batch::Draft { round: Round { seeds, calls: 1, keep: Vec::new() }, states: None }
                }
            };
            self.bench.time(&batch)?;
        }
        Ok(())
    }

    /// Runs shapes once, the smallest first: those that are needed whatever it takes, then the
    /// rest of the coarse grid. Returns what a sweep over everything would take in seconds,
    /// `None` if there was no time for the coarse grid. Beyond the limit only the first shape of
    /// each model is still run.
    fn warm_up(&mut self, cells: &mut [Cell]) -> Result<Option<f64>, ExecutorError> {
        let mut order: Vec<&mut Cell> =
            cells.iter_mut().filter(|cell| cell.shape.tier < Tier::Full).collect();
        order.sort_by_key(|cell| (cell.shape.tier, cell.shape.tokens()));
        let shapes = order.len();
        let start = self.bench.clock.now();
        let mut begun: Vec<ModelRole> = Vec::new();
        for cell in order {
            let now = self.bench.clock.now();
            if cell.shape.tier > Tier::Least && now >= self.deadline {
                return Ok(None);
            }
            let Shape { model, .. } = cell.shape;
            if begun.contains(&model) && !self.has_time(model, cell.shape.tokens(), self.limit) {
                continue;
            }
            begun.push(model);
            self.report(now, 0, shapes);
            let micros = self.run(cell)?;
            cell.times.extend(micros);
            self.passes += 1;
        }
        let spent = self.bench.clock.now() - start;
        let done = tokens(cells.iter().filter(|cell| cell.shape.tier < Tier::Full), |_| 1);
        let times = |cell: &Cell| cell.visit().0 + cell.visit().1;
        Ok(Some(spent.as_secs_f64() * tokens(cells.iter(), times) / done))
    }

    /// Sweeps over the shapes up to `tier` until the time is up. What the warm-up measured
    /// counts only for shapes that are not reached again.
    fn sweeps(&mut self, cells: &mut [Cell], tier: Tier) -> Result<(), ExecutorError> {
        let mut chosen: Vec<&mut Cell> = cells.iter_mut().filter(|cell| cell.shape.tier <= tier).collect();
        let warm_up: Vec<Vec<f64>> = chosen.iter_mut().map(|cell| std::mem::take(&mut cell.times)).collect();
        for number in 0..SWEEPS_MAX {
            if !self.sweep(&mut chosen, number as u64 + 1)? {
                break;
            }
        }
        for (cell, warm_up) in chosen.into_iter().zip(warm_up) {
            if cell.times.is_empty() {
                cell.times = warm_up;
            }
        }
        Ok(())
    }

    /// Visits each cell once, in the order that `number` gives, up to the deadline; whether all
    /// cells were reached.
    fn sweep(&mut self, cells: &mut [&mut Cell], number: u64) -> Result<bool, ExecutorError> {
        let mut order: Vec<usize> = (0..cells.len()).collect();
        shuffle(&mut order, number);
        for index in order {
            let now = self.bench.clock.now();
            if now >= self.deadline {
                return Ok(false);
            }
            self.report(now, number, cells.len());
            self.visit(&mut *cells[index], now)?;
        }
        Ok(true)
    }

    /// Some unseen runs, then some that count, of one cell.
    fn visit(&mut self, cell: &mut Cell, start: Micros) -> Result<(), ExecutorError> {
        let (unseen, seen) = cell.visit();
        let until = (start + VISIT).min(self.deadline);
        for _ in 0..unseen {
            if self.bench.clock.now() >= until {
                break;
            }
            self.bench.once(cell)?;
        }
        let until = (self.bench.clock.now() + VISIT).min(self.deadline);
        for number in 0..seen {
            if number > 0 && self.bench.clock.now() >= until {
                break;
            }
            cell.times.extend(self.bench.once(cell)?);
            self.passes += 1;
        }
        Ok(())
    }

    /// By time or by sweeps, whichever is nearer to its end.
    fn report(&mut self, now: Micros, sweep: u64, shapes: usize) {
        let by_time = (now - self.start).as_secs_f64() / (self.deadline - self.start).as_secs_f64().max(1e-9);
        let by_sweeps = sweep.saturating_sub(1) as f64 / SWEEPS_MAX as f64;
        (self.on_progress)(Progress { share: by_time.max(by_sweeps).min(1.0), passes: self.passes, shapes });
    }
}
