//! Weight matrices, repacked at load for the matrix product: panels of outputs,
//! each one contiguous run of memory from its first input to its last.
#![forbid(unsafe_code)]

use crate::model::{Dtype, Tensor};

use super::arena::{Arena, Piece, padded_bytes};
use super::kernels::{InstructionSet, Matmul, WeightFormat};
use super::pool::share;

/// A matrix in panels. Outputs are padded with zero rows to whole panels.
#[derive(Clone, Debug)]
pub(crate) struct PackedMatrix {
    format: WeightFormat,
    piece: Piece,
    inputs: usize,
    panels: usize,
    /// Outputs of one panel.
    panel_outputs: usize,
}

/// Which tensor rows make up a matrix, before there is memory for it.
pub(crate) struct MatrixPlan<'a> {
    format: WeightFormat,
    inputs: usize,
    lanes: usize,
    /// One per output, padding included: the tensor and its row.
    rows: Vec<Option<(&'a Tensor, usize)>>,
}

impl<'a> MatrixPlan<'a> {
    /// The tensors' rows one after the other.
    pub(crate) fn stacked(tensors: &[&'a Tensor], set: InstructionSet) -> MatrixPlan<'a> {
        let rows = tensors.iter().flat_map(|tensor| rows_of(tensor)).map(Some).collect();
        MatrixPlan::new(tensors, rows, set)
    }

    /// Panels of `first` and of `second` in turn.
    pub(crate) fn alternating(first: &'a Tensor, second: &'a Tensor, set: InstructionSet) -> MatrixPlan<'a> {
        let outputs = 2 * set.lanes();
        let row = |tensor: &'a Tensor, row: usize| (row < tensor.shape[0]).then_some((tensor, row));
        let panels = first.shape[0].div_ceil(outputs);
        let rows = (0..panels).flat_map(|panel| {
            let range = panel * outputs..(panel + 1) * outputs;
            let firsts = range.clone().map(move |index| row(first, index));
            firsts.chain(range.map(move |index| row(second, index)))
        });
        MatrixPlan::new(&[first, second], rows.collect(), set)
    }

    fn new(
        tensors: &[&'a Tensor],
        mut rows: Vec<Option<(&'a Tensor, usize)>>,
        set: InstructionSet,
    ) -> MatrixPlan<'a> {
        let all_bf16 = tensors.iter().all(|tensor| tensor.dtype == Dtype::Bf16);
        let format = if all_bf16 { WeightFormat::Bf16 } else { WeightFormat::F32 };
        rows.resize(rows.len().next_multiple_of(2 * set.lanes()), None);
        MatrixPlan { format, inputs: tensors[0].shape[1], lanes: set.lanes(), rows }
    }

    fn words(&self) -> usize {
        self.rows.len() / (2 * self.lanes) * self.panel_words()
    }

    fn panel_words(&self) -> usize {
        self.inputs * self.format.words_per_input(self.lanes)
    }

    /// Bytes of arena that the matrix will take.
    pub(crate) fn bytes(&self) -> usize {
        padded_bytes(self.words())
    }

    /// Copies the weights into the arena, on `threads` threads.
    pub(crate) fn pack(&self, arena: &mut Arena, threads: usize) -> PackedMatrix {
        let piece = arena.take(self.words());
        let panel_outputs = 2 * self.lanes;
        let panels = self.rows.len() / panel_outputs;
        let mut rest = arena.words_mut(piece);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let own = share(panels, thread, threads);
                let (words, others) = std::mem::take(&mut rest).split_at_mut(own.len() * self.panel_words());
                rest = others;
                scope.spawn(move || {
                    for (panel, words) in own.zip(words.chunks_exact_mut(self.panel_words())) {
                        self.pack_panel(&self.rows[panel * panel_outputs..][..panel_outputs], words);
                    }
                });
            }
        });
        PackedMatrix { format: self.format, piece, inputs: self.inputs, panels, panel_outputs }
    }

    fn pack_panel(&self, rows: &[Option<(&Tensor, usize)>], words: &mut [f32]) {
        let step = self.format.words_per_input(self.lanes);
        for (output, source) in rows.iter().enumerate() {
            let Some((tensor, row)) = source else { continue };
            let column = &mut words[output % step..];
            match self.format {
                WeightFormat::Bf16 => {
                    let shift = 16 * (output / self.lanes) as u32;
                    for (word, bits) in column.iter_mut().step_by(step).zip(bf16_row(tensor, *row)) {
                        *word = f32::from_bits(word.to_bits() | u32::from(bits) << shift);
                    }
                }
                WeightFormat::F32 => {
                    let numbers = numbers(tensor, row * self.inputs..(row + 1) * self.inputs);
                    column.iter_mut().step_by(step).zip(numbers).for_each(|(word, number)| *word = number);
                }
            }
        }
    }
}

impl PackedMatrix {
    /// Panels.
    pub(crate) fn panels(&self) -> usize {
        self.panels
    }

    /// Inputs: columns.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Outputs of one panel.
    pub(crate) fn panel_outputs(&self) -> usize {
        self.panel_outputs
    }

    /// Outputs, padding included: floats that a result row must have room for.
    pub(crate) fn padded_outputs(&self) -> usize {
        self.panels * self.panel_outputs
    }

    /// The product with `rows` rows at `x`, without panels chosen or a place for the result.
    pub(crate) fn job(&self, arena: &Arena, x: *const f32, x_stride: usize, rows: usize) -> Matmul {
        Matmul {
            format: self.format,
            weights: arena.words(self.piece).as_ptr(),
            inputs: self.inputs,
            panels: 0..0,
            x,
            x_stride,
            rows,
            out: std::ptr::null_mut(),
            out_stride: 0,
            accumulate: false,
        }
    }
}

fn rows_of(tensor: &Tensor) -> impl Iterator<Item = (&Tensor, usize)> {
    (0..tensor.shape[0]).map(move |row| (tensor, row))
}

fn bf16_row(tensor: &Tensor, row: usize) -> impl Iterator<Item = u16> + '_ {
    let width = tensor.shape[1] * 2;
    tensor.bytes()[row * width..(row + 1) * width].chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
}

/// Some of a tensor's numbers as `f32`, all of which hold bf16 and f16 exactly.
pub(crate) fn numbers(tensor: &Tensor, range: std::ops::Range<usize>) -> impl Iterator<Item = f32> + '_ {
    let size = tensor.dtype.bytes();
    let dtype = tensor.dtype;
    tensor.bytes()[range.start * size..range.end * size].chunks_exact(size).map(move |b| match dtype {
        Dtype::Bf16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        Dtype::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
        Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
    })
}

/// All of a tensor's numbers as `f32`.
pub(crate) fn vector(tensor: &Tensor) -> Vec<f32> {
    numbers(tensor, 0..tensor.elements()).collect()
}
