//! What the deployment says about a head goes before what its files say, and is checked like it.

use serde_json::json;

use super::synthetic::{Head, TARGET_LAYERS};
use crate::model::draft_head::DraftHead;
use crate::model::tests::directory::{Directory, HIDDEN};
use crate::model::{DraftKind, HeadKind, HeadSettings, ModelSource, load_model, load_pair, load_pair_within};
use crate::protocol::ModelRole;

const SETTLED: &str = "in the deployment's TOML";

fn kind(kind: HeadKind) -> HeadSettings {
    HeadSettings { kind: Some(DraftKind::Head(kind)), ..HeadSettings::default() }
}

fn norm(norm: bool) -> HeadSettings {
    HeadSettings { norm_before_residual: Some(norm), ..HeadSettings::default() }
}

fn layers(layers: &[usize]) -> HeadSettings {
    HeadSettings { hidden_state_layers: Some(layers.to_vec()), ..HeadSettings::default() }
}

fn normalises_residual(head: &DraftHead) -> bool {
    match head {
        DraftHead::Eagle3(head) => head.norm_before_residual,
        DraftHead::Block(head) => panic!("{}", head.kind),
    }
}

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[test]
fn a_kind_that_is_given_goes_before_every_name_of_config_json() {
    for (key, value) in [
        ("architectures", json!(["MedusaModel"])),
        ("architectures", json!(["Qwen3DSparkModel"])),
        ("architectures", json!(["LlamaForCausalLMEagle"])),
    ] {
        let mut head = Head::release();
        head.set(key, value);
        assert_eq!(head.load_with(&kind(HeadKind::Eagle3)).kind(), HeadKind::Eagle3);
    }
    for name in [json!("peagle"), json!("dflash"), json!(3)] {
        let mut head = Head::speculators();
        head.set("speculators_model_type", name);
        assert_eq!(head.load_with(&kind(HeadKind::Eagle3)).kind(), HeadKind::Eagle3);
    }
    let mut dflash = Head::dflash();
    dflash.set("architectures", json!(["DSparkMTP"]));
    assert_eq!(dflash.load_with(&kind(HeadKind::DFlash)).kind(), HeadKind::DFlash);
}

#[test]
fn what_the_tensors_lack_or_have_too_many_of_is_refused_whatever_kind_is_given() {
    let error = Head::dflash().error_with(&kind(HeadKind::DSpark));
    assert_says(&error, &["`markov_rank`"]);
    let error = Head::dspark().error_with(&kind(HeadKind::DFlash));
    assert_says(&error, &["is not part of the model"]);
    let mut eagle = Head::release();
    eagle.remove("midlayer.hidden_norm.weight");
    assert_says(&eagle.error_with(&kind(HeadKind::Eagle3)), &["`midlayer.hidden_norm.weight`"]);
    let model = Directory::new("llama");
    model.write_all();
    let loaded = DraftHead::load_with(&model.source(), None, &kind(HeadKind::Eagle3));
    let error = loaded.expect_err("a model is no head").to_string();
    assert_says(&error, &["`num_hidden_layers` is 2", "EAGLE-3 heads have one layer"]);
}

#[test]
fn a_model_with_the_name_of_a_head_drafts_once_it_is_called_a_model() {
    let mut named = Directory::new("llama");
    named.set("architectures", json!(["LlamaForCausalLMEagle"])).write_all();
    let target = Directory::new("llama");
    target.write_all();
    let (target, named) = (target.source(), named.source());
    let error = load_pair(&target, Some(&named)).expect_err("it looks like a head").to_string();
    assert_says(&error, &["EAGLE-1 or EAGLE-2 heads are not supported", "set draft.kind"]);
    let settings = HeadSettings { kind: Some(DraftKind::Model), ..HeadSettings::default() };
    let pair = load_pair_within(&target, Some(&named), &settings, None).expect("it is a model");
    assert!(pair.draft.is_some_and(|draft| draft.head().is_none()));
    load_model(&named, ModelRole::Target).expect("its architecture's name is ignored");
}

#[test]
fn a_head_that_is_called_a_model_is_loaded_as_one_and_lacks_its_tensors() {
    let source = |part: &str| {
        ModelSource::Directory(format!("{}/assets/tiny/{part}", env!("CARGO_MANIFEST_DIR")).into())
    };
    let settings = HeadSettings { kind: Some(DraftKind::Model), ..HeadSettings::default() };
    let pair = load_pair_within(&ModelSource::EmbeddedTiny, Some(&source("eagle3")), &settings, None);
    assert_says(&pair.expect_err("it is no model").to_string(), &["has no tensor `model."]);
}

#[test]
fn the_residual_is_normalised_as_the_deployment_says() {
    assert!(normalises_residual(&Head::speculators().load()));
    assert!(!normalises_residual(&Head::speculators().load_with(&norm(false))));
    assert!(normalises_residual(&Head::release().load_with(&norm(true))));
    let mut unsaid = Head::speculators();
    unsaid.unset("norm_before_residual");
    for given in [true, false] {
        assert_eq!(normalises_residual(&unsaid.load_with(&norm(given))), given);
    }
    let mut wrong = Head::speculators();
    wrong.set("norm_before_residual", json!("yes"));
    assert!(!normalises_residual(&wrong.load_with(&norm(false))));
}

