//! The HTTP API over a real Unix socket, against a scripted engine.

mod fake;

use std::path::Path;
use std::time::Duration;

use fake::{CONTEXT, END, Fixture, MODEL, Script, Told, finished};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use specserve::actors::AdmissionError;
use specserve::api::{ApiLimits, Health};
use specserve::request::{FinishReason, RequestFailure, RequestId, TokenEvent};
use specserve::time::Micros;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

async fn connect(socket: &Path) -> SendRequest<Full<Bytes>> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("host", "specserve");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).unwrap()
}

async fn open(socket: &Path, path: &str, body: &Value) -> Response<Incoming> {
    let request = request(Method::POST, path, &[], body.to_string());
    connect(socket).await.send_request(request).await.unwrap()
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Reply {
    async fn read(response: Response<Incoming>) -> Reply {
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Reply { status: parts.status, headers: parts.headers, text }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {:?}", self.text))
    }

    /// The data of a stream's events.
    fn events(&self) -> Vec<String> {
        let events = self.text.split_terminator("\n\n");
        events.map(|event| event.strip_prefix("data: ").expect(event).to_owned()).collect()
    }

    /// The JSON events of a stream that ends properly.
    fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", self.text);
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

async fn send(fixture: &Fixture, request: Request<Full<Bytes>>) -> Reply {
    Reply::read(connect(&fixture.socket).await.send_request(request).await.unwrap()).await
}

async fn get(fixture: &Fixture, path: &str) -> Reply {
    send(fixture, request(Method::GET, path, &[], "")).await
}

async fn post(fixture: &Fixture, path: &str, body: &Value) -> Reply {
    Reply::read(open(&fixture.socket, path, body).await).await
}

fn prompt(extra: Value) -> Value {
    with(json!({"model": MODEL, "prompt": "abc"}), extra)
}

fn chat(extra: Value) -> Value {
    with(json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}), extra)
}

fn with(mut body: Value, extra: Value) -> Value {
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

async fn assert_serving(fixture: &Fixture) {
    let reply = post(fixture, COMPLETIONS, &prompt(json!({}))).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
}

// === answers

#[tokio::test]
async fn a_completion_holds_text_reason_usage_and_metrics() {
    let fixture = Fixture::start(Script::text("Hi!", 2)).await;
    let reply = post(&fixture, COMPLETIONS, &prompt(json!({"seed": 7}))).await;
    let body = reply.json();
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!((&body["object"], &body["model"]), (&json!("text_completion"), &json!(MODEL)));
    let choice = json!({"index": 0, "text": "Hi!", "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    assert_eq!(body["usage"], json!({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}));
    let metrics = json!({
        "queue_ms": 2.0,
        "ttft_ms": 10.0,
        "tpot_ms": 1.5,
        "speculative_decoding":
            {"steps": 2, "drafted": 6, "verified": 5, "accepted": 3, "mean_acceptance_length": 2.5},
        "preemptions": 1,
        "seed": 7,
    });
    assert_eq!(body["metrics"], metrics);
}

#[tokio::test]
async fn a_chat_answer_is_a_message_of_the_assistant() {
    let fixture = Fixture::start(Script::text("Hello.", 3)).await;
    let body = post(&fixture, CHAT, &chat(json!({"max_completion_tokens": 3}))).await.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(
        body["choices"][0]["message"],
        json!({"role": "assistant", "content": "Hel", "refusal": null})
    );
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    let prompt: Vec<u32> = b"user: hi\nassistant: ".iter().map(|&byte| u32::from(byte)).collect();
    assert_eq!(&*fixture.engine.last_submission().prompt, prompt);
}

#[tokio::test]
async fn prompts_may_be_text_tokens_or_a_list_of_one() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    for prompt in [json!("abc"), json!([97, 98, 99]), json!(["abc"]), json!([[97, 98, 99]])] {
        let reply = post(&fixture, COMPLETIONS, &json!({"model": MODEL, "prompt": prompt})).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        assert_eq!(&*fixture.engine.last_submission().prompt, [97, 98, 99]);
    }
}

#[tokio::test]
async fn text_parts_are_joined_and_developers_speak_as_the_system() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let messages = json!([
        {"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "assistant", "content": "d", "refusal": null, "annotations": [], "tool_calls": null},
    ]);
    let reply = post(&fixture, "/tokenize", &json!({"messages": messages})).await.json();
    let text = post(&fixture, "/detokenize", &json!({"tokens": reply["tokens"]})).await.json();
    assert_eq!(text["prompt"], "system: a\nuser: bc\nassistant: d\nassistant: ");
    assert_eq!(reply["count"], reply["tokens"].as_array().unwrap().len());
}

#[tokio::test]
async fn every_sampling_parameter_reaches_the_engine() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let all = json!({
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "min_p": 0.125, "seed": u64::MAX,
        "repetition_penalty": 1.5, "presence_penalty": -0.5, "frequency_penalty": 0.75,
        "logit_bias": {"7": -100, "3": 2.5}, "stop_token_ids": [9, 8], "ignore_eos": true,
        "user": "u", "metadata": {}, "store": false, "n": 1, "stream": false, "logprobs": null,
    });
    let reply = post(&fixture, COMPLETIONS, &prompt(all)).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
    let submission = fixture.engine.last_submission();
    let sampling = &submission.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.min_p), (0.5, 0.25, 0.125));
    assert_eq!((sampling.top_k, sampling.seed, sampling.repetition_penalty), (3, u64::MAX, 1.5));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (-0.5, 0.75));
    assert_eq!(sampling.logit_bias, [(3, 2.5), (7, -100.0)]);
    assert_eq!((submission.max_tokens, &*submission.stop_tokens), (9, &[8, 9][..]));
}

