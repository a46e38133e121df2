//! One step as a forward pass sees it: where its inputs are and how large it is.
#![forbid(unsafe_code)]

use crate::executor::cuda::ffi::kernels::AttentionItem;

/// Device addresses of one step's inputs (see `step_inputs`).
#[derive(Clone, Copy, Debug)]
pub struct StepAddresses {
    /// Input tokens, `[rows]`; -1 is padding.
    pub tokens: *const i32,
    /// Rotary positions, `[rows]`.
    pub positions: *const i32,
    /// KV slots, `[rows]`; -1 is padding.
    pub slots: *const i32,
    /// Masks, `[rows]`.
    pub masks: *const u64,
    /// Rows that need logits, `[logit rows]`; -1 is padding.
    pub gather: *const i32,
    /// Work of the decode kernel.
    pub items: *const AttentionItem,
    /// How many, and how many merges.
    pub item_count: *const i32,
    /// Where the hidden states of the first rows go, `[2]`: the row of the first, and how many.
    pub states: *const i32,
    /// Rows that a draft head takes states from; -1 is padding.
    pub sources: *const i32,
    /// Tiles whose chunks are merged.
    pub merges: *const AttentionItem,
    /// Work of the prefill kernel.
    pub prefill_items: *const AttentionItem,
    /// Block tables.
    pub tables: *const i32,
}

/// Sizes of one step; together with the model they determine every launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepSizes {
    /// Input rows, padding included.
    pub rows: usize,
    /// Rows of logits, padding included; 0: only the cache is filled.
    pub logit_rows: usize,
    /// Whether there is work for the decode kernel.
    pub decode: bool,
    /// Whether it uses its large tile.
    pub large: bool,
    /// Items of the prefill kernel.
    pub prefill_items: usize,
}
