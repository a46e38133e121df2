//! What a model directory holds, and whether it can draft for a target.
#![forbid(unsafe_code)]

use super::report::DoctorReport;
use crate::model::{
    BlockHead, DraftHead, Eagle3Head, FeatureNorm, Features, HeadSettings, Interface, Model, ModelError,
    ModelSource, ModelSpec, RopeScaling, Tensor, load, load_model, same_token_list,
};
use crate::protocol::ModelRole;

/// Describes the model or draft head of `source`, where `settings` go before what its files say.
/// With a `target`, checks that it can draft for it.
///
/// # Errors
/// Why it cannot be loaded, or does not fit the target.
pub fn describe_model(
    source: &ModelSource,
    target: Option<&ModelSource>,
    settings: &HeadSettings,
) -> Result<DoctorReport, ModelError> {
    let mut report = DoctorReport::default();
    let Some(target_source) = target else {
        match DraftHead::load_with(source, None, settings)? {
            Some(head) => draft_head(&mut report, &head, "not checked (give it with --target)"),
            None => model(&mut report, &load_model(source, ModelRole::Target)?),
        }
        return Ok(report);
    };
    let target = load(target_source, ModelRole::Target)?;
    if let Some(head) = DraftHead::load_with(source, Some(&target.loaded.spec), settings)? {
        draft_head(&mut report, &head, "fits");
        return Ok(report);
    }
    let draft = load_model(source, ModelRole::Draft)?;
    same_token_list(&target.tokenizer, &draft.tokenizer).map_err(|mismatch| ModelError::Pair {
        target: target_source.to_string(),
        draft: source.to_string(),
        mismatch,
    })?;
    model(&mut report, &draft);
    report.finding("as a draft model", format!("has the tokens of {target_source}"));
    Ok(report)
}

fn model(report: &mut DoctorReport, model: &Model) {
    report.finding("kind", format!("model ({})", model.loaded.spec.model_type));
    layers(report, &model.loaded.spec);
    report.finding("context", format!("{} tokens", model.own_context_tokens_max));
    report.finding("chat template", if model.chat_template.is_some() { "yes" } else { "no" });
}

/// Shape of the layers of a model or a head.
fn layers(report: &mut DoctorReport, spec: &ModelSpec) {
    let heads = format!("{} query and {} key heads of {}", spec.heads, spec.kv_heads, spec.head_dim);
    let widths = format!("hidden size {}, MLP {}", spec.hidden_size, spec.intermediate_size);
    report.finding("layers", format!("{}: {widths}, {heads}", spec.layers));
    report.finding("vocabulary", format!("{} tokens", spec.vocab_size));
    let scaling = match spec.rope.scaling {
        RopeScaling::Default => "",
        RopeScaling::Linear { .. } => ", scaled linearly",
        RopeScaling::Llama3 { .. } => ", scaled as Llama 3",
    };
    report.finding("rotary embedding", format!("theta {}{scaling}", spec.rope.theta));
}

fn draft_head(report: &mut DoctorReport, head: &DraftHead, target: &str) {
    report.finding("kind", format!("draft head ({})", head.kind()));
    layers(report, head.spec());
    report.finding("hidden states", hidden_states(&head.interface().features));
    match head {
        DraftHead::Eagle3(head) => eagle3(report, head),
        DraftHead::Block(head) => block(report, head),
    }
    own(report, head.interface());
    report.finding("target", target);
    report.finding("served", "on both backends, under every policy");
}

