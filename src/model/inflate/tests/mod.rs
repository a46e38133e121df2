//! Inflated models and heads against their sources, by a plain fp64 forward pass.

mod heads;
mod reference;

use std::ops::ControlFlow;
use std::path::Path;

use super::*;
use crate::model::LoadedModel;
use crate::model::random::{RandomOptions, random_model, small_spec};
use reference::logits;

/// Logits may differ by the rounding of fp32 norm weights, or of bf16 query weights.
const TOLERANCE_EXACT: f64 = 1e-4;
const TOLERANCE_ROUNDED: f64 = 0.1;

/// A small shape that grows everything.
const SMALL: InflateShape = InflateShape {
    name: "small",
    vocab_size: 4100,
    hidden_size: 160,
    intermediate_size: 400,
    layers: 5,
    heads: 6,
    kv_heads: 2,
    head_dim: 64,
    context_tokens_max: 4096,
    tied_head: true,
    qkv_bias: false,
};

/// Inflates the embedded draft model.
fn to_the_end(
    directory: &Path,
    shape: &InflateShape,
    options: &InflateOptions,
) -> Result<InflateReport, InflateError> {
    let go_on = |_| ControlFlow::Continue(());
    inflate(&ModelSource::EmbeddedTiny, InflateRole::Draft, directory, shape, options, &go_on)
}

fn inflated(shape: &InflateShape, directory: &Path) -> LoadedModel {
    let options = InflateOptions { threads: 2, shard_bytes_max: 400_000, ..InflateOptions::default() };
    let report = to_the_end(directory, shape, &options).expect("inflates");
    assert!(report.shards > 1 && report.parameters_after > report.parameters_before);
    load(&ModelSource::Directory(directory.to_owned()), ModelRole::Draft).expect("loads").loaded
}

fn largest_difference(shape: &InflateShape) -> f64 {
    let directory = tempfile::tempdir().expect("a directory");
    let grown = inflated(shape, &directory.path().join("model"));
    let source = load(&ModelSource::EmbeddedTiny, ModelRole::Draft).expect("loads").loaded;
    let tokens = [1, 300, 42, 4000];
    let (want, got) = (logits(&source, &tokens), logits(&grown, &tokens));
    let (real, new) = got.split_at(want.len());
    assert_eq!(got.len(), shape.vocab_size);
    assert!(new.iter().all(|&logit| logit < -1000.0), "new tokens never win");
    want.iter().zip(real).fold(0f64, |most, (want, got)| most.max((want - got).abs()))
}

#[test]
fn an_inflated_model_computes_the_same_logits() {
    assert!(largest_difference(&SMALL) < TOLERANCE_EXACT);
    let untied_with_biases = InflateShape { tied_head: false, qkv_bias: true, ..SMALL };
    assert!(largest_difference(&untied_with_biases) < TOLERANCE_EXACT);
}

#[test]
fn without_new_tokens_no_channel_is_needed_for_them() {
    let same_width = InflateShape { vocab_size: 4096, hidden_size: 128, ..SMALL };
    assert!(largest_difference(&same_width) < TOLERANCE_EXACT);
}

#[test]
fn key_heads_are_repeated_where_fewer_queries_share_one() {
    let one_query_each = InflateShape { heads: 3, kv_heads: 3, ..SMALL };
    assert!(largest_difference(&one_query_each) < TOLERANCE_EXACT);
}

#[test]
fn heads_that_get_wider_keep_their_rotation() {
    let twice = InflateShape { head_dim: 128, ..SMALL };
    assert!(largest_difference(&twice) < TOLERANCE_ROUNDED);
    let four_times = InflateShape { head_dim: 256, ..SMALL };
    assert!(largest_difference(&four_times) < TOLERANCE_EXACT, "the root of four is exact");
}

#[test]
fn two_runs_write_the_same_bytes() {
    let directory = tempfile::tempdir().expect("a directory");
    let shape = InflateShape { layers: 4, ..SMALL };
    let read = |name: &str| {
        let model = directory.path().join(name);
        inflated(&shape, &model);
        let files = std::fs::read_dir(&model).expect("a directory").flatten().map(|entry| entry.path());
        let mut shards: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
        shards.sort();
        shards.iter().map(|path| std::fs::read(path).expect("readable")).collect::<Vec<_>>()
    };
    assert!(read("a") == read("b"));
}

#[test]
fn the_order_of_tensors_and_their_seeds_is_fixed() {
    let source = load(&ModelSource::EmbeddedTiny, ModelRole::Draft).expect("loads");
    let shape = InflateShape { layers: 4, qkv_bias: true, ..SMALL };
    let grown = Grown::new(&source, &shape, None).expect("fits");
    let tensors = plan::tensors(&source.loaded.weights, &grown);
    let second = "model.layers.1.";
    let first = tensors.iter().position(|tensor| tensor.name.starts_with(second)).expect("layer 1");
    assert_eq!(first, 13, "the embedding, then the 12 tensors of layer 0");
    let want = [
        ("input_layernorm.weight", None),
        ("post_attention_layernorm.weight", None),
        ("self_attn.q_proj.weight", Some(16)),
        ("self_attn.k_proj.weight", Some(17)),
        ("self_attn.v_proj.weight", Some(18)),
        ("self_attn.o_proj.weight", Some(19)),
        ("mlp.gate_proj.weight", Some(20)),
        ("mlp.up_proj.weight", Some(21)),
        ("mlp.down_proj.weight", Some(22)),
        ("self_attn.q_proj.bias", None),
        ("self_attn.k_proj.bias", None),
        ("self_attn.v_proj.bias", None),
    ];
    for (tensor, (name, seed)) in tensors[first..].iter().zip(want) {
        let plan::Contents::Matrix(matrix) = &tensor.contents else {
            assert_eq!((tensor.name.as_str(), seed), (&*format!("{second}{name}"), None));
            continue;
        };
        assert_eq!((tensor.name.as_str(), Some(matrix.seed >> 44)), (&*format!("{second}{name}"), seed));
    }
}

