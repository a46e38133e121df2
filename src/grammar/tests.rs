//! Grammars over the vocabulary of the embedded target.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::{ModelSource, Tokenizer, load};
use crate::protocol::{ModelRole, TokenConstraint, TokenId};
use crate::random::SplitMix64;

mod schemas;
mod validity;

struct Tiny {
    tokenizer: Tokenizer,
    end: TokenId,
    compiler: GrammarCompiler,
}

static TINY: LazyLock<Tiny> = LazyLock::new(|| {
    let model = load(&ModelSource::EmbeddedTiny, ModelRole::Target).expect("the embedded model loads");
    let (tokenizer, end) = (model.tokenizer, model.eos[0]);
    let encoder = tokenizer.clone();
    let vocabulary = Vocabulary {
        // rows without a token, as padded models have
        bytes: tokenizer.fixed_bytes(model.loaded.spec.vocab_size + 40).expect("it is byte-level"),
        end_tokens: vec![end],
        encode: Some(Box::new(move |text| encoder.encode(text, false).ok())),
    };
    let compiler = GrammarCompiler::new(vocabulary).expect("a vocabulary");
    Tiny { tokenizer, end, compiler }
});

fn schema(schema: Value) -> GrammarSource {
    GrammarSource::JsonSchema { schema, whitespace: None }
}

fn regex(regex: &str) -> GrammarSource {
    GrammarSource::Regex(regex.to_owned())
}

fn lark(grammar: &str) -> GrammarSource {
    GrammarSource::Lark(grammar.to_owned())
}

fn choice(choices: &[&str]) -> GrammarSource {
    GrammarSource::Choice(choices.iter().map(|&choice| choice.to_owned()).collect())
}

fn compiled(source: &GrammarSource) -> Arc<dyn TokenConstraint> {
    let compiled = TINY.compiler.compile(source, &[TINY.end]);
    compiled.unwrap_or_else(|error| panic!("{source:?}: {error}"))
}

fn refused(source: &GrammarSource) -> GrammarError {
    TINY.compiler.compile(source, &[TINY.end]).expect_err(&format!("{source:?} is wrong"))
}

fn place(source: &GrammarSource) -> Option<String> {
    match refused(source) {
        GrammarError::Invalid { place, .. } => place,
        other => panic!("{other}"),
    }
}

/// Whether the tokens of a text, one after the other, and then the end are allowed.
fn accepts(constraint: &dyn TokenConstraint, text: &str) -> bool {
    let mut state = constraint.state(&[]);
    let tokens = TINY.tokenizer.encode(text, false).expect("it encodes");
    tokens.into_iter().chain([TINY.end]).all(|token| {
        let allowed = state.mask().is_some_and(|mask| mask.allows(token));
        if allowed {
            state.advance(token);
        }
        allowed
    })
}

fn draw(random: &mut SplitMix64, tokens: &[TokenId]) -> TokenId {
    tokens[random.below(tokens.len() as u64) as usize]
}

/// Tokens before an output is brought to its end.
const FREE_TOKENS: usize = 40;
/// Tokens by which every output has come to its end.
const TOKENS_MAX: usize = 600;

/// An output of tokens drawn evenly from those allowed, as from logits that know nothing; later, of
/// tokens that bring it to its end.
fn drawn(constraint: &dyn TokenConstraint, seed: u64) -> String {
    let mut random = SplitMix64::new(seed);
    let closing: Vec<TokenId> = [TINY.end]
        .into_iter()
        .chain(["\"", "}", "]", "n", ",", "0"].iter().filter_map(|text| TINY.tokenizer.token_id(text)))
        .collect();
    let (mut state, mut output) = (constraint.state(&[]), Vec::new());
    while output.last() != Some(&TINY.end) {
        let mask = state.mask().expect("a grammar has a mask everywhere");
        let allowed: Vec<TokenId> = mask.allowed().collect();
        assert!(!allowed.is_empty(), "a dead end behind {:?}", TINY.tokenizer.decode(&output, true));
        let close = closing.iter().copied().find(|&token| mask.allows(token));
        let close = close.filter(|_| output.len() >= FREE_TOKENS);
        let token = close.unwrap_or_else(|| draw(&mut random, &allowed));
        state.advance(token);
        output.push(token);
        assert!(output.len() < TOKENS_MAX, "no end of {:?}", TINY.tokenizer.decode(&output, true));
    }
    TINY.tokenizer.decode(&output, true).expect("it decodes")
}

