//! Sweeps over the grid within a budget of time.

use super::grid::Shape;
use super::workbench::{Workbench, shuffle};
use super::{AnalyzerError, AnalyzerOptions, Progress};
use crate::executor::{DraftRow, Executor, ExecutorError, ModelRole, Proposal, Verdict, VerifyRow};
use crate::policy::profile::ProfilePoint;
use crate::time::{Clock, Micros};

/// Most measurements of one shape; more make medians no better.
const SWEEPS_MAX: usize = 24;
/// The full grid is taken if the time allows at least so many sweeps over it.
const FULL_SWEEPS_MIN: f64 = 3.0;
/// Share of the budget that writing the caches once may take.
const FILL_SHARE: f64 = 0.15;
/// Shapes of at most so many tokens are run once more before each measurement, unseen: in
/// service the step before was alike, and left weights and KV in the processor's caches; here
/// it was any other. (On Zen 3 a decode step measured cold takes twice as long.)
const UNSEEN_TOKENS_MAX: u32 = 64;
/// What a pass costs however small it is, in tokens; only for estimating.
const PASS_TOKENS: u64 = 16;

/// Measures `shapes` and returns the median of each, in the order of the grid.
pub fn run(
    executor: &mut dyn Executor,
    clock: &dyn Clock,
    shapes: Vec<Shape>,
    options: &AnalyzerOptions,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Vec<ProfilePoint>, AnalyzerError> {
    let workbench = Workbench::new(executor.info(), options.text.clone(), options.sampling.clone());
    let start = clock.now();
    let mut session = Session {
        bench: Bench { executor, clock, proposals: Vec::new(), verdicts: Vec::new() },
        deadline: start + options.budget,
        start,
        passes: 0,
        on_progress,
    };
    session.fill(&workbench, start + scaled(options.budget, FILL_SHARE))?;
    let mut cells: Vec<Cell> = shapes
        .into_iter()
        .map(|shape| Cell { batch: Batch::new(&workbench, &shape), shape, times: Vec::new() })
        .collect();
    // The coarse grid once: it warms everything up, and tells how long a sweep takes.
    let coarse_start = session.bench.clock.now();
    let mut coarse: Vec<&mut Cell> = cells.iter_mut().filter(|cell| cell.shape.coarse).collect();
    session.sweep(&mut coarse, 0, false)?;
    let left = session.deadline.saturating_sub(session.bench.clock.now());
    if left == Micros::ZERO {
        return Ok(medians(cells));
    }
    let spent = session.bench.clock.now() - coarse_start;
    let full_sweep_s =
        spent.as_secs_f64() * tokens(&cells, |_| true) / tokens(&cells, |cell| cell.shape.coarse);
    let full = left.as_secs_f64() >= FULL_SWEEPS_MIN * full_sweep_s;
    let mut chosen: Vec<&mut Cell> = cells.iter_mut().filter(|cell| full || cell.shape.coarse).collect();
    let warm_up: Vec<Vec<f64>> = chosen.iter_mut().map(|cell| std::mem::take(&mut cell.times)).collect();
    for number in 0..SWEEPS_MAX {
        if !session.sweep(&mut chosen, number as u64 + 1, true)? {
            break;
        }
    }
    // A shape that was not reached again keeps the time of its first pass.
    for (cell, warm_up) in chosen.iter_mut().zip(warm_up) {
        if cell.times.is_empty() {
            cell.times = warm_up;
        }
    }
    Ok(medians(cells))
}

fn scaled(span: Micros, share: f64) -> Micros {
    Micros::from_secs_f64(span.as_secs_f64() * share)
}

fn tokens(cells: &[Cell], counts: impl Fn(&Cell) -> bool) -> f64 {
    let counted = cells.iter().filter(|cell| counts(cell));
    counted.map(|cell| u64::from(cell.shape.tokens()) + PASS_TOKENS).sum::<u64>().max(1) as f64
}

fn medians(cells: Vec<Cell>) -> Vec<ProfilePoint> {
    let measured = cells.into_iter().filter(|cell| !cell.times.is_empty());
    measured.map(|mut cell| cell.shape.point(median(&mut cell.times))).collect()
}

/// The middle value, of an even number the mean of the middle two.
fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    if times.len().is_multiple_of(2) { (times[middle - 1] + times[middle]) / 2.0 } else { times[middle] }
}

