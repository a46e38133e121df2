use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde_json::json;

use super::*;
use crate::cli::answer::{Usage, chat};
use crate::cli::testing::{ScratchDirectory, chat_answer, serve_router};

#[tokio::test]
async fn a_stale_socket_and_a_missing_one_are_different_errors() {
    let directory = ScratchDirectory::new();
    let socket = directory.path().join("socket");
    let missing = Client::new(&socket).get("/").await.expect_err("missing");
    assert!(matches!(missing, ClientError::NoSocket { .. }), "{missing}");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("bound"));
    let stale = Client::new(&socket).get("/").await.expect_err("stale");
    assert!(matches!(stale, ClientError::NotListening { .. }), "{stale}");
}

#[tokio::test]
async fn a_refusal_carries_status_message_and_wait() {
    let directory = ScratchDirectory::new();
    let socket = directory.path().join("socket");
    let refuse = || async {
        let body = json!({ "error": { "message": "the queue is full" } }).to_string();
        (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3")], body)
    };
    let _server = serve_router(&socket, Router::new().route("/v1/completions", post(refuse)));
    let client = Client::new(&socket);
    let error = client.post("/v1/completions", &json!({})).await.expect_err("full");
    assert_eq!(error.to_string(), "the queue is full (503)");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
    let error = client.get("/absent").await.expect_err("no such path");
    assert_eq!(error.to_string(), "Not Found (404)");
    assert_eq!(error.retry_after(), None);
}

#[tokio::test]
async fn something_that_does_not_speak_http_is_a_protocol_error() {
    let directory = ScratchDirectory::new();
    let socket = directory.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&socket).expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client comes");
        let head = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 512]).await.expect("it asks");
        assert!(head > 0);
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 hello\r\n").await.expect("it reads");
    });
    let error = Client::new(&socket).get("/").await.expect_err("not HTTP");
    assert!(matches!(error, ClientError::Protocol(_)), "{error}");
}

#[tokio::test]
async fn a_daemon_that_hangs_up_is_said_to_have_hung_up() {
    let directory = ScratchDirectory::new();
    let socket = directory.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&socket).expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    // the hang-up may come before the request is written, while it is, or after
    for body in [json!({}), json!({ "prompt": "x".repeat(1 << 20) })] {
        for _ in 0..20 {
            let error = Client::new(&socket).post("/", &body).await.expect_err("no response");
            assert!(matches!(error, ClientError::HungUp { .. }), "{error:?}");
        }
    }
}

#[tokio::test]
async fn an_error_in_the_stream_ends_it_as_an_error() {
    let directory = ScratchDirectory::new();
    let socket = directory.path().join("socket");
    let events = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"error\":{\"message\":\"the server is shutting down\"}}\n\n";
    let _server = serve_router(
        &socket,
        Router::new().route("/v1/chat/completions", post(move || async move { events })),
    );
    let client = Client::new(&socket);
    let mut text = String::new();
    let print = |piece: &str| {
        text.push_str(piece);
        Ok(())
    };
    let error = chat(&client, json!({}), print).await.expect_err("the stream failed");
    assert!(error.to_string().contains("the server is shutting down"), "{error}");
    assert_eq!(text, "a");
}

#[tokio::test]
async fn a_streamed_answer_is_put_together_with_its_figures() {
    let directory = ScratchDirectory::new();
    let socket = directory.path().join("socket");
    let events = chat_answer(&["Hel", "lo"]);
    let _server = serve_router(
        &socket,
        Router::new().route("/v1/chat/completions", post(move || async move { events })),
    );
    let answer = chat(&Client::new(&socket), json!({}), |_| Ok(())).await.expect("answered");
    assert_eq!(answer.text, "Hello");
    assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
    assert_eq!(answer.usage, Usage { prompt_tokens: 3, completion_tokens: 2 });
    assert_eq!(answer.metrics.ttft_ms, Some(2.0));
    assert_eq!(answer.metrics.speculative_decoding.steps, 1);
}

/// Answers that a daemon gives which starts: each phase is said so many times.
fn starting(socket: &Path, phases: &'static [(&'static str, usize)]) -> impl Drop + use<> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let models = move || {
        let asked = asked.fetch_add(1, Ordering::SeqCst);
        let phase = phases.iter().flat_map(|&(phase, times)| std::iter::repeat_n(phase, times)).nth(asked);
        async move {
            match phase {
                Some(phase) => {
                    let error = json!({ "error": { "message": phase, "code": "starting" } });
                    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
                }
                None => (StatusCode::OK, json!({ "data": [{ "id": "m" }] }).to_string()),
            }
        }
    };
    serve_router(socket, Router::new().route("/v1/models", get(models)))
}

#[tokio::test]
async fn a_start_is_waited_for_as_long_as_it_makes_progress() {
    let directory = ScratchDirectory::new();
    let socket = directory.path().join("socket");
    let _server = starting(&socket, &[("loading", 8), ("measuring: 10 %", 8), ("measuring: 60 %", 8)]);
    let client = Client::new(&socket);
    // polled every 100 ms, the whole start takes longer
    let models = client.once_started("/v1/models", Duration::from_secs(2)).await.expect("it starts");
    assert_eq!(models["data"][0]["id"], "m");
}

#[tokio::test]
async fn a_start_that_makes_no_progress_is_given_up() {
    let directory = ScratchDirectory::new();
    let socket = directory.path().join("socket");
    let _server = starting(&socket, &[("loading", 1000)]);
    let client = Client::new(&socket);
    let error = client.once_started("/v1/models", Duration::from_secs(1)).await.expect_err("it hangs");
    assert_eq!(error.to_string(), "the daemon did not answer within 1 s while starting");
}

#[tokio::test]
async fn readiness_is_waited_for() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let directory = ScratchDirectory::new();
    let socket = directory.path().join("socket");
    let ready = || async {
        let asked = ASKED.fetch_add(1, Ordering::SeqCst);
        if asked < 2 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
    };
    let _server = serve_router(&socket, Router::new().route("/health/ready", get(ready)));
    Client::new(&socket).wait_until_ready().await.expect("ready at the third time");
    assert_eq!(ASKED.load(Ordering::SeqCst), 3);
}
