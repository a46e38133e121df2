//! The products of a head that are not a layer's: what is made ready is what runs.
#![forbid(unsafe_code)]

use super::buffers::Buffers;
use super::weights::{HeadWeights, MarkovWeights};
use crate::executor::cuda::product::{Epilogue, Input, Product};
use crate::executor::cuda::scratch::Scratch;
use crate::executor::cuda::weights::DeviceWeights;

/// Fuses `rows` rows of hidden states.
pub fn fusion<'a>(weights: &'a HeadWeights, buffers: &mut Buffers, rows: usize) -> Product<'a> {
    Product {
        linear: &weights.fusion,
        input: Input { x: buffers.fuse_input.ptr(), rows },
        epilogue: Epilogue::StoreF32(buffers.fused.mut_ptr()),
    }
}

/// Logits over the draft tokens, `[rows][draft tokens]` at `logits`.
pub fn logits<'a>(
    weights: &'a DeviceWeights,
    scratch: &Scratch,
    rows: usize,
    logits: *mut f32,
) -> Product<'a> {
    Product {
        linear: &weights.head,
        input: Input { x: scratch.head_input.ptr(), rows },
        epilogue: Epilogue::StoreF32(logits),
    }
}

/// The Markov head's correction, added to `rows` rows of logits at `logits`.
pub fn correction<'a>(
    markov: &'a MarkovWeights,
    buffers: &Buffers,
    rows: usize,
    logits: *mut f32,
) -> Product<'a> {
    Product {
        linear: &markov.correction,
        input: Input { x: buffers.markov.ptr(), rows },
        epilogue: Epilogue::AddF32(logits),
    }
}
