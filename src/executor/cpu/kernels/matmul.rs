//! Matrix product of packed weights with a batch of activation rows.
//!
//! Weights lie in panels of two registers' width of outputs: for each input, the
//! weights of the panel's outputs side by side. A tile holds `T` rows × `P` panels of
//! results in registers, reads each panel once from front to back, and adds one
//! input at a time: no horizontal sums, one rounding order for every shape of
//! tile. bf16 widens to f32 with one shift (outputs of the first register) and one
//! mask (second). Bound: at one row, the bytes of the weights; from about four rows
//! on AVX2, two multiply-adds a cycle.

use std::ops::Range;

use super::vector::Vector;

/// Rows in the largest tile: 6 rows × 2 registers of results, 2 of weights and one
/// of activations fill the 16 registers of AVX2.
const TILE_ROWS_MAX: usize = 6;

/// Panels that are walked together in large batches, so that a tile's activations
/// are still in the first-level cache for the next panel.
const GROUP_PANELS: usize = 4;

/// Inputs between two rounds of address arithmetic. (Fetching weights ahead by software
/// cost a third on Zen 3: its own prefetchers follow the panels.)
const UNROLL: usize = 4;

/// How packed weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightFormat {
    /// Pairs of bf16 in a word: output `i` of the panel low, output `i + LANES` high.
    Bf16,
    /// One float a word.
    F32,
}

impl WeightFormat {
    /// Words that one input of one panel takes.
    pub(crate) fn words_per_input(self, lanes: usize) -> usize {
        match self {
            WeightFormat::Bf16 => lanes,
            WeightFormat::F32 => 2 * lanes,
        }
    }
}

/// `out[row][n] (+)= Σ_k x[row][k] · weight[n][k]` for the outputs `n` of some panels.
#[derive(Clone, Debug)]
pub(crate) struct Matmul {
    /// How the weights are stored.
    pub(crate) format: WeightFormat,
    /// First panel of the matrix; panels follow each other.
    pub(crate) weights: *const f32,
    /// Inputs: the matrix's columns.
    pub(crate) inputs: usize,
    /// Panels to compute. Outputs `2 · LANES · panel ..` of each are written, padding included.
    pub(crate) panels: Range<usize>,
    /// Activations, `rows` rows of `inputs` floats.
    pub(crate) x: *const f32,
    /// Floats between two rows of `x`.
    pub(crate) x_stride: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Results; no other thread touches the columns of `panels` meanwhile.
    pub(crate) out: *mut f32,
    /// Floats between two rows of `out`.
    pub(crate) out_stride: usize,
    /// Add to what `out` holds, rather than replace it.
    pub(crate) accumulate: bool,
}

super::entry! {
    /// Computes a [`Matmul`].
    pub(crate) fn matmul(&Matmul) = matmul_body
}

/// Words of one input of one panel, as two registers of weights.
trait Format {
    /// Words per lane of the register.
    const REGISTERS: usize;
    /// Loads them.
    unsafe fn load<V: Vector>(from: *const f32) -> [V; 2];
}

struct Bf16;
struct F32;

impl Format for Bf16 {
    const REGISTERS: usize = 1;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const f32) -> [V; 2] {
        // SAFETY: the caller's contract.
        unsafe { V::load_bf16_pairs(from) }
    }
}

impl Format for F32 {
    const REGISTERS: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const f32) -> [V; 2] {
        // SAFETY: the caller's contract.
        unsafe { [V::load(from), V::load(from.add(V::LANES))] }
    }
}

#[inline(always)]
unsafe fn matmul_body<V: Vector, const N: usize>(job: &Matmul) {
    // SAFETY: the caller's contract.
    unsafe {
        match job.format {
            WeightFormat::Bf16 => all_panels::<V, Bf16>(job),
            WeightFormat::F32 => all_panels::<V, F32>(job),
        }
    }
}