/// A shape, its batch, and the times seen so far in microseconds.
struct Cell {
    shape: Shape,
    batch: Batch,
    times: Vec<f64>,
}

/// A batch that is ready to run.
enum Batch {
    Verify(Vec<VerifyRow>),
    Draft { rows: Vec<DraftRow>, calls: u32, keep: Vec<u32> },
}

impl Batch {
    fn new(workbench: &Workbench, shape: &Shape) -> Batch {
        match shape.model {
            ModelRole::Target => Batch::Verify(workbench.verify_rows(shape)),
            ModelRole::Draft => Batch::Draft {
                rows: workbench.draft_rows(shape),
                calls: shape.calls(),
                keep: (0..shape.sequences).collect(),
            },
        }
    }
}

/// The executor with a stopwatch.
struct Bench<'a> {
    executor: &'a mut dyn Executor,
    clock: &'a dyn Clock,
    proposals: Vec<Proposal>,
    verdicts: Vec<Verdict>,
}

impl Bench<'_> {
    /// Runs a batch; microseconds of one call, `None` when a round ended early because a
    /// proposal was not finite.
    fn time(&mut self, batch: &Batch) -> Result<Option<f64>, ExecutorError> {
        let start = self.clock.now();
        let calls = match batch {
            Batch::Verify(rows) => {
                self.verdicts.clear();
                self.executor.verify(rows, &mut self.verdicts)?;
                1
            }
            Batch::Draft { rows, calls, keep } => {
                self.proposals.clear();
                self.executor.draft_start(rows, &mut self.proposals)?;
                for _ in 1..*calls {
                    if self.proposals.iter().any(|proposal| !proposal.finite) {
                        return Ok(None);
                    }
                    self.proposals.clear();
                    self.executor.draft_continue(keep, &mut self.proposals)?;
                }
                *calls
            }
        };
        let micros = (self.clock.now() - start).0 as f64 / f64::from(calls);
        Ok((micros > 0.0).then_some(micros))
    }
}

/// A bench with a deadline.
struct Session<'a, 'b> {
    bench: Bench<'a>,
    start: Micros,
    deadline: Micros,
    passes: u64,
    on_progress: &'b mut dyn FnMut(Progress),
}

impl Session<'_, '_> {
    /// Writes every block once, as far as `until` allows.
    fn fill(&mut self, workbench: &Workbench, until: Micros) -> Result<(), ExecutorError> {
        let info = self.bench.executor.info().clone();
        for (model, input) in workbench.fill(&info) {
            if self.bench.clock.now() >= until {
                break;
            }
            let batch = match model {
                ModelRole::Target => {
                    Batch::Verify(vec![VerifyRow { input, drafts: 0, tree: None, sample: false }])
                }
                ModelRole::Draft => Batch::Draft {
                    rows: vec![DraftRow { input, propose: false }],
                    calls: 1,
                    keep: Vec::new(),
                },
            };
            self.bench.time(&batch)?;
        }
        Ok(())
    }

    /// Measures each cell once, in the order that `number` gives. With `bounded`, ends at
    /// the deadline; whether all cells were reached.
    fn sweep(&mut self, cells: &mut [&mut Cell], number: u64, bounded: bool) -> Result<bool, ExecutorError> {
        let mut order: Vec<usize> = (0..cells.len()).collect();
        shuffle(&mut order, number);
        for index in order {
            let now = self.bench.clock.now();
            if bounded && now >= self.deadline {
                return Ok(false);
            }
            self.report(now, number, cells.len());
            let cell = &mut *cells[index];
            if bounded && cell.shape.tokens() <= UNSEEN_TOKENS_MAX {
                self.bench.time(&cell.batch)?;
            }
            cell.times.extend(self.bench.time(&cell.batch)?);
            self.passes += 1;
        }
        Ok(true)
    }

    /// By time or by sweeps, whichever is nearer to its end.
    fn report(&mut self, now: Micros, sweep: u64, shapes: usize) {
        let by_time = (now - self.start).as_secs_f64() / (self.deadline - self.start).as_secs_f64().max(1e-9);
        let by_sweeps = sweep.saturating_sub(1) as f64 / SWEEPS_MAX as f64;
        (self.on_progress)(Progress { share: by_time.max(by_sweeps).min(1.0), passes: self.passes, shapes });
    }
}
