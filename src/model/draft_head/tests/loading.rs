//! Heads of every layout, as they are read.

use serde_json::json;

use super::synthetic::{BLOCK, DRAFT_VOCAB, FEATURES, Head, RANK};
use crate::model::draft_head::{BlockHead, DraftHead, Eagle3Head, FeatureNorm};
use crate::model::tests::directory::{Directory, HIDDEN, VOCAB};
use crate::model::{DraftWeights, HeadKind, ModelSource, load, load_pair};
use crate::protocol::ModelRole;

fn eagle3(head: &Head) -> Eagle3Head {
    match head.load() {
        DraftHead::Eagle3(head) => *head,
        DraftHead::Block(head) => panic!("{}", head.kind),
    }
}

fn block(head: &Head) -> BlockHead {
    match head.load() {
        DraftHead::Block(head) => *head,
        DraftHead::Eagle3(_) => panic!("EAGLE-3"),
    }
}

#[test]
fn both_spellings_of_eagle3_are_read() {
    let release = eagle3(&Head::release());
    assert_eq!(release.interface.features.layers, Some(vec![1, 4, 6]), "the streams that enter them");
    assert_eq!(
        (release.interface.features.count, release.interface.features.target_hidden_size),
        (FEATURES, HIDDEN)
    );
    assert_eq!(release.interface.draft_to_target, Some(vec![0, 2, 4, 6]));
    assert_eq!(release.interface.output_head.as_ref().expect("its own").shape, [DRAFT_VOCAB, HIDDEN]);
    assert!(release.interface.embedding.is_none() && release.layer.query_norm.is_none());
    assert!(!release.norm_before_residual && !release.norm_output);
    assert_eq!(release.layer.query.weight.shape, [8, 2 * HIDDEN], "embedding and hidden state");

    let speculators = eagle3(&Head::speculators());
    assert_eq!(speculators.interface.features, release.interface.features);
    assert!(speculators.norm_before_residual && speculators.layer.key_norm.is_some());
}

#[test]
fn a_head_without_a_telling_name_is_known_by_its_tensors() {
    let unnamed = |mut head: Head| {
        head.set("architectures", json!(["LlamaForCausalLM"]));
        head.load().kind()
    };
    assert_eq!(unnamed(Head::release()), HeadKind::Eagle3);
    assert_eq!(unnamed(Head::dflash()), HeadKind::DFlash);
    assert_eq!(unnamed(Head::dspark()), HeadKind::DSpark);
    let mut as_model = Head::release();
    as_model.set("architectures", json!(["LlamaForCausalLM"]));
    as_model.made.write_all();
    let error = load(&as_model.made.source(), ModelRole::Draft).expect_err("it is no model").to_string();
    assert!(error.contains("holds a draft head (EAGLE-3), not a model"), "{error}");
}

#[test]
fn the_layers_of_a_head_that_lists_none_are_those_of_the_release() {
    let mut head = Head::release();
    head.unset("eagle_config");
    assert_eq!(eagle3(&head).interface.features.layers, Some(vec![2, 4, 5]));
    let alone = head.load_alone().expect("it loads").expect("it is a head");
    assert_eq!(alone.interface().features.layers, None, "which the target decides");
}

#[test]
fn the_fusion_says_how_many_hidden_states_there_are() {
    for (count, layers) in [(1, json!([3])), (2, json!([3, 6])), (5, json!([1, 2, 3, 4, 6]))] {
        let mut head = Head::release();
        head.add("fc.weight", &[HIDDEN, count * HIDDEN]);
        head.set("eagle_config/eagle_aux_hidden_state_layer_ids", layers);
        assert_eq!(eagle3(&head).interface.features.count, count);
    }
}

#[test]
fn every_convention_of_counting_layers_means_the_same_streams() {
    let mut deepspec = Head::release();
    deepspec.unset("eagle_config").set("target_layer_ids", json!([0, 3, 5]));
    assert_eq!(eagle3(&deepspec).interface.features.layers, Some(vec![1, 4, 6]), "outputs of layers");
    let mut embedding = Head::dspark();
    embedding.set("target_layer_ids", json!([-1, 3, 5]));
    assert_eq!(block(&embedding).interface.features.layers, Some(vec![0, 4, 6]), "−1 is the embedding");
    let mut speculators = Head::dspark();
    let config = speculators.made.config.clone();
    speculators.made.config = json!({
        "speculators_model_type": "dspark", "transformer_layer_config": config, "block_size": BLOCK,
        "mask_token_id": 1, "markov_rank": RANK, "aux_hidden_state_layer_ids": [1, 4, 6]
    });
    assert_eq!(block(&speculators).interface.features.layers, Some(vec![1, 4, 6]));
}

