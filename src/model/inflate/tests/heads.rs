//! Inflated draft heads against their sources, each for its target.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use serde_json::{Value as Json, json};

use super::super::grown_head::GrownHead;
use super::super::head_plan;
use super::reference::{Slot, dspark, eagle3, fused, row, streams};
use super::*;
use crate::model::{BlockHead, Eagle3Head};

/// Grows everything; key heads are repeated, and heads get wider by a factor whose root is exact.
const LARGE: InflateShape = InflateShape {
    name: "large",
    vocab_size: 4201,
    hidden_size: 448,
    intermediate_size: 1100,
    layers: 7,
    heads: 8,
    kv_heads: 4,
    head_dim: 256,
    context_tokens_max: 4096,
    tied_head: true,
    qkv_bias: false,
};
/// Draft vocabulary of an inflated EAGLE-3 head.
const DRAFT_TOKENS: usize = 2100;
/// Width of the sources.
const SOURCE_HIDDEN: usize = 384;
/// Draft vocabulary of the source.
const SOURCE_DRAFT_TOKENS: usize = 2048;
/// Norms of query and key heads have the epsilon of the others, which tells on soft streams.
const TOLERANCE_HEAD_NORMS: f64 = 0.02;
/// The text so far.
const TOKENS: [usize; 5] = [1, 300, 42, 4000, 17];
/// What follows it.
const NEXT: usize = 99;

fn tiny(part: &str) -> ModelSource {
    ModelSource::Directory(format!("{}/assets/tiny/{part}", env!("CARGO_MANIFEST_DIR")).into())
}

fn tiny_head(part: &str) -> DraftHead {
    DraftHead::load(&tiny(part), None).expect("it loads").expect("it is a head")
}

fn role_of(part: &str) -> InflateRole {
    if part == "eagle3" { InflateRole::Eagle3 } else { InflateRole::DSpark }
}

fn options_of(part: &str) -> InflateOptions {
    let draft_vocab_size = (part == "eagle3").then_some(DRAFT_TOKENS);
    InflateOptions { threads: 2, draft_vocab_size, ..InflateOptions::default() }
}

fn inflate_to(
    source: &ModelSource,
    role: InflateRole,
    directory: &Path,
    shape: &InflateShape,
    options: &InflateOptions,
) -> Result<InflateReport, InflateError> {
    inflate(source, role, directory, shape, options, &|_| ControlFlow::Continue(()))
}

/// A target and a head that drafts for it.
struct Drafting {
    target: LoadedModel,
    head: DraftHead,
}

impl Drafting {
    fn load(target: &ModelSource, head: &ModelSource) -> Drafting {
        let target = load(target, ModelRole::Target).expect("loads").loaded;
        let head = DraftHead::load(head, Some(&target.spec)).expect("it fits").expect("it is a head");
        Drafting { target, head }
    }

    fn tiny(part: &str) -> Drafting {
        Drafting::load(&ModelSource::EmbeddedTiny, &tiny(part))
    }

    /// The same two, inflated.
    fn inflated(part: &str, shape: &InflateShape) -> Drafting {
        let directory = tempfile::tempdir().expect("a directory");
        let [target, head] = ["target", "head"].map(|name| directory.path().join(name));
        let plain = InflateOptions { threads: 2, ..InflateOptions::default() };
        let tiny_target = ModelSource::EmbeddedTiny;
        inflate_to(&tiny_target, InflateRole::Target, &target, shape, &plain).expect("inflates");
        inflate_to(&tiny(part), role_of(part), &head, shape, &options_of(part)).expect("inflates");
        Drafting::load(&ModelSource::Directory(target), &ModelSource::Directory(head))
    }

    fn eagle3(&self) -> &Eagle3Head {
        let DraftHead::Eagle3(head) = &self.head else { panic!("another kind") };
        head
    }

    fn block(&self) -> &BlockHead {
        let DraftHead::Block(head) = &self.head else { panic!("another kind") };
        head
    }

    /// The source's vectors as an inflated target has them.
    fn padded(&self, vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let width = self.head.spec().hidden_size;
        let constant = &row(&self.target.weights.embedding, 0)[SOURCE_HIDDEN..];
        vectors.iter().map(|vector| [vector, constant].concat()[..width].to_vec()).collect()
    }

