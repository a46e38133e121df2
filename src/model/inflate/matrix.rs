//! A matrix of the inflated model, generated row by row.

use half::{bf16, f16};

use super::super::{Dtype, Tensor};
use super::grown::to_bf16;
use crate::random::SplitMix64;

/// Content of entries that do not come from the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// Zeros, where the other factor is not zero.
    Zero,
    /// Random numbers, where the other factor is zero here or downstream.
    Random,
}

/// Origin of a row of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowSource {
    /// A row of the source.
    Row(usize),
    /// No source; filler only.
    New(Fill),
    /// Zeros, with this value at the constant channel, the first if there are several.
    Constant(u16),
}

/// A run of `count` columns, copied from column `from` to column `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ColumnRun {
    pub from: usize,
    pub to: usize,
    pub count: usize,
}

/// Recipe of one matrix of the result.
pub(super) struct Matrix {
    /// The source matrix; `None` for a matrix of filler.
    pub source: Option<Tensor>,
    /// Origin of each row of the result.
    pub rows: Vec<RowSource>,
    /// Number of columns of the result.
    pub columns: usize,
    /// Columns that come from the source.
    pub runs: Vec<ColumnRun>,
    /// Filler of the other columns in rows from the source.
    pub fill: Fill,
    /// Factor on the source's numbers.
    pub scale: f64,
    /// Columns of constant channels, with their values in rows from the source.
    pub constants: Vec<(usize, u16)>,
    /// Seed of the filler.
    pub seed: u64,
}

impl Matrix {
    /// Writes one row as bf16.
    pub fn fill_row(&self, row: usize, out: &mut [u16]) {
        assert_eq!(out.len(), self.columns);
        match self.rows[row] {
            RowSource::New(fill) => self.fill(row, fill, out),
            RowSource::Constant(value) => {
                out.fill(0);
                if let Some(&(column, _)) = self.constants.first() {
                    out[column] = value;
                }
            }
            RowSource::Row(from) => {
                self.fill(row, self.fill, out);
                if let Some(source) = &self.source {
                    for run in &self.runs {
                        self.copy_run(source, from, *run, out);
                    }
                }
                for &(column, value) in &self.constants {
                    out[column] = value;
                }
            }
        }
    }

    fn fill(&self, row: usize, fill: Fill, out: &mut [u16]) {
        match fill {
            Fill::Zero => out.fill(0),
            Fill::Random => random_row(self.seed.wrapping_add((row as u64) << 20), out),
        }
    }

    fn copy_run(&self, source: &Tensor, row: usize, run: ColumnRun, out: &mut [u16]) {
        let width = source.dtype.bytes();
        let begin = (row * source.shape[1] + run.from) * width;
        let numbers = &source.bytes()[begin..begin + run.count * width];
        for (number, out) in numbers.chunks_exact(width).zip(&mut out[run.to..run.to + run.count]) {
            *out = match source.dtype {
                Dtype::Bf16 if self.scale == 1.0 => u16::from_le_bytes([number[0], number[1]]),
                dtype => to_bf16(number_at(dtype, number) * self.scale),
            };
        }
    }
}

/// Decodes one stored number.
pub(super) fn number_at(dtype: Dtype, bytes: &[u8]) -> f64 {
    match dtype {
        Dtype::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
        Dtype::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
        Dtype::F32 => f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
    }
}

/// Random bf16 numbers of either sign with magnitudes in [2^-6, 2^-5), similar to trained
/// weights. Each SplitMix64 word yields four.
fn random_row(seed: u64, out: &mut [u16]) {
    const SIGN_AND_MANTISSA: u64 = 0x807f_807f_807f_807f;
    const EXPONENT: u64 = 0x3c80_3c80_3c80_3c80;
    let mut random = SplitMix64::new(seed.wrapping_mul(0xD134_2543_DE82_EF95));
    for four in out.chunks_mut(4) {
        let word = (random.next_u64() & SIGN_AND_MANTISSA) | EXPONENT;
        let bits = word.to_le_bytes();
        for (number, pair) in four.iter_mut().zip(bits.chunks_exact(2)) {
            *number = u16::from_le_bytes([pair[0], pair[1]]);
        }
    }
}
