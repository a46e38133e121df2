//! A rectangle of a tensor in a model file, read as bf16: what a rank uploads.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::thread;

use half::{bf16, f16};

use crate::model::{Dtype, Tensor};

/// Fewest numbers that are worth a thread.
const THREAD_NUMBERS_MIN: usize = 256 << 10;

/// Some rows and columns of a tensor, numbered row by row. A vector is one column.
#[derive(Clone, Debug)]
pub struct TensorPart<'a> {
    tensor: &'a Tensor,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<'a> TensorPart<'a> {
    /// All of a tensor.
    pub fn whole(tensor: &'a Tensor) -> TensorPart<'a> {
        let rows = tensor.shape[0];
        TensorPart { tensor, rows: 0..rows, columns: 0..tensor.elements() / rows.max(1) }
    }

    /// These rows only, of those that the part has.
    ///
    /// # Panics
    /// When it has fewer.
    pub fn with_rows(self, rows: Range<usize>) -> TensorPart<'a> {
        assert!(rows.end <= self.rows(), "rows {rows:?} of {}", self.rows());
        let first = self.rows.start;
        TensorPart { rows: first + rows.start..first + rows.end, ..self }
    }

    /// These columns only, of those that the part has.
    ///
    /// # Panics
    /// When it has fewer.
    pub fn with_columns(self, columns: Range<usize>) -> TensorPart<'a> {
        assert!(columns.end <= self.columns(), "columns {columns:?} of {}", self.columns());
        let first = self.columns.start;
        TensorPart { columns: first + columns.start..first + columns.end, ..self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns.len()
    }

    /// Number of numbers.
    pub fn elements(&self) -> usize {
        self.rows() * self.columns()
    }

    /// Reads the numbers from `first` on as bf16, rounded to nearest even, until `to` is full.
    /// Splits the work over at most `threads` threads.
    ///
    /// # Panics
    /// When `to` is longer than what follows `first`.
    pub fn read(&self, first: usize, to: &mut [u16], threads: usize) {
        assert!(first + to.len() <= self.elements(), "read past the end of a tensor");
        let per_thread = to.len().div_ceil(threads.max(1)).max(THREAD_NUMBERS_MIN);
        thread::scope(|scope| {
            let mut shares = to.chunks_mut(per_thread).enumerate();
            let own = shares.next();
            for (index, share) in shares {
                scope.spawn(move || self.read_share(first + index * per_thread, share));
            }
            if let Some((_, share)) = own {
                self.read_share(first, share);
            }
        });
    }

    fn read_share(&self, first: usize, to: &mut [u16]) {
        let (bytes, width) = (self.tensor.bytes(), self.tensor.dtype.bytes());
        let (mut index, mut to) = (first, to);
        while !to.is_empty() {
            let (at, run) = self.run_at(index);
            let (now, later) = to.split_at_mut(run.min(to.len()));
            convert(self.tensor.dtype, &bytes[at * width..(at + now.len()) * width], now);
            index += now.len();
            to = later;
        }
    }

    /// Where number `index` of the part is in the tensor, and how many follow it contiguously,
    /// itself included.
    fn run_at(&self, index: usize) -> (usize, usize) {
        let columns = self.columns();
        let stride = self.tensor.elements() / self.tensor.shape[0];
        let (row, column) = (index / columns, index % columns);
        let at = (self.rows.start + row) * stride + self.columns.start + column;
        let run = if columns == stride { self.elements() - index } else { columns - column };
        (at, run)
    }
}