    /// Logits of a pass over the text, and of the next one in the chain.
    fn eagle3_chain(&self, text: &Text) -> [Vec<f64>; 2] {
        let mut embedded = self.padded(&text.embedded(&[&TOKENS[1..], &[NEXT]].concat()));
        let mut fused = self.fused(text);
        let (output, first) = eagle3(self.eagle3(), &fused, &embedded);
        fused.push(output);
        embedded.extend(self.padded(&text.embedded(&[77])));
        let (_, second) = eagle3(self.eagle3(), &fused, &embedded);
        [first, second]
    }

    /// The slots of a pass over the text.
    fn dspark_block(&self, text: &Text) -> Vec<Slot> {
        let head = self.block();
        let mut block = vec![head.mask_token as usize; head.block_tokens];
        block[0] = NEXT;
        let embedded = self.padded(&text.embedded(&block));
        let previous = [NEXT, 5, 600, 7, 8, 900, 10];
        dspark(head, &self.fused(text), &embedded, &previous, &self.target.weights.head)
    }

    fn fused(&self, text: &Text) -> Vec<Vec<f64>> {
        fused(&self.head, &text.streams.iter().map(|stream| self.padded(stream)).collect::<Vec<_>>())
    }
}

/// What the tiny target makes of the text.
struct Text {
    target: LoadedModel,
    streams: Vec<Vec<Vec<f64>>>,
    /// Factor on streams and embeddings.
    loudness: f64,
}

impl Text {
    fn new(loudness: f64) -> Text {
        let target = load(&ModelSource::EmbeddedTiny, ModelRole::Target).expect("loads").loaded;
        let mut streams = streams(&target, &TOKENS);
        streams.iter_mut().flatten().flatten().for_each(|number| *number *= loudness);
        Text { target, streams, loudness }
    }

    fn embedded(&self, tokens: &[usize]) -> Vec<Vec<f64>> {
        let row = |&token: &usize| row(&self.target.weights.embedding, token);
        let soften = |row: Vec<f64>| row.iter().map(|number| number * self.loudness).collect();
        tokens.iter().map(row).map(soften).collect()
    }
}

/// Largest difference between logits of real tokens; no new token may win.
fn largest_difference(want: &[f64], got: &[f64]) -> f64 {
    let (real, new) = got.split_at(want.len());
    assert!(!new.is_empty() && new.iter().all(|&logit| logit < -1000.0), "new tokens never win");
    want.iter().zip(real).fold(0.0, |most, (want, got)| f64::max(most, (want - got).abs()))
}

fn eagle3_difference(shape: &InflateShape, text: &Text) -> f64 {
    let want = Drafting::tiny("eagle3").eagle3_chain(text);
    let got = Drafting::inflated("eagle3", shape).eagle3_chain(text);
    assert!(got.iter().all(|logits| logits.len() == DRAFT_TOKENS));
    want.iter().zip(&got).fold(0.0, |most, (want, got)| f64::max(most, largest_difference(want, got)))
}

/// The same of logits and confidences.
fn dspark_difference(shape: &InflateShape, text: &Text) -> f64 {
    let want = Drafting::tiny("dspark").dspark_block(text);
    let got = Drafting::inflated("dspark", shape).dspark_block(text);
    assert_eq!((want.len(), got.len()), (7, 7));
    want.iter().zip(&got).fold(0.0, |most, (want, got)| {
        let confidence = (want.confidence - got.confidence).abs();
        f64::max(most, largest_difference(&want.logits, &got.logits).max(confidence))
    })
}

#[test]
fn an_inflated_eagle3_head_drafts_the_same_through_a_chain() {
    let text = Text::new(1.0);
    let fewer_keys = InflateShape { kv_heads: 2, ..LARGE };
    for shape in [LARGE, fewer_keys, InflateShape { head_dim: 64, ..LARGE }] {
        let difference = eagle3_difference(&shape, &text);
        assert!(difference < TOLERANCE_EXACT, "{shape:?}: {difference}");
    }
    let twice = InflateShape { head_dim: 128, ..LARGE };
    let difference = eagle3_difference(&twice, &text);
    assert!(difference < TOLERANCE_ROUNDED, "{difference}");
}

