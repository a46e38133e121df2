//! Which batch shapes are measured.
//!
//! Decode and verification: every row count of a ladder, each as several sequences × query
//! tokens and over several contexts, so that the context terms can be told from the
//! staircase. Prefill: several chunks, at the start of a prompt and far into one, alone and
//! beside decoding rows. The draft model's catch-up: as many tokens that the first row feeds
//! before its last one. A draft head has none; its rounds are measured with several calls and with
//! one, if it drafts a token per call, and with many hidden states to read.

use std::ops::ControlFlow;

use crate::protocol::{ExecutorInfo, ModelRole};
use crate::timing::cost_model::ROWS_MAX;
use crate::timing::{ProfilePoint, ROUND_CALLS};

/// Row counts beyond those of a single sequence: powers of two and their halves between.
const ROW_LADDER: [u32; 19] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768];
/// Row counts of the coarse grid, beside those of a single sequence.
const COARSE_ROWS: [u32; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
/// Row counts without which there is no staircase.
const LEAST_ROWS: [u32; 4] = [1, 2, 4, 8];
/// Contexts, in tokens; the longest that fits is added.
const CONTEXTS: [u32; 6] = [32, 128, 512, 2048, 8192, 32_768];
/// Prefill chunks, in tokens.
const CHUNKS: [u32; 11] = [8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048];
/// Catch-up chunks of the draft model that are too short for prefills: after a step that
/// accepted every draft it has missed one token.
const SHORT_CHUNKS: [u32; 2] = [1, 4];
/// Chunks of the coarse grid.
const COARSE_CHUNKS: [u32; 4] = [1, 16, 64, 256];
/// The chunks without which prefill has no price.
const LEAST_CHUNKS: [u32; 2] = [16, 64];
/// Most context of all sequences of a coarse shape together, in tokens: so much of the caches
/// is written in a short time.
const COARSE_CONTEXT_MAX: u32 = 2048;
/// Rows and sequences that decode beside a prefill chunk.
const BESIDE_PREFILL: [(u32, u32); 3] = [(0, 0), (4, 4), (16, 4)];
/// Rows that draft beside a catch-up.
const BESIDE_CATCH_UP: [(u32, u32); 2] = [(1, 1), (8, 8)];
/// Tokens whose hidden states a draft head reads in a round, beside the last one of each row.
const STATE_TOKENS: [u32; 4] = [4, 16, 64, 256];
/// The numbers of states without which reading has no price.
const LEAST_STATE_TOKENS: u32 = 64;
/// Context of the rows beside a prefill chunk.
const CONTEXT_BESIDE_PREFILL: u32 = 128;

/// How soon a shape is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Always, whatever it takes.
    Least,
    /// Before the rest, as far as there is time.
    Coarse,
    /// If there is time for several sweeps over everything.
    Full,
}

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
    /// Target: prefill tokens of one more sequence. Draft model: catch-up tokens of the first. Draft
    /// head: tokens of the first whose states it reads beside the last one.
    pub prefill_tokens: u32,
    /// Tokens of that sequence that stand before them.
    pub prefill_done_tokens: u32,
    /// Draft head: calls of the round; `None` of a model.
    pub head_calls: Option<u32>,
    /// How soon it is measured.
    pub tier: Tier,
}

impl Shape {
    /// Input tokens of each sequence.
    pub fn queries(&self) -> u32 {
        self.rows.checked_div(self.sequences).unwrap_or(0)
    }

    /// Executor calls in one measurement of it.
    pub fn calls(&self) -> u32 {
        match (self.model, self.head_calls) {
            (_, Some(calls)) => calls,
            (ModelRole::Draft, None) if self.prefill_tokens == 0 => ROUND_CALLS,
            _ => 1,
        }
    }

    /// Positions that each decoding sequence needs.
    pub fn positions(&self) -> u32 {
        self.context_tokens + self.queries().max(self.calls()) - 1
    }

    /// Positions that the sequence which only prefills needs.
    pub fn prefill_positions(&self) -> u32 {
        match self.model {
            ModelRole::Target if self.prefill_tokens > 0 => self.prefill_done_tokens + self.prefill_tokens,
            _ => 0,
        }
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
            head_calls: self.head_calls,
            micros,
        }
    }
}