#[test]
fn every_tensor_of_a_model_counts_as_parameters() {
    let options = RandomOptions {
        qkv_bias: true,
        other_bias: true,
        head_norms: true,
        tied_head: false,
        ..RandomOptions::default()
    };
    let model = random_model(&small_spec(32), 1, options);
    // 64 wide, MLP of 120, four query and two key heads of 16.
    let attention = 64 * 64 + 2 * 32 * 64 + 64 * 64;
    let biases = 64 + 2 * 32 + 64 + 2 * 120 + 64;
    let norms = 2 * 64 + 2 * 16;
    let layer = attention + 3 * 64 * 120 + biases + norms;
    assert_eq!(plan::parameters(&model), 2 * layer + 2 * 32 * 64 + 64);
}

fn refusal(shape: InflateShape) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let options = InflateOptions::default();
    let model = directory.path().join("model");
    let error = to_the_end(&model, &shape, &options).expect_err("refused");
    assert!(!model.exists(), "nothing is written before the check");
    error.to_string()
}

#[test]
fn a_shape_that_is_too_small_is_refused_with_both_numbers() {
    let message = refusal(InflateShape { hidden_size: 64, ..SMALL });
    assert!(message.contains("hidden size is 64") && message.contains("129"), "{message}");
    assert!(refusal(InflateShape { head_dim: 96, ..SMALL }).contains("96"));
    assert!(refusal(InflateShape { heads: 1, kv_heads: 1, ..SMALL }).contains("key heads"));
    assert!(refusal(InflateShape { layers: 2, ..SMALL }).contains("number of layers is 2"));
}

#[test]
fn a_directory_that_holds_something_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("precious"), "x").expect("writes");
    let options = InflateOptions::default();
    let result = to_the_end(directory.path(), &SMALL, &options);
    assert!(matches!(result, Err(InflateError::Occupied { .. })));
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn an_interrupted_inflation_leaves_nothing() {
    let parent = tempfile::tempdir().expect("a directory");
    let empty = parent.path().join("empty");
    std::fs::create_dir(&empty).expect("made");
    let stop = |progress: InflateProgress| {
        assert!(progress.bytes > 0 && progress.bytes <= progress.bytes_total);
        ControlFlow::Break(())
    };
    for out in [&parent.path().join("new"), &empty] {
        let options = InflateOptions { threads: 2, ..InflateOptions::default() };
        let result = inflate(&ModelSource::EmbeddedTiny, InflateRole::Draft, out, &SMALL, &options, &stop);
        assert!(matches!(result, Err(InflateError::Interrupted)));
        assert_eq!(names(parent.path()), ["empty"]);
        assert!(names(&empty).is_empty());
    }
}

#[test]
fn progress_ends_with_all_bytes() {
    let directory = tempfile::tempdir().expect("a directory");
    let most = std::sync::atomic::AtomicU64::new(0);
    let watch = |progress: InflateProgress| {
        most.fetch_max(progress.bytes, std::sync::atomic::Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    let options = InflateOptions::default();
    let out = directory.path().join("model");
    let report = inflate(&ModelSource::EmbeddedTiny, InflateRole::Draft, &out, &SMALL, &options, &watch);
    assert_eq!(most.into_inner(), report.expect("inflates").weight_bytes);
}

#[test]
fn a_directory_that_is_there_and_empty_is_filled_and_a_new_one_has_the_usual_mode() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let parent = tempfile::tempdir().expect("a directory");
    let (empty, new) = (parent.path().join("empty"), parent.path().join("a/new"));
    std::fs::create_dir(&empty).expect("made");
    let inode = std::fs::metadata(&empty).expect("there").ino();
    for out in [&empty, &new] {
        to_the_end(out, &SMALL, &InflateOptions::default()).expect("inflates");
        load(&ModelSource::Directory(out.clone()), ModelRole::Draft).expect("loads");
        assert!(names(out).iter().all(|name| !name.starts_with('.')), "{:?}", names(out));
    }
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode();
    assert_eq!(std::fs::metadata(&empty).expect("there").ino(), inode, "it may be a mount point");
    assert_eq!(mode(&new), mode(&empty));
    assert_eq!(names(&parent.path().join("a")), ["new"]);
}

#[test]
fn a_link_that_leads_nowhere_is_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(directory.path().join("absent"), &link).expect("linked");
    let error = to_the_end(&link, &SMALL, &InflateOptions::default()).expect_err("no directory");
    assert!(error.to_string().contains("link"), "{error}");
    assert_eq!(names(directory.path()), ["link"]);
}

#[test]
fn every_shape_has_its_name_and_takes_the_embedded_models() {
    let target = load(&ModelSource::EmbeddedTiny, ModelRole::Target).expect("loads");
    let draft = load(&ModelSource::EmbeddedTiny, ModelRole::Draft).expect("loads");
    for shape in SHAPES {
        assert_eq!(InflateShape::named(shape.name), Some(shape));
        for model in [&target, &draft] {
            Grown::new(model, &shape, None).expect(shape.name);
        }
    }
    assert_eq!(InflateShape::named("llama-9"), None);
}
