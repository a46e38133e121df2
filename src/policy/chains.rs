//! Answers of a policy of chains to what is asked about trees.

use super::{Policy, Scratch};
use crate::protocol::{DraftSet, DraftedRow, OpenDraft, Step};

/// Reused buffers.
#[derive(Debug, Default)]
pub(super) struct ChainBuffers {
    active: Vec<u32>,
    keep: Vec<u32>,
    lengths: Vec<u32>,
}

/// [`Policy::expand`] by [`Policy::extend`].
pub(crate) fn expand<P: Policy + ?Sized>(
    policy: &P,
    step: Step<'_>,
    rows: &[DraftedRow],
    open: &[OpenDraft],
    scratch: &mut Scratch,
    keep: &mut Vec<u32>,
) {
    let mut buffers = std::mem::take(&mut scratch.chains);
    buffers.active.clear();
    buffers.active.extend(open.iter().map(|draft| draft.row));
    buffers.active.dedup();
    buffers.keep.clear();
    policy.extend(step, rows, &buffers.active, scratch, &mut buffers.keep);
    let kept = (0..).zip(open).filter(|(_, draft)| buffers.keep.binary_search(&draft.row).is_ok());
    keep.extend(kept.map(|(index, _)| index));
    scratch.chains = buffers;
}

/// [`Policy::choose`] by [`Policy::select`].
pub(crate) fn choose<P: Policy + ?Sized>(
    policy: &P,
    step: Step<'_>,
    rows: &[DraftedRow],
    scratch: &mut Scratch,
    chosen: &mut Vec<DraftSet>,
) {
    let mut lengths = std::mem::take(&mut scratch.chains.lengths);
    lengths.clear();
    policy.select(step, rows, scratch, &mut lengths);
    chosen.extend(lengths.iter().map(|&length| DraftSet::first(length as usize)));
    scratch.chains.lengths = lengths;
}
