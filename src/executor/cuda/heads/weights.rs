//! A draft head's weights on the device.
#![forbid(unsafe_code)]

use std::sync::Arc;

use half::bf16;

use crate::executor::cuda::buffer::DeviceBuffer;
use crate::executor::cuda::error::CudaError;
use crate::executor::cuda::linear::Linear;
use crate::executor::cuda::shard::Shard;
use crate::executor::cuda::stream::Stream;
use crate::executor::cuda::tensor_part::TensorPart;
use crate::executor::cuda::weights::{DeviceWeights, Uploader, check_biases};
use crate::model::{
    BlockHead, ConfidenceHead, DraftHead, FeatureNorm, Interface, LayerWeights, MarkovHead, Tensor,
};
use crate::protocol::{ExecutorError, TokenId};

/// What a head has beside embedding, layers, last norm and output head.
pub struct HeadWeights {
    /// Fuses the hidden states, `[hidden][features * target hidden]`.
    pub fusion: Linear,
    /// Norm of the fused states, `[hidden]`.
    pub hidden_norm: DeviceBuffer<u16>,
    /// Norms before the fusion, `[features * target hidden]`.
    pub feature_norm: Option<DeviceBuffer<u16>>,
    /// Whether that is one norm over all features.
    pub joint_norm: bool,
    /// For each layer the part of its projection that makes keys and values.
    pub keys_and_values: Vec<Linear>,
    /// The draft token of each of the target's, -1 where there is none; `None`: they are the same.
    pub draft_of: Option<DeviceBuffer<i32>>,
    /// Of DSpark.
    pub markov: Option<MarkovWeights>,
    /// Of DSpark.
    pub confidence: Option<ConfidenceWeights>,
}

/// Corrects logits by the token before.
pub struct MarkovWeights {
    /// `[target tokens][rank]`.
    pub before: DeviceBuffer<u16>,
    /// `[draft tokens][rank]`.
    pub correction: Linear,
}

/// Predicts acceptance.
pub struct ConfidenceWeights {
    /// `[hidden]`, or `[hidden + rank]`.
    pub weight: DeviceBuffer<f32>,
    /// Added to the score.
    pub bias: f32,
    /// Whether it reads the Markov feature.
    pub with_markov: bool,
}

/// Copies a head to the device. What it shares with its target is the target's memory.
///
/// # Errors
/// [`ExecutorError::Malformed`] for a head with biases that no kernel adds,
/// [`ExecutorError::Device`] when memory runs out.
pub fn upload(
    head: &DraftHead,
    target: &DeviceWeights,
    stream: &Stream,
) -> Result<(DeviceWeights, HeadWeights), ExecutorError> {
    let layers = layers_of(head);
    check_biases(layers)?;
    let mut uploader = Uploader::new(Shard::whole(), stream)?;
    let device = model(head, target, &mut uploader)?;
    let spec = head.spec();
    let width = 2 * spec.kv_heads * spec.head_dim;
    let interface = head.interface();
    let (feature_norm, joint_norm) = feature_norm(head, &mut uploader)?;
    let (markov, confidence) = match head {
        DraftHead::Eagle3(_) => (None, None),
        DraftHead::Block(head) => dspark(head, &mut uploader, stream)?,
    };
    let draft_of = interface.draft_to_target.as_ref().map(|tokens| inverse(tokens, spec.vocab_size));
    let weights = HeadWeights {
        fusion: uploader.linear(&[TensorPart::whole(&interface.fusion)])?,
        hidden_norm: uploader.whole(&interface.hidden_norm)?,
        feature_norm,
        joint_norm,
        keys_and_values: device.layers.iter().map(|layer| layer.qkv.last_rows(width)).collect(),
        draft_of: draft_of.map(|tokens| DeviceBuffer::from_slice(&tokens, stream)).transpose()?,
        markov,
        confidence,
    };
    stream.synchronize()?;
    let draft_of_bytes = weights.draft_of.as_ref().map_or(0, DeviceBuffer::bytes);
    let confidence_bytes = weights.confidence.as_ref().map_or(0, |confidence| confidence.weight.bytes());
    let bytes = uploader.bytes() + draft_of_bytes + confidence_bytes;
    Ok((DeviceWeights { bytes, ..device }, weights))
}