#[tokio::test]
async fn what_a_request_leaves_out_comes_from_the_models_defaults() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let seeds = [
        post(&fixture, COMPLETIONS, &prompt(json!({}))).await,
        post(&fixture, COMPLETIONS, &prompt(json!({}))).await,
    ]
    .map(|reply| reply.json()["metrics"]["seed"].as_u64().unwrap());
    assert_ne!(seeds[0], seeds[1], "a fresh seed each time");
    let submission = fixture.engine.last_submission();
    assert_eq!((submission.sampling.temperature, submission.sampling.seed), (0.7, seeds[1]));
    assert_eq!((submission.max_tokens, &*submission.stop_tokens), (100, &[END][..]));
    let long = "x".repeat(CONTEXT as usize - 10);
    post(&fixture, COMPLETIONS, &json!({"model": MODEL, "prompt": long})).await;
    assert_eq!(fixture.engine.last_submission().max_tokens, 10);
}

#[tokio::test]
async fn objectives_come_from_body_then_headers_then_class() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let ask = async |slo: Value, headers: &[(&str, &str)]| {
        let body = prompt(json!({"slo": slo})).to_string();
        let reply = send(&fixture, request(Method::POST, COMPLETIONS, headers, body)).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        let submission = fixture.engine.last_submission();
        let micros = |bound: Option<Micros>| bound.map(|bound| bound.0);
        (submission.class, micros(submission.slo.ttft), micros(submission.slo.tpot))
    };
    let headers = [("x-slo-ttft-ms", "200"), ("x-llm-d-slo-tpot-ms", "12.5")];
    assert_eq!(ask(Value::Null, &[]).await, (0, Some(500_000), Some(50_000)));
    assert_eq!(ask(json!({"class": "batch"}), &[]).await, (1, None, None));
    assert_eq!(ask(Value::Null, &headers).await, (0, Some(200_000), Some(12_500)));
    assert_eq!(
        ask(json!({"ttft_ms": 90, "class": "batch"}), &headers).await,
        (1, Some(90_000), Some(12_500))
    );
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_and_tells_the_engine() {
    let bursts = ["ab", "c E", "ND x"].map(|burst| burst.bytes().map(u32::from).collect()).to_vec();
    let mut fixture = Fixture::start(Script::Hang(bursts)).await;
    for stream in [false, true] {
        let reply = post(&fixture, COMPLETIONS, &prompt(json!({"stop": ["END"], "stream": stream}))).await;
        if stream {
            let text: String =
                reply.chunks().iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
            assert_eq!(text, "abc ");
        } else {
            assert_eq!(reply.json()["choices"][0]["text"], "abc ");
            assert_eq!(reply.json()["choices"][0]["finish_reason"], "stop");
            assert_eq!(reply.json()["usage"]["completion_tokens"], 7);
        }
        assert!(matches!(fixture.told().await, Told::Submitted(_)));
        assert!(matches!(fixture.told().await, Told::Finished(_)));
    }
    assert_serving_after_play(&fixture).await;
    assert!(matches!(fixture.told().await, Told::Submitted(_)), "nothing was cancelled");
}

