//! Fingerprints: identify the machine and the models that a profile is valid for.

use crate::model::{DraftWeights, Dtype, LayerTensor, LoadedModel, Tensor};
use crate::timing::profile::Fingerprint;

/// Samples of each tensor.
const SAMPLES: usize = 16;
/// Bytes of one sample.
const SAMPLE_BYTES: usize = 64;

/// The part of a fingerprint that the backend knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// `cpu` or `cuda`.
    pub backend: String,
    /// Human-readable device name, as [`ExecutorInfo::device`](crate::protocol::ExecutorInfo::device)
    /// has it.
    pub device: String,
    /// Driver version; empty on a CPU.
    pub driver: String,
    /// Compute threads; 0 where that has no meaning.
    pub threads: u32,
}

/// The fingerprint of these models on this machine, for this version of the program.
pub fn fingerprint(machine: Machine, target: &LoadedModel, draft: Option<&DraftWeights>) -> Fingerprint {
    Fingerprint {
        backend: machine.backend,
        device: machine.device,
        driver: machine.driver,
        target_digest: model_digest(target),
        draft_digest: draft.map_or_else(String::new, draft_digest),
        dtype: dtype_name(target.weights.embedding.dtype).to_owned(),
        threads: machine.threads,
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// A digest of a model's shape and of samples of all its weights: FNV-1a over them, in hex.
/// Reads a few kilobytes, whatever the size of the model. Distinguishes models, but is no
/// protection against forgery.
pub fn model_digest(model: &LoadedModel) -> String {
    digest(&format!("{:?}", model.spec), tensors(model))
}

fn draft_digest(draft: &DraftWeights) -> String {
    match draft {
        DraftWeights::Model(model) => model_digest(model),
        DraftWeights::Head(head) => digest(&format!("{:?}{:?}", head.kind(), head.spec()), head.matrices()),
    }
}

fn digest(shape: &str, tensors: Vec<&Tensor>) -> String {
    let mut digest = Fnv::new();
    digest.write(shape.as_bytes());
    for tensor in tensors {
        digest.write(format!("{:?}{:?}", tensor.dtype, tensor.shape).as_bytes());
        let bytes = tensor.bytes();
        for sample in 0..SAMPLES {
            let from = (bytes.len().saturating_sub(SAMPLE_BYTES) / (SAMPLES - 1)) * sample;
            digest.write(&bytes[from..(from + SAMPLE_BYTES).min(bytes.len())]);
        }
    }
    format!("{:016x}", digest.0)
}

/// Every tensor of a model, in an order that must not change: existing profiles hold digests
/// that were computed in it.
fn tensors(model: &LoadedModel) -> Vec<&Tensor> {
    let weights = &model.weights;
    let mut all = vec![&weights.embedding, &weights.final_norm, &weights.head];
    for layer in &weights.layers {
        let mut tensors: Vec<_> = layer.tensors().collect();
        tensors.sort_by_key(|(role, _)| match role {
            LayerTensor::AttentionNorm | LayerTensor::MlpNorm => 0,
            LayerTensor::QueryNorm | LayerTensor::KeyNorm => 1,
            LayerTensor::Weight(_) | LayerTensor::Bias(_) => 2,
        });
        all.extend(tensors.into_iter().map(|(_, tensor)| tensor));
    }
    all
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "bf16",
        Dtype::F16 => "f16",
        Dtype::F32 => "f32",
    }
}

/// The 64-bit FNV-1a hash (Fowler, Noll, Vo): the same on every machine and in every version.
struct Fnv(u64);

impl Fnv {
    fn new() -> Fnv {
        Fnv(0xCBF2_9CE4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }
}
