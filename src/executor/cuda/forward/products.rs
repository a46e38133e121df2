//! The plain products of a forward pass by name: which matrix reads which scratch buffer and
//! stores to which. Fused layers start from these and replace the epilogue.
#![forbid(unsafe_code)]

use crate::executor::cuda::product::{Epilogue, Input, Product};
use crate::executor::cuda::scratch::Scratch;
use crate::executor::cuda::weights::{DeviceLayer, DeviceWeights};

/// The four products of one layer, each with that layer's own matrix.
#[derive(Clone, Copy)]
pub struct LayerProducts<'a> {
    /// Normalized residual stream to queries, keys and values.
    pub qkv: Product<'a>,
    /// Attention heads to what they add to the residual stream.
    pub output: Product<'a>,
    /// Normalized residual stream to gate and up.
    pub gate_up: Product<'a>,
    /// Activated MLP to what it adds to the residual stream.
    pub down: Product<'a>,
}

impl<'a> LayerProducts<'a> {
    /// The products of `rows` rows, all stored to scratch memory as bf16.
    pub fn new(layer: &'a DeviceLayer, scratch: &mut Scratch, rows: usize) -> LayerProducts<'a> {
        let normed = Input { x: scratch.normed.ptr(), rows };
        let attended = Input { x: scratch.attended.ptr(), rows };
        let activated = Input { x: scratch.activated.ptr(), rows };
        let stored = |linear, input, y| Product { linear, input, epilogue: Epilogue::StoreBf16(y) };
        LayerProducts {
            qkv: stored(&layer.qkv, normed, scratch.qkv.mut_ptr()),
            output: stored(&layer.output, attended, scratch.delta.mut_ptr()),
            gate_up: stored(&layer.gate_up, normed, scratch.gate_up.mut_ptr()),
            down: stored(&layer.down, activated, scratch.delta.mut_ptr()),
        }
    }

    /// All four, in the order in which they run.
    pub fn all(self) -> [Product<'a>; 4] {
        [self.qkv, self.output, self.gate_up, self.down]
    }
}

/// The product that makes logits of `rows` rows, fp32.
pub fn head_product<'a>(weights: &'a DeviceWeights, scratch: &mut Scratch, rows: usize) -> Product<'a> {
    Product {
        linear: &weights.head,
        input: Input { x: scratch.head_input.ptr(), rows },
        epilogue: Epilogue::StoreF32(scratch.logits.mut_ptr()),
    }
}