/// What the engine runs just before such a batch: a drafting round before verification, a
/// pass of the target before drafting. `None` where nothing fits, and before a draft head, whose
/// states come from a pass of the target anyway.
pub fn lead(info: &ExecutorInfo, shape: &Shape) -> Option<Shape> {
    let plain = Shape { prefill_tokens: 0, prefill_done_tokens: 0, ..*shape };
    let lead = match shape.model {
        ModelRole::Target if shape.queries() > 1 => {
            let head_calls = head_calls(info);
            Shape { model: ModelRole::Draft, rows: shape.sequences, head_calls, ..plain }
        }
        ModelRole::Target => return None,
        ModelRole::Draft if shape.head_calls.is_some() => return None,
        ModelRole::Draft => Shape {
            model: ModelRole::Target,
            rows: 1,
            sequences: 1,
            context_tokens: shape.context_tokens.min(CONTEXT_BESIDE_PREFILL),
            ..plain
        },
    };
    (Grid { info, shapes: Vec::new() }).fits(&lead).then_some(lead)
}

/// All shapes that `info` has room for, each with its tier.
pub fn shapes(info: &ExecutorInfo) -> Vec<Shape> {
    let mut grid = Grid { info, shapes: Vec::new() };
    grid.decode(ModelRole::Target);
    grid.prefill(ModelRole::Target, &BESIDE_PREFILL);
    if info.has_draft_model() {
        grid.decode(ModelRole::Draft);
        grid.prefill(ModelRole::Draft, &BESIDE_CATCH_UP);
    }
    if info.has_draft_head() {
        grid.decode(ModelRole::Draft);
        grid.rounds_of_one_call();
        grid.reading();
    }
    grid.shapes
}

/// Calls of a round of the draft head, as far as there is one: of a head of blocks there is no
/// second.
fn head_calls(info: &ExecutorInfo) -> Option<u32> {
    let needs = info.drafter.as_ref().filter(|needs| needs.reads_hidden_states())?;
    Some(if needs.block_tokens > 0 { 1 } else { ROUND_CALLS })
}