#[test]
fn an_inflated_dspark_head_drafts_the_same_block() {
    for (head_dim, tied_head) in [(64, true), (128, false), (256, true)] {
        let shape = InflateShape { head_dim, tied_head, ..LARGE };
        let difference = dspark_difference(&shape, &Text::new(1.0));
        assert!(difference < TOLERANCE_EXACT, "heads {head_dim} wide: {difference}");
    }
}

/// Numbers as small as the root of epsilon: what the constant adds to them must be right.
#[test]
fn the_norms_of_soft_streams_have_the_same_epsilon() {
    let soft = Text::new(1e-3);
    let difference = eagle3_difference(&LARGE, &soft);
    assert!(difference < TOLERANCE_EXACT, "{difference}");
    let difference = dspark_difference(&LARGE, &soft);
    assert!(difference < TOLERANCE_HEAD_NORMS, "{difference}");
}

/// The other tests rest on this.
#[test]
fn an_inflated_target_has_the_streams_of_its_source_and_a_constant() {
    let drafting = Drafting::inflated("dspark", &LARGE);
    let text = Text::new(1.0);
    let got = streams(&drafting.target, &TOKENS);
    for (layer, want) in text.streams.iter().enumerate() {
        let (want, got) = (drafting.padded(want), &got[layer]);
        let difference =
            want.iter().flatten().zip(got.iter().flatten()).map(|(want, got)| (want - got).abs());
        let difference = difference.fold(0.0, f64::max);
        assert!(difference < TOLERANCE_EXACT, "entering layer {layer}: {difference}");
        assert!(got.iter().all(|stream| stream[SOURCE_HIDDEN] == want[0][SOURCE_HIDDEN]), "exactly");
    }
}

/// A tensor's number format and bytes.
fn stored(directory: &Path, name: &str) -> (safetensors::Dtype, Vec<u8>) {
    let file = std::fs::read(directory.join("model.safetensors")).expect("one file");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    let tensor = tensors.tensor(name).expect("there");
    (tensor.dtype(), tensor.data().to_vec())
}

#[test]
fn new_draft_tokens_draft_new_tokens_of_the_target() {
    let directory = tempfile::tempdir().expect("a directory");
    let out = directory.path().join("head");
    let options = options_of("eagle3");
    let report = inflate_to(&tiny("eagle3"), InflateRole::Eagle3, &out, &LARGE, &options).expect("inflates");
    let head = DraftHead::load(&ModelSource::Directory(out.clone()), None).expect("loads").expect("a head");
    let (map, source) =
        (&head.interface().draft_to_target, &tiny_head("eagle3").interface().draft_to_target.clone());
    let (map, source) = (map.as_ref().expect("a map"), source.as_ref().expect("a map"));
    let (real, new) = map.split_at(SOURCE_DRAFT_TOKENS);
    assert_eq!(real, source);
    assert!(new.iter().copied().eq(4096..4096 + 52));

    let (dtype, drafted) = stored(&out, "t2d");
    assert_eq!((dtype, drafted.len()), (safetensors::Dtype::BOOL, LARGE.vocab_size));
    for (token, &drafted) in (0..).zip(&drafted) {
        assert_eq!(drafted, u8::from(map.contains(&token)), "{token}");
    }
    let numbers = head_plan::parameters(&head);
    assert_eq!(report.parameters_after, numbers, "maps are no parameters");
    assert_eq!(report.parameters_before, 2_754_048);
}

/// Shapes of the tensors of a tiny head that is inflated for an 8B model, by their names.
fn shapes_for_8b(part: &str) -> BTreeMap<String, Vec<usize>> {
    let shape = InflateShape::named("llama-3-8b").expect("a shape");
    let head = tiny_head(part);
    let grown = GrownHead::new(&head, &shape, &InflateOptions::default()).expect("fits");
    let files = ModelFiles::open(&tiny(part), ModelRole::Draft).expect("opens");
    let tensors = head_plan::tensors(&head, &grown, &TensorFiles::open(&files).expect("opens"));
    tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape())).collect()
}