async fn assert_serving_after_play(fixture: &Fixture) {
    fixture.engine.play(Script::text("x", 1));
    assert_serving(fixture).await;
}

// === streams

#[tokio::test]
async fn a_chat_stream_opens_with_the_role_and_closes_with_reason_and_done() {
    let fixture = Fixture::start(Script::text("Hi you", 2)).await;
    let reply = post(&fixture, CHAT, &chat(json!({"stream": true}))).await;
    assert_eq!(reply.headers["content-type"], "text/event-stream; charset=utf-8");
    let chunks = reply.chunks();
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert_eq!(deltas[0], &json!({"role": "assistant", "content": "Hi"}));
    assert_eq!(deltas[1..3], [&json!({"content": " y"}), &json!({"content": "ou"})]);
    assert_eq!(deltas[3], &json!({}));
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[3]["metrics"]["preemptions"], 1);
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none() && chunk["id"] == chunks[0]["id"]));
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
}

#[tokio::test]
async fn usage_comes_in_a_chunk_of_its_own_when_asked_for() {
    let fixture = Fixture::start(Script::text("Hi", 1)).await;
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let chunks = post(&fixture, COMPLETIONS, &prompt(options)).await.chunks();
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], json!({"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}));
    assert!(last["metrics"]["seed"].is_u64());
    assert!(rest.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("metrics").is_none()));
}

#[tokio::test]
async fn an_empty_answer_still_opens_the_stream() {
    let fixture = Fixture::start(Script::Answer(vec![vec![END]])).await;
    let chunks = post(&fixture, CHAT, &chat(json!({"stream": true}))).await.chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_stream_that_fails_midway_ends_with_an_error_and_without_done() {
    let fixture = Fixture::start(Script::Fail(vec![vec![65]], RequestFailure::Numerical)).await;
    let reply = post(&fixture, COMPLETIONS, &prompt(json!({"stream": true}))).await;
    assert_eq!(reply.status, StatusCode::OK);
    let events = reply.events();
    assert_eq!(events.len(), 2);
    let error: Value = serde_json::from_str(&events[1]).unwrap();
    assert_eq!(error["error"]["code"], "numerical_error");
}

#[tokio::test]
async fn a_failure_before_the_first_token_has_an_error_status() {
    for (failure, status, code) in [
        (RequestFailure::ShuttingDown, 503, "shutting_down"),
        (RequestFailure::Numerical, 500, "numerical_error"),
        (RequestFailure::Engine("device lost".into()), 500, "engine_error"),
    ] {
        let fixture = Fixture::start(Script::Fail(vec![], failure)).await;
        for stream in [false, true] {
            let reply = post(&fixture, CHAT, &chat(json!({"stream": stream}))).await;
            assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (status, &json!(code)));
        }
    }
}

