//! Which batch shapes are measured.
//!
//! Decode and verification: every row count of a ladder, each as several sequences × query
//! tokens and over several contexts, so that the context terms can be told from the
//! staircase. Prefill (for the draft model: catch-up): several chunks, at the start of a
//! prompt and far into one, alone and beside decoding rows.

use std::ops::ControlFlow;

use crate::executor::{ExecutorInfo, ModelRole};
use crate::policy::cost_model::ROWS_MAX;
use crate::policy::profile::ProfilePoint;

/// Row counts beyond those of a single sequence: powers of two and their halves between.
const ROW_LADDER: [u32; 19] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768];
/// Row counts of the coarse grid.
const COARSE_ROWS: [u32; 7] = [1, 2, 4, 8, 16, 64, 256];
/// Contexts, in tokens; the longest that fits is added.
const CONTEXTS: [u32; 6] = [32, 128, 512, 2048, 8192, 32_768];
/// Prefill chunks, in tokens.
const CHUNKS: [u32; 9] = [8, 16, 32, 64, 128, 256, 512, 1024, 2048];
/// Chunks of the coarse grid.
const COARSE_CHUNKS: [u32; 3] = [16, 64, 256];
/// Rows and sequences that decode beside a prefill chunk.
const BESIDE_PREFILL: [(u32, u32); 3] = [(0, 0), (4, 4), (16, 4)];
/// Rows that draft beside a catch-up.
const BESIDE_CATCH_UP: [(u32, u32); 2] = [(1, 1), (8, 8)];
/// Context of the rows beside a prefill chunk.
const CONTEXT_BESIDE_PREFILL: u32 = 128;

/// Draft calls of one measured drafting round without catch-up. Rounds have several calls
/// in the engine, too: only the first comes after a pass of the target.
pub const ROUND_CALLS: u32 = 4;

/// A batch to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Which model runs.
    pub model: ModelRole,
    /// Decode and verification tokens.
    pub rows: u32,
    /// Sequences that they belong to; divides `rows`.
    pub sequences: u32,
    /// Committed tokens of each, the first input token included.
    pub context_tokens: u32,
    /// Prefill or catch-up tokens of one more sequence.
    pub prefill_tokens: u32,
    /// Tokens of that sequence that stand before them.
    pub prefill_done_tokens: u32,
    /// Whether it belongs to the coarse grid too, which is measured first.
    pub coarse: bool,
}

impl Shape {
    /// Input tokens of each sequence.
    pub fn queries(&self) -> u32 {
        self.rows.checked_div(self.sequences).unwrap_or(0)
    }

    /// Executor calls in one measurement of it.
    pub fn calls(&self) -> u32 {
        if self.model == ModelRole::Draft && self.prefill_tokens == 0 { ROUND_CALLS } else { 1 }
    }

    /// Positions that each decoding sequence needs.
    pub fn positions(&self) -> u32 {
        self.context_tokens + self.queries().max(self.calls()) - 1
    }

    /// Input tokens over all its calls: a rough measure of how long it takes.
    pub fn tokens(&self) -> u32 {
        (self.rows + self.prefill_tokens) * self.calls()
    }

    /// Its measurement.
    pub fn point(&self, micros: f64) -> ProfilePoint {
        ProfilePoint {
            model: self.model,
            rows: self.rows,
            sequences: self.sequences,
            context_tokens: self.context_tokens,
            prefill_tokens: self.prefill_tokens,
            prefill_done_tokens: self.prefill_done_tokens,
            micros,
        }
    }
}

/// All shapes that `info` has room for, those of the coarse grid marked.
pub fn shapes(info: &ExecutorInfo) -> Vec<Shape> {
    let mut grid = Grid { info, shapes: Vec::new() };
    grid.decode(ModelRole::Target);
    grid.prefill(ModelRole::Target, &BESIDE_PREFILL);
    if info.has_draft() {
        grid.decode(ModelRole::Draft);
        grid.prefill(ModelRole::Draft, &BESIDE_CATCH_UP);
    }
    grid.shapes
}

struct Grid<'a> {
    info: &'a ExecutorInfo,
    shapes: Vec<Shape>,
}

