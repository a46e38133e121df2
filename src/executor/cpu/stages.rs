//! The steps of a layer, shared among the threads: matrix products by panels of
//! outputs, everything else by rows.

use std::ops::Range;

use super::arena::Arena;
use super::kernels::{InstructionSet, Norm, SwiGlu, matmul, rms_norm, swiglu};
use super::pool::{JobPanicked, Pool};
use super::rows::SharedRows;
use super::transformer::PackedLinear;

/// Rows up to which row-wise work is done by the caller alone: a fork costs as much as a
/// dozen norms.
const SERIAL_ROWS_MAX: usize = 12;

/// Panels of the smallest piece of a product: what the kernel walks together. At one row of
/// the embedded target a microsecond or three.
const PIECE_PANELS: usize = 4;

/// Rows of the smallest piece of row-wise work.
const PIECE_ROWS: usize = 4;

/// Most pieces that a thread's share of a job is cut into.
const THREAD_PIECES_MAX: usize = 32;

/// A linear layer over some rows.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    /// An instruction set that the processor has.
    pub(crate) set: InstructionSet,
    /// Where the weights lie.
    pub(crate) arena: &'a Arena,
    pub(crate) linear: &'a PackedLinear,
    pub(crate) x: SharedRows,
    /// First row of `x`.
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    /// Outputs of the panels before this one are left alone.
    pub(crate) first_panel: usize,
    pub(crate) out: SharedRows,
    /// Row of `out` for the first row of `x`.
    pub(crate) first_out: usize,
    /// Add to `out` (the residual), rather than replace it.
    pub(crate) accumulate: bool,
}

impl Product<'_> {
    /// Computes everything.
    pub(crate) fn run(&self, pool: &Pool) -> Result<(), JobPanicked> {
        if self.rows == 0 {
            return Ok(());
        }
        let panels = self.linear.matrix.panels() - self.first_panel;
        let pieces = pieces(panels, PIECE_PANELS, pool);
        pool.run_sized(self.multiply_adds(panels), pieces.count, &|_, piece| {
            let piece = pieces.of(piece);
            // SAFETY: pieces are disjoint.
            unsafe { self.panels(self.first_panel + piece.start..self.first_panel + piece.end) };
        })
    }

    /// Computes gate and up, whose panels alternate, and `activation = silu(gate) · up`.
    pub(crate) fn run_swiglu(&self, pool: &Pool, activation: SharedRows) -> Result<(), JobPanicked> {
        if self.rows == 0 {
            return Ok(());
        }
        let (panels, panel) = (self.linear.matrix.panels(), self.linear.matrix.panel_outputs());
        let pieces = pieces(panels / 2, PIECE_PANELS / 2, pool);
        pool.run_sized(self.multiply_adds(panels), pieces.count, &|_, piece| {
            let pairs = pieces.of(piece);
            // SAFETY: pieces are disjoint.
            unsafe { self.panels(2 * pairs.start..2 * pairs.end) };
            for row in 0..self.rows {
                let gate_up = self.out.at(row, 2 * pairs.start * panel);
                let out = activation.at(row, pairs.start * panel);
                // SAFETY: these panels of both buffers belong to this piece.
                unsafe { swiglu(self.set, &SwiGlu { gate_up, out, pairs: pairs.len() }) };
            }
        })
    }

    fn multiply_adds(&self, panels: usize) -> usize {
        self.rows * self.linear.matrix.inputs() * panels * self.linear.matrix.panel_outputs()
    }

    /// Computes some panels of all rows.
    ///
    /// # Safety
    /// Nobody else touches the columns of these panels of `out`, or writes `x`, meanwhile.
    unsafe fn panels(&self, panels: Range<usize>) {
        if panels.is_empty() {
            return;
        }
        let matrix = &self.linear.matrix;
        assert!(matrix.inputs() <= self.x.stride() && matrix.padded_outputs() <= self.out.stride());
        // Both ends of input and result are in their buffers, or `at` panics.
        self.x.at(self.first_row + self.rows - 1, matrix.inputs() - 1);
        self.out.at(self.first_out + self.rows - 1, matrix.padded_outputs() - 1);
        let mut job = matrix.job(self.arena, self.x.at(self.first_row, 0), self.x.stride(), self.rows);
        job.panels = panels.clone();
        job.out = self.out.at(self.first_out, 0);
        job.out_stride = self.out.stride();
        job.accumulate = self.accumulate;
        // SAFETY: the processor has the set; input, weights and result are in their buffers; the
        // columns are this piece's.
        unsafe { matmul(self.set, &job) };
        if let Some(bias) = &self.linear.bias {
            let width = matrix.panel_outputs();
            let columns = panels.start * width..panels.end * width;
            for row in 0..self.rows {
                // SAFETY: as above.
                let out = unsafe { self.out.slice_mut(self.first_out + row, columns.clone()) };
                out.iter_mut().zip(&bias[columns.clone()]).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

/// An RMSNorm of the first `rows` rows of `x`.
#[derive(Clone, Copy)]
pub(crate) struct RowNorm<'a> {
    /// An instruction set that the processor has.
    pub(crate) set: InstructionSet,
    pub(crate) weight: &'a [f32],
    pub(crate) epsilon: f32,
    pub(crate) x: SharedRows,
    pub(crate) rows: usize,
    pub(crate) out: SharedRows,
    /// Row of `out` for row 0 of `x`.
    pub(crate) first_out: usize,
}

impl RowNorm<'_> {
    /// Computes all rows.
    pub(crate) fn run(&self, pool: &Pool) -> Result<(), JobPanicked> {
        let width = self.weight.len();
        for_rows(pool, self.rows, &|row| {
            self.x.at(row, width - 1);
            self.out.at(self.first_out + row, width - 1);
            let (x, out) = (self.x.at(row, 0), self.out.at(self.first_out + row, 0));
            let job = Norm { x, out, weight: self.weight, epsilon: self.epsilon };
            // SAFETY: the processor has the set; both rows are in their buffers and this call's alone.
            unsafe { rms_norm(self.set, &job) };
        })
    }
}

/// Calls `work` for each row, on one of the threads.
pub(crate) fn for_rows(pool: &Pool, rows: usize, work: &(dyn Fn(usize) + Sync)) -> Result<(), JobPanicked> {
    if rows <= SERIAL_ROWS_MAX {
        (0..rows).for_each(work);
        return Ok(());
    }
    let pieces = pieces(rows, PIECE_ROWS, pool);
    pool.run(pieces.count, &|_, piece| pieces.of(piece).for_each(work))
}

/// Units of work in pieces for the threads to take.
#[derive(Clone, Copy)]
struct Pieces {
    units: usize,
    each: usize,
    count: usize,
}

impl Pieces {
    /// The units of a piece; not empty.
    fn of(&self, piece: usize) -> Range<usize> {
        piece * self.each..((piece + 1) * self.each).min(self.units)
    }
}

/// Pieces of some units, multiples of `least` of them, at most [`THREAD_PIECES_MAX`] to a thread.
fn pieces(units: usize, least: usize, pool: &Pool) -> Pieces {
    let each = units.div_ceil(THREAD_PIECES_MAX * pool.threads()).next_multiple_of(least).max(least);
    Pieces { units, each, count: units.div_ceil(each) }
}