// === clients that leave, and time that runs out

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_cancels_its_request() {
    let mut fixture = Fixture::start(Script::Hang(vec![])).await;
    for stream in [false, true] {
        let mut client = UnixStream::connect(&fixture.socket).await.unwrap();
        let body = prompt(json!({"stream": stream})).to_string();
        let head =
            format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        client.write_all((head + &body).as_bytes()).await.unwrap();
        let Told::Submitted(id) = fixture.told().await else { panic!("not submitted") };
        drop(client);
        assert_eq!(fixture.told().await, Told::Cancelled(id));
    }
    assert_serving_after_play(&fixture).await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_stream_cancels_its_request() {
    let mut fixture = Fixture::start(Script::Hang(vec![vec![65]])).await;
    let mut sender = connect(&fixture.socket).await;
    let body = prompt(json!({"stream": true})).to_string();
    let mut response = sender.send_request(request(Method::POST, COMPLETIONS, &[], body)).await.unwrap();
    assert_eq!(fixture.told().await, Told::Submitted(RequestId(0)));
    let first = response.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"data: {"));
    drop((response, sender));
    assert_eq!(fixture.told().await, Told::Cancelled(RequestId(0)));
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_given_up() {
    let limits = ApiLimits { request_timeout: Duration::from_millis(50), ..ApiLimits::default() };
    let mut fixture = Fixture::with_limits(Script::Hang(vec![vec![65]]), limits).await;
    let reply = post(&fixture, CHAT, &chat(json!({}))).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (504, &json!("request_timeout")));
    assert_eq!(fixture.told().await, Told::Submitted(RequestId(0)));
    assert_eq!(fixture.told().await, Told::Cancelled(RequestId(0)));
    let events = post(&fixture, CHAT, &chat(json!({"stream": true}))).await.events();
    assert!(events.last().unwrap().contains("request_timeout"));
}

// === bad input

/// Sends a body and checks the error object.
async fn assert_refused(
    fixture: &Fixture,
    path: &str,
    body: &[u8],
    status: u16,
    code: &str,
    param: Option<&str>,
) {
    let reply = send(fixture, request(Method::POST, path, &[], body.to_vec())).await;
    let seen = (reply.status.as_u16(), reply.json());
    let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    assert_eq!((seen.0, &seen.1["error"]["code"]), (status, &json!(code)), "{shown}: {}", seen.1);
    assert_eq!(seen.1["error"]["param"], json!(param), "{shown}: {}", seen.1);
    assert!(seen.1["error"]["message"].is_string() && seen.1["error"]["type"].is_string());
}

#[tokio::test]
async fn bodies_that_are_not_json_objects_are_refused() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let deep = [b"{\"model\":".as_slice(), &b"[".repeat(20_000)].concat();
    for body in [&b""[..], b"{", b"[]", b"nonsense", b"{\"model\": \"\xff\xfe\"}", &deep] {
        for path in [COMPLETIONS, CHAT, "/tokenize", "/detokenize"] {
            assert_refused(&fixture, path, body, 400, "invalid_json", None).await;
        }
    }
    assert_serving(&fixture).await;
}

#[tokio::test]
async fn values_out_of_bounds_are_refused_by_name() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let many_stops = json!(["1", "2", "3", "4", "5"]);
    let many_ids = json!(vec![1; 65]);
    for (param, value) in [
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(1.5)),
        ("max_tokens", json!("ten")),
        ("max_tokens", json!(1e300)),
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_p", json!(1.01)),
        ("top_k", json!(-2)),
        ("min_p", json!(1.5)),
        ("seed", json!(1.5)),
        ("seed", json!("x")),
        ("repetition_penalty", json!(0)),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-2.5)),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"257": 1})),
        ("logit_bias", json!({"-1": 1})),
        ("logit_bias", json!({"1": 101})),
        ("logit_bias", json!({"1": 1, "01": 2})),
        ("logit_bias", json!([1])),
        ("stop", json!("")),
        ("stop", json!([1])),
        ("stop", many_stops),
        ("stop", json!("x".repeat(257))),
        ("stop_token_ids", json!([257])),
        ("stop_token_ids", json!([-1])),
        ("stop_token_ids", many_ids),
        ("ignore_eos", json!("yes")),
        ("stream", json!(1)),
        ("slo", json!(5)),
        ("slo.ttft_ms", json!({"ttft_ms": 0})),
        ("slo.tpot_ms", json!({"tpot_ms": -3})),
        ("slo.class", json!({"class": "vip"})),
        ("stream_options", json!(true)),
    ] {
        let field = param.split('.').next().unwrap();
        let body = prompt(json!({field: value})).to_string();
        assert_refused(&fixture, COMPLETIONS, body.as_bytes(), 400, "invalid_value", Some(param)).await;
    }
    let both = chat(json!({"max_tokens": 3, "max_completion_tokens": 4})).to_string();
    assert_refused(&fixture, CHAT, both.as_bytes(), 400, "invalid_value", Some("max_completion_tokens"))
        .await;
    assert_eq!(fixture.engine.submissions(), 0);
    assert_serving(&fixture).await;
}