#[test]
fn calls_are_a_list_in_which_each_schema_has_definitions_of_its_own() {
    let function = |name: &str, of_x: &str| FunctionCall {
        name: name.to_owned(),
        parameters: json!({
            "type": "object", "properties": {"x": {"$ref": "#/$defs/x"}}, "required": ["x"],
            "additionalProperties": false, "$defs": {"x": {"type": of_x}},
        }),
    };
    let functions = [function("f", "boolean"), function("g", "integer")];
    let f = r#"{"name": "f", "arguments": {"x":true}}"#;
    let g = r#"{"name": "g", "arguments": {"x":7}}"#;
    let (many, one) = (
        compiled(&GrammarSource::calls(&functions, true)),
        compiled(&GrammarSource::calls(&functions, false)),
    );
    for text in [format!("[{f}]"), format!("[{g}]")] {
        assert!(accepts(&*many, &text) && accepts(&*one, &text), "{text}");
    }
    let both = format!("[{f}, {g}]");
    assert!(accepts(&*many, &both) && !accepts(&*one, &both));
    for text in ["[]".to_owned(), f.to_owned(), f.replace("true", "7"), format!("[{f}")] {
        assert!(!accepts(&*many, &text), "{text}");
    }
    let drawn: Value = serde_json::from_str(&drawn(&*one, 5)).expect("it is JSON");
    assert!(drawn[0]["arguments"]["x"].is_boolean() || drawn[0]["arguments"]["x"].is_number(), "{drawn}");
}

#[test]
fn a_regex_allows_exactly_the_texts_that_match_as_a_whole() {
    let constraint = compiled(&regex("[a-c]{2,3}!?"));
    for text in ["ab", "abc", "cc!"] {
        assert!(accepts(&*constraint, text), "{text}");
    }
    for text in ["a", "abcd", "ab!!", "", "xab"] {
        assert!(!accepts(&*constraint, text), "{text}");
    }
}

#[test]
fn a_choice_allows_its_texts_whatever_characters_they_have() {
    let texts = ["yes", "no", "a \"quoted\" \\ one", "two\nlines", "größer ✓", "/slash/", "%x", "<|im_end|>"];
    let constraint = compiled(&choice(&texts));
    for seed in 0..40 {
        let text = drawn(&*constraint, seed);
        assert!(texts.contains(&&*text), "{text:?}");
    }
    assert!(accepts(&*constraint, "two\nlines"));
    assert!(!accepts(&*constraint, "maybe") && !accepts(&*constraint, "yesno"));
}

#[test]
fn a_lark_grammar_is_followed() {
    let constraint = compiled(&lark("start: item (\",\" item)*\nitem: /[0-9]+/ | \"(\" start \")\""));
    assert!(accepts(&*constraint, "1,(2,3),4"));
    assert!(!accepts(&*constraint, "1,,2") && !accepts(&*constraint, "(1"));
}

#[test]
fn a_special_token_is_never_text() {
    let special = TINY.tokenizer.token_id("<|im_start|>").expect("it is there");
    let text = compiled(&regex(r"(.|\n)*"));
    let mask = text.mask(&[]).expect("a mask");
    assert!(mask.allows(TINY.end), "the empty text is complete");
    assert!(
        !mask.allows(special)
            && mask.allowed().all(|token| !TINY.tokenizer.is_silent(token) || token == TINY.end)
    );
    // written out, the same characters are text of ordinary tokens
    let named = compiled(&choice(&["<|im_start|>"]));
    assert_eq!(drawn(&*named, 1), "<|im_start|>");
}

#[test]
fn tokens_past_the_tokenizers_list_are_never_allowed() {
    let constraint = compiled(&regex(r"(.|\n)*"));
    let last = constraint.mask(&[]).expect("a mask").allowed().last();
    assert!(last.is_some_and(|last| (last as usize) < TINY.tokenizer.list_len()));
}

#[test]
fn white_space_in_json_is_bounded() {
    let constraint = compiled(&schema(json!({"type": "array", "items": {"type": "integer"}})));
    for text in ["[1, 2]", "[1,2]", "[\n  1,\n  2\n]", "[\n\t\t1\n]"] {
        assert!(accepts(&*constraint, text), "{text:?}");
    }
    let many = format!("[{}1]", " ".repeat(2));
    assert!(!accepts(&*constraint, &many) && !accepts(&*constraint, "[\n\n1]"));
    assert!(!accepts(&*constraint, " [1]"), "an output begins with its first token");
    let most = |spaces| format!("[\n{}1]", " ".repeat(spaces));
    assert!(accepts(&*constraint, &most(32)) && !accepts(&*constraint, &most(33)));
}

