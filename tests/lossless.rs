//! Losslessness on the CPU executor with a real model pair: speculation never changes a token.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::tree_policies::{Bushy, Full};
use common::{EvenAtEven, Played, cpu, drafters, embedded, play, prompt, request};
use specserve::drafting::{NgramOptions, WithPromptLookup};
use specserve::grammar::{GrammarCompiler, GrammarSource, Vocabulary};
use specserve::model::random::{RandomOptions, random_model};
use specserve::model::{DraftHead, DraftWeights, ModelSource, load};
use specserve::policy::registry::{PolicyName, PolicyOptions, build};
use specserve::policy::specserve::Shape;
use specserve::policy::{Fixed, Policy, Scratch, Static};
use specserve::protocol::{
    DecodeView, GenerationRequest, ModelRole, RequestId, SamplingParams, StepDecision, StepView,
    TokenConstraint,
};
use specserve::timing::cost_model::HeadTerms;
use specserve::timing::profile::Profile;

const OUTPUT_TOKENS: u32 = 32;
/// Enough blocks for all requests of a test at once.
const AMPLE_BLOCKS: u32 = 512;

fn temperature(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, ..SamplingParams::greedy() }
}

fn requests(count: usize, sampling: &SamplingParams) -> Vec<GenerationRequest> {
    (0..count).map(|number| request(number, OUTPUT_TOKENS, sampling.clone())).collect()
}