#[test]
fn variants_of_eagle3_are_told_apart() {
    let mut joint = Head::release();
    joint.set("eagle_config/norm_before_fc", json!(true)).add("input_norm.weight", &[FEATURES * HIDDEN]);
    assert!(matches!(eagle3(&joint).feature_norm, FeatureNorm::Joint(_)));

    let mut each = Head::speculators();
    each.set("fc_norm", json!(true)).set("norm_output", json!(true));
    (0..FEATURES).for_each(|feature| {
        each.add(&format!("fc_norm.{feature}.weight"), &[HIDDEN]);
    });
    let each = eagle3(&each);
    assert!(matches!(&each.feature_norm, FeatureNorm::Each(norms) if norms.len() == FEATURES));
    assert!(each.norm_output);

    let mut full = Head::release();
    full.unset("draft_vocab_size").remove("d2t").remove("lm_head.weight");
    full.add("embed_tokens.weight", &[VOCAB, HIDDEN]);
    let full = eagle3(&full);
    assert!(
        full.interface.draft_to_target.is_none() && full.interface.output_head.is_none(),
        "the target's vocabulary and head"
    );
    assert!(full.interface.embedding.is_some());
}

#[test]
fn the_rotary_embedding_is_the_head_s_own() {
    let mut head = Head::release();
    assert_eq!(eagle3(&head).spec.rope.theta, 500.0);
    head.unset("rope_theta");
    assert_eq!(eagle3(&head).spec.rope.theta, 10_000.0, "not the target's");
}

#[test]
fn a_block_drafts_a_token_for_each_slot_or_all_but_the_anchor_s() {
    let dspark = block(&Head::dspark());
    assert_eq!((dspark.block_tokens, dspark.drafts(), dspark.mask_token), (BLOCK, BLOCK, 1));
    assert_eq!(dspark.interface.features.layers, Some(vec![1, 4, 6]), "outputs of layers 0, 3 and 5");
    assert_eq!(dspark.markov.expect("a Markov head").w1.shape, [VOCAB, RANK]);
    let confidence = dspark.confidence.expect("a confidence head");
    assert!(confidence.with_markov && confidence.bias.is_some());

    let dflash = block(&Head::dflash());
    assert_eq!((dflash.block_tokens, dflash.drafts()), (BLOCK, BLOCK - 1));
    assert!(dflash.markov.is_none() && dflash.confidence.is_none());
    assert_eq!(dflash.layers.len(), 2);
}

#[test]
fn a_confidence_head_may_be_absent_or_read_the_output_alone() {
    let mut without = Head::dspark();
    without.set("enable_confidence_head", json!(false));
    without.remove("confidence_head.proj.weight").remove("confidence_head.proj.bias");
    assert!(block(&without).confidence.is_none());
    let mut plain = Head::dspark();
    plain.set("confidence_head_with_markov", json!(false));
    plain.add("confidence_head.proj.weight", &[1, HIDDEN]).remove("confidence_head.proj.bias");
    let plain = block(&plain).confidence.expect("a confidence head");
    assert!(!plain.with_markov && plain.bias.is_none());
}

#[test]
fn the_tiny_heads_fit_the_embedded_target() {
    let target =
        load(&ModelSource::EmbeddedTiny, ModelRole::Target).expect("the embedded target").loaded.spec;
    let tiny = |name: &str| {
        let directory = format!("{}/assets/tiny/{name}", env!("CARGO_MANIFEST_DIR"));
        let source = ModelSource::Directory(directory.into());
        DraftHead::load(&source, Some(&target)).expect("it loads").expect("it is a head")
    };
    let DraftHead::Eagle3(eagle3) = tiny("eagle3") else { panic!("another kind") };
    assert_eq!(eagle3.interface.features.layers, Some(vec![1, 3, 5]));
    assert_eq!(eagle3.interface.draft_to_target.map(|map| map.len()), Some(2048));
    let DraftHead::Block(dspark) = tiny("dspark") else { panic!("another kind") };
    assert_eq!((dspark.kind, dspark.drafts()), (HeadKind::DSpark, 7));
    assert_eq!(dspark.interface.features.layers, Some(vec![1, 3, 5]));
}

#[test]
fn an_ordinary_model_is_no_head() {
    let model = Directory::new("llama");
    model.write_all();
    assert!(DraftHead::load(&model.source(), None).expect("it is readable").is_none());
}

#[test]
fn a_head_is_refused_where_a_model_is_expected() {
    let head = Head::release();
    head.made.write_all();
    let error = load(&head.made.source(), ModelRole::Target).expect_err("it is no model").to_string();
    assert!(error.contains("holds a draft head (EAGLE-3), not a model"), "{error}");
}

#[test]
fn the_draft_of_a_pair_may_be_a_head_that_fits_its_target() {
    let tiny = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny");
    for (directory, kind) in [("eagle3", HeadKind::Eagle3), ("dspark", HeadKind::DSpark)] {
        let source = ModelSource::Directory(tiny.join(directory));
        let pair = load_pair(&ModelSource::EmbeddedTiny, Some(&source)).expect("it fits");
        assert_eq!(pair.draft.as_ref().and_then(DraftWeights::head).map(DraftHead::kind), Some(kind));
        assert_eq!(pair.target.loaded.spec.vocab_size, 4096);
    }
    let head = Head::release();
    head.made.write_all();
    let pair = load_pair(&ModelSource::EmbeddedTiny, Some(&head.made.source()));
    let error = pair.expect_err("it is for another target").to_string();
    assert!(error.contains("the head was made for another"), "{error}");
}