#[tokio::test]
async fn what_is_not_supported_is_refused_and_never_ignored() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    for (param, value) in [
        ("n", json!(2)),
        ("best_of", json!(3)),
        ("logprobs", json!(true)),
        ("logprobs", json!(0)),
        ("top_logprobs", json!(2)),
        ("echo", json!(true)),
        ("suffix", json!("end")),
        ("tools", json!([{"type": "function"}])),
        ("tool_choice", json!("auto")),
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!("auto")),
        ("response_format", json!({"type": "json_object"})),
        ("audio", json!({"voice": "x"})),
        ("modalities", json!(["audio"])),
        ("prediction", json!({})),
        ("reasoning_effort", json!("low")),
        ("store", json!(true)),
        ("speculative", json!({"n_max": 4})),
    ] {
        for (path, body) in
            [(COMPLETIONS, prompt(json!({param: value}))), (CHAT, chat(json!({param: value})))]
        {
            let body = body.to_string();
            assert_refused(&fixture, path, body.as_bytes(), 400, "unsupported_parameter", Some(param)).await;
        }
    }
    for (param, body) in [
        ("temprature", prompt(json!({"temprature": 1}))),
        ("messages", prompt(json!({"messages": []}))),
        ("slo.p99_ms", prompt(json!({"slo": {"p99_ms": 1}}))),
        ("stream_options.x", prompt(json!({"stream_options": {"x": 1}}))),
    ] {
        let body = body.to_string();
        assert_refused(&fixture, COMPLETIONS, body.as_bytes(), 400, "unknown_parameter", Some(param)).await;
    }
    assert_eq!(fixture.engine.submissions(), 0);
    assert_serving(&fixture).await;
}

#[tokio::test]
async fn prompts_and_messages_that_make_no_sense_are_refused() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    for (prompt, code) in [
        (json!(""), "invalid_value"),
        (json!([]), "invalid_value"),
        (json!(7), "invalid_value"),
        (json!({}), "invalid_value"),
        (json!([1, "x"]), "invalid_value"),
        (json!([257]), "invalid_value"),
        (json!([-1]), "invalid_value"),
        (json!(["a", "b"]), "unsupported_parameter"),
        (Value::Null, "missing_parameter"),
    ] {
        let body = json!({"model": MODEL, "prompt": prompt}).to_string();
        assert_refused(&fixture, COMPLETIONS, body.as_bytes(), 400, code, Some("prompt")).await;
    }
    let image = json!({"type": "image_url", "image_url": {"url": "x"}});
    for (messages, code, param) in [
        (Value::Null, "missing_parameter", "messages"),
        (json!([]), "invalid_value", "messages"),
        (json!("hi"), "invalid_value", "messages"),
        (json!(["hi"]), "invalid_value", "messages[0]"),
        (json!([{"content": "x"}]), "missing_parameter", "messages[0].role"),
        (json!([{"role": "user"}]), "missing_parameter", "messages[0].content"),
        (json!([{"role": "tool", "content": "x"}]), "unsupported_parameter", "messages[0].role"),
        (json!([{"role": "user", "content": 1}]), "invalid_value", "messages[0].content"),
        (
            json!([{"role": "user", "content": [image]}]),
            "unsupported_parameter",
            "messages[0].content[0].type",
        ),
        (json!([{"role": "user", "content": "x", "name": "n"}]), "unknown_parameter", "messages[0].name"),
        (
            json!([{"role": "assistant", "content": "x", "tool_calls": [1]}]),
            "unsupported_parameter",
            "messages[0].tool_calls",
        ),
    ] {
        let body = json!({"model": MODEL, "messages": messages}).to_string();
        assert_refused(&fixture, CHAT, body.as_bytes(), 400, code, Some(param)).await;
    }
    assert_serving(&fixture).await;
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_the_context_is_refused_with_the_numbers() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let long = json!({"model": MODEL, "prompt": "x".repeat(300)}).to_string();
    let reply = send(&fixture, request(Method::POST, COMPLETIONS, &[], long)).await;
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("300 tokens") && message.contains("256 tokens"), "{message}");
    assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    let body = prompt(json!({"max_tokens": 254})).to_string();
    assert_refused(
        &fixture,
        COMPLETIONS,
        body.as_bytes(),
        400,
        "context_length_exceeded",
        Some("max_tokens"),
    )
    .await;
    let fits = post(&fixture, COMPLETIONS, &prompt(json!({"max_tokens": 253}))).await;
    assert_eq!(fits.status, StatusCode::OK);
}