fn layers_of(head: &DraftHead) -> &[LayerWeights] {
    match head {
        DraftHead::Eagle3(head) => std::slice::from_ref(&head.layer),
        DraftHead::Block(head) => &head.layers,
    }
}

/// What it has in common with a model.
fn model(
    head: &DraftHead,
    target: &DeviceWeights,
    uploader: &mut Uploader<'_>,
) -> Result<DeviceWeights, ExecutorError> {
    let Interface { embedding, output_head, final_norm, .. } = head.interface();
    let layers = layers_of(head).iter().map(|layer| uploader.layer(layer, head.spec()));
    Ok(DeviceWeights {
        layers: layers.collect::<Result<_, ExecutorError>>()?,
        embedding: match embedding {
            Some(embedding) => Arc::new(uploader.whole(embedding)?),
            None => Arc::clone(&target.embedding),
        },
        head: match output_head {
            Some(matrix) => uploader.linear(&[TensorPart::whole(matrix)])?,
            None => target.head.clone(),
        },
        final_norm: uploader.whole(final_norm)?,
        bytes: uploader.bytes(),
    })
}

fn feature_norm(
    head: &DraftHead,
    uploader: &mut Uploader<'_>,
) -> Result<(Option<DeviceBuffer<u16>>, bool), CudaError> {
    let DraftHead::Eagle3(head) = head else { return Ok((None, false)) };
    Ok(match &head.feature_norm {
        FeatureNorm::Raw => (None, false),
        FeatureNorm::Joint(weight) => (Some(uploader.whole(weight)?), true),
        FeatureNorm::Each(weights) => {
            let parts: Vec<TensorPart<'_>> = weights.iter().map(TensorPart::whole).collect();
            (Some(uploader.stacked(&parts)?), false)
        }
    })
}

fn dspark(
    head: &BlockHead,
    uploader: &mut Uploader<'_>,
    stream: &Stream,
) -> Result<(Option<MarkovWeights>, Option<ConfidenceWeights>), CudaError> {
    let markov = |MarkovHead { w1, w2 }: &MarkovHead| -> Result<MarkovWeights, CudaError> {
        let correction = uploader.linear(&[TensorPart::whole(w2)])?;
        Ok(MarkovWeights { before: uploader.whole(w1)?, correction })
    };
    let markov = head.markov.as_ref().map(markov).transpose()?;
    let confidence = |head: &ConfidenceHead| -> Result<ConfidenceWeights, CudaError> {
        Ok(ConfidenceWeights {
            weight: DeviceBuffer::from_slice(&numbers(&head.weight), stream)?,
            bias: head.bias.as_ref().map_or(0.0, |bias| numbers(bias)[0]),
            with_markov: head.with_markov,
        })
    };
    Ok((markov, head.confidence.as_ref().map(confidence).transpose()?))
}

/// A tensor's numbers, rounded to bf16 as all weights are.
fn numbers(tensor: &Tensor) -> Vec<f32> {
    let part = TensorPart::whole(tensor);
    let mut bits = vec![0; part.elements()];
    part.read(0, &mut bits, 1);
    bits.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect()
}

/// The draft token of each token of the target; -1 where there is none.
fn inverse(to_target: &[TokenId], vocab_size: usize) -> Vec<i32> {
    let mut draft_of = vec![-1; vocab_size];
    for (&token, draft) in to_target.iter().zip(0..) {
        draft_of[token as usize] = draft;
    }
    draft_of
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_of_the_target_knows_its_draft_token_or_that_there_is_none() {
        assert_eq!(inverse(&[4, 1, 3], 6), [-1, 1, -1, 2, 0, -1]);
    }
}
