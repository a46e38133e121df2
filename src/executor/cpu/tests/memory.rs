//! What of a model's file stays in memory.

use std::path::Path;

use super::*;
use crate::model::inflate::{InflateOptions, InflateRole, InflateShape, inflate};
use crate::model::{ModelSource, load};

/// 29 MB in bf16, a tenth of it the embedding.
const SHAPE: InflateShape = InflateShape {
    name: "a test",
    vocab_size: 4096,
    hidden_size: 384,
    intermediate_size: 1536,
    layers: 6,
    heads: 6,
    kv_heads: 2,
    head_dim: 64,
    context_tokens_max: 256,
    tied_head: true,
    qkv_bias: false,
};

/// Bytes of the files below `directory` that this process holds in memory, and bytes mapped.
fn resident(directory: &Path) -> (u64, u64) {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut ours, mut resident, mut mapped) = (false, 0, 0);
    let kib = |text: &str| text.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
    for line in maps.lines() {
        match line.split_once(':') {
            Some(("Rss", size)) if ours => resident += kib(size),
            Some(("Size", size)) if ours => mapped += kib(size),
            _ if line.contains('-') && line.split(' ').count() > 5 => {
                ours = line.contains(directory.to_str().unwrap());
            }
            _ => {}
        }
    }
    (resident, mapped)
}

#[test]
fn weights_that_were_packed_are_not_kept_in_memory_a_second_time() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("model");
    let options = InflateOptions { threads: 2, ..InflateOptions::default() };
    let go_on = |_| std::ops::ControlFlow::Continue(());
    inflate(&ModelSource::EmbeddedTiny, InflateRole::Target, &place, &SHAPE, &options, &go_on).unwrap();
    let model = load(&ModelSource::Directory(place.clone()), ModelRole::Target).unwrap().loaded;
    let embedding = model.weights.embedding.bytes().to_vec();
    model.weights.layers.iter().for_each(|layer| {
        layer.tensors().for_each(|(_, one)| _ = std::hint::black_box(one.bytes().to_vec()))
    });
    let (before, mapped) = resident(&place);
    assert!(mapped > 20 << 20 && before > mapped * 9 / 10, "{before} of {mapped} bytes were read");

    let mut executor = CpuExecutor::new(super::options(2), model.clone(), None).unwrap();
    let (after, _) = resident(&place);
    assert!(after < mapped / 20, "{after} of {mapped} bytes are still in memory");
    assert!(model.weights.embedding.bytes() == embedding, "they are read again");
    let row = executor.logits(ModelRole::Target, &input(&[0], &[5, 6, 7], 0)).unwrap();
    assert!(row.iter().all(|logit| logit.is_finite()));
}