#[tokio::test]
async fn an_unknown_model_is_not_found() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let body = prompt(json!({"model": "gpt-4"})).to_string();
    assert_refused(&fixture, COMPLETIONS, body.as_bytes(), 404, "model_not_found", Some("model")).await;
    let body = json!({"prompt": "x"}).to_string();
    assert_refused(&fixture, COMPLETIONS, body.as_bytes(), 400, "missing_parameter", Some("model")).await;
    assert_eq!(get(&fixture, "/v1/models/gpt-4").await.status, StatusCode::NOT_FOUND);
    assert_serving(&fixture).await;
}

#[tokio::test]
async fn objectives_in_headers_are_checked_too() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    for value in ["fast", "-1", "0", "NaN", "inf", ""] {
        let body = prompt(json!({})).to_string();
        let request = request(Method::POST, COMPLETIONS, &[("x-slo-tpot-ms", value)], body);
        let reply = send(&fixture, request).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]["param"]), (400, &json!("x-slo-tpot-ms")));
    }
}

#[tokio::test]
async fn refusals_of_the_engine_keep_their_meaning() {
    for (refusal, status, code) in [
        (AdmissionError::QueueFull { what: "requests", limit: 4, actual: 5 }, 503, "queue_full"),
        (AdmissionError::Unavailable, 503, "unavailable"),
        (AdmissionError::TooLarge { needed: 9, total: 8 }, 400, "kv_pool_too_small"),
        (AdmissionError::Infeasible("tpot below one step".into()), 400, "slo_infeasible"),
    ] {
        let fixture = Fixture::start(Script::Refuse(refusal.clone())).await;
        let reply = post(&fixture, CHAT, &chat(json!({"stream": true}))).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (status, &json!(code)));
        assert_eq!(reply.json()["error"]["message"], refusal.to_string());
        assert_eq!(reply.headers.contains_key("retry-after"), status == 503);
    }
}

#[tokio::test]
async fn fifty_megabytes_are_refused_by_their_declared_length_before_they_are_sent() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let mut client = UnixStream::connect(&fixture.socket).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 50 << 20);
    client.write_all(head.as_bytes()).await.unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    assert!(reply.contains("body_too_large") && reply.contains("at most 65536 bytes"), "{reply}");
    assert_serving(&fixture).await;
}

#[tokio::test]
async fn a_body_of_unknown_length_is_cut_off_at_the_bound() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let (mut reading, mut writing) = UnixStream::connect(&fixture.socket).await.unwrap().into_split();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    writing.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let sender = tokio::spawn(async move {
        let mut sent = 0;
        while sent < 50 << 20 && writing.write_all(chunk.as_bytes()).await.is_ok() {
            sent += chunk.len();
        }
        sent
    });
    let mut reply = Vec::new();
    // The server hangs up on what is still being sent, which may end the read with a reset.
    let _ = reading.read_to_end(&mut reply).await;
    let reply = String::from_utf8(reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    let sent = sender.await.unwrap();
    assert!(sent < 5 << 20, "the server took {sent} bytes");
    assert_serving(&fixture).await;
}