#[test]
fn heads_get_the_dimensions_of_those_of_a_large_target() {
    let eagle3 = shapes_for_8b("eagle3");
    for (name, shape) in [
        ("fc.weight", &[4096, 3 * 4096][..]),
        ("midlayer.self_attn.q_proj.weight", &[4096, 2 * 4096]),
        ("midlayer.self_attn.k_proj.weight", &[1024, 2 * 4096]),
        ("midlayer.mlp.up_proj.weight", &[14_336, 4096]),
        ("lm_head.weight", &[32_000, 4096]),
        ("d2t", &[32_000]),
        ("t2d", &[128_256]),
    ] {
        assert_eq!(eagle3.get(name).map(Vec::as_slice), Some(shape), "{name}");
    }
    assert_eq!(eagle3.len(), 15, "the tensors of the source: {eagle3:?}");

    let dspark = shapes_for_8b("dspark");
    for (name, shape) in [
        ("markov_head.markov_w1.weight", &[128_256, 256][..]),
        ("markov_head.markov_w2.weight", &[128_256, 256]),
        ("confidence_head.proj.weight", &[1, 4096 + 256]),
        ("confidence_head.proj.bias", &[1]),
        ("layers.4.self_attn.q_norm.weight", &[128]),
        ("layers.4.mlp.down_proj.weight", &[4096, 14_336]),
    ] {
        assert_eq!(dspark.get(name).map(Vec::as_slice), Some(shape), "{name}");
    }
    assert!(!dspark.contains_key("layers.5.mlp.down_proj.weight"));
    assert_eq!(dspark.len(), 7 + 5 * 11, "{dspark:?}");
}

/// A copy of a tiny head with another config.json.
fn changed(part: &str, directory: &Path, change: impl FnOnce(&mut Json)) -> ModelSource {
    let ModelSource::Directory(from) = tiny(part) else { panic!("a directory") };
    let to = directory.join("changed");
    std::fs::create_dir(&to).expect("made");
    std::fs::copy(from.join("model.safetensors"), to.join("model.safetensors")).expect("copied");
    let text = std::fs::read(from.join("config.json")).expect("readable");
    let mut config = serde_json::from_slice(&text).expect("JSON");
    change(&mut config);
    std::fs::write(to.join("config.json"), config.to_string()).expect("written");
    ModelSource::Directory(to)
}

#[test]
fn config_json_keeps_what_is_no_dimension() {
    let directory = tempfile::tempdir().expect("a directory");
    let out = directory.path().join("head");
    inflate_to(&tiny("dspark"), InflateRole::DSpark, &out, &LARGE, &options_of("dspark")).expect("inflates");
    let config: Json =
        serde_json::from_slice(&std::fs::read(out.join("config.json")).expect("there")).expect("JSON");
    for (key, value) in [
        ("architectures", json!(["Qwen3DSparkModel"])),
        ("model_type", json!("qwen3")),
        ("target_layer_ids", json!([0, 2, 4])),
        ("block_size", json!(7)),
        ("mask_token_id", json!(1)),
        ("num_hidden_layers", json!(5)),
        ("num_target_layers", json!(7)),
        ("markov_rank", json!(256)),
        ("hidden_size", json!(448)),
        ("vocab_size", json!(4201)),
        ("max_position_embeddings", json!(4096)),
        ("max_window_layers", json!(5)),
        ("layer_types", json!(vec!["full_attention"; 5])),
        ("sliding_window", Json::Null),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert!(config.get("draft_vocab_size").is_none(), "it drafts the target's tokens");
}

#[test]
fn a_config_json_of_the_speculators_library_keeps_its_layout() {
    let directory = tempfile::tempdir().expect("a directory");
    let source = changed("dspark", directory.path(), |config| {
        let layers = config.take();
        *config = json!({
            "speculators_model_type": "dspark", "transformer_layer_config": layers, "block_size": 7,
            "mask_token_id": 1, "aux_hidden_state_layer_ids": [1, 3, 5], "target_hidden_size": 384,
            "dspark_config": {"markov_rank": 64},
        });
    });
    let out = directory.path().join("head");
    inflate_to(&source, InflateRole::DSpark, &out, &LARGE, &options_of("dspark")).expect("inflates");
    let head = DraftHead::load(&ModelSource::Directory(out), None).expect("loads").expect("a head");
    assert_eq!(head.spec().hidden_size, 448);
    assert_eq!(head.interface().features.layers, Some(vec![1, 3, 5]));
}

#[test]
fn every_shape_takes_the_tiny_heads() {
    let options = InflateOptions { draft_vocab_size: Some(16_000), ..InflateOptions::default() };
    for shape in SHAPES {
        GrownHead::new(&tiny_head("eagle3"), &shape, &options).expect(shape.name);
        GrownHead::new(&tiny_head("dspark"), &shape, &InflateOptions::default()).expect(shape.name);
    }
}

fn refusal(source: &ModelSource, role: InflateRole, options: &InflateOptions) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let out = directory.path().join("head");
    let error = inflate_to(source, role, &out, &LARGE, options).expect_err("refused");
    assert!(!out.exists(), "nothing is written before the check");
    error.to_string()
}

