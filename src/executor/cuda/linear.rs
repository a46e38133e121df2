//! A weight matrix on the device: shape, number format and storage in one value, so that no
//! product pairs the shape of one matrix with the address of another.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::buffer::DeviceBuffer;

/// Storage of a weight matrix: one variant per number format that kernels read.
///
/// A quantized format is a variant that also owns what its kernels read beside the numbers, for
/// example:
/// - `Fp8 { numbers, scale }`: E4M3 `[outputs][inputs]` and one fp32 scale per matrix or per
///   output;
/// - `Int4 { numbers, group, scales, zeros }`: two numbers per byte, with a scale and a zero
///   point for each `group` consecutive inputs of an output.
///
/// Only the uploader, which chooses the format, and [`Product`](super::product::Product), which
/// chooses the kernel, match on it.
#[derive(Clone)]
pub enum Weight {
    /// bf16 `[outputs][inputs]`, starting at element `start` of the buffer. Shared, because a
    /// tied head is a range of rows of the embedding.
    Bf16 {
        /// The buffer; the matrix starts 16-byte aligned.
        numbers: Arc<DeviceBuffer<u16>>,
        /// Elements before the matrix.
        start: usize,
    },
}

/// A linear layer `y = x Wᵀ`, without its bias: biases belong to the epilogue of a product. Clones
/// share the storage.
#[derive(Clone)]
pub struct Linear {
    outputs: usize,
    inputs: usize,
    weight: Weight,
}

impl Linear {
    /// A matrix `[outputs][inputs]` of bf16 that fills a buffer.
    ///
    /// # Panics
    /// When the buffer has another size.
    pub fn bf16(numbers: DeviceBuffer<u16>, outputs: usize, inputs: usize) -> Linear {
        assert_eq!(numbers.len(), outputs * inputs, "a matrix [{outputs}][{inputs}] fills its buffer");
        Linear { outputs, inputs, weight: Weight::Bf16 { numbers: Arc::new(numbers), start: 0 } }
    }

    /// Rows `first..first + outputs` of a bf16 table `[..][inputs]`, without a copy.
    ///
    /// # Panics
    /// When the table has fewer rows.
    pub fn rows_of(table: &Arc<DeviceBuffer<u16>>, first: usize, outputs: usize, inputs: usize) -> Linear {
        assert!((first + outputs) * inputs <= table.len(), "the table has rows {first}..{}", first + outputs);
        let weight = Weight::Bf16 { numbers: Arc::clone(table), start: first * inputs };
        Linear { outputs, inputs, weight }
    }

    /// The last `outputs` rows of this matrix, without a copy.
    ///
    /// # Panics
    /// When it has fewer.
    pub fn last_rows(&self, outputs: usize) -> Linear {
        assert!(outputs <= self.outputs, "the matrix has {} rows", self.outputs);
        let Weight::Bf16 { numbers, start } = &self.weight;
        let start = start + (self.outputs - outputs) * self.inputs;
        let weight = Weight::Bf16 { numbers: Arc::clone(numbers), start };
        Linear { outputs, inputs: self.inputs, weight }
    }

    /// Rows of the matrix: the width of a product.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix: the width of an input row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number format and storage.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "a matrix [2][8] fills its buffer")]
    fn a_matrix_of_another_size_than_its_buffer_is_a_mistake() {
        let empty = DeviceBuffer::uninitialized(0).expect("allocates nothing");
        Linear::bf16(empty, 2, 8);
    }

    #[test]
    #[should_panic(expected = "the table has rows 0..1")]
    fn rows_outside_of_a_table_are_a_mistake() {
        let empty = Arc::new(DeviceBuffer::uninitialized(0).expect("allocates nothing"));
        Linear::rows_of(&empty, 0, 1, 8);
    }
}
