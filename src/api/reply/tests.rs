//! Whole answers in every format.

use proptest::prelude::*;

use super::*;

fn rules(format: ToolFormat, parallel: bool) -> ReplyRules {
    let names = ["f", "g"].map(str::to_owned).to_vec();
    let reasoning =
        ReasoningRules { format: ReasoningFormat::Think, start: Start::Open, shown: Shown::Apart };
    ReplyRules {
        reasoning: Some(reasoning),
        calls: Some(CallRules { format, names, parallel, forced: false }),
    }
}

/// The answer as it is after all pieces, with whether there were calls.
fn read(rules: ReplyRules, pieces: &[&str]) -> (Message, bool) {
    let mut reply = Reply::new(rules, 7);
    let mut message = Message::default();
    for piece in pieces {
        message.extend(reply.push(piece));
    }
    message.extend(reply.finish(""));
    (message, reply.has_calls())
}

/// Text, and calls as `name arguments`.
fn seen(format: ToolFormat, text: &str) -> (String, Vec<String>) {
    let (message, any) = read(rules(format, true), &[text]);
    assert_eq!(any, !message.calls.is_empty(), "{text}");
    let calls = message.calls.iter().map(|call| format!("{} {}", call.name, call.arguments));
    (message.content, calls.collect())
}

fn expect(format: ToolFormat, text: &str, content: &str, calls: &[&str]) {
    let expected = (content.to_owned(), calls.iter().map(|&call| call.to_owned()).collect());
    assert_eq!(seen(format, text), expected, "{text}");
}

const F: &str = r#"{"name": "f", "arguments": {"a": "</x>"}}"#;
const G: &str = r#"{"name": "g", "arguments": {}}"#;

