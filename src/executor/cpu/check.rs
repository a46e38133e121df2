//! Checks of the options and of the models that an executor is built from.
#![forbid(unsafe_code)]

use crate::model::{DraftWeights, ModelSpec};

use super::kernels::STEP;
use super::{CpuError, CpuOptions, DRAFT_TOKENS_MAX, InstructionSet};

/// Checks the options, and that target and draft go together.
pub(crate) fn options(
    options: &CpuOptions,
    target: &ModelSpec,
    draft: Option<&DraftWeights>,
    set: InstructionSet,
) -> Result<(), CpuError> {
    let bad = |what: String| Err(CpuError::Options(what));
    let draft_blocks = match draft {
        Some(DraftWeights::Model(_)) => options.draft_blocks,
        _ => 1,
    };
    let counts = [
        ("threads", options.threads as u64),
        ("target_blocks", options.target_blocks.into()),
        ("draft_blocks", draft_blocks.into()),
        ("block_tokens", options.block_tokens.into()),
        ("batch_tokens_max", options.batch_tokens_max.into()),
        ("batch_sequences_max", options.batch_sequences_max.into()),
    ];
    if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
        return bad(format!("{name} is 0"));
    }
    if !(options.block_tokens as usize).is_multiple_of(STEP) {
        return bad(format!("block_tokens is {}, not a multiple of {STEP}", options.block_tokens));
    }
    if options.draft_tokens_max > DRAFT_TOKENS_MAX {
        return bad(format!(
            "draft_tokens_max is {}, more than {DRAFT_TOKENS_MAX}",
            options.draft_tokens_max
        ));
    }
    if !InstructionSet::available().contains(&set) {
        return bad(format!("this processor has no {}", set.name()));
    }
    match draft.map(DraftWeights::spec) {
        Some(draft) if draft.vocab_size != target.vocab_size => {
            let sizes = (target.vocab_size, draft.vocab_size);
            Err(CpuError::Unsupported(format!("target and draft have {} and {} tokens", sizes.0, sizes.1)))
        }
        _ => Ok(()),
    }
}
