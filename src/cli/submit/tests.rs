use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;
use crate::cli::testing::{ScratchDirectory, serve_router};

fn models() -> Router {
    Router::new().route("/v1/models", get(|| async { Json(json!({ "data": [{ "id": "tiny" }] })) }))
}

fn args(directory: &Path, lines: &str, concurrency: u16) -> SubmitArgs {
    let file = directory.join("in.jsonl");
    std::fs::write(&file, lines).expect("written");
    SubmitArgs { file, out: Some(directory.join("out.jsonl")), concurrency, socket: directory.join("socket") }
}

fn results(args: &SubmitArgs) -> Vec<Value> {
    let text = std::fs::read_to_string(args.out.as_ref().expect("given")).expect("written");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
static MOST_UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
static THIRD_CAME: Notify = Notify::const_new();

/// Answers with the prompt. The first request is answered only after the third has come.
async fn echo(Json(body): Json<Value>) -> Json<Value> {
    MOST_UNDER_WAY.fetch_max(UNDER_WAY.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
    match body["prompt"].as_str() {
        Some("0") => THIRD_CAME.notified().await,
        Some("2") => THIRD_CAME.notify_one(),
        _ => {}
    }
    UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
    Json(json!({ "choices": [{ "text": body["prompt"] }], "model": body["model"] }))
}

#[tokio::test]
async fn results_keep_the_order_of_the_file_under_bounded_concurrency() {
    let directory = ScratchDirectory::new();
    let lines: String = (0..20).map(|number| format!("{{\"prompt\": \"{number}\"}}\n")).collect();
    let args = args(directory.path(), &lines, 3);
    let _server = serve_router(&args.socket, models().route("/v1/completions", post(echo)));
    run(&args, &mut Vec::new()).await.expect("all answered");
    let results = results(&args);
    let texts: Vec<&str> =
        results.iter().filter_map(|result| result["response"]["choices"][0]["text"].as_str()).collect();
    assert_eq!(texts, (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(results[0]["response"]["model"], "tiny");
    assert!((2..=3).contains(&MOST_UNDER_WAY.load(Ordering::SeqCst)));
}

#[tokio::test]
async fn bad_lines_are_errors_and_the_others_are_answered() {
    let directory = ScratchDirectory::new();
    let lines = "{\"messages\": []}\n\nnot json\n{\"max_tokens\": 1}\n{\"prompt\": \"a\", \"stream\": true}\n\
                 {\"prompt\": \"a\", \"messages\": []}\n{\"prompt\": \"last\"}";
    let args = args(directory.path(), lines, 8);
    let answer = |name: &'static str| post(move || async move { Json(json!({ "object": name })) });
    let router =
        models().route("/v1/completions", answer("text")).route("/v1/chat/completions", answer("chat"));
    let _server = serve_router(&args.socket, router);
    let error = run(&args, &mut Vec::new()).await.expect_err("some lines are bad");
    assert_eq!(
        error.to_string(),
        "4 of 6 requests failed; the first: line 3: the line is not JSON: expected ident at line 1 column 2"
    );
    assert_eq!(error.exit_code(), 1);
    let results = results(&args);
    let numbers: Vec<&Value> = results.iter().map(|result| &result["line"]).collect();
    assert_eq!(numbers, [1, 3, 4, 5, 6, 7]);
    assert_eq!(results[0]["response"]["object"], "chat");
    assert_eq!(results[5]["response"]["object"], "text");
    assert!(results[1..5].iter().all(|result| result["error"]["type"] == "invalid_line"));
}

#[tokio::test]
async fn the_daemons_error_object_is_the_result() {
    let directory = ScratchDirectory::new();
    let args = args(directory.path(), "{\"prompt\": \"a\"}\n", 1);
    let refuse = || async {
        let error =
            json!({ "error": { "message": "too long", "type": "invalid_request_error", "param": "prompt" } });
        (StatusCode::BAD_REQUEST, Json(error))
    };
    let _server = serve_router(&args.socket, models().route("/v1/completions", post(refuse)));
    run(&args, &mut Vec::new()).await.expect_err("refused");
    assert_eq!(results(&args)[0]["error"]["param"], "prompt");
}

/// A chat answer with the daemon's name for the request.
async fn named() -> impl IntoResponse {
    ([("x-request-id", "req-7")], Json(json!({ "object": "chat.completion" })))
}

async fn too_long() -> impl IntoResponse {
    let error = json!({ "error": { "message": "too long", "code": "context_length_exceeded" } });
    (StatusCode::BAD_REQUEST, [("x-request-id", "req-8")], Json(error))
}

#[tokio::test]
async fn an_openai_batch_gets_results_in_its_own_form() {
    let directory = ScratchDirectory::new();
    let line = |custom_id: &str, url: &str, body: &str| {
        format!("{{\"custom_id\":\"{custom_id}\",\"method\":\"POST\",\"url\":\"{url}\",\"body\":{body}}}\n")
    };
    let lines = line("a", "/v1/chat/completions", "{\"messages\":[]}")
        + &line("b", "/v1/completions", "{\"prompt\":\"x\"}")
        + &line("c", "/v1/embeddings", "{}")
        + "not json\n";
    let args = args(directory.path(), &lines, 2);
    let router = models().route("/v1/completions", post(too_long)).route("/v1/chat/completions", post(named));
    let _server = serve_router(&args.socket, router);
    let error = run(&args, &mut Vec::new()).await.expect_err("three fail");
    assert_eq!(error.to_string(), "3 of 4 requests failed; the first: line 2: too long (400)");
    let results = results(&args);
    let keys = |value: &Value| value.as_object().map(|object| object.keys().cloned().collect::<Vec<_>>());
    assert!(results.iter().all(|result| {
        keys(result) == keys(&json!({ "id": 0, "custom_id": 0, "response": 0, "error": 0 }))
    }));
    let response =
        json!({ "status_code": 200, "request_id": "req-7", "body": { "object": "chat.completion" } });
    assert_eq!(
        (&results[0]["custom_id"], &results[0]["response"], &results[0]["error"]),
        (&json!("a"), &response, &Value::Null)
    );
    assert_eq!(results[1]["response"]["status_code"], 400);
    assert_eq!(results[1]["response"]["request_id"], "req-8");
    assert_eq!(results[1]["response"]["body"]["error"]["code"], "context_length_exceeded");
    assert_eq!((&results[1]["error"], &results[2]["response"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&results[2]["custom_id"], &results[2]["error"]["code"]),
        (&json!("c"), &json!("invalid_line"))
    );
    assert!(results[3]["error"]["message"].as_str().is_some_and(|text| text.starts_with("line 4: ")));
    let ids: std::collections::HashSet<String> =
        results.iter().filter_map(|result| result["id"].as_str().map(ToOwned::to_owned)).collect();
    assert_eq!(ids.len(), 4);
}

#[tokio::test]
async fn an_answer_does_not_wait_for_the_next_line() {
    let directory = ScratchDirectory::new();
    let fifo = directory.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).expect("a pipe");
    let args = SubmitArgs { file: fifo.clone(), ..args(directory.path(), "", 8) };
    let (answered, waiting) = tokio::sync::oneshot::channel();
    let answered = std::sync::Mutex::new(Some(answered));
    let answered = std::sync::Arc::new(answered);
    let answer = move || {
        let answered = std::sync::Arc::clone(&answered);
        async move {
            if let Some(answered) = answered.lock().expect("no panic").take() {
                answered.send(()).expect("the writer waits");
            }
            Json(json!({ "ok": true }))
        }
    };
    let _server = serve_router(&args.socket, models().route("/v1/completions", post(answer)));
    // the second line is written only once the first has been sent
    let writer = tokio::task::spawn_blocking(move || {
        let mut pipe = std::fs::OpenOptions::new().write(true).open(&fifo).expect("it is read");
        pipe.write_all(b"{\"prompt\": \"a\"}\n").expect("written");
        waiting.blocking_recv().expect("sent");
        pipe.write_all(b"{\"prompt\": \"b\"}\n").expect("written");
    });
    run(&args, &mut Vec::new()).await.expect("both answered");
    writer.await.expect("no panic");
    assert_eq!(results(&args).len(), 2);
}

static TRIES: AtomicUsize = AtomicUsize::new(0);

async fn full_at_first() -> impl IntoResponse {
    let mut headers = HeaderMap::new();
    if TRIES.fetch_add(1, Ordering::SeqCst) < 2 {
        headers.insert("retry-after", HeaderValue::from_static("0"));
        return (StatusCode::SERVICE_UNAVAILABLE, headers, Json(json!({ "error": { "message": "full" } })));
    }
    (StatusCode::OK, headers, Json(json!({ "ok": true })))
}

#[tokio::test]
async fn a_full_queue_is_waited_out() {
    let directory = ScratchDirectory::new();
    let args = args(directory.path(), "{\"prompt\": \"a\"}\n", 1);
    let _server = serve_router(&args.socket, models().route("/v1/completions", post(full_at_first)));
    run(&args, &mut Vec::new()).await.expect("answered in the end");
    assert_eq!(TRIES.load(Ordering::SeqCst), 3);
    assert_eq!(results(&args)[0]["response"]["ok"], true);
}

#[tokio::test]
async fn without_out_results_go_to_the_output() {
    let directory = ScratchDirectory::new();
    let args = SubmitArgs { out: None, ..args(directory.path(), "{\"prompt\": \"a\"}\n", 1) };
    let router = models().route("/v1/completions", post(|| async { Json(json!({ "ok": true })) }));
    let _server = serve_router(&args.socket, router);
    let mut out = Vec::new();
    run(&args, &mut out).await.expect("answered");
    out.flush().expect("in memory");
    assert_eq!(String::from_utf8_lossy(&out), "{\"line\":1,\"response\":{\"ok\":true}}\n");
}

#[test]
fn a_line_that_never_ends_ends_the_file() {
    let endless = std::io::BufReader::new(std::io::repeat(b'x'));
    let items: Vec<Item> = Lines::new(endless).collect();
    assert_eq!(items.len(), 1);
    assert!(items[0].request.as_ref().err().is_some_and(|what| what.contains("longer than")));
}