fn temperatures_and_drafters() -> impl Iterator<Item = (SamplingParams, (&'static str, DraftWeights))> {
    [0.0, 0.8].into_iter().flat_map(|t| drafters().map(|drafter| (temperature(t), drafter)))
}

fn plain(requests: &[GenerationRequest]) -> BTreeMap<RequestId, Played> {
    let mut executor = cpu(embedded(ModelRole::Target), None, AMPLE_BLOCKS);
    play(&mut executor, Box::new(Static::new(Fixed::NONE)), 1, requests)
}

fn assert_same_output(
    ours: &BTreeMap<RequestId, Played>,
    plain: &BTreeMap<RequestId, Played>,
    requests: &[GenerationRequest],
    how: &str,
) {
    assert_eq!(ours.len(), requests.len());
    for request in requests {
        assert_eq!(ours[&request.id].tokens, plain[&request.id].tokens, "request {} {how}", request.id);
    }
}

#[test]
fn every_draft_length_and_batch_size_emits_what_plain_decoding_emits() {
    for (sampling, (name, drafter)) in temperatures_and_drafters() {
        let all = requests(32, &sampling);
        let plain = plain(&all);
        let mut executor = cpu(embedded(ModelRole::Target), Some(drafter), AMPLE_BLOCKS);
        for batch in [1, 2, 7, 32] {
            // fewer requests for smaller batches, so that each size takes about as many steps
            let some = &all[..(batch as usize).clamp(3, 32)];
            for draft_tokens in 1..=8 {
                let ours = play(&mut executor, Box::new(Static::new(Fixed { draft_tokens })), batch, some);
                let how = format!("with {name}, t {}, batch {batch}, k {draft_tokens}", sampling.temperature);
                assert_same_output(&ours, &plain, some, &how);
                let accepted: u32 = ours.values().map(|one| one.summary.speculation.accepted).sum();
                assert!(accepted > 0, "a trained draft is right now and then, {how}");
            }
        }
    }
}

#[test]
fn trees_of_every_size_emit_what_plain_decoding_emits() {
    for (sampling, (name, drafter)) in temperatures_and_drafters() {
        let all = requests(32, &sampling);
        let plain = plain(&all);
        let mut executor = cpu(embedded(ModelRole::Target), Some(drafter), AMPLE_BLOCKS);
        for batch in [1, 2, 7, 32] {
            let some = &all[..(batch as usize).clamp(3, 32)];
            for drafts in [1, 2, 5, 8] {
                let ours = play(&mut executor, Bushy::of(drafts), batch, some);
                let how = format!("in trees of {drafts}, {name}, t {}, batch {batch}", sampling.temperature);
                assert_same_output(&ours, &plain, some, &how);
            }
        }
    }
}

#[test]
fn trees_survive_preemption_filters_penalties_and_constraints() {
    let vocab_size = embedded(ModelRole::Target).spec.vocab_size as u32;
    let constraint: Option<Arc<dyn TokenConstraint>> = Some(Arc::new(EvenAtEven { vocab_size }));
    let filtered = SamplingParams {
        top_k: 40,
        top_p: 0.9,
        repetition_penalty: 1.2,
        presence_penalty: 0.3,
        ..temperature(0.9)
    };
    for sampling in [filtered.clone(), SamplingParams { constraint, ..filtered }] {
        let all = requests(8, &sampling);
        let plain = plain(&all);
        for (name, drafter) in drafters() {
            let mut executor = cpu(embedded(ModelRole::Target), Some(drafter), 16);
            let ours = play(&mut executor, Bushy::of(8), 8, &all);
            let constrained = sampling.constraint.is_some();
            assert_same_output(&ours, &plain, &all, &format!("in trees, {name}, constrained: {constrained}"));
            let preemptions: u32 = ours.values().map(|one| one.summary.preemptions).sum();
            assert!(preemptions > 0, "sixteen blocks were meant to be too few");
        }
    }
}

#[test]
fn a_draft_that_followed_a_runner_up_knows_what_was_accepted() {
    // the target as its own draft: every choice is right, whatever path was accepted before, so a cache
    // that was not moved together would be seen at once
    for sampling in [temperature(0.0), temperature(0.8)] {
        let all = requests(7, &sampling);
        let plain = plain(&all);
        let draft = Some(embedded(ModelRole::Target).into());
        let mut executor = cpu(embedded(ModelRole::Target), draft, AMPLE_BLOCKS);
        for batch in [1, 7] {
            let ours = play(&mut executor, Full::of(6), batch, &all);
            assert_same_output(&ours, &plain, &all, "in full trees");
            for one in ours.values() {
                let stats = &one.summary.speculation;
                // six verified drafts: two behind the committed tokens and two behind each of these
                let full_steps = stats.steps_by_accepted.get(2).copied().unwrap_or(0);
                assert!(full_steps + 2 >= stats.steps, "{stats:?}");
            }
        }
    }
}

#[test]
fn filters_penalties_and_bias_are_applied_inside_verification() {
    let sampling = SamplingParams {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.9,
        min_p: 0.02,
        repetition_penalty: 1.2,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        logit_bias: vec![(16, -2.0), (201, 1.5)],
        ..SamplingParams::greedy()
    };
    let all = requests(8, &sampling);
    let plain = plain(&all);
    assert_ne!(plain, self::plain(&requests(8, &temperature(0.9))), "the parameters matter");
    for (name, drafter) in drafters() {
        let mut executor = cpu(embedded(ModelRole::Target), Some(drafter), AMPLE_BLOCKS);
        for draft_tokens in [1, 4, 8] {
            let ours = play(&mut executor, Box::new(Static::new(Fixed { draft_tokens })), 4, &all);
            assert_same_output(
                &ours,
                &plain,
                &all,
                &format!("with every parameter, {name}, k {draft_tokens}"),
            );
        }
    }
}

#[test]
fn preemption_in_mid_flight_changes_nothing() {
    for (sampling, (name, drafter)) in temperatures_and_drafters() {
        let all = requests(8, &sampling);
        let plain = plain(&all);
        let mut executor = cpu(embedded(ModelRole::Target), Some(drafter), 16);
        let ours = play(&mut executor, Box::new(Static::new(Fixed { draft_tokens: 4 })), 8, &all);
        assert_same_output(&ours, &plain, &all, &format!("under preemption, with {name}"));
        let preemptions: u32 = ours.values().map(|one| one.summary.preemptions).sum();
        assert!(preemptions > 0, "sixteen blocks were meant to be too few");
    }
}

#[test]
fn a_random_draft_costs_time_but_changes_no_token() {
    let draft = random_model(&embedded(ModelRole::Draft).spec, 7, RandomOptions::default());
    for sampling in [temperature(0.0), temperature(0.8)] {
        let all = requests(7, &sampling);
        let plain = plain(&all);
        let mut executor = cpu(embedded(ModelRole::Target), Some(draft.clone().into()), AMPLE_BLOCKS);
        let ours = play(&mut executor, Box::new(Static::new(Fixed { draft_tokens: 4 })), 7, &all);
        assert_same_output(&ours, &plain, &all, "with a random draft");
    }
}

#[test]
fn a_draft_equal_to_the_target_is_always_accepted() {
    for sampling in [temperature(0.0), temperature(0.8)] {
        let all = requests(7, &sampling);
        let plain = plain(&all);
        let mut executor =
            cpu(embedded(ModelRole::Target), Some(embedded(ModelRole::Target).into()), AMPLE_BLOCKS);
        let ours = play(&mut executor, Box::new(Static::new(Fixed { draft_tokens: 3 })), 7, &all);
        assert_same_output(&ours, &plain, &all, "with the target as its own draft");
        for one in ours.values() {
            let stats = &one.summary.speculation;
            // an output that ends within its accepted drafts discards the rest of them
            assert_eq!(stats.accepted, stats.verified, "{stats:?}");
            assert!(stats.verified > 0);
            let steps: u32 = stats.steps_by_accepted.iter().sum();
            let accepted: u32 =
                (0..).zip(&stats.steps_by_accepted).map(|(drafts, steps)| drafts * steps).sum();
            assert_eq!((steps, accepted), (stats.steps, stats.accepted), "{stats:?}");
        }
    }
}

/// A profile that says of the drafter whether it is a head, and how many drafts a call of it makes.
fn profile_with(drafter: &DraftWeights) -> Profile {
    let text = include_str!("../profiles/h100-8b-160m.toml");
    let mut profile = Profile::from_toml(text).expect("the profile parses");
    if let DraftWeights::Head(head) = drafter {
        let drafts_per_call = if let DraftHead::Block(head) = head { head.drafts() as u32 } else { 1 };
        let draft = profile.draft.as_mut().expect("it has a draft model");
        draft.head = Some(HeadTerms { drafts_per_call, state_token_us: 0.1 });
    }
    profile
}

#[test]
fn every_policy_emits_what_plain_decoding_emits() {
    let names = [
        "none",
        "fixed:3",
        "threshold:0.6",
        "smartspec",
        "adaspec",
        "adaspec-gated",
        "adaspec-verifier:3",
        "eagle2:6",
        "sglang-tree",
        "adaserve",
        "specserve",
    ];
    let shapes = |name: &str| match name {
        "specserve" => vec![Shape::Chain, Shape::Tree, Shape::Auto],
        _ => vec![Shape::Chain],
    };
    for (sampling, (drafter_name, drafter)) in temperatures_and_drafters() {
        let profile = profile_with(&drafter);
        let mut executor = cpu(embedded(ModelRole::Target), Some(drafter), AMPLE_BLOCKS);
        let all = requests(6, &sampling);
        let plain = plain(&all);
        for (name, shape) in
            names.into_iter().flat_map(|name| shapes(name).into_iter().map(move |s| (name, s)))
        {
            let policy_name: PolicyName = name.parse().expect("a policy's name");
            let mut options = PolicyOptions::default();
            options.specserve.shape = shape;
            let policy = build(policy_name, Some(&profile), &options).expect("builds");
            let ours = play(&mut executor, policy, 4, &all);
            assert_same_output(&ours, &plain, &all, &format!("under {name} {shape:?}, {drafter_name}"));
            let drafted: u32 = ours.values().map(|one| one.summary.speculation.drafted).sum();
            assert_eq!(drafted > 0, name != "none", "{name} drafted {drafted} tokens");
        }
    }
}

#[test]
fn drafts_that_were_looked_up_change_nothing() {
    for sampling in [temperature(0.0), temperature(0.8)] {
        let all = requests(6, &sampling);
        let plain = plain(&all);
        let executor = cpu(embedded(ModelRole::Target), None, AMPLE_BLOCKS);
        let mut executor = WithPromptLookup::new(Box::new(executor), NgramOptions::default());
        let ours = play(&mut executor, Box::new(Static::new(Fixed { draft_tokens: 4 })), 4, &all);
        assert_same_output(&ours, &plain, &all, "with prompt lookup");
        let drafted: u32 = ours.values().map(|one| one.summary.speculation.drafted).sum();
        assert!(drafted > 0, "stories repeat themselves");
    }
}

#[test]
fn a_constraint_holds_for_every_draft_length_and_changes_no_token_of_plain_decoding() {
    let vocab_size = embedded(ModelRole::Target).spec.vocab_size as u32;
    for free in [temperature(0.0), temperature(0.8)] {
        let constraint: Option<Arc<dyn TokenConstraint>> = Some(Arc::new(EvenAtEven { vocab_size }));
        let sampling = SamplingParams { constraint, ..free.clone() };
        // every other request is constrained: the two kinds share their batches
        let mixed: Vec<GenerationRequest> = (0..8)
            .map(|number| {
                let sampling = if number % 2 == 0 { &sampling } else { &free };
                request(number, OUTPUT_TOKENS, sampling.clone())
            })
            .collect();
        let plain = plain(&mixed);
        for (index, request) in mixed.iter().enumerate() {
            let evens = plain[&request.id].tokens.iter().step_by(2).all(|token| token.is_multiple_of(2));
            assert_eq!(evens, index % 2 == 0, "request {index} of {:?}", plain[&request.id].tokens);
        }
        for (name, drafter) in drafters() {
            let mut executor = cpu(embedded(ModelRole::Target), Some(drafter), AMPLE_BLOCKS);
            for draft_tokens in 0..=4 {
                let ours = play(&mut executor, Box::new(Static::new(Fixed { draft_tokens })), 5, &mixed);
                let how = format!("constrained, {name}, t {}, k {draft_tokens}", free.temperature);
                assert_same_output(&ours, &plain, &mixed, &how);
                let accepted: u32 =
                    mixed.iter().step_by(2).map(|r| ours[&r.id].summary.speculation.accepted).sum();
                assert!(accepted > 0 || draft_tokens == 0, "masked drafts are accepted, {how}");
            }
        }
    }
}

/// Accepted and verified drafts of some requests.
fn acceptance(ours: &BTreeMap<RequestId, Played>, ids: impl Iterator<Item = u64>) -> f64 {
    let stats: Vec<_> = ids.map(|id| &ours[&RequestId(id)].summary.speculation).collect();
    let accepted: u32 = stats.iter().map(|one| one.accepted).sum();
    f64::from(accepted) / f64::from(stats.iter().map(|one| one.verified).sum::<u32>())
}

#[test]
fn after_a_prefix_hit_a_head_is_as_often_right_as_before() {
    for (sampling, (name, drafter)) in temperatures_and_drafters() {
        let long = |number: usize| -> GenerationRequest {
            let prompt = (number..number + 4).flat_map(|one| prompt(one % 8).to_vec()).collect();
            GenerationRequest { prompt, ..request(number, 48, sampling.clone()) }
        };
        let cold: Vec<GenerationRequest> = (0..8).map(long).collect();
        let again = cold.iter().map(|one| GenerationRequest { id: RequestId(100 + one.id.0), ..one.clone() });
        let all: Vec<GenerationRequest> = cold.iter().cloned().chain(again).collect();
        let mut executor = cpu(embedded(ModelRole::Target), Some(drafter), AMPLE_BLOCKS);
        // one at a time: each finds all of what it has in common with those before it
        let ours = play(&mut executor, Box::new(Static::new(Fixed { draft_tokens: 4 })), 1, &all);
        for one in &cold {
            let [first, second] = [one.id.0, 100 + one.id.0].map(|id| &ours[&RequestId(id)]);
            assert_eq!(first.tokens, second.tokens, "request {} with {name}", one.id);
            assert!(second.summary.cached_tokens + 16 >= one.prompt.len() as u32, "{:?}", second.summary);
        }
        let (before, after) = (acceptance(&ours, 0..8), acceptance(&ours, 100..108));
        assert!(before > 0.2 && after >= 0.98 * before, "{name}: {before:.3} before, {after:.3} after");
    }
}

/// Drafts in the first and in the last steps of a request, and not between.
#[derive(Debug)]
struct OffAndOn;

impl Policy for OffAndOn {
    fn name(&self) -> String {
        "off and on".to_owned()
    }

    fn plan(&self, view: &StepView, _: &mut Scratch) -> StepDecision {
        let drafts = |row: &DecodeView| if (20..220).contains(&row.output_tokens) { 0 } else { 4 };
        StepDecision {
            drafts: view.decoding.iter().map(drafts).collect(),
            prefill_tokens: view.prefill_tokens_max,
            ..StepDecision::default()
        }
    }
}

#[test]
fn two_hundred_plain_steps_do_not_make_a_head_wrong() {
    let sampling = SamplingParams { logit_bias: vec![(0, -100.0), (2, -100.0)], ..temperature(0.8) };
    let all: Vec<GenerationRequest> = (0..6).map(|number| request(number, 420, sampling.clone())).collect();
    for (name, drafter) in drafters() {
        let mut executor = cpu(embedded(ModelRole::Target), Some(drafter), AMPLE_BLOCKS);
        let always = play(&mut executor, Box::new(Static::new(Fixed { draft_tokens: 4 })), 3, &all);
        let rested = play(&mut executor, Box::new(Static::new(OffAndOn)), 3, &all);
        assert_same_output(&rested, &always, &all, &format!("after a rest of {name}"));
        let (before, after) = (acceptance(&always, 0..6), acceptance(&rested, 0..6));
        assert!((after - before).abs() < 0.06, "{name}: {before:.3} always on, {after:.3} around the rest");
    }
}

/// The constraint of an output that is described so, over the embedded target's vocabulary.
fn described(source: &GrammarSource) -> Arc<dyn TokenConstraint> {
    let model = load(&ModelSource::EmbeddedTiny, ModelRole::Target).expect("the embedded pair loads");
    let tokenizer = model.tokenizer.clone();
    let vocabulary = Vocabulary {
        bytes: tokenizer.fixed_bytes(model.loaded.spec.vocab_size).expect("it is byte-level"),
        end_tokens: STOP_TOKENS.to_vec(),
        encode: Some(Box::new(move |text| tokenizer.encode(text, false).ok())),
    };
    let compiler = GrammarCompiler::new(vocabulary).expect("a vocabulary");
    compiler.compile(source, &STOP_TOKENS).expect("it compiles")
}

/// Those of [`request`].
const STOP_TOKENS: [u32; 2] = [0, 2];

#[test]
fn structured_outputs_are_those_of_plain_decoding_with_every_drafter_in_chains_and_trees() {
    let person = serde_json::json!({
        "type": "object",
        "properties": {
            "full_name": {"type": "string", "maxLength": 20},
            "occupation": {"enum": ["carpenter", "physician", "librarian"]},
            "years": {"type": "integer", "minimum": 1, "maximum": 99},
        },
        "required": ["full_name", "occupation", "years"],
        "additionalProperties": false,
    });
    let schema = GrammarSource::JsonSchema { schema: person, whitespace: None };
    let regex = GrammarSource::Regex(r"([A-Z][a-z]{1,8} ){2,6}\d{4}-\d{2}-\d{2}".to_owned());
    for (source, is_json) in [(schema, true), (regex, false)] {
        for warmth in [0.0, 0.8] {
            let some: Vec<GenerationRequest> = (0..6)
                .map(|number| {
                    // every third request is free: the kinds share their batches
                    let constraint = (number % 3 != 2).then(|| described(&source));
                    request(number, 64, SamplingParams { constraint, ..temperature(warmth) })
                })
                .collect();
            let plain = plain(&some);
            for request in some.iter().filter(|request| is_json && request.sampling.constraint.is_some()) {
                assert_is_a_person(&plain[&request.id].tokens);
            }
            for (name, drafter) in drafters() {
                let mut executor = cpu(embedded(ModelRole::Target), Some(drafter), AMPLE_BLOCKS);
                for draft_tokens in [1, 4] {
                    let ours = play(&mut executor, Box::new(Static::new(Fixed { draft_tokens })), 5, &some);
                    let how = format!("structured, {name}, t {warmth}, k {draft_tokens}");
                    assert_same_output(&ours, &plain, &some, &how);
                    let constrained = some.iter().filter(|request| request.sampling.constraint.is_some());
                    let accepted = |r: &GenerationRequest| ours[&r.id].summary.speculation.accepted;
                    assert!(constrained.map(accepted).sum::<u32>() > 0, "masked drafts are accepted, {how}");
                }
                let ours = play(&mut executor, Bushy::of(6), 5, &some);
                assert_same_output(&ours, &plain, &some, &format!("structured, trees, {name}, t {warmth}"));
            }
            let lookup = cpu(embedded(ModelRole::Target), None, AMPLE_BLOCKS);
            let mut lookup = WithPromptLookup::new(Box::new(lookup), NgramOptions::default());
            let ours = play(&mut lookup, Box::new(Static::new(Fixed { draft_tokens: 4 })), 5, &some);
            assert_same_output(&ours, &plain, &some, &format!("structured, prompt lookup, t {warmth}"));
        }
    }
}

fn assert_is_a_person(tokens: &[u32]) {
    let model = load(&ModelSource::EmbeddedTiny, ModelRole::Target).expect("the embedded pair loads");
    let text = model.tokenizer.decode(tokens, true).expect("it decodes");
    let person: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    assert!(person["full_name"].as_str().is_some_and(|name| name.chars().count() <= 20), "{text}");
    assert!((1..=99).contains(&person["years"].as_i64().expect("a number")), "{text}");
    assert!(STOP_TOKENS.contains(tokens.last().expect("an output")), "it ends by itself: {text}");
}