/// Panels in groups, in each group the rows in tiles of about equal height.
#[inline(always)]
unsafe fn all_panels<V: Vector, F: Format>(job: &Matmul) {
    let tiles = job.rows.div_ceil(TILE_ROWS_MAX);
    let mut first = job.panels.start;
    while first < job.panels.end {
        let group = first..(first + GROUP_PANELS).min(job.panels.end);
        for tile in 0..tiles {
            let rows = job.rows * tile / tiles..job.rows * (tile + 1) / tiles;
            // SAFETY: the caller's contract; the rows and panels are within the job's.
            unsafe { row_tile::<V, F>(job, rows, group.clone()) };
        }
        first = group.end;
    }
}

/// One tile of rows over a group of panels. Few rows take several panels at once:
/// eight sums in flight hide the latency of the multiply-add.
#[inline(always)]
unsafe fn row_tile<V: Vector, F: Format>(job: &Matmul, rows: Range<usize>, group: Range<usize>) {
    let mut panel = group.start;
    // SAFETY: the caller's contract.
    unsafe {
        while panel < group.end {
            let left = group.end - panel;
            panel += match (rows.len(), left) {
                (1, 4..) => tile::<V, F, 1, 4>(job, rows.start, panel),
                (1, 2..) => tile::<V, F, 1, 2>(job, rows.start, panel),
                (1, _) => tile::<V, F, 1, 1>(job, rows.start, panel),
                (2, 2..) => tile::<V, F, 2, 2>(job, rows.start, panel),
                (2, _) => tile::<V, F, 2, 1>(job, rows.start, panel),
                (3, _) => tile::<V, F, 3, 1>(job, rows.start, panel),
                (4, _) => tile::<V, F, 4, 1>(job, rows.start, panel),
                (5, _) => tile::<V, F, 5, 1>(job, rows.start, panel),
                _ => tile::<V, F, TILE_ROWS_MAX, 1>(job, rows.start, panel),
            };
        }
    }
}

/// `T` rows × `P` panels in registers; returns `P`.
#[inline(always)]
unsafe fn tile<V: Vector, F: Format, const T: usize, const P: usize>(
    job: &Matmul,
    row: usize,
    panel: usize,
) -> usize {
    let step = F::REGISTERS * V::LANES;
    let panel_words = step * job.inputs;
    // SAFETY: `job` names memory for `rows` rows and all its panels; tile and panels are within.
    unsafe {
        let weights = job.weights.add(panel * panel_words);
        let mut rows = [job.x; T];
        for t in 0..T {
            rows[t] = job.x.add((row + t) * job.x_stride);
        }
        let mut sums = [[[V::splat(0.0); 2]; P]; T];
        let whole = job.inputs / UNROLL * UNROLL;
        for input in (0..whole).step_by(UNROLL) {
            for u in 0..UNROLL {
                add_input::<V, F, T, P>(&mut sums, weights, panel_words, &rows, input + u);
            }
        }
        for input in whole..job.inputs {
            add_input::<V, F, T, P>(&mut sums, weights, panel_words, &rows, input);
        }
        for t in 0..T {
            for p in 0..P {
                let out = job.out.add((row + t) * job.out_stride + (panel + p) * 2 * V::LANES);
                put(sums[t][p][0], out, job.accumulate);
                put(sums[t][p][1], out.add(V::LANES), job.accumulate);
            }
        }
    }
    P
}

/// Adds one input's products to all sums of a tile.
#[inline(always)]
unsafe fn add_input<V: Vector, F: Format, const T: usize, const P: usize>(
    sums: &mut [[[V; 2]; P]; T],
    weights: *const f32,
    panel_words: usize,
    rows: &[*const f32; T],
    input: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut loaded = [[V::splat(0.0); 2]; P];
        for p in 0..P {
            loaded[p] = F::load::<V>(weights.add(p * panel_words + input * F::REGISTERS * V::LANES));
        }
        for t in 0..T {
            let activation = V::splat(*rows[t].add(input));
            for p in 0..P {
                sums[t][p][0] = sums[t][p][0].plus_product(activation, loaded[p][0]);
                sums[t][p][1] = sums[t][p][1].plus_product(activation, loaded[p][1]);
            }
        }
    }
}

#[inline(always)]
unsafe fn put<V: Vector>(sum: V, out: *mut f32, accumulate: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        let sum = if accumulate { V::load(out).add(sum) } else { sum };
        sum.store(out);
    }
}
