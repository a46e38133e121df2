//! Bad input: a clear error each time, and the server keeps serving.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use specserve::protocol::AdmissionError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::client::*;
use crate::fake::{Fixture, MODEL, Script};

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
    let many_stops = json!(vec!["x"; 65]);
    let many_ids = json!(vec![1; 65]);
    for (param, value) in [
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(1.5)),
        ("max_tokens", json!("ten")),
        ("max_tokens", json!(1e300)),
        ("min_tokens", json!(-1)),
        ("min_tokens", json!(101)),
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
async fn unsupported_fields_are_rejected_and_never_ignored() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    for (param, value) in [
        ("n", json!(2)),
        ("best_of", json!(3)),
        ("logprobs", json!(true)),
        ("logprobs", json!(0)),
        ("top_logprobs", json!(2)),
        ("echo", json!(true)),
        ("suffix", json!("end")),
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
        ("tool_choice", json!("auto")),
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!("auto")),
        ("structural_tag", json!({"type": "x"})),
        ("audio", json!({"voice": "x"})),
        ("modalities", json!(["audio"])),
        ("prediction", json!({})),
        ("reasoning_effort", json!("low")),
        ("verbosity", json!("high")),
        ("skip_special_tokens", json!(false)),
        ("regex", json!("a")),
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
        (json!([{"role": "function", "content": "x"}]), "unsupported_parameter", "messages[0].role"),
        (json!([{"role": "tool"}]), "missing_parameter", "messages[0].content"),
        (json!([{"role": "user", "content": 1}]), "invalid_value", "messages[0].content"),
        (
            json!([{"role": "user", "content": [image]}]),
            "unsupported_parameter",
            "messages[0].content[0].type",
        ),
        (json!([{"role": "user", "content": "x", "name": 1}]), "invalid_value", "messages[0].name"),
        (json!([{"role": "user", "content": "x", "nick": "n"}]), "unknown_parameter", "messages[0].nick"),
        (
            json!([{"role": "assistant", "content": "x", "tool_calls": [1]}]),
            "invalid_value",
            "messages[0].tool_calls[0].function",
        ),
        (
            json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]),
            "invalid_value",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            json!([{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]),
            "invalid_value",
            "messages[0].tool_calls",
        ),
    ] {
        let body = json!({"model": MODEL, "messages": messages}).to_string();
        assert_refused(&fixture, CHAT, body.as_bytes(), 400, code, Some(param)).await;
    }
    for (more, param) in [
        (json!({"add_generation_prompt": "yes"}), "add_generation_prompt"),
        (json!({"add_generation_prompt": true, "continue_final_message": true}), "continue_final_message"),
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs.messages"),
    ] {
        let body = chat(more).to_string();
        assert_refused(&fixture, CHAT, body.as_bytes(), 400, "invalid_value", Some(param)).await;
    }
    assert_serving(&fixture).await;
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_the_context_is_refused_with_the_numbers() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let long = json!({"model": MODEL, "prompt": "x".repeat(300)}).to_string();
    let reply = send(&fixture, request(Method::POST, COMPLETIONS, &[], long)).await;
    let advice = crate::fake::ADVICE;
    assert_eq!(
        reply.json()["error"]["message"],
        format!(
            "This model's maximum context length is 256 tokens. However, you requested at least 301 tokens \
             (300 in the prompt, at least 1 in the completion). Please reduce the length of the prompt; \
             {advice}."
        )
    );
    assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    let reply = post(&fixture, COMPLETIONS, &prompt(json!({"max_tokens": 254}))).await;
    assert_eq!(
        reply.json()["error"]["message"],
        format!(
            "This model's maximum context length is 256 tokens. However, you requested 257 tokens \
             (3 in the prompt, 254 in the completion). Please reduce the length of the prompt or max_tokens; \
             {advice}."
        )
    );
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
    assert_eq!(get(&fixture, "/v1/models/gpt-4").await.status, StatusCode::NOT_FOUND);
    assert_serving(&fixture).await;
}

