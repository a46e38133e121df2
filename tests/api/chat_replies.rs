//! Tools and reasoning of chats, in one piece and streamed.

use hyper::StatusCode;
use serde_json::{Value, json};
use specserve::api::{ChatFeatures, ReasoningFormat, ToolFormat};

use crate::client::*;
use crate::fake::{END, Fixture, Script};

const CALLS: &str = "<think>\nI need f.\n</think>\n\nSo:\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"é\"}}\n</tool_call>\n<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>";

fn features() -> ChatFeatures {
    let variables = ["tools", "enable_thinking"].map(str::to_owned);
    ChatFeatures {
        tool_format: Some(ToolFormat::Hermes),
        reasoning_format: Some(ReasoningFormat::Think),
        variables: variables.into_iter().collect(),
    }
}

async fn fixture(text: &str, burst: usize) -> Fixture {
    Fixture::with_chat(Script::text(text, burst), features()).await
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}

fn tools(extra: Value) -> Value {
    with(chat(json!({"tools": [tool("f"), tool("g")], "max_tokens": 1000})), extra)
}

/// A message as a client puts it together from the deltas of a stream, and the finish reason.
fn assembled(chunks: &[Value]) -> (Value, Value) {
    let mut message = json!({"content": "", "reasoning_content": "", "tool_calls": []});
    let mut reason = Value::Null;
    let append =
        |to: &mut Value, more: &Value| *to = json!(to.as_str().unwrap().to_owned() + more.as_str().unwrap());
    for choice in chunks.iter().map(|chunk| &chunk["choices"][0]) {
        for (field, value) in choice["delta"].as_object().unwrap() {
            match field.as_str() {
                "role" => {
                    assert_eq!(message.get("role"), None, "the first delta alone has it");
                    message["role"] = value.clone();
                }
                "tool_calls" => {
                    let more = &value[0];
                    let calls = message["tool_calls"].as_array_mut().unwrap();
                    if more["id"].is_string() {
                        assert_eq!(
                            (&more["index"], &more["type"]),
                            (&json!(calls.len()), &json!("function"))
                        );
                        calls.push(more["function"].clone());
                    } else {
                        assert_eq!(more["index"], calls.len() - 1);
                        append(&mut calls.last_mut().unwrap()["arguments"], &more["function"]["arguments"]);
                    }
                }
                field => append(&mut message[field], value),
            }
        }
        reason = choice["finish_reason"].clone();
    }
    (message, reason)
}

#[tokio::test]
async fn calls_and_reasoning_are_fields_of_the_message() {
    let fixture = fixture(CALLS, 7).await;
    let body = post(&fixture, CHAT, &tools(json!({}))).await.json();
    let choice = &body["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{body}");
    let message = &choice["message"];
    assert_eq!((&message["content"], &message["reasoning_content"]), (&json!("So:"), &json!("I need f.")));
    let functions = json!([{"name": "f", "arguments": "{\"a\": \"é\"}"}, {"name": "g", "arguments": "{}"}]);
    for (call, function) in
        message["tool_calls"].as_array().unwrap().iter().zip(functions.as_array().unwrap())
    {
        assert_eq!((&call["type"], &call["function"]), (&json!("function"), function));
        assert!(call["id"].as_str().unwrap().starts_with("call_"));
    }
    let reasoning_tokens = CALLS.find("</think>").unwrap() + "</think>".len();
    assert_eq!(body["usage"]["completion_tokens_details"], json!({"reasoning_tokens": reasoning_tokens}));
}

#[tokio::test]
async fn a_stream_has_the_same_parts_in_bursts_of_every_size() {
    let expected = json!({
        "role": "assistant", "content": "So:", "reasoning_content": "I need f.",
        "tool_calls": [{"name": "f", "arguments": "{\"a\": \"é\"}"}, {"name": "g", "arguments": "{}"}],
    });
    for burst in (1..=18).chain([CALLS.len() + 1]) {
        let fixture = fixture(CALLS, burst).await;
        let reply = post(&fixture, CHAT, &tools(json!({"stream": true}))).await;
        let (message, reason) = assembled(&reply.chunks());
        assert_eq!((message, reason), (expected.clone(), json!("tool_calls")), "bursts of {burst}");
    }
}

