//! One step's inputs: written to page-locked memory, copied to the device in one piece.

use super::buffer::{DeviceBuffer, PinnedBuffer};
use super::error::CudaError;
use super::ffi::kernels::{LogitAdjustment, SamplingRow, VerifySequence};
use super::forward::StepAddresses;
use super::host_step::HostStep;
use super::step_layout::{InputSizes, Layout, Written, words_needed, write};
use super::stream::Stream;

/// Device addresses of what sampling reads.
#[derive(Clone, Copy, Debug)]
pub struct SamplingAddresses {
    /// One per row of logits.
    pub rows: *const SamplingRow,
    /// What rows' first adjustments count from.
    pub adjustments: *const LogitAdjustment,
    /// What rows' masks count from.
    pub masks: *const u32,
    /// Sequences to verify.
    pub sequences: *const VerifySequence,
    /// The sequence of each row of logits.
    pub sequence_of: *const i32,
    /// Drafts.
    pub drafts: *const i32,
    /// Parents.
    pub parents: *const i32,
}

/// The memory for it, on both sides.
pub struct StepInputs {
    device: DeviceBuffer<u32>,
    pinned: PinnedBuffer<u32>,
    /// The step that was written last.
    written: Written,
}

impl StepInputs {
    /// Memory for steps of up to `words` words; it grows when a step needs more.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(words: usize) -> Result<StepInputs, CudaError> {
        Ok(StepInputs {
            device: DeviceBuffer::uninitialized(words)?,
            pinned: PinnedBuffer::zeroed(words)?,
            written: Written { prefill_items: 0, words: 0 },
        })
    }

    /// Makes room for a step; true when addresses changed, so that graphs are stale. The
    /// stream is idle.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn reserve(&mut self, sizes: InputSizes, step: &HostStep) -> Result<bool, CudaError> {
        let words = words_needed(sizes, step);
        if words <= self.device.len() {
            return Ok(false);
        }
        *self = StepInputs::new(words.next_power_of_two())?;
        Ok(true)
    }

    /// Writes a step, padding included, to page-locked memory. Room was reserved, and the
    /// stream has passed the copy before.
    pub fn write(&mut self, sizes: InputSizes, step: &HostStep) {
        self.written = write(&mut self.pinned, sizes, step);
    }

    /// Enqueues the copy of what was written to the device.
    ///
    /// # Errors
    /// When the context is lost.
    pub fn send(&mut self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: the pinned memory lives as long as the device's, and is written next only
        // after the stream was synchronised (our caller's contract).
        unsafe { self.device.upload_async(0, &self.pinned[..self.written.words], stream) }
    }

    /// Addresses of a step of these sizes, for the forward pass.
    pub fn addresses(&self, sizes: InputSizes) -> StepAddresses {
        let layout = Layout::new(sizes);
        StepAddresses {
            tokens: self.at(layout.tokens),
            positions: self.at(layout.positions),
            slots: self.at(layout.slots),
            masks: self.at(layout.masks),
            gather: self.at(layout.gather),
            items: self.at(layout.items),
            item_count: self.at(0),
            states: self.at(2),
            sources: self.at(layout.sources),
            merges: self.at(layout.merges),
            prefill_items: self.at(self.written.prefill_items),
            tables: self.at(0),
        }
    }

    /// Addresses of a step of these sizes, for sampling.
    pub fn sampling_addresses(&self, sizes: InputSizes) -> SamplingAddresses {
        let layout = Layout::new(sizes);
        SamplingAddresses {
            rows: self.at(layout.sampling),
            adjustments: self.at(0),
            masks: self.at(0),
            sequences: self.at(layout.sequences),
            sequence_of: self.at(layout.sequence_of),
            drafts: self.at(layout.drafts),
            parents: self.at(layout.parents),
        }
    }

    fn at<T>(&self, word: usize) -> *const T {
        self.device.ptr().wrapping_add(word).cast()
    }
}
