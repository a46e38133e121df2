//! Where a step's inputs stand in memory, and how they get there.
//!
//! The layout is fixed by the step's padded sizes, so that a captured graph finds every
//! array at the address where it was captured. Parts without a fixed size come last; block
//! tables, adjustments and masks are addressed from the start of the whole memory.

use super::ffi::kernels::{AttentionItem, LogitAdjustment, SamplingRow, VerifySequence};
use super::host_step::HostStep;
use super::sampling_rows::SamplingRows;

/// Words between the parts: every part starts at a multiple of 16 bytes.
const ALIGNMENT_WORDS: usize = 4;
/// Words behind a step that the decode kernel's CTAs may read before they know that there is
/// no item for them.
const READ_AHEAD_WORDS: usize = 1024 * ITEM_WORDS;
/// Words of an [`AttentionItem`].
const ITEM_WORDS: usize = size_of::<AttentionItem>() / 4;
/// Words of a [`LogitAdjustment`].
const ADJUSTMENT_WORDS: usize = size_of::<LogitAdjustment>() / 4;

/// Offset of `segment.table` in an [`AttentionItem`], in words.
const TABLE_WORD: usize = std::mem::offset_of!(AttentionItem, segment.table) / 4;
/// The same of `first_adjustment` in a [`SamplingRow`].
const FIRST_ADJUSTMENT_WORD: usize = std::mem::offset_of!(SamplingRow, first_adjustment) / 4;
/// The same of `mask`.
const MASK_WORD: usize = std::mem::offset_of!(SamplingRow, mask) / 4;

/// Types that are whole 32-bit words without padding, as the kernels read them.
///
/// # Safety
/// Every byte of every value is initialised.
unsafe trait Words: Copy {}
// SAFETY: integers.
unsafe impl Words for i32 {}
// SAFETY: integers.
unsafe impl Words for u32 {}
// SAFETY: integers.
unsafe impl Words for u64 {}
// SAFETY: `repr(C)` structs of 32-bit fields.
unsafe impl Words for AttentionItem {}
// SAFETY: as above.
unsafe impl Words for VerifySequence {}
// SAFETY: as above.
unsafe impl Words for LogitAdjustment {}
// SAFETY: one 64-bit field, then ten of 32 bits: no padding.
unsafe impl Words for SamplingRow {}
const _: () = assert!(size_of::<SamplingRow>() == 8 + 10 * 4);

/// Padded sizes of a step, as the layout needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InputSizes {
    /// Input rows.
    pub rows: usize,
    /// Rows of logits.
    pub logit_rows: usize,
    /// Sequences.
    pub sequences: usize,
    /// Rows that a draft head takes states from; 0 for a model.
    pub sources: usize,
}

/// Where each part starts, in words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub tokens: usize,
    pub positions: usize,
    pub slots: usize,
    pub masks: usize,
    pub gather: usize,
    pub sampling: usize,
    pub sequence_of: usize,
    pub drafts: usize,
    pub parents: usize,
    pub sequences: usize,
    pub sources: usize,
    pub merges: usize,
    pub items: usize,
}

impl Layout {
    pub fn new(sizes: InputSizes) -> Layout {
        let mut next = ALIGNMENT_WORDS; // the counts of items and merges, the span of hidden states
        let mut part = |words: usize| {
            let start = next;
            next += words.next_multiple_of(ALIGNMENT_WORDS);
            start
        };
        let InputSizes { rows, logit_rows, sequences, sources } = sizes;
        Layout {
            tokens: part(rows),
            positions: part(rows),
            slots: part(rows),
            masks: part(2 * rows),
            gather: part(logit_rows),
            sampling: part(logit_rows * size_of::<SamplingRow>() / 4),
            sequence_of: part(logit_rows),
            drafts: part(logit_rows),
            parents: part(logit_rows),
            sequences: part(sequences * size_of::<VerifySequence>() / 4),
            sources: part(sources),
            // A tile has at least one row, so there are no more merges than rows.
            merges: part(rows * ITEM_WORDS),
            items: part(0),
        }
    }
}

/// What was written, besides what the layout says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where the prefill kernel's items start, in words.
    pub prefill_items: usize,
    /// Words in all.
    pub words: usize,
}