#[test]
fn a_schema_cannot_bring_its_own_options() {
    let unbounded = json!({"type": "array", "x-guidance": {"whitespace_pattern": " *"}});
    assert!(!accepts(&*compiled(&schema(unbounded)), "[    ]"));
}

#[test]
fn white_space_is_what_the_request_says() {
    let schema = json!({"type": "array", "items": {"type": "integer"}});
    let constraint = compiled(&GrammarSource::JsonSchema { schema, whitespace: Some("~".to_owned()) });
    assert!(accepts(&*constraint, "[~1,~2]") && accepts(&*constraint, "[1,2]"));
    assert!(!accepts(&*constraint, "[1, 2]"));
}

#[test]
fn behind_a_complete_output_only_stop_tokens_are_allowed() {
    let stop = TINY.tokenizer.token_id("!").expect("it is there");
    let constraint = TINY.compiler.compile(&choice(&["a", "ab"]), &[stop, TINY.end]).expect("compiles");
    let a = TINY.tokenizer.encode("a", false).expect("encodes");
    assert!(!constraint.mask(&[]).is_some_and(|mask| mask.allows(stop) || mask.allows(TINY.end)));
    let mask = constraint.mask(&a).expect("a mask");
    assert!(mask.allows(stop) && mask.allows(TINY.end) && mask.allowed().count() == 3, "or a b");
    let whole = TINY.tokenizer.encode("ab", false).expect("encodes");
    let ends: Vec<TokenId> = constraint.mask(&whole).expect("a mask").allowed().collect();
    let mut expected = vec![stop, TINY.end];
    expected.sort_unstable();
    assert_eq!(ends, expected);
    // drafts behind the end are never emitted, but their masks are asked for
    let beyond = [&whole[..], &[TINY.end]].concat();
    assert_eq!(constraint.mask(&beyond).expect("a mask").allowed().collect::<Vec<_>>(), expected);
}

#[test]
fn forced_text_is_known_in_the_tokens_that_the_tokenizer_would_use() {
    let constraint = compiled(&schema(json!({"const": "a text of many tokens"})));
    let mut state = constraint.state(&[]);
    let forced = state.forced();
    assert!(forced.len() > 1, "{forced:?}");
    for token in forced {
        assert_eq!(state.mask().expect("a mask").allowed().collect::<Vec<_>>(), [token]);
        state.advance(token);
    }
}

#[test]
fn a_bad_description_is_refused_with_what_is_wrong() {
    for (source, part) in [
        (regex("(a"), "unclosed group"),
        (lark("start: undefined_rule"), "undefined_rule"),
        (lark("start: \"a"), ""),
        (lark(""), ""),
        (schema(json!({"type": "strin"})), "strin"),
        (schema(json!(false)), "Unsatisfiable"),
        (schema(json!({"$ref": "#/$defs/missing"})), "missing"),
    ] {
        let error = refused(&source).to_string();
        assert!(error.contains(part), "{source:?}: {error}");
        let inner = ["backtrace", "<state>", "<non-verbose/>", "panic"];
        assert!(inner.iter().all(|inner| !error.contains(inner)), "{error}");
    }
}

#[test]
fn a_wrong_part_of_a_schema_is_named_by_its_pointer() {
    let bad = json!({"type": "strin"});
    for (wrong, pointer) in [
        (
            json!({"properties": {"a": {"type": "object", "properties": {"b/c": bad}}}}),
            "/properties/a/properties/b~1c",
        ),
        (json!({"type": "array", "items": bad}), "/items"),
        (json!({"anyOf": [{"type": "null"}, bad]}), "/anyOf/1"),
        (json!({"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": bad}}), "/$defs/x"),
        (json!({"properties": {"a": {"pattern": "(", "type": "string"}}}), "/properties/a"),
    ] {
        assert_eq!(place(&schema(wrong)).as_deref(), Some(pointer));
    }
    assert_eq!(place(&schema(bad)), None, "the whole is wrong");
}