/// Which of a row count's splits into sequences a shape has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    /// Most sequences.
    Widest,
    Between,
    /// Fewest sequences.
    Narrowest,
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
            for (index, &queries) in splits.iter().enumerate() {
                let split = match index {
                    0 => Split::Widest,
                    _ if index + 1 == splits.len() => Split::Narrowest,
                    _ => Split::Between,
                };
                self.contexts(model, rows, queries, split);
            }
        }
    }

    /// One row count as sequences of `queries` tokens, over contexts: all of them, or two.
    fn contexts(&mut self, model: ModelRole, rows: u32, queries: u32, split: Split) {
        let sequences = rows / queries;
        let shape = Shape {
            model,
            rows,
            sequences,
            context_tokens: 1,
            prefill_tokens: 0,
            prefill_done_tokens: 0,
            head_calls: head_calls(self.info).filter(|_| model == ModelRole::Draft),
            tier: Tier::Full,
        };
        let Some(longest) = self.longest_context(shape) else { return };
        let mut contexts: Vec<u32> = CONTEXTS.into_iter().filter(|&one| one <= longest / 2).collect();
        contexts.push(longest);
        if split != Split::Widest {
            contexts = vec![contexts[(contexts.len() - 1) / 2], longest];
            contexts.dedup();
        }
        let short = |tokens: u32| u64::from(tokens) * u64::from(sequences) <= u64::from(COARSE_CONTEXT_MAX);
        let longest_short = contexts.iter().rposition(|&tokens| short(tokens) && tokens <= CONTEXTS[2]);
        for (index, &context_tokens) in contexts.iter().enumerate() {
            let first = index == 0;
            let tier = match split {
                Split::Widest if first && LEAST_ROWS.contains(&rows) => Tier::Least,
                Split::Widest if rows == 1 && Some(index) == longest_short => Tier::Least,
                Split::Widest if COARSE_ROWS.contains(&rows) && (first || Some(index) == longest_short) => {
                    Tier::Coarse
                }
                Split::Narrowest if rows <= self.queries_max(model) && first => Tier::Coarse,
                _ => Tier::Full,
            };
            self.push(Shape { context_tokens, tier, ..shape });
        }
    }

    fn prefill(&mut self, model: ModelRole, beside: &[(u32, u32)]) {
        let mut chunks: Vec<u32> =
            CHUNKS.into_iter().filter(|&one| one <= self.info.batch_tokens_max).collect();
        if chunks.is_empty() {
            chunks.push(self.info.batch_tokens_max);
        }
        let first = chunks[0];
        if model == ModelRole::Draft {
            chunks.extend(SHORT_CHUNKS);
        }
        for prefill_tokens in chunks {
            let room = self.info.context_tokens_max.saturating_sub(prefill_tokens);
            let mut done: Vec<u32> = [0, 512, 2048, 8192].into_iter().filter(|&one| one <= room).collect();
            keep_three(&mut done);
            for (index, &(rows, sequences)) in beside.iter().enumerate() {
                for &prefill_done_tokens in &done {
                    let start = prefill_done_tokens == 0;
                    let tier = match index {
                        0 if start && (LEAST_CHUNKS.contains(&prefill_tokens) || prefill_tokens == first) => {
                            Tier::Least
                        }
                        0 if COARSE_CHUNKS.contains(&prefill_tokens) => Tier::Coarse,
                        1 if start && COARSE_CHUNKS.contains(&prefill_tokens) => Tier::Coarse,
                        _ => Tier::Full,
                    };
                    self.push(Shape {
                        model,
                        rows,
                        sequences,
                        context_tokens: match model {
                            ModelRole::Target => CONTEXT_BESIDE_PREFILL.min(self.info.context_tokens_max / 2),
                            ModelRole::Draft => prefill_done_tokens + prefill_tokens + 1,
                        },
                        prefill_tokens,
                        prefill_done_tokens,
                        head_calls: None,
                        tier,
                    });
                }
            }
        }
    }

    /// Those of a head's rounds with little context, as rounds of one call: what a round adds to its
    /// calls shows between the two.
    fn rounds_of_one_call(&mut self) {
        let with_calls = |shape: &&Shape| shape.head_calls.is_some_and(|calls| calls > 1);
        let with_calls: Vec<Shape> = self.shapes.iter().filter(with_calls).copied().collect();
        for shape in with_calls.into_iter().filter(|shape| shape.tier < Tier::Full) {
            self.push(Shape { head_calls: Some(1), ..shape });
        }
    }

    /// Rounds of a head with many states to read.
    fn reading(&mut self) {
        for (index, (rows, sequences)) in BESIDE_CATCH_UP.into_iter().enumerate() {
            for prefill_tokens in STATE_TOKENS {
                let tier = match index {
                    0 if prefill_tokens == LEAST_STATE_TOKENS => Tier::Least,
                    0 => Tier::Coarse,
                    _ => Tier::Full,
                };
                self.push(Shape {
                    model: ModelRole::Draft,
                    rows,
                    sequences,
                    // the states, that of the last token but one, and the last token
                    context_tokens: prefill_tokens + 2,
                    prefill_tokens,
                    prefill_done_tokens: 0,
                    head_calls: Some(1),
                    tier,
                });
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
            ModelRole::Draft if shape.head_calls.is_some() => info.target_blocks,
            ModelRole::Draft => info.draft_blocks(),
        };
        // a head drafts behind a token whose states it has read
        let least_context = if shape.head_calls.is_some() { shape.prefill_tokens + 2 } else { 1 };
        let prefill_positions = shape.prefill_positions();
        let decoding =
            if shape.rows == 0 { 0 } else { blocks(shape.positions()) * u64::from(shape.sequences) };
        let sequences = shape.sequences + u32::from(prefill_positions > 0);
        decoding + blocks(prefill_positions) <= u64::from(pool)
            && shape.rows + shape.prefill_tokens <= info.batch_tokens_max
            && sequences <= info.batch_sequences_max
            && shape.queries() <= self.queries_max(shape.model)
            && (shape.rows == 0 || shape.positions() <= info.context_tokens_max)
            && (shape.rows == 0 || shape.context_tokens >= least_context)
            && prefill_positions <= info.context_tokens_max
    }
}

/// The first, the middle and the last.
fn keep_three(values: &mut Vec<u32>) {
    if values.len() > 3 {
        *values = vec![values[0], values[values.len() / 2], values[values.len() - 1]];
    }
}
