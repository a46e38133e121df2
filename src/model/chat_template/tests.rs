use serde_json::{Value as Json, json};

use super::{ChatInput, ChatTemplate, ChatTemplateError, python_json, strftime};

/// Files that generate.py wrote beside them.
macro_rules! fixtures {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../tests/fixtures/chat_templates/", $name, ".json")))),*]
    };
}

fn compile(template: &str) -> ChatTemplate {
    let templates = [("default".to_owned(), template.to_owned())];
    ChatTemplate::compile(templates, Vec::new()).expect("the template compiles")
}

fn list(json: &Json) -> Option<&[Json]> {
    json.as_array().map(Vec::as_slice)
}

fn render_case(template: &str, case: &Json) -> Result<String, ChatTemplateError> {
    let tokens = case["special_tokens"].as_object().into_iter().flatten();
    let tokens = tokens.map(|(name, text)| (name.clone(), text.as_str().unwrap_or_default().to_owned()));
    let templates = [("default".to_owned(), template.to_owned())];
    let compiled = ChatTemplate::compile(templates, tokens.collect()).expect("the template compiles");
    compiled.render(&ChatInput {
        messages: list(&case["messages"]).expect("messages"),
        tools: list(&case["tools"]),
        documents: list(&case["documents"]),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap_or(false),
        continue_final_message: false,
        variables: case["variables"].as_object(),
        unix_seconds: case["unix_seconds"].as_u64().expect("a time"),
    })
}

#[test]
fn every_fixture_renders_byte_for_byte_as_jinja2_does() {
    let files = fixtures![
        "chatml",
        "chatml_default_system",
        "chatml_tools",
        "llama3_like",
        "mistral_like",
        "features",
    ];
    for (name, file) in files {
        let fixture: Json = serde_json::from_str(file).expect("the fixture is JSON");
        let template = fixture["template"].as_str().expect("a template");
        for (number, case) in fixture["cases"].as_array().expect("cases").iter().enumerate() {
            match (case["expected"].as_str(), render_case(template, case)) {
                (Some(expected), Ok(rendered)) => assert_eq!(rendered, expected, "{name} {number}"),
                (None, Err(ChatTemplateError::Refused(message))) => {
                    assert_eq!(Some(message.as_str()), case["refused"].as_str(), "{name} {number}");
                }
                (expected, rendered) => panic!("{name} {number}: {rendered:?} instead of {expected:?}"),
            }
        }
    }
}