#[test]
fn hidden_states_are_taken_where_the_deployment_says_in_its_order() {
    let given = layers(&[6, 0, 3]);
    let taken = |head: &Head| head.load_with(&given).interface().features.layers.clone();
    let mut disagreeing = Head::release();
    disagreeing.set("target_layer_ids", json!([1, 4, 6]));
    let mut unplaced = Head::release();
    unplaced.set("aux_hidden_state_layer_ids", json!([1, 4, 6]));
    let mut unlisted = Head::release();
    unlisted.unset("eagle_config");
    let mut unlisted_block = Head::dspark();
    unlisted_block.unset("target_layer_ids");
    let heads = [Head::release(), disagreeing, unplaced, unlisted, Head::dflash(), unlisted_block];
    for (number, head) in heads.iter().enumerate() {
        assert_eq!(taken(head), Some(vec![6, 0, 3]), "head {number}");
    }
}

#[test]
fn layers_of_the_deployment_that_do_not_fit_are_refused_by_the_name_of_their_key() {
    for (given, words) in [
        (vec![1, 4], "draft.hidden_state_layers is [1, 4]: lists 2 layers, but `fc.weight` takes 3"),
        (vec![1, 4, 4], "draft.hidden_state_layers is [1, 4, 4]: names a layer twice"),
        (
            vec![1, 4, TARGET_LAYERS],
            "draft.hidden_state_layers is [1, 4, 8]: asks for the stream that enters layer 8, counted from 0, \
             but the target has 8 layers",
        ),
    ] {
        for head in [Head::release(), Head::dspark()] {
            assert_eq!(head.error_with(&layers(&given)), words);
        }
    }
    let last = Head::release().load_with(&layers(&[TARGET_LAYERS - 1, 0, 1]));
    assert_eq!(last.interface().features.layers, Some(vec![7, 0, 1]));
}

#[test]
fn settings_that_mean_nothing_for_what_the_directory_holds_are_refused() {
    for (head, kind) in [(Head::dflash(), "DFlash"), (Head::dspark(), "DSpark")] {
        let error = head.error_with(&norm(true));
        assert_says(&error, &["draft.norm_before_residual is true: only EAGLE-3 heads have it, and "]);
        assert_says(&error, &[&format!("holds a draft head ({kind}); remove it")]);
    }
    let model = Directory::new("llama");
    model.write_all();
    let called_model =
        HeadSettings { kind: Some(DraftKind::Model), hidden_state_layers: Some(vec![1]), ..norm(false) };
    for (settings, words) in [
        (norm(false), "draft.norm_before_residual is false: only EAGLE-3 heads have it"),
        (layers(&[1, 4]), "draft.hidden_state_layers is [1, 4]: only draft heads have it"),
        (called_model, "draft.norm_before_residual is false: only EAGLE-3 heads have it"),
    ] {
        let loaded = DraftHead::load_with(&model.source(), None, &settings);
        let error = loaded.expect_err("it would be ignored").to_string();
        assert_says(&error, &[words, "holds a model; remove it"]);
    }
}

#[test]
fn errors_of_config_json_name_the_key_that_settles_them() {
    type Case = (fn() -> Head, fn(&mut Head) -> &mut Head, String);
    let ids = "draft.hidden_state_layers in the deployment's TOML";
    let cases: [Case; 9] = [
        (
            Head::speculators,
            |h| h.unset("norm_before_residual"),
            format!("; set it there, or draft.norm_before_residual {SETTLED}"),
        ),
        (
            Head::speculators,
            |h| h.set("norm_before_residual", json!("yes")),
            format!("; correct it there, or set draft.norm_before_residual {SETTLED}"),
        ),
        (
            Head::release,
            |h| h.set("aux_hidden_state_layer_ids", json!([1, 4, 6])),
            format!("; correct it there, or set {ids}"),
        ),
        (
            Head::release,
            |h| h.set("eagle_config/eagle_aux_hidden_state_layer_ids", json!([1, 4])),
            format!("but `fc.weight` takes 3; correct it there, or set {ids}"),
        ),
        (
            Head::release,
            |h| h.unset("eagle_config").add("fc.weight", &[HIDDEN, 2 * HIDDEN]),
            format!("takes 2 hidden states; set it there, or {ids}"),
        ),
        (
            Head::dspark,
            |h| h.unset("target_layer_ids"),
            format!("has no `target_layer_ids`; set it there, or {ids}"),
        ),
        (
            Head::release,
            |h| h.set("architectures", json!(["MedusaModel"])),
            format!("DFlash and DSpark are; correct it there, or set draft.kind {SETTLED}"),
        ),
        (
            Head::speculators,
            |h| h.set("speculators_model_type", json!("mtp")),
            format!("DFlash and DSpark are; correct it there, or set draft.kind {SETTLED}"),
        ),
        (
            Head::release,
            |h| h.unset("architectures").remove("midlayer.hidden_norm.weight"),
            format!("set it there, or draft.kind {SETTLED}"),
        ),
    ];
    for (head, change, words) in cases {
        let mut head = head();
        change(&mut head);
        let error = head.error();
        assert!(error.ends_with(&words), "{error:?} does not end with {words:?}");
    }
    let mut shape = Head::release();
    shape.set("num_hidden_layers", json!(2));
    assert!(!shape.error().contains(SETTLED), "no key settles the shape");
}