#[tokio::test]
async fn arguments_are_streamed_as_they_are_written() {
    let fixture = fixture("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1234}}", 1).await;
    let chunks = post(&fixture, CHAT, &tools(json!({"stream": true}))).await.chunks();
    let first = &chunks[0]["choices"][0]["delta"];
    assert_eq!(first["tool_calls"][0]["function"], json!({"name": "f", "arguments": ""}));
    let pieces = chunks.iter().filter(|chunk| !chunk["choices"][0]["delta"]["tool_calls"].is_null());
    assert_eq!(pieces.count(), 1 + "{\"a\": 1234}".len());
}

#[tokio::test]
async fn without_text_the_content_beside_calls_is_null() {
    let fixture = fixture("<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>\n", 3).await;
    let body = post(&fixture, CHAT, &tools(json!({}))).await.json();
    assert_eq!(body["choices"][0]["message"]["content"], Value::Null, "{body}");
}

#[tokio::test]
async fn a_call_that_is_cut_off_ends_for_its_length() {
    let fixture = fixture("<tool_call>{\"name\": \"g\", \"arguments\": {\"a\": 1}}", 3).await;
    let body = post(&fixture, CHAT, &tools(json!({"max_tokens": 42}))).await.json();
    let choice = &body["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"a\"");
}

#[tokio::test]
async fn what_looks_like_a_call_is_text_for_a_request_without_tools() {
    let text = "<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>";
    let fixture = fixture(text, 5).await;
    let none = tools(json!({"tool_choice": "none"}));
    for body in [chat(json!({})), none] {
        let body = with(body, json!({"max_tokens": 1000}));
        let choice = post(&fixture, CHAT, &body).await.json()["choices"][0].clone();
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(text), &json!("stop")));
        assert_eq!(fixture.engine.last_submission().prompt.len(), "user: hi\nassistant: ".len(), "no tools");
    }
}