#[test]
fn a_message_the_template_fails_on_is_the_callers_error() {
    let template = compile("{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}");
    let messages = [json!({"role": "user", "content": "hi"}), json!({"role": "user"})];
    let good = ChatInput { messages: &messages[..1], ..ChatInput::default() };
    assert_eq!(template.render(&good).as_deref(), Ok("user: hi"));
    let bad = ChatInput { messages: &messages, ..ChatInput::default() };
    match template.render(&bad) {
        Err(ChatTemplateError::Failed(problem)) => assert!(problem.contains("line 1"), "{problem}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_given_to_raise_exception_inside_a_macro_reaches_the_caller() {
    let template = compile("{% macro m() %}{{ raise_exception('no ' ~ 1) }}{% endmacro %}{{ m() }}");
    let refused = template.render(&ChatInput::default()).expect_err("the template refuses");
    assert_eq!(refused, ChatTemplateError::Refused("no 1".to_owned()));
}

#[test]
fn a_syntax_error_names_its_line() {
    let templates = [("default".to_owned(), "fine\n{% for %}".to_owned())];
    let problem = ChatTemplate::compile(templates, Vec::new()).expect_err("it is broken");
    assert!(problem.contains("line 2"), "{problem}");
}

#[test]
fn tools_choose_the_template_named_tool_use() {
    let named = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let both = [named("default", "plain"), named("tool_use", "{{ tools | length }} tools")];
    let template = ChatTemplate::compile(both, Vec::new()).expect("it compiles");
    assert_eq!(template.render(&ChatInput::default()).as_deref(), Ok("plain"));
    let input = ChatInput { tools: Some(&[]), ..ChatInput::default() };
    assert_eq!(template.render(&input).as_deref(), Ok("0 tools"));
    ChatTemplate::compile([named("tool_use", "x")], Vec::new()).expect_err("there is no default");
}

#[test]
fn the_variables_of_a_template_are_those_that_it_reads() {
    let read = |template: &str| compile(template).variables().into_iter().collect::<Vec<_>>();
    let source =
        "{% for m in messages %}{{ m.x }}{% endfor %}{% set y = 1 %}{% if tools %}{{ y }}{% endif %}";
    assert_eq!(read(source), ["messages", "tools"]);
    let named = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let both = [named("default", "{{ messages }}"), named("tool_use", "<tool_call>")];
    let template = ChatTemplate::compile(both, Vec::new()).expect("it compiles");
    assert!(template.variables().contains("tools"));
    assert_eq!(template.source_with_tools(), "<tool_call>");
    assert_eq!(compile("plain").source_with_tools(), "plain");
}

#[test]
fn a_callers_variable_can_replace_a_special_token_but_not_the_messages() {
    let tokens = vec![("bos_token".to_owned(), "<s>".to_owned())];
    let templates = [("default".to_owned(), "{{ bos_token }}{{ messages | length }}{{ x }}".to_owned())];
    let template = ChatTemplate::compile(templates, tokens).expect("it compiles");
    let variables = json!({"bos_token": "<b>", "messages": [], "x": 1});
    let messages = [json!({})];
    let mut input = ChatInput { messages: &messages, ..ChatInput::default() };
    assert_eq!(template.render(&input).as_deref(), Ok("<s>1"));
    input.variables = variables.as_object();
    assert_eq!(template.render(&input).as_deref(), Ok("<b>11"));
}

#[test]
fn only_training_tags_are_replaced() {
    let source = "{% set generation = 1 %}{{ generation }}{%- generation +%}{%endgeneration%} {% open";
    let expected = "{% set generation = 1 %}{{ generation }}{%- if true +%}{%endif%} {% open";
    assert_eq!(super::without_training_tags(source), expected);
}

#[test]
fn floats_are_written_as_python_writes_them() {
    let cases = [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1.0, "1.0"),
        (0.1, "0.1"),
        (1e15, "1000000000000000.0"),
        (1e16, "1e+16"),
        (-1.5e300, "-1.5e+300"),
        (1e-4, "0.0001"),
        (1e-5, "1e-05"),
        (1.25e-7, "1.25e-07"),
        (f64::NAN, "NaN"),
        (f64::NEG_INFINITY, "-Infinity"),
    ];
    for (number, expected) in cases {
        assert_eq!(python_json::float(number), expected);
    }
}

#[test]
fn nesting_beyond_the_bound_is_refused_not_followed() {
    let template = compile(
        "{% set ns = namespace(x=[]) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    );
    match template.render(&ChatInput::default()) {
        Err(ChatTemplateError::Failed(problem)) => assert!(problem.contains("levels deep"), "{problem}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn dates_around_leap_days_and_centuries_are_right() {
    let cases = [
        (951_782_399, "2000-02-28 23:59:59 059 Mon"),
        (951_782_400, "2000-02-29 00:00:00 060 Tue"),
        (951_868_800, "2000-03-01 00:00:00 061 Wed"),
        (978_220_800, "2000-12-31 00:00:00 366 Sun"),
        (978_307_200, "2001-01-01 00:00:00 001 Mon"),
        (4_107_542_400, "2100-03-01 00:00:00 060 Mon"),
    ];
    for (seconds, expected) in cases {
        assert_eq!(strftime::format_utc("%Y-%m-%d %H:%M:%S %j %a", seconds), expected);
    }
    assert_eq!(
        strftime::format_utc("%F %T %R %D|%c|%Q|%", 0),
        "1970-01-01 00:00:00 00:00 01/01/70|Thu Jan  1 00:00:00 1970|%Q|%"
    );
    assert_eq!(
        strftime::format_utc("%-d %e %b %B %A %I %p %y %w|%n%t|%%", 3_600),
        "1  1 Jan January Thursday 01 AM 70 4|\n\t|%"
    );
}

#[test]
fn a_date_without_a_zone_has_an_empty_zone_and_six_digits_of_fraction() {
    assert_eq!(strftime::format_utc("[%Z%z] .%f %%Z %%f", 0), "[] .000000 %Z %f");
}

#[test]
fn a_time_beyond_the_calendar_is_the_last_representable_one() {
    assert_eq!(strftime::format_utc("%Y", u64::MAX), "9999");
}

#[test]
fn every_test_and_filter_of_jinja2_renders_as_there() {
    let file: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/fixtures/chat_templates/builtins.json"))
            .expect("JSON");
    let variables = file["values"].as_object().expect("values");
    let mut differing = Vec::new();
    for (expression, texts) in file["cases"].as_object().expect("cases") {
        for (name, expected) in texts.as_object().expect("texts by value") {
            let template = format!("{{{{ {} }}}}", expression.replacen('V', name, 1));
            let input = ChatInput { variables: Some(variables), ..ChatInput::default() };
            let rendered = compile(&template).render(&input);
            if rendered.as_deref() != Ok(expected.as_str().expect("a text")) {
                differing.push(format!("{template}: {rendered:?} instead of {expected}"));
            }
        }
    }
    assert!(differing.is_empty(), "{} cases:\n{}", differing.len(), differing.join("\n"));
}

#[test]
fn tools_that_are_none_are_not_iterable() {
    let template =
        compile("{% if tools is iterable and tools | length > 0 %}tools{% else %}plain{% endif %}");
    assert_eq!(template.render(&ChatInput::default()).as_deref(), Ok("plain"));
}

#[test]
fn methods_of_pythons_strings_are_there() {
    for (expression, expected) in [
        ("'a.b.c'.rsplit('.', 1)", "['a.b', 'c']"),
        ("' a  b '.rsplit()", "['a', 'b']"),
        ("'a  b c '.rsplit(none, 1)", "['a  b', 'c']"),
        ("'a-b-c'.partition('-')[2]", "b-c"),
        ("'a-b-c'.rpartition('-')[0]", "a-b"),
        ("'<think>x'.removeprefix('<think>')", "x"),
        ("'x</think>'.removesuffix('</think>')", "x"),
        ("'7'.zfill(3) ~ '-7'.zfill(4)", "007-007"),
        ("'a'.ljust(3) ~ 'a'.rjust(3, '.') ~ 'ab'.center(5)", "a  ..a  ab "),
        ("'it\\'s' .title()", "It'S"),
        ("'aBß'.swapcase()", "AbSS"),
        ("'abc'.index('c')", "2"),
        ("[1, 2].index(2) ~ [1].copy()", "1[1]"),
    ] {
        let rendered = compile(&format!("{{{{ {expression} }}}}")).render(&ChatInput::default());
        assert_eq!(rendered.as_deref(), Ok(expected), "{expression}");
    }
    compile("{{ 'abc'.index('x') }}").render(&ChatInput::default()).expect_err("it is not in there");
}

#[test]
fn line_ends_of_windows_are_read_as_line_ends() {
    let unix = "{% if true %}\na\n{% endif %}\nb\n";
    for template in [unix.replace('\n', "\r\n"), unix.replace('\n', "\r")] {
        assert_eq!(compile(&template).render(&ChatInput::default()).as_deref(), Ok("a\nb"));
    }
}

#[test]
fn a_final_message_that_is_continued_ends_the_prompt() {
    let messages =
        [json!({"role": "user", "content": "hi"}), json!({"role": "assistant", "content": "I say "})];
    let render = |template: &str| {
        let input = ChatInput { messages: &messages, continue_final_message: true, ..ChatInput::default() };
        compile(template).render(&input)
    };
    let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}";
    assert_eq!(render(plain).as_deref(), Ok("<user>hi</><assistant>I say "));
    let trimmed = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}";
    assert_eq!(render(trimmed).as_deref(), Ok("<user>hi</><assistant>I say"));
    assert_eq!(render("{{ messages[0].content }}"), Err(ChatTemplateError::NotContinued));
}