#[tokio::test]
async fn an_error_does_not_quote_all_of_a_long_value() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let long = "é".repeat(20_000);
    for body in [
        prompt(json!({"model": long})),
        prompt(json!({long.as_str(): 1})),
        prompt(json!({"tools": [long]})),
        prompt(json!({"slo": {"class": long}})),
        chat(json!({"messages": [{"role": long, "content": "x"}]})),
    ] {
        let path = if body.get("messages").is_some() { CHAT } else { COMPLETIONS };
        let reply = post(&fixture, path, &body).await;
        assert!(reply.status.is_client_error() && reply.text.len() < 2000, "{}", reply.text.len());
    }
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
        (AdmissionError::TooLate("ttft after 9 s".into()), 503, "slo_too_late"),
    ] {
        let fixture = Fixture::start(Script::Refuse(refusal.clone())).await;
        let reply = post(&fixture, CHAT, &chat(json!({"stream": true}))).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (status, &json!(code)));
        assert_eq!(reply.json()["error"]["message"], refusal.to_string());
        assert_eq!(reply.headers.contains_key("retry-after"), status == 503);
    }
}

#[tokio::test]
async fn every_refusal_is_counted_by_its_status_and_code() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    assert_serving(&fixture).await;
    let refuse = async |path: &str, body: &str| {
        let request = request(Method::POST, path, &[], body.to_owned());
        assert!(!send(&fixture, request).await.status.is_success(), "{path} {body}");
    };
    refuse(CHAT, "{").await;
    refuse(COMPLETIONS, "[]").await;
    refuse("/tokenize", "{}").await;
    refuse(CHAT, &chat(json!({"temperature": 3})).to_string()).await;
    refuse(CHAT, &chat(json!({"n": 2})).to_string()).await;
    refuse(CHAT, &chat(json!({"temprature": 1})).to_string()).await;
    refuse(COMPLETIONS, &prompt(json!({"prompt": "x".repeat(300)})).to_string()).await;
    refuse(COMPLETIONS, &prompt(json!({"model": "other"})).to_string()).await;
    refuse("/v1/embeddings", "{}").await;
    refuse("/metrics", "").await;
    refuse(CHAT, &"x".repeat(65_537)).await;
    assert_eq!(get(&fixture, "/v1/models/%ff").await.json()["error"]["code"], "unknown_url");
    fixture.engine.play(Script::Refuse(AdmissionError::Unavailable));
    refuse(CHAT, &chat(json!({})).to_string()).await;
    let page = get(&fixture, "/metrics").await.text;
    let counted: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("specserve_http_errors_total"))
        .filter(|sample| !sample.ends_with(" 0"))
        .collect();
    assert_eq!(
        counted,
        [
            "{status=\"400\",code=\"invalid_json\"} 2",
            "{status=\"400\",code=\"missing_parameter\"} 1",
            "{status=\"400\",code=\"invalid_value\"} 1",
            "{status=\"400\",code=\"unsupported_parameter\"} 1",
            "{status=\"400\",code=\"unknown_parameter\"} 1",
            "{status=\"400\",code=\"context_length_exceeded\"} 1",
            "{status=\"404\",code=\"model_not_found\"} 1",
            "{status=\"404\",code=\"unknown_url\"} 2",
            "{status=\"405\",code=\"method_not_allowed\"} 1",
            "{status=\"413\",code=\"body_too_large\"} 1",
            "{status=\"503\",code=\"unavailable\"} 1",
        ]
    );
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
    // The server closes the connection while the client is sending, so the read may end with a reset.
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
    let page = get(&fixture, "/metrics").await.text;
    assert!(page.contains("\nspecserve_connections_refused_total{reason=\"bad_head\"} 4\n"), "{page}");
}

#[tokio::test]
async fn a_description_that_cannot_be_followed_is_refused_with_its_field_and_place() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let wrong = json!({"properties": {"a": {"type": "strin"}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": wrong}});
    for (body, param) in [
        (json!({"response_format": format}), "response_format.json_schema.schema"),
        (json!({"guided_json": wrong}), "guided_json"),
        (json!({"structured_outputs": {"json": wrong}}), "structured_outputs.json"),
        (json!({"guided_regex": "(a"}), "guided_regex"),
        (json!({"guided_grammar": "start: missing"}), "guided_grammar"),
        (json!({"guided_json": {}, "guided_whitespace_pattern": "("}), "guided_whitespace_pattern"),
        (json!({"guided_json": {}, "guided_regex": "a"}), "guided_regex"),
    ] {
        let body = chat(body).to_string();
        assert_refused(&fixture, CHAT, body.as_bytes(), 400, "invalid_value", Some(param)).await;
    }
    let reply = post(&fixture, COMPLETIONS, &prompt(json!({"guided_json": wrong}))).await;
    let message = reply.json()["error"]["message"].to_string();
    assert!(message.contains("/properties/a") && message.contains("strin"), "{message}");
    assert_eq!(fixture.engine.submissions(), 0);
    assert_serving(&fixture).await;
}