#[test]
fn a_role_that_is_not_the_directory_s_is_refused_with_what_it_holds() {
    use InflateRole::{DSpark, Draft, Eagle3, Target};
    for (part, role, words) in [
        (
            "target",
            Eagle3,
            "holds a model, not a draft head (EAGLE-3): inflate it with the role target or draft",
        ),
        ("draft", DSpark, "holds a model, not a draft head (DSpark)"),
        (
            "eagle3",
            DSpark,
            "holds a draft head (EAGLE-3), not a draft head (DSpark): inflate it with the role eagle3",
        ),
        (
            "dspark",
            Eagle3,
            "holds a draft head (DSpark), not a draft head (EAGLE-3): inflate it with the role dspark",
        ),
        ("eagle3", Target, "holds a draft head (EAGLE-3), not a model: inflate it with the role eagle3"),
        ("dspark", Draft, "holds a draft head (DSpark), not a model: inflate it with the role dspark"),
    ] {
        let message = refusal(&tiny(part), role, &InflateOptions::default());
        assert!(message.contains(part) && message.contains(words), "{message}");
    }
    let message = refusal(&ModelSource::EmbeddedTiny, Eagle3, &InflateOptions::default());
    assert!(message.contains("embedded:tiny holds a model"), "{message}");
}

#[test]
fn vocabularies_that_do_not_fit_are_refused_with_the_numbers() {
    let draft = |tokens| InflateOptions { draft_vocab_size: Some(tokens), ..InflateOptions::default() };
    let eagle3 = |options| refusal(&tiny("eagle3"), InflateRole::Eagle3, &options);
    let most = "can be from 2048 to 2153: the target's grows from 4096 to 4201";
    for (tokens, options) in [(2154, draft(2154)), (2047, draft(2047)), (32_000, InflateOptions::default())] {
        let message = eagle3(options);
        assert!(message.contains(&format!("is {tokens}, and {most}")), "{message}");
    }
    let small = InflateOptions { vocab_size: Some(4000), ..draft(2100) };
    assert!(eagle3(small).contains("the vocabulary is 4000, at least 4096 is needed"));
    let message = refusal(&tiny("dspark"), InflateRole::DSpark, &draft(2100));
    assert!(message.contains("it drafts all tokens of the target, which are 4201"), "{message}");
    let message = refusal(&ModelSource::EmbeddedTiny, InflateRole::Target, &draft(2100));
    assert!(message.contains("a model has no draft vocabulary"), "{message}");
}

#[test]
fn variants_that_would_not_stay_the_same_function_are_refused() {
    type Change = fn(&mut Json);
    let changes: [(&str, Change); 3] = [
        ("`norm_before_residual`", |config| config["norm_before_residual"] = json!(true)),
        ("`norm_output`", |config| config["norm_output"] = json!(true)),
        ("does not list the layers", |config| config["eagle_config"] = Json::Null),
    ];
    for (words, change) in changes {
        let directory = tempfile::tempdir().expect("a directory");
        let source = changed("eagle3", directory.path(), change);
        let message = refusal(&source, InflateRole::Eagle3, &options_of("eagle3"));
        assert!(message.contains(words), "{message}");
    }
}