/// Words of memory that a step of these padded sizes needs.
pub fn words_needed(sizes: InputSizes, step: &HostStep) -> usize {
    let plan = &step.plan;
    let items = (plan.items.len() + plan.prefill_items.len()) * ITEM_WORDS;
    let adjustments = (step.sampling.adjustments().len() + 1) * ADJUSTMENT_WORDS;
    Layout::new(sizes).items
        + items
        + plan.tables.len()
        + adjustments
        + step.sampling.mask_words()
        + 3 * ALIGNMENT_WORDS
        + READ_AHEAD_WORDS
}

/// Writes a step, padding included.
///
/// # Panics
/// When there is less memory than [`words_needed`], or the step is larger than its padded sizes.
pub fn write(words: &mut [u32], sizes: InputSizes, step: &HostStep) -> Written {
    let layout = Layout::new(sizes);
    let (plan, sampling, verify) = (&step.plan, &step.sampling, &step.verify);
    let [first_state, states] = step.states;
    put(words, 0, &[plan.items.len() as i32, plan.merges.len() as i32, first_state, states]);
    put(words, layout.merges, &plan.merges);
    put_padded(words, layout.tokens, &step.tokens, sizes.rows, -1);
    put_padded(words, layout.positions, &plan.positions, sizes.rows, 0);
    put_padded(words, layout.slots, &plan.slots, sizes.rows, -1);
    put_padded(words, layout.masks, &plan.masks, sizes.rows, 1);
    put_padded(words, layout.gather, &step.gather, sizes.logit_rows, -1);
    put_padded(words, layout.sequence_of, &verify.sequence_of, sizes.logit_rows, -1);
    put_padded(words, layout.drafts, &verify.drafts, sizes.logit_rows, -1);
    put_padded(words, layout.parents, &verify.parents, sizes.logit_rows, 0);
    let no_sequence = VerifySequence { first_row: 0, drafts: -1, tree: 0 };
    put_padded(words, layout.sources, &step.sources, sizes.sources, -1);
    put_padded(words, layout.sequences, &verify.sequences, sizes.sequences, no_sequence);

    let after_items = put(words, layout.items, &plan.items);
    let tables = put(words, after_items, &plan.prefill_items);
    let adjustments = put(words, tables, &plan.tables).next_multiple_of(ADJUSTMENT_WORDS);
    let masks = put(words, adjustments, sampling.adjustments());
    let end = put_masks(words, masks, sampling);

    let items = plan.items.len() + plan.prefill_items.len();
    for item in words[layout.items..][..items * ITEM_WORDS].chunks_exact_mut(ITEM_WORDS) {
        item[TABLE_WORD] += tables as u32; // tables count from the start of the memory
    }
    let no_row = SamplingRow { position: -1, mask: -1, ..SamplingRow::default() };
    put_padded(words, layout.sampling, sampling.rows(), sizes.logit_rows, no_row);
    let row_words = size_of::<SamplingRow>() / 4;
    let sampling_words = &mut words[layout.sampling..][..sampling.rows().len() * row_words];
    for row in sampling_words.chunks_exact_mut(row_words) {
        row[FIRST_ADJUSTMENT_WORD] += (adjustments / ADJUSTMENT_WORDS) as u32;
        if row[MASK_WORD] as i32 >= 0 {
            row[MASK_WORD] += masks as u32;
        }
    }
    Written { prefill_items: after_items, words: end }
}

/// Writes the masks one behind the other; returns the next word that is free and aligned.
fn put_masks(words: &mut [u32], at: usize, sampling: &SamplingRows) -> usize {
    let mut next = at;
    for mask in sampling.masks() {
        put(words, next, mask.words());
        next += mask.words().len();
    }
    next.next_multiple_of(ALIGNMENT_WORDS)
}

/// Writes values at a word; returns the next word that is free and aligned.
fn put<T: Words>(words: &mut [u32], at: usize, values: &[T]) -> usize {
    let count = size_of_val(values) / 4;
    let target = &mut words[at..at + count];
    // SAFETY: `target` has exactly the values' size; `Words` promises initialised bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), target.as_mut_ptr().cast(), count * 4);
    }
    (at + count).next_multiple_of(ALIGNMENT_WORDS)
}