#[tokio::test]
async fn compressed_bodies_unknown_urls_and_wrong_methods_get_error_objects() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let gzip = request(Method::POST, CHAT, &[("content-encoding", "gzip")], "x");
    let reply = send(&fixture, gzip).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["code"]),
        (415, &json!("unsupported_encoding"))
    );
    let reply = get(&fixture, "/v1/embeddings").await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (404, &json!("unknown_url")));
    for (method, path) in [(Method::GET, CHAT), (Method::DELETE, COMPLETIONS), (Method::POST, "/metrics")] {
        let reply = send(&fixture, request(method, path, &[], "")).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["error"]["code"]),
            (405, &json!("method_not_allowed"))
        );
        assert!(reply.headers.contains_key("allow"), "{path}");
    }
}

#[tokio::test]
async fn garbage_instead_of_http_leaves_the_server_serving() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let huge_header = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(200 << 10));
    for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET\r\n\r\n", b"\0\0\0\0", huge_header.as_bytes()]
    {
        let mut client = UnixStream::connect(&fixture.socket).await.unwrap();
        let _ = client.write_all(garbage).await;
        let _ = client.shutdown().await;
        let mut reply = Vec::new();
        let _ = client.read_to_end(&mut reply).await;
        assert!(!reply.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&reply));
    }
    assert_serving(&fixture).await;
}

// === the other routes

#[tokio::test]
async fn models_state_and_metrics_are_there() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let models = get(&fixture, "/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], MODEL);
    assert_eq!(get(&fixture, &format!("/v1/models/{MODEL}")).await.json(), models["data"][0]);
    assert_eq!(get(&fixture, "/v1/engine/state").await.json(), json!({"fake": true}));
    let metrics = get(&fixture, "/metrics").await;
    assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(metrics.text, "fake_total 1\n");
}

#[tokio::test]
async fn health_tells_live_from_ready() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    assert_eq!(get(&fixture, "/health/live").await.status, StatusCode::OK);
    assert_eq!(get(&fixture, "/health/ready").await.status, StatusCode::OK);
    fixture.engine.set_health(Health { not_live: None, not_ready: Some("loading weights".into()) });
    assert_eq!(get(&fixture, "/health/live").await.status, StatusCode::OK);
    let ready = get(&fixture, "/health/ready").await;
    assert_eq!((ready.status.as_u16(), &ready.json()["reason"]), (503, &json!("loading weights")));
    fixture.engine.set_health(Health { not_live: Some("device lost".into()), not_ready: None });
    assert_eq!(get(&fixture, "/health/live").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&fixture, "/health/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn tokenize_and_detokenize_are_inverse() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let tokens = post(&fixture, "/tokenize", &json!({"model": MODEL, "prompt": "é!"})).await.json();
    assert_eq!(tokens, json!({"count": 3, "max_model_len": CONTEXT, "tokens": [0xc3, 0xa9, 33]}));
    let text = post(&fixture, "/detokenize", &json!({"tokens": tokens["tokens"]})).await.json();
    assert_eq!(text, json!({"prompt": "é!"}));
    let long = json!({"prompt": "x".repeat(40_000)});
    assert_eq!(post(&fixture, "/tokenize", &long).await.json()["count"], 40_000);
    for (path, body, param) in [
        ("/tokenize", json!({}), "messages"),
        ("/tokenize", json!({"prompt": "x", "y": 1}), "y"),
        ("/detokenize", json!({"tokens": [999]}), "tokens"),
        ("/detokenize", json!({"tokens": "x"}), "tokens"),
    ] {
        let reply = post(&fixture, path, &body).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]["param"]), (400, &json!(param)));
    }
}