#[test]
fn a_description_of_more_than_the_bound_is_refused_unread() {
    let at = regex(&"a".repeat(GRAMMAR_BYTES_MAX));
    assert!(!matches!(TINY.compiler.compile(&at, &[TINY.end]), Err(GrammarError::TooLong(_))));
    let above = regex(&"a".repeat(GRAMMAR_BYTES_MAX + 1));
    assert_eq!(refused(&above), GrammarError::TooLong(GRAMMAR_BYTES_MAX + 1));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how long it really takes is what is checked")]
fn what_might_explode_is_compiled_or_refused_soon() {
    let start = std::time::Instant::now();
    let wide = json!({"type": "array", "minItems": 1_000_000, "items": {"type": "string", "pattern": "(a|b|c){1,5000}"}});
    for source in [schema(wide), regex("((a|b)*c){5000}(x{1,5000}y){5000}"), regex("(.*a){400}")] {
        let _ = TINY.compiler.compile(&source, &[TINY.end]);
    }
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn a_compiled_grammar_is_kept_and_untouched_by_its_users() {
    let source =
        schema(json!({"type": "object", "properties": {"kept": {"type": "null"}}, "required": ["kept"]}));
    let first = compiled(&source);
    let opening = TINY.tokenizer.encode("{", false).expect("encodes");
    first.state(&opening).mask();
    let again = compiled(&source);
    assert_eq!(again.mask(&[]), first.mask(&[]));
    assert_ne!(again.mask(&[]), first.mask(&opening));
}

#[test]
fn several_outputs_of_one_constraint_do_not_disturb_each_other() {
    let constraint = compiled(&regex("[ab]{1,40}"));
    let outputs: Vec<Vec<TokenId>> = ["aaaa", "abab", "b"]
        .iter()
        .map(|text| TINY.tokenizer.encode(text, false).expect("encodes"))
        .collect();
    for _ in 0..2 {
        for output in &outputs {
            assert_eq!(constraint.mask(output), compiled(&regex("[ab]{1,40}")).mask(output));
        }
    }
}

fn fuzzed_source() -> impl Strategy<Value = GrammarSource> {
    prop_oneof![
        Just(schema(json!({"type": "object"}))),
        Just(schema(json!({
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
            },
            "required": ["name", "tags"],
            "additionalProperties": false,
        }))),
        Just(regex(r"(\d{1,3}\.){3}\d{1,3}|[a-z]+@[a-z]+\.(com|org)")),
        Just(choice(&["left", "lefthand", "right"])),
        Just(lark("start: \"<\" inner* \">\"\ninner: /[a-z ]+/ | start")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Each step drafts a chain, or siblings, of allowed tokens and of any; a part of it is accepted.
    #[test]
    fn masks_along_drafts_are_those_of_a_parser_that_reads_the_output_from_its_beginning(
        source in fuzzed_source(),
        seed in any::<u64>(),
        steps in prop::collection::vec((0_usize..9, 0_usize..9, any::<bool>()), 1..12),
    ) {
        let mut random = SplitMix64::new(seed);
        let constraint = compiled(&source);
        let scratch = |output: &[TokenId]| compiled(&source).mask(output).expect("a mask");
        let mut output: Vec<TokenId> = Vec::new();
        for (drafts, accepted, chain) in steps {
            let root = constraint.state(&output);
            let (mut state, mut path) = (root.fork(), output.clone());
            let mut accepted_path = output.clone();
            for draft in 0..drafts {
                if !chain {
                    (state, path) = (root.fork(), output.clone());
                }
                let allowed: Vec<TokenId> = state.mask().expect("a mask").allowed().collect();
                let token = draw(&mut random, &allowed);
                state.advance(token);
                path.push(token);
                prop_assert_eq!(&*state.mask().expect("a mask"), &*scratch(&path), "behind {:?}", path);
                if draft < accepted && (chain || draft == 0) {
                    accepted_path = path.clone();
                }
                if token == TINY.end {
                    break;
                }
            }
            output = accepted_path;
            if output.last() == Some(&TINY.end) {
                break;
            }
            let mask = constraint.mask(&output).expect("a mask");
            prop_assert_eq!(&*mask, &*scratch(&output), "behind the committed {:?}", output);
            output.push(draw(&mut random, &mask.allowed().collect::<Vec<_>>()));
            if output.last() == Some(&TINY.end) {
                break;
            }
        }
    }
}