/// Little-endian numbers of any format and alignment to bf16, rounded to nearest even.
fn convert(dtype: Dtype, from: &[u8], to: &mut [u16]) {
    match dtype {
        Dtype::Bf16 => bytemuck::cast_slice_mut::<u16, u8>(to).copy_from_slice(from),
        Dtype::F16 => {
            for (to, from) in to.iter_mut().zip(from.chunks_exact(2)) {
                let value = f16::from_le_bytes([from[0], from[1]]);
                *to = bf16::from_f32(value.to_f32()).to_bits();
            }
        }
        Dtype::F32 => {
            for (to, from) in to.iter_mut().zip(from.chunks_exact(4)) {
                let value = f32::from_le_bytes([from[0], from[1], from[2], from[3]]);
                *to = bf16::from_f32(value).to_bits();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A tensor whose bytes start at an odd address of its file.
    fn tensor(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Tensor {
        Tensor { dtype, shape: shape.to_vec(), range: 1..bytes.len(), file: Arc::new(bytes) }
    }

    #[test]
    fn all_formats_become_the_same_bf16_at_any_alignment_and_thread_count() {
        let values: Vec<f32> = (0..600_000).map(|i| (i % 251) as f32 * 0.25 - 20.0).collect();
        let want: Vec<u16> = values.iter().map(|&v| bf16::from_f32(v).to_bits()).collect();
        let bytes = |encode: &dyn Fn(f32) -> Vec<u8>| {
            let mut bytes = vec![0xffu8];
            bytes.extend(values.iter().flat_map(|&v| encode(v)));
            bytes
        };
        let bf16_bytes = bytes(&|v| bf16::from_f32(v).to_le_bytes().to_vec());
        let f16_bytes = bytes(&|v| f16::from_f32(v).to_le_bytes().to_vec());
        let f32_bytes = bytes(&|v| v.to_le_bytes().to_vec());
        for (dtype, bytes) in [(Dtype::Bf16, bf16_bytes), (Dtype::F16, f16_bytes), (Dtype::F32, f32_bytes)] {
            let tensor = tensor(dtype, &[values.len()], bytes);
            for threads in [1, 3] {
                let mut got = vec![0; values.len()];
                TensorPart::whole(&tensor).read(0, &mut got, threads);
                assert!(got == want, "{dtype:?} with {threads} threads");
            }
        }
    }

    /// `[rows][columns]` of f32, each number its index.
    fn counting(rows: usize, columns: usize) -> Tensor {
        let mut bytes = vec![0xff];
        bytes.extend((0..rows * columns).flat_map(|index| (index as f32).to_le_bytes()));
        tensor(Dtype::F32, &[rows, columns], bytes)
    }

    fn indices(numbers: &[u16]) -> Vec<usize> {
        numbers.iter().map(|&bits| bf16::from_bits(bits).to_f32() as usize).collect()
    }

    #[test]
    fn a_rectangle_is_read_row_by_row_from_any_number_on() {
        let tensor = counting(4, 6);
        let part = TensorPart::whole(&tensor).with_rows(1..4).with_columns(2..5);
        assert_eq!((part.rows(), part.columns(), part.elements()), (3, 3, 9));
        let want = [8, 9, 10, 14, 15, 16, 20, 21, 22];
        for first in 0..=9 {
            for end in first..=9 {
                let mut got = vec![0; end - first];
                part.read(first, &mut got, 2);
                assert_eq!(indices(&got), want[first..end], "{first}..{end}");
            }
        }
        let inner = part.with_rows(1..2).with_columns(1..3);
        let mut got = [0; 2];
        inner.read(0, &mut got, 1);
        assert_eq!(indices(&got), [15, 16], "parts of parts");
    }

    #[test]
    fn threads_share_the_columns_of_a_large_tensor() {
        let (rows, columns) = (1200, 512);
        let bytes = (0..=2 * rows * columns).map(|index| (index / 7) as u8).collect();
        let tensor = tensor(Dtype::Bf16, &[rows, columns], bytes);
        let mut whole = vec![0; rows * columns];
        TensorPart::whole(&tensor).read(0, &mut whole, 1);
        let want: Vec<u16> = whole.chunks(columns).flat_map(|row| row[3..503].to_vec()).collect();
        let mut got = vec![0; want.len()];
        TensorPart::whole(&tensor).with_columns(3..503).read(0, &mut got, 3);
        assert!(got == want && got.len() > 2 * THREAD_NUMBERS_MIN);
    }

    #[test]
    #[should_panic(expected = "rows 2..5 of 4")]
    fn rows_that_a_tensor_lacks_are_a_mistake() {
        let _ = TensorPart::whole(&counting(4, 6)).with_rows(2..5);
    }
}
