//! Activation buffers, and the right to write parts of one from several threads.

/// A buffer of rows of floats.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    data: Vec<f32>,
    stride: usize,
}

/// Floats added to each row's width: rows of 1024 floats would otherwise all fall on
/// the same sets of the first-level cache.
const SKEW: usize = 16;

impl Rows {
    /// `rows` rows of room for `width` floats, zeroed.
    pub(crate) fn new(rows: usize, width: usize) -> Rows {
        let stride = width.next_multiple_of(2 * super::kernels::LANES_MAX) + SKEW;
        Rows { data: vec![0.0; rows * stride], stride }
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }

    /// A row, its padding included.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride..(row + 1) * self.stride]
    }

    /// A row to write, its padding included.
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.stride..(row + 1) * self.stride]
    }

    /// Copies the first `width` floats of a row over another's.
    pub(crate) fn copy_row(&mut self, from: usize, to: usize, width: usize) {
        self.data.copy_within(from * self.stride..from * self.stride + width, to * self.stride);
    }

    /// The buffer for several threads at once.
    pub(crate) fn share(&mut self) -> SharedRows {
        SharedRows { first: self.data.as_mut_ptr(), stride: self.stride, len: self.data.len() }
    }
}

/// A buffer that the threads of one fork write to, each its own part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SharedRows {
    first: *mut f32,
    stride: usize,
    len: usize,
}

// SAFETY: it only hands out addresses; the code that dereferences them must keep the parts disjoint.
unsafe impl Sync for SharedRows {}
// SAFETY: as above.
unsafe impl Send for SharedRows {}

impl SharedRows {
    /// A slice as one row.
    pub(crate) fn flat(slice: &mut [f32]) -> SharedRows {
        SharedRows { first: slice.as_mut_ptr(), stride: slice.len(), len: slice.len() }
    }

    /// From one row's start to the next, in floats.
    pub(crate) fn stride(self) -> usize {
        self.stride
    }

    /// The address of an element.
    pub(crate) fn at(self, row: usize, column: usize) -> *mut f32 {
        let index = row * self.stride + column;
        assert!(index < self.len, "row {row}, column {column} is outside the buffer");
        // SAFETY: within the buffer by the assertion.
        unsafe { self.first.add(index) }
    }

    /// Part of a row.
    ///
    /// # Safety
    /// The buffer is alive, and no other thread touches this part while the slice is.
    pub(crate) unsafe fn slice_mut<'a>(self, row: usize, columns: std::ops::Range<usize>) -> &'a mut [f32] {
        let first = self.at(row, columns.start);
        assert!(row * self.stride + columns.end <= self.len, "columns {columns:?} are outside the buffer");
        // SAFETY: in the buffer by the assertions, exclusive by the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(first, columns.len()) }
    }
}