/// Writes values at a word, and padding behind them up to `length` values.
fn put_padded<T: Words>(words: &mut [u32], at: usize, values: &[T], length: usize, padding: T) {
    assert!(values.len() <= length, "a step larger than its padded size");
    put(words, at, values);
    let value_words = size_of::<T>() / 4;
    let rest = &mut words[at + values.len() * value_words..at + length * value_words];
    for target in rest.chunks_exact_mut(value_words) {
        // SAFETY: `target` has exactly the value's size; `Words` promises initialised bytes.
        unsafe { target.as_mut_ptr().cast::<T>().write_unaligned(padding) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::attention_plan::{AttentionRoom, SequenceShape};
    use super::*;
    use crate::protocol::{BlockId, SamplingParams, TokenMask};
    use crate::sampling::TokenHistory;

    #[test]
    fn parts_do_not_overlap_and_start_at_sixteen_bytes() {
        for (rows, logit_rows, sequences) in [(1, 1, 1), (24, 8, 7), (1024, 1024, 256), (4160, 0, 33)] {
            let layout = Layout::new(InputSizes { rows, logit_rows, sequences, sources: rows });
            let parts = [
                (layout.tokens, rows),
                (layout.positions, rows),
                (layout.slots, rows),
                (layout.masks, 2 * rows),
                (layout.gather, logit_rows),
                (layout.sampling, 12 * logit_rows),
                (layout.sequence_of, logit_rows),
                (layout.drafts, logit_rows),
                (layout.parents, logit_rows),
                (layout.sequences, 3 * sequences),
                (layout.merges, 12 * rows),
                (layout.items, 0),
            ];
            assert!(parts.iter().all(|(start, _)| start % ALIGNMENT_WORDS == 0));
            assert!(parts.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        }
    }

    #[test]
    fn padding_fills_up_to_the_padded_size_and_not_further() {
        let mut words = [7u32; 8];
        put_padded(&mut words, 1, &[5i32], 3, -1);
        assert_eq!(words, [7, 5, u32::MAX, u32::MAX, 7, 7, 7, 7]);
        put_padded(&mut words, 4, &[] as &[u64], 1, 1);
        assert_eq!(words[4..], [1, 0, 7, 7]);
    }

    fn sampling_row(words: &[u32], layout: Layout, row: usize) -> &[u32] {
        &words[layout.sampling + row * size_of::<SamplingRow>() / 4..]
    }

    /// As the kernels read it: whether row `row` of logits may sample `token`.
    fn is_allowed(words: &[u32], layout: Layout, row: usize, token: u32) -> bool {
        let mask = sampling_row(words, layout, row)[MASK_WORD] as i32;
        mask < 0 || words[mask as usize + token as usize / 32] >> (token % 32) & 1 != 0
    }

    #[test]
    fn each_row_finds_the_words_of_its_own_mask() {
        // 90 tokens are three words a mask: no multiple of the alignment, so that a padded mask shows.
        const VOCAB: u32 = 90;
        let mask = |step: u32| Arc::new(TokenMask::from_fn(VOCAB, |token| token % step == 0));
        let (thirds, fifths, sevenths) = (mask(3), mask(5), mask(7));
        let masks = [Some(&thirds), None, Some(&fifths), Some(&sevenths), Some(&thirds), Some(&sevenths)];
        // Items, tables and adjustments stand before the masks, which must not overwrite them.
        let biased = SamplingParams { logit_bias: vec![(3, 2.0), (8, 1.0)], ..SamplingParams::greedy() };
        let blocks = [BlockId(9)];
        let mut step = HostStep::new(AttentionRoom::for_rows(8, 2, 64, 64));
        step.push_tokens(&[1; 6]);
        step.plan.build(std::iter::once(SequenceShape {
            start: 0,
            tokens: 6,
            drafts: 5,
            tree: None,
            cached: 0,
            blocks: &blocks,
        }));
        for mask in masks {
            step.sampling.push_masked(&biased, 1, &TokenHistory::none(), mask);
        }

        let sizes = InputSizes { rows: 8, logit_rows: 8, sequences: 2, sources: 4 };
        let mut words = vec![u32::MAX; words_needed(sizes, &step)];
        let written = write(&mut words, sizes, &step);
        let layout = Layout::new(sizes);
        words.truncate(written.words); // no more is copied to the device
        for (row, mask) in masks.into_iter().enumerate() {
            for token in 0..VOCAB {
                let want = mask.is_none_or(|mask| mask.allows(token));
                assert_eq!(is_allowed(&words, layout, row, token), want, "row {row}, token {token}");
            }
            let first = sampling_row(&words, layout, row)[FIRST_ADJUSTMENT_WORD] as usize * ADJUSTMENT_WORDS;
            assert_eq!([words[first], words[first + ADJUSTMENT_WORDS]], [3, 8], "adjustments of row {row}");
        }
        assert!((6..8).all(|row| is_allowed(&words, layout, row, 1)), "padding has no mask");
    }
}