#[tokio::test]
async fn the_same_routes_answer_on_tcp() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let mut client = tokio::net::TcpStream::connect(fixture.server.tcp_address().unwrap()).await.unwrap();
    client.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
}

#[tokio::test]
async fn a_connection_carries_many_requests_bad_ones_included() {
    let fixture = Fixture::start(Script::text("ok", 1)).await;
    let mut sender = connect(&fixture.socket).await;
    for (body, status) in [("{", 400), (&*prompt(json!({})).to_string(), 200), ("[]", 400)] {
        let request = request(Method::POST, COMPLETIONS, &[], body.to_owned());
        let reply = Reply::read(sender.send_request(request).await.unwrap()).await;
        assert_eq!(reply.status.as_u16(), status);
    }
}

#[tokio::test]
async fn at_the_bound_of_connections_the_next_one_waits() {
    let limits = ApiLimits { connections_max: 1, ..ApiLimits::default() };
    let fixture = Fixture::with_limits(Script::text("ok", 1), limits).await;
    let mut first = connect(&fixture.socket).await;
    let live = || request(Method::GET, "/health/live", &[], "");
    assert!(first.send_request(live()).await.unwrap().status().is_success());
    let mut second = connect(&fixture.socket).await;
    let mut waiting = std::pin::pin!(second.send_request(live()));
    assert!(futures::poll!(&mut waiting).is_pending());
    first.send_request(live()).await.unwrap();
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(first);
    assert!(waiting.await.unwrap().status().is_success());
}

// === the end

#[tokio::test]
async fn draining_removes_the_socket_closes_idle_connections_and_finishes_answers() {
    let mut fixture = Fixture::start(Script::Hang(vec![vec![65]])).await;
    let idle = connect(&fixture.socket).await;
    let response = open(&fixture.socket, COMPLETIONS, &prompt(json!({"stream": true}))).await;
    fixture.server.drain();
    assert!(!fixture.server.drained(Duration::from_millis(50)).await, "an answer is in flight");
    assert!(UnixStream::connect(&fixture.socket).await.is_err());
    assert!(!fixture.socket.exists());
    fixture.engine.end_all(finished(FinishReason::Length));
    let reply = Reply::read(response).await;
    assert_eq!(reply.chunks().last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(fixture.server.drained(Duration::from_secs(30)).await);
    drop(idle);
}

#[tokio::test]
async fn what_outlasts_the_drain_ends_with_a_terminal_error() {
    let mut fixture = Fixture::start(Script::Hang(vec![vec![65]])).await;
    let streaming = open(&fixture.socket, COMPLETIONS, &prompt(json!({"stream": true}))).await;
    let body = prompt(json!({})).to_string();
    let mut whole = connect(&fixture.socket).await;
    let whole = tokio::spawn(whole.send_request(request(Method::POST, COMPLETIONS, &[], body)));
    for _ in 0..2 {
        assert!(matches!(fixture.told().await, Told::Submitted(_)));
    }
    fixture.server.drain();
    assert!(!fixture.server.drained(Duration::from_millis(20)).await);
    fixture.engine.end_all(TokenEvent::Failed(RequestFailure::ShuttingDown));
    assert!(fixture.server.drained(Duration::from_secs(30)).await);
    let events = Reply::read(streaming).await.events();
    assert!(events.last().unwrap().contains("shutting_down"), "{events:?}");
    let reply = Reply::read(whole.await.unwrap().unwrap()).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (503, &json!("shutting_down")));
}

#[tokio::test]
async fn closing_drops_connections_and_cancels_their_requests() {
    let mut fixture = Fixture::start(Script::Hang(vec![vec![65]])).await;
    let response = open(&fixture.socket, COMPLETIONS, &prompt(json!({"stream": true}))).await;
    assert_eq!(fixture.told().await, Told::Submitted(RequestId(0)));
    fixture.server.close().await;
    assert_eq!(fixture.told().await, Told::Cancelled(RequestId(0)));
    assert!(response.into_body().collect().await.is_err());
    assert!(!fixture.socket.exists());
}
