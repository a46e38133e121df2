//! What happens to one token's projected heads before attention.

use crate::model::ModelSpec;

use super::kernels::{InstructionSet, Norm, rms_norm};
use super::kv_cache::{CacheShape, write_slot};
use super::rope::RopeTable;
use super::rows::SharedRows;
use super::transformer::Layer;
use crate::executor::committed_states::Slot;

/// Norms and rotates query and key heads in place, and writes keys and values to the cache.
#[derive(Clone, Copy)]
pub(crate) struct HeadWriter<'a> {
    pub(crate) spec: &'a ModelSpec,
    /// An instruction set that the processor has.
    pub(crate) set: InstructionSet,
    pub(crate) layer: &'a Layer,
    pub(crate) rope: &'a RopeTable,
    pub(crate) shape: CacheShape,
    /// Query, key and value heads of each row.
    pub(crate) qkv: SharedRows,
    /// The layer's pool.
    pub(crate) cache: SharedRows,
}

impl HeadWriter<'_> {
    /// Finishes row `index` of `qkv`, whose token is at `position` and has its key and value in `slot`.
    ///
    /// # Safety
    /// No other thread accesses this row of `qkv` or this slot of the cache during the call.
    pub(crate) unsafe fn finish(&self, index: usize, position: usize, slot: Slot) {
        let ModelSpec { heads, head_dim, .. } = *self.spec;
        // SAFETY: the caller's contract.
        let queries = unsafe { self.qkv.slice_mut(index, 0..heads * head_dim) };
        for query in queries.chunks_exact_mut(head_dim) {
            self.norm_and_rotate(query, self.layer.query_norm.as_deref(), position);
        }
        // SAFETY: the caller's contract.
        unsafe { self.write(index, position, slot) };
    }

    /// [`finish`](Self::finish) for a row without queries: writes its keys and values.
    ///
    /// # Safety
    /// As [`finish`](Self::finish).
    pub(crate) unsafe fn write(&self, index: usize, position: usize, slot: Slot) {
        let ModelSpec { heads, kv_heads, head_dim, .. } = *self.spec;
        let columns = heads * head_dim..(heads + 2 * kv_heads) * head_dim;
        // SAFETY: the caller's contract.
        let rest = unsafe { self.qkv.slice_mut(index, columns) };
        let (keys, values) = rest.split_at_mut(kv_heads * head_dim);
        let block = slot.block.index() * self.shape.block_stride();
        let heads = keys.chunks_exact_mut(head_dim).zip(values.chunks_exact(head_dim));
        for (head, (key, value)) in heads.enumerate() {
            self.norm_and_rotate(key, self.layer.key_norm.as_deref(), position);
            let head = block + self.shape.head_offset(head);
            // SAFETY: the caller's contract; `write_slot` touches this slot alone.
            unsafe { write_slot(self.cache, head, self.shape.block_tokens, slot.offset, key, value) };
        }
    }

    fn norm_and_rotate(&self, head: &mut [f32], norm: Option<&[f32]>, position: usize) {
        if let Some(weight) = norm {
            let at = head.as_mut_ptr();
            let job = Norm { x: at, out: at, weight, epsilon: self.spec.rms_norm_eps };
            assert_eq!(weight.len(), head.len(), "a head norm is as wide as a head");
            // SAFETY: the processor has the set; the head is exclusively borrowed and as wide as the weight.
            unsafe { rms_norm(self.set, &job) };
        }
        self.rope.rotate(head, position);
    }
}