#[test]
fn calls_of_hermes_stand_between_markers() {
    let hermes = |text: &str, content, calls: &[&str]| expect(ToolFormat::Hermes, text, content, calls);
    let f = r#"f {"a": "</x>"}"#;
    hermes(&format!("<tool_call>\n{F}\n</tool_call>"), "", &[f]);
    hermes(&format!("So: \n<tool_call>{F}</tool_call>\n<tool_call>{G}</tool_call>\n"), "So:", &[f, "g {}"]);
    hermes(&format!("<tool_call>{F}</tool_call> done\n"), " done\n", &[f]);
    // cut off, or without its end
    hermes(&format!("<tool_call>{F}"), "", &[f]);
    hermes(r#"<tool_call>{"name": "f", "arguments": {"a"#, "", &[r#"f {"a"#]);
    hermes(r#"<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>"#, "", &[r#"f {"a": 1}"#]);
}

#[test]
fn an_output_that_must_be_calls_is_a_list_of_them_in_every_format() {
    for format in [ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral] {
        let calls = CallRules { format, names: vec!["f".to_owned()], parallel: true, forced: true };
        let rules = ReplyRules { reasoning: None, calls: Some(calls) };
        for (text, content, expected) in [
            (format!("[{F}]"), "", &["f {\"a\": \"</x>\"}"][..]),
            (format!("[{F}, {G}]"), "", &["f {\"a\": \"</x>\"}", "g {}"]),
            (r#"[{"name": "f", "arguments": {"a""#.to_owned(), "", &["f {\"a\""]),
            // cut off before the call begins
            (r#"[{"name": "#.to_owned(), r#"{"name": "#, &[]),
        ] {
            for bytes in [1, 5, text.len()] {
                let pieces: Vec<&str> =
                    text.as_bytes().chunks(bytes).map(|piece| std::str::from_utf8(piece).unwrap()).collect();
                let (message, any) = read(rules.clone(), &pieces);
                let calls: Vec<String> =
                    message.calls.iter().map(|call| format!("{} {}", call.name, call.arguments)).collect();
                assert_eq!(
                    (message.content.as_str(), calls),
                    (content, expected.iter().map(|&one| one.to_owned()).collect()),
                    "{text}"
                );
                assert_eq!(any, !expected.is_empty());
            }
        }
    }
}

#[test]
fn what_is_no_call_of_hermes_stays_text() {
    for text in [
        "<tool_call>",
        "<tool_call> f(1) </tool_call>",
        "<tool_call>{\"name\": \"f\"",
        "<tool_call>{\"name\": \"f\", \"arguments\": 3}</tool_call>",
        "<tool_ca",
        "a </tool_call> b \n",
        " \n",
    ] {
        expect(ToolFormat::Hermes, text, text, &[]);
    }
    expect(ToolFormat::Hermes, &format!("<tool_call>x<tool_call>{G}"), "<tool_call>x", &["g {}"]);
}

#[test]
fn an_answer_of_llama_3_is_a_call_if_it_names_a_function_of_the_request() {
    let llama = |text: &str, content, calls: &[&str]| expect(ToolFormat::Llama3, text, content, calls);
    let (f, g) = (r#"{"name": "f", "parameters": {"a": 1}}"#, r#"{"name": "g", "parameters": {}}"#);
    llama(f, "", &[r#"f {"a": 1}"#]);
    llama(&format!("\n{f}; {g}"), "", &[r#"f {"a": 1}"#, "g {}"]);
    llama(&format!("<|python_tag|>{f}"), "", &[r#"f {"a": 1}"#]);
    llama(&format!("I call <|python_tag|>{g}"), "I call", &["g {}"]);
    llama(&format!("{f}\nThat was it."), "\nThat was it.", &[r#"f {"a": 1}"#]);
    llama(r#"<|python_tag|>{"name": "h", "parameters": {}}"#, "", &["h {}"]);
}

#[test]
fn what_is_no_call_of_llama_3_stays_text() {
    for text in [
        r#"{"name": "h", "parameters": {}}"#,
        r#"{"city": "Bern", "name": "f"}"#,
        "<|python_tag|>print(1)",
        "Hello {\"name\": \"f\", \"parameters\": {}}",
        "{\"name\": \"f\"",
        "; ",
    ] {
        expect(ToolFormat::Llama3, text, text, &[]);
    }
}

#[test]
fn calls_of_mistral_are_a_list_or_a_name_with_arguments() {
    let mistral = |text: &str, content, calls: &[&str]| expect(ToolFormat::Mistral, text, content, calls);
    let f = r#"f {"a": "</x>"}"#;
    mistral(&format!("[TOOL_CALLS][{F}]"), "", &[f]);
    mistral(&format!("Well.[TOOL_CALLS] [{F}, {G}]"), "Well.", &[f, "g {}"]);
    mistral(&format!("[TOOL_CALLS]{G}"), "", &["g {}"]);
    mistral(r#"[TOOL_CALLS]f{"a": "]"}[TOOL_CALLS]g{}"#, "", &[r#"f {"a": "]"}"#, "g {}"]);
    mistral(r#"[TOOL_CALLS]f[ARGS]{"a": 1}"#, "", &[r#"f {"a": 1}"#]);
    mistral(r#"[TOOL_CALLS]f{"a": "#, "", &[r#"f {"a": "#]);
}

#[test]
fn what_is_no_call_of_mistral_stays_text() {
    for text in [
        "[TOOL_CALLS]",
        "[TOOL_CALLS] f is good",
        "[TOOL_CALLS][]",
        "[TOOL_CALLS][{\"name\": \"f\"",
        "[TOOL_CALLS][1]",
        "[TOOL_CALLS][ARGS]{}",
        "[TOOL_CA",
    ] {
        expect(ToolFormat::Mistral, text, text, &[]);
    }
}

#[test]
fn ids_are_the_models_own_or_made_as_its_template_accepts_them() {
    let id = |format, text: &str| read(rules(format, true), &[text]).0.calls[0].id.clone();
    assert_eq!(id(ToolFormat::Mistral, "[TOOL_CALLS]f[CALL_ID]Ab12[ARGS]{}"), "Ab12");
    let made = id(ToolFormat::Mistral, "[TOOL_CALLS]f{}");
    assert!(made.len() == 9 && made.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{made}");
    let two =
        read(rules(ToolFormat::Hermes, true), &[&format!("<tool_call>{F}</tool_call><tool_call>{F}")]).0;
    assert!(two.calls[0].id.starts_with("call_") && two.calls[0].id != two.calls[1].id, "{two:?}");
}

#[test]
fn of_calls_that_must_not_be_parallel_the_first_is_left() {
    let text = format!("<tool_call>{F}</tool_call><tool_call>{G}</tool_call>");
    let (message, _) = read(rules(ToolFormat::Hermes, false), &[&text]);
    let names: Vec<&str> = message.calls.iter().map(|call| call.name.as_str()).collect();
    assert_eq!((names, message.content.as_str()), (vec!["f"], ""));
}

#[test]
fn reasoning_goes_before_calls_and_is_shown_as_the_request_says() {
    let text = format!("<think>\nI need f.\n</think>\n\n<tool_call>{F}</tool_call>");
    let (message, _) = read(rules(ToolFormat::Hermes, true), &[&text]);
    assert_eq!((message.reasoning.as_str(), message.content.as_str()), ("I need f.", ""));
    assert_eq!(message.calls.len(), 1);
    let shown = |shown| {
        let reasoning = ReasoningRules { format: ReasoningFormat::Think, start: Start::Open, shown };
        let rules = ReplyRules { reasoning: Some(reasoning), calls: None };
        let message = read(rules, &["<think>a</think>b"]).0;
        (message.reasoning, message.content)
    };
    assert_eq!(shown(Shown::Apart), ("a".to_owned(), "b".to_owned()));
    assert_eq!(shown(Shown::Nowhere), (String::new(), "b".to_owned()));
    assert_eq!(shown(Shown::InText), (String::new(), "<think>a</think>b".to_owned()));
}

#[test]
fn a_call_in_the_reasoning_is_reasoning() {
    let text = format!("<think><tool_call>{F}</tool_call></think>ok");
    let (message, any) = read(rules(ToolFormat::Hermes, true), &[&text]);
    assert_eq!((any, message.content.as_str()), (false, "ok"));
}

fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<|python_tag|>",
        F,
        G,
        "{\"name\": \"f\", \"parameters\": {\"é\": [1, \"]\"]}}",
        "f{\"a\": 1}",
        "{",
        "}",
        "[",
        "]",
        ",",
        ";",
        " ",
        "\n",
        "\"",
        "é",
        "f",
        "text",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn an_answer_does_not_depend_on_how_its_text_is_cut(
        pieces in prop::collection::vec(piece(), 0..8),
        format in prop::sample::select(vec![ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral]),
        parallel in any::<bool>(),
        cuts in prop::collection::vec(0usize..7, 0..40),
    ) {
        let text = pieces.concat();
        let whole = read(rules(format, parallel), &[&text]);
        let singles: Vec<String> = text.chars().map(String::from).collect();
        let singles: Vec<&str> = singles.iter().map(String::as_str).collect();
        prop_assert_eq!(&read(rules(format, parallel), &singles), &whole);
        let (mut bursts, mut rest) = (Vec::new(), text.as_str());
        for cut in cuts {
            let at = rest.char_indices().nth(cut).map_or(rest.len(), |(at, _)| at);
            bursts.push(&rest[..at]);
            rest = &rest[at..];
        }
        bursts.push(rest);
        prop_assert_eq!(&read(rules(format, parallel), &bursts), &whole);
    }

    #[test]
    fn without_a_call_no_text_is_lost(
        pieces in prop::collection::vec(piece(), 0..8),
        format in prop::sample::select(vec![ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral]),
    ) {
        let text = pieces.concat();
        let (message, any) = read(ReplyRules { reasoning: None, ..rules(format, true) }, &[&text]);
        prop_assert!(any || message.content == text, "{:?} is not {text:?}", message.content);
    }
}
