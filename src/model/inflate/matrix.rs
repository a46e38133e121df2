//! One matrix of the inflated model, made row by row.

use half::{bf16, f16};

use super::super::{Dtype, Tensor};
use super::grown::to_bf16;
use crate::random::SplitMix64;

/// What stands where the source has nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// Zeros: the place is read with something that is not zero.
    Zero,
    /// Random numbers: what the place is multiplied with is zero, here or further on.
    Random,
}

/// Where a row of the result comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowSource {
    /// A row of the source.
    Row(usize),
    /// Nothing of the source.
    New(Fill),
    /// A new token's row of the head: zeros, and this number at the constant channel.
    Pushed(u16),
}

/// A run of columns: `count` of the source, from `from` on, go to `to` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ColumnRun {
    pub from: usize,
    pub to: usize,
    pub count: usize,
}

/// A matrix of the result.
pub(super) struct Matrix {
    /// `None`: nothing of the source is in it.
    pub source: Option<Tensor>,
    /// One per row of the result.
    pub rows: Vec<RowSource>,
    /// Columns of the result.
    pub columns: usize,
    /// Which of them come from the source.
    pub runs: Vec<ColumnRun>,
    /// The other columns of rows that come from the source.
    pub fill: Fill,
    /// What numbers of the source are multiplied by.
    pub scale: f64,
    /// Column and value of the constant channel in rows that come from the source.
    pub constant: Option<(usize, u16)>,
    /// Seeds the filler.
    pub seed: u64,
}

impl Matrix {
    /// Writes one row as bf16.
    pub fn fill_row(&self, row: usize, out: &mut [u16]) {
        assert_eq!(out.len(), self.columns);
        match self.rows[row] {
            RowSource::New(fill) => self.fill(row, fill, out),
            RowSource::Pushed(value) => {
                out.fill(0);
                if let Some((column, _)) = self.constant {
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
                if let Some((column, value)) = self.constant {
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

/// One number as stored.
pub(super) fn number_at(dtype: Dtype, bytes: &[u8]) -> f64 {
    match dtype {
        Dtype::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
        Dtype::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
        Dtype::F32 => f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
    }
}

/// Random bf16 numbers of either sign with magnitudes in [2^-6, 2^-5): like weights of a
/// trained model, and four to a random word.
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