impl Grid<'_> {
    /// Most input tokens of one sequence.
    fn queries_max(&self, model: ModelRole) -> u32 {
        match model {
            ModelRole::Target => self.info.draft_tokens_max + 1,
            ModelRole::Draft => 1,
        }
    }

    fn decode(&mut self, model: ModelRole) {
        let queries_max = self.queries_max(model);
        let sequences_max = self.info.batch_sequences_max;
        let rows_max =
            self.info.batch_tokens_max.min(ROWS_MAX as u32).min(sequences_max.saturating_mul(queries_max));
        let mut levels: Vec<u32> = ROW_LADDER.into_iter().chain(1..=queries_max).chain([rows_max]).collect();
        levels.retain(|&rows| rows <= rows_max);
        levels.sort_unstable();
        levels.dedup();
        for rows in levels {
            let mut splits: Vec<u32> = (1..=queries_max)
                .filter(|&queries| rows.is_multiple_of(queries) && rows / queries <= sequences_max)
                .collect();
            keep_three(&mut splits);
            for (place, &queries) in splits.iter().enumerate() {
                self.contexts(model, rows, queries, place == 0);
            }
        }
    }

    /// One row count as sequences of `queries` tokens, over contexts: all of them, or two.
    fn contexts(&mut self, model: ModelRole, rows: u32, queries: u32, all: bool) {
        let sequences = rows / queries;
        let shape = Shape {
            model,
            rows,
            sequences,
            context_tokens: 1,
            prefill_tokens: 0,
            prefill_done_tokens: 0,
            coarse: false,
        };
        let Some(longest) = self.longest_context(shape) else { return };
        let mut contexts: Vec<u32> = CONTEXTS.into_iter().filter(|&one| one <= longest / 2).collect();
        contexts.push(longest);
        if !all {
            contexts = vec![contexts[(contexts.len() - 1) / 2], longest];
            contexts.dedup();
        }
        let coarse_rows = COARSE_ROWS.contains(&rows);
        for (place, &context_tokens) in contexts.iter().enumerate() {
            let coarse = coarse_rows && if all { place == 0 } else { context_tokens == longest };
            self.push(Shape { context_tokens, coarse: coarse || coarse_rows && all && place == 2, ..shape });
        }
    }

    fn prefill(&mut self, model: ModelRole, beside: &[(u32, u32)]) {
        let mut chunks: Vec<u32> =
            CHUNKS.into_iter().filter(|&one| one <= self.info.batch_tokens_max).collect();
        if chunks.is_empty() {
            chunks.push(self.info.batch_tokens_max);
        }
        for prefill_tokens in chunks {
            let room = self.info.context_tokens_max.saturating_sub(prefill_tokens);
            let mut done: Vec<u32> = [0, 512, 2048, 8192].into_iter().filter(|&one| one <= room).collect();
            keep_three(&mut done);
            for (index, &(rows, sequences)) in beside.iter().enumerate() {
                for &prefill_done_tokens in &done {
                    let coarse_chunk = COARSE_CHUNKS.contains(&prefill_tokens);
                    self.push(Shape {
                        model,
                        rows,
                        sequences,
                        context_tokens: CONTEXT_BESIDE_PREFILL.min(self.info.context_tokens_max / 2),
                        prefill_tokens,
                        prefill_done_tokens,
                        coarse: coarse_chunk && (index == 0 || prefill_done_tokens == 0),
                    });
                }
            }
        }
    }

    /// The longest context at which the shape fits.
    fn longest_context(&self, shape: Shape) -> Option<u32> {
        let (mut good, mut bad) = (0, self.info.context_tokens_max + 1);
        let search = (0..u32::BITS).try_for_each(|_| {
            let middle = good + (bad - good) / 2;
            if middle == good {
                return ControlFlow::Break(());
            }
            let fits = self.fits(&Shape { context_tokens: middle, ..shape });
            *(if fits { &mut good } else { &mut bad }) = middle;
            ControlFlow::Continue(())
        });
        debug_assert!(search.is_break(), "a binary search ends within as many steps as there are bits");
        (good > 0).then_some(good)
    }

    fn push(&mut self, shape: Shape) {
        if self.fits(&shape) && !self.shapes.contains(&shape) {
            self.shapes.push(shape);
        }
    }

    fn fits(&self, shape: &Shape) -> bool {
        let info = self.info;
        let blocks = |positions: u32| u64::from(positions.div_ceil(info.block_tokens));
        let pool = match shape.model {
            ModelRole::Target => info.target_blocks,
            ModelRole::Draft => info.draft_blocks,
        };
        let prefill_positions = shape.prefill_done_tokens + shape.prefill_tokens;
        let decoding =
            if shape.rows == 0 { 0 } else { blocks(shape.positions()) * u64::from(shape.sequences) };
        let sequences = shape.sequences + u32::from(shape.prefill_tokens > 0);
        decoding + blocks(prefill_positions) <= u64::from(pool)
            && shape.rows + shape.prefill_tokens <= info.batch_tokens_max
            && sequences <= info.batch_sequences_max
            && shape.queries() <= self.queries_max(shape.model)
            && (shape.rows == 0 || shape.positions() <= info.context_tokens_max)
            && prefill_positions <= info.context_tokens_max
    }
}

/// The first, the middle and the last.
fn keep_three(values: &mut Vec<u32>) {
    if values.len() > 3 {
        *values = vec![values[0], values[values.len() / 2], values[values.len() - 1]];
    }
}