fn hidden_states(features: &Features) -> String {
    let Features { count, target_hidden_size, layers } = features;
    let where_from = match layers {
        Some(layers) => {
            format!("entering layers {}", layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
        }
        None => "from the usual layers of the target".to_owned(),
    };
    format!("{count} of width {target_hidden_size}, {where_from}")
}

fn eagle3(report: &mut DoctorReport, head: &Eagle3Head) {
    report.finding("drafts", format!("one token a pass{}", draft_vocabulary(&head.interface)));
    let mut norms = vec![if head.norm_before_residual { "normalised residual" } else { "residual as it is" }];
    match head.feature_norm {
        FeatureNorm::Raw => {}
        FeatureNorm::Joint(_) => norms.push("hidden states normalised together"),
        FeatureNorm::Each(_) => norms.push("hidden states normalised one by one"),
    }
    if head.norm_output {
        norms.push("normalised output feeds the next pass");
    }
    report.finding("variant", norms.join(", "));
}

fn block(report: &mut DoctorReport, head: &BlockHead) {
    let vocabulary = draft_vocabulary(&head.interface);
    report.finding("drafts", format!("{} tokens a pass{vocabulary}", head.drafts()));
    let slots =
        if head.sample_from_anchor { "the anchor's slot drafts" } else { "the anchor's slot is dropped" };
    report.finding("block", format!("{} tokens, mask token {}; {slots}", head.block_tokens, head.mask_token));
    if let Some(markov) = &head.markov {
        report.finding("Markov head", format!("rank {}", markov.w1.shape[1]));
        let confidence = match &head.confidence {
            None => "none",
            Some(confidence) if confidence.with_markov => "reads the output and the Markov feature",
            Some(_) => "reads the output",
        };
        report.finding("confidence head", confidence);
    }
}

fn draft_vocabulary(interface: &Interface) -> String {
    match interface.draft_to_target {
        Some(_) => format!(", of {} of the target's tokens", interface.draft_tokens),
        None => String::new(),
    }
}

fn own(report: &mut DoctorReport, interface: &Interface) {
    let whose = |own: &Option<Tensor>| if own.is_some() { "its own" } else { "the target's" };
    report.finding("embedding", whose(&interface.embedding));
    report.finding("output head", whose(&interface.output_head));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(part: &str) -> ModelSource {
        ModelSource::Directory(format!("{}/assets/tiny/{part}", env!("CARGO_MANIFEST_DIR")).into())
    }

    /// What is found about the model, as `subject: finding`.
    fn findings(source: &ModelSource, target: Option<&ModelSource>) -> Vec<String> {
        let report = describe_model(source, target, &HeadSettings::default()).expect("it is readable");
        report.findings.iter().map(|finding| format!("{}: {}", finding.subject, finding.value)).collect()
    }

    fn assert_has(found: &[String], expected: &[&str]) {
        for line in expected {
            assert!(found.iter().any(|finding| finding == line), "no {line:?} in {found:?}");
        }
    }

    #[test]
    fn heads_are_described_with_what_they_read_and_draft() {
        let target = ModelSource::EmbeddedTiny;
        let eagle3 = [
            "kind: draft head (EAGLE-3)",
            "hidden states: 3 of width 384, entering layers 1, 3, 5",
            "drafts: one token a pass, of 2048 of the target's tokens",
            "variant: residual as it is",
            "output head: its own",
            "target: fits",
        ];
        assert_has(&findings(&tiny("eagle3"), Some(&target)), &eagle3);
        let dspark = [
            "kind: draft head (DSpark)",
            "drafts: 7 tokens a pass",
            "block: 7 tokens, mask token 1; the anchor's slot drafts",
            "Markov head: rank 64",
            "confidence head: reads the output and the Markov feature",
            "output head: the target's",
            "target: not checked (give it with --target)",
        ];
        assert_has(&findings(&tiny("dspark"), None), &dspark);
    }

    #[test]
    fn a_model_is_described_and_held_against_the_target() {
        let model = ["kind: model (llama)", "vocabulary: 4096 tokens", "chat template: yes"];
        assert_has(&findings(&tiny("draft"), None), &model);
        let as_draft = ["as a draft model: has the tokens of embedded:tiny"];
        assert_has(&findings(&tiny("draft"), Some(&ModelSource::EmbeddedTiny)), &as_draft);
    }

    #[test]
    fn a_head_is_described_as_the_settings_have_it() {
        let settings = HeadSettings {
            kind: None,
            norm_before_residual: Some(true),
            hidden_state_layers: Some(vec![0, 2, 5]),
        };
        let report = describe_model(&tiny("eagle3"), Some(&ModelSource::EmbeddedTiny), &settings);
        let report = report.expect("it is readable");
        let values: Vec<&str> = report.findings.iter().map(|finding| &finding.value[..]).collect();
        for value in ["normalised residual", "3 of width 384, entering layers 0, 2, 5"] {
            assert!(values.contains(&value), "no {value:?} in {values:?}");
        }
        let error = describe_model(&tiny("draft"), None, &settings).expect_err("a model has no such thing");
        assert!(error.to_string().contains("draft.norm_before_residual is true"), "{error}");
    }

    #[test]
    fn a_head_of_another_target_is_refused() {
        let described = describe_model(&tiny("eagle3"), Some(&tiny("draft")), &HeadSettings::default());
        let error = described.expect_err("it does not fit");
        assert!(error.to_string().contains("the head was made for another target"), "{error}");
    }
}
