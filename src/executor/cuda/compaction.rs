//! KV cache compaction after tree verification: moves the entries of each accepted path to the slots
//! right after the committed tokens, in all layers with one launch.

use super::buffer::{DeviceBuffer, PinnedBuffer};
use super::error::{CudaError, check_launch};
use super::ffi::kernels::{self, CompactParams, KV_PATH_MAX};
use super::forward::DeviceModel;
use super::stream::Stream;
use crate::protocol::Compaction;

const PATH: usize = KV_PATH_MAX as usize;

/// Staging memory for the inputs of the compaction kernel.
pub struct Compactor {
    device: DeviceBuffer<i32>,
    pinned: PinnedBuffer<i32>,
}

impl Compactor {
    /// Allocates nothing yet: chains never need compaction.
    ///
    /// # Errors
    /// Never in practice, since it allocates nothing.
    pub fn new() -> Result<Compactor, CudaError> {
        Ok(Compactor { device: DeviceBuffer::uninitialized(0)?, pinned: PinnedBuffer::zeroed(0)? })
    }

    /// Runs the moves and waits for them. The caller has checked them against the KV pool.
    ///
    /// # Errors
    /// Anything from the device.
    pub fn run(
        &mut self,
        moves: &[Compaction],
        model: &mut DeviceModel,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let sequences = moves.len();
        let words = lay_out(moves);
        if words.len() > self.device.len() {
            let room = words.len().next_power_of_two();
            *self =
                Compactor { device: DeviceBuffer::uninitialized(room)?, pinned: PinnedBuffer::zeroed(room)? };
        }
        self.pinned[..words.len()].copy_from_slice(&words);
        // SAFETY: the stream is synchronised below, before the pinned memory changes again.
        unsafe { self.device.upload_async(0, &self.pinned[..words.len()], stream)? };
        let at = |word: usize| self.device.ptr().wrapping_add(word);
        let params = CompactParams {
            layer_elements: model.kv_layer_elements() as i64,
            kv: model.kv_address(),
            table: at(0),
            first: at(sequences),
            path_length: at(2 * sequences),
            path: at(3 * sequences),
            tables: at((3 + PATH) * sequences),
            sequences: sequences as i32,
            layers: model.spec().layers as i32,
            kv_heads: model.spec().kv_heads as i32,
            head_dim: model.spec().head_dim as i32,
        };
        // SAFETY: the arrays are laid out by `lay_out` for these offsets, and the caller has
        // checked that blocks and paths lie within the pool.
        check_launch(unsafe { kernels::specserve_compact(&params, stream.raw()) }, "compact")?;
        stream.synchronize()
    }
}

/// The kernel's inputs in one array: index of each table, first positions, path lengths, paths
/// padded to [`PATH`], tables.
fn lay_out(moves: &[Compaction]) -> Vec<i32> {
    let mut words = Vec::new();
    let mut table = 0;
    for compaction in moves {
        words.push(table);
        table += compaction.blocks.len() as i32;
    }
    words.extend(moves.iter().map(|compaction| compaction.first as i32));
    words.extend(moves.iter().map(|compaction| compaction.path.len() as i32));
    for compaction in moves {
        let end = words.len() + PATH;
        words.extend(compaction.path.iter().map(|&draft| draft as i32));
        words.resize(end, -1);
    }
    for compaction in moves {
        words.extend(compaction.blocks.iter().map(|block| block.0 as i32));
    }
    words
}