#[tokio::test]
async fn tools_and_switches_reach_the_template() {
    let fixture = fixture("x", 1).await;
    let rendered = async |body: Value| {
        let reply = post(&fixture, "/tokenize", &body).await.json();
        let text = post(&fixture, "/detokenize", &json!({"tokens": reply["tokens"]})).await.json();
        text["prompt"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned()
    };
    let messages = json!([{"role": "user", "content": "hi"}]);
    let body = json!({"messages": messages, "tools": [tool("f")]});
    assert_eq!(rendered(body).await, format!("tool: {}\nuser: hi\nassistant: ", tool("f")));
    let body = json!({"messages": messages, "reasoning_effort": "none"});
    assert_eq!(rendered(body).await, "{\"enable_thinking\":false}user: hi\nassistant: ");
    let reasoned = json!([{"role": "assistant", "content": "a", "reasoning": "b"}]);
    let fields = json!({"reasoning": "b", "reasoning_content": "b"});
    assert_eq!(rendered(json!({"messages": reasoned})).await, format!("assistant: a{fields}\nassistant: "));
}

#[tokio::test]
async fn reasoning_may_begin_in_the_prompt_or_in_a_message_that_is_continued() {
    let fixture = fixture("a</think>b", 1).await;
    let begun = [
        json!({"messages": [{"role": "user", "content": "<think>\n"}], "add_generation_prompt": false}),
        json!({"messages": [{"role": "assistant", "content": "<think>x"}], "continue_final_message": true}),
    ];
    for body in begun {
        let body = post(&fixture, CHAT, &body).await.json();
        let message = &body["choices"][0]["message"];
        assert_eq!(
            (&message["reasoning_content"], &message["content"]),
            (&json!("a"), &json!("b")),
            "{body}"
        );
        assert_eq!(body["usage"]["completion_tokens_details"]["reasoning_tokens"], "a</think>".len());
    }
    let body = post(&fixture, CHAT, &chat(json!({}))).await.json();
    assert_eq!(body["choices"][0]["message"]["content"], "a</think>b", "it has not begun");
    assert_eq!(body["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
}

#[tokio::test]
async fn the_end_of_reasoning_may_stand_anywhere_in_a_burst() {
    let text = "<think>ab</think>\n\ncd";
    for burst in 1..=text.len() + 1 {
        for stream in [false, true] {
            let fixture = fixture(text, burst).await;
            let reply = post(&fixture, CHAT, &chat(json!({"stream": stream}))).await;
            let message = match stream {
                true => assembled(&reply.chunks()).0,
                false => reply.json()["choices"][0]["message"].clone(),
            };
            assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("ab"), &json!("cd")));
        }
    }
}

#[tokio::test]
async fn reasoning_is_left_out_or_left_in_the_text_if_the_request_says_so() {
    let fixture = fixture("<think>a</think>b", 2).await;
    for (field, content) in [("include_reasoning", "b"), ("separate_reasoning", "<think>a</think>b")] {
        let body = post(&fixture, CHAT, &chat(json!({field: false}))).await.json();
        let message = &body["choices"][0]["message"];
        assert_eq!(
            (&message["content"], message.get("reasoning_content")),
            (&json!(content), None),
            "{field}"
        );
    }
}

#[tokio::test]
async fn a_stream_that_ends_within_its_reasoning_loses_nothing() {
    let fixture = fixture("<think>ab\n</thi", 4).await;
    let (message, reason) = assembled(&post(&fixture, CHAT, &chat(json!({"stream": true}))).await.chunks());
    assert_eq!((&message["reasoning_content"], reason), (&json!("ab\n</thi"), json!("stop")));
}

#[tokio::test]
async fn tools_are_refused_if_the_model_would_not_see_them_or_its_calls_cannot_be_read() {
    let blind = ChatFeatures { variables: Default::default(), ..features() };
    let unread = ChatFeatures { tool_format: None, ..features() };
    for (features, part) in [(blind, "does not write them"), (unread, "set target.tool_format")] {
        let fixture = Fixture::with_chat(Script::text("x", 1), features).await;
        for (path, body) in [(CHAT, tools(json!({}))), ("/tokenize", tools(json!({"max_tokens": null})))] {
            let reply = post(&fixture, path, &body).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{}", reply.text);
            let error = &reply.json()["error"];
            assert_eq!((&error["param"], &error["code"]), (&json!("tools"), &json!("unsupported_parameter")));
            assert!(error["message"].as_str().unwrap().contains(part), "{error}");
        }
    }
}

/// A list of calls as a forced output has it.
const FORCED: &str = "[{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]";

/// Whether a constraint allows the bytes of an output and then its end.
fn allows(fixture: &Fixture, output: &str) -> bool {
    let sampling = fixture.engine.last_submission().sampling.clone();
    let mut state = sampling.constraint.as_ref().expect("it is constrained").state(&[]);
    output.bytes().map(u32::from).chain([END]).all(|token| {
        let allowed = state.mask().is_some_and(|mask| mask.allows(token));
        if allowed {
            state.advance(token);
        }
        allowed
    })
}

#[tokio::test]
async fn forced_calls_are_a_list_that_the_grammar_asks_for() {
    let fixture = fixture(FORCED, 7).await;
    let body = post(&fixture, CHAT, &tools(json!({"tool_choice": "required"}))).await.json();
    let choice = &body["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null)
    );
    let functions: Vec<&Value> =
        choice["message"]["tool_calls"].as_array().unwrap().iter().map(|call| &call["function"]).collect();
    assert_eq!(
        functions,
        [&json!({"name": "f", "arguments": "{\"a\": 1}"}), &json!({"name": "g", "arguments": "{}"})]
    );
    assert!(allows(&fixture, FORCED));
    for wrong in
        ["", "[]", "So", "[{\"name\": \"h\", \"arguments\": {}}]", "[{\"name\": \"f\", \"arguments\": 1}]"]
    {
        assert!(!allows(&fixture, wrong), "{wrong}");
    }
}

#[tokio::test]
async fn a_named_function_is_called_once_with_arguments_that_fit() {
    let fixture = fixture("[{\"name\": \"g\", \"arguments\": {\"x\": true}}]", 1).await;
    let mut request = tools(json!({
        "tool_choice": {"type": "function", "function": {"name": "g"}}, "stream": true,
    }));
    request["tools"][1]["function"]["parameters"] = json!({
        "type": "object", "properties": {"x": {"$ref": "#/$defs/x"}}, "required": ["x"],
        "additionalProperties": false, "$defs": {"x": {"type": "boolean"}},
    });
    let (message, reason) = assembled(&post(&fixture, CHAT, &request).await.chunks());
    assert_eq!(message["tool_calls"], json!([{"name": "g", "arguments": "{\"x\": true}"}]));
    assert_eq!(reason, "tool_calls");
    assert!(allows(&fixture, "[{\"name\": \"g\", \"arguments\": {\"x\": false}}]"));
    for arguments in ["{}", "{\"x\": 1}", "{\"x\": true}}, {\"name\": \"g\", \"arguments\": {\"x\": true}"] {
        let output = format!("[{{\"name\": \"g\", \"arguments\": {arguments}}}]");
        assert!(!allows(&fixture, &output), "{output}");
    }
    assert!(!allows(&fixture, "[{\"name\": \"f\", \"arguments\": {}}]"), "another function");
}

#[tokio::test]
async fn forced_calls_with_a_schema_that_is_wrong_are_refused_with_its_place() {
    let fixture = fixture("", 1).await;
    let mut request = tools(json!({"tool_choice": "required"}));
    request["tools"][1]["function"]["parameters"] = json!({"properties": {"x": {"type": "nothing"}}});
    let reply = post(&fixture, CHAT, &request).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    let error = &reply.json()["error"];
    assert_eq!(error["param"], "tools[1].function.parameters", "{error}");
    assert!(error["message"].as_str().unwrap().contains("/properties/x"), "{error}");
    let both = json!({"tool_choice": "required", "response_format": {"type": "json_object"}});
    let error = &post(&fixture, CHAT, &tools(both)).await.json()["error"];
    assert_eq!(error["message"], "response_format and tool_choice both describe the output; set one of them");
}

#[tokio::test]
async fn an_output_that_is_described_is_text_from_its_beginning() {
    let json = "{\"name\": \"f\", \"arguments\": {}}";
    // in this format such an answer is a call
    let features = ChatFeatures { tool_format: Some(ToolFormat::Llama3), ..features() };
    let fixture = Fixture::with_chat(Script::text(json, 3), features).await;
    // the prompt begins the reasoning
    let begun = json!({
        "messages": [{"role": "user", "content": "<think>\n"}], "add_generation_prompt": false,
        "response_format": {"type": "json_object"},
    });
    let body = post(&fixture, CHAT, &tools(begun)).await.json();
    let message = &body["choices"][0]["message"];
    assert_eq!(message["content"], json, "{body}");
    assert_eq!(message.get("tool_calls"), None);
    assert_eq!(message.get("reasoning_content"), None);
}

#[tokio::test]
async fn a_call_and_its_result_go_back_to_the_model() {
    let fixture = fixture(CALLS, 9).await;
    let first = post(&fixture, CHAT, &tools(json!({}))).await.json();
    let answer = first["choices"][0]["message"].clone();
    let id = answer["tool_calls"][0]["id"].clone();
    let messages = json!([
        {"role": "user", "content": "hi"},
        answer,
        {"role": "tool", "tool_call_id": id, "content": "3"},
    ]);
    let reply = post(&fixture, CHAT, &tools(json!({"messages": messages}))).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
}
