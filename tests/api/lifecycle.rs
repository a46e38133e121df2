//! Disconnects, timeouts and shutdown.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Method;
use serde_json::json;
use specserve::api::ApiLimits;
use specserve::protocol::{FinishReason, RequestFailure, RequestId, TokenEvent};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::client::*;
use crate::fake::{BackendCall, Fixture, Script, finished};

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_cancels_its_request() {
    let mut fixture = Fixture::start(Script::Hang(vec![])).await;
    for stream in [false, true] {
        let mut client = UnixStream::connect(&fixture.socket).await.unwrap();
        let body = prompt(json!({"stream": stream})).to_string();
        let head =
            format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        client.write_all((head + &body).as_bytes()).await.unwrap();
        let BackendCall::Submitted(id) = fixture.told().await else { panic!("not submitted") };
        drop(client);
        assert_eq!(fixture.told().await, BackendCall::Cancelled(id));
    }
    assert_serving_after_play(&fixture).await;
}

/// A request without streaming, as bytes.
fn request_bytes() -> Vec<u8> {
    let body = prompt(json!({})).to_string();
    let head = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

/// Sends a request, closes the sending side, lets the engine answer, and reads all.
async fn half_closed<S: AsyncRead + AsyncWrite + Unpin>(fixture: &mut Fixture, mut client: S) -> String {
    client.write_all(&request_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    assert!(matches!(fixture.told().await, BackendCall::Submitted(_)));
    tokio::time::sleep(Duration::from_millis(300)).await;
    fixture.engine.end_all(finished(FinishReason::Stop));
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.unwrap();
    reply
}

#[tokio::test]
async fn a_client_that_only_closes_its_sending_side_gets_its_answer_and_the_connection_ends() {
    let mut fixture = Fixture::start(Script::Hang(vec![vec![65]])).await;
    let unix = UnixStream::connect(&fixture.socket).await.unwrap();
    let tcp = TcpStream::connect(fixture.server.tcp_addresses().http.unwrap()).await.unwrap();
    for reply in [half_closed(&mut fixture, tcp).await, half_closed(&mut fixture, unix).await] {
        assert!(reply.starts_with("HTTP/1.1 200 ") && reply.contains("\"text\":\"A\""), "{reply}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_over_tcp_cancels_its_request_and_one_that_stays_is_only_probed() {
    let limits = ApiLimits { half_close_patience: Duration::from_millis(50), ..ApiLimits::default() };
    let mut fixture = Fixture::with_limits(Script::Hang(vec![vec![65]]), limits).await;
    let address = fixture.server.tcp_addresses().http.unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let reply = half_closed(&mut fixture, tcp).await;
    assert!(reply.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 "), "{reply}");
    let mut leaves = TcpStream::connect(address).await.unwrap();
    leaves.write_all(&request_bytes()).await.unwrap();
    let BackendCall::Submitted(id) = fixture.told().await else { panic!("not submitted") };
    drop(leaves);
    assert_eq!(fixture.told().await, BackendCall::Cancelled(id));
}

#[tokio::test]
async fn a_request_cut_off_in_its_body_is_not_answered_as_if_it_were_whole() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let mut client = UnixStream::connect(&fixture.socket).await.unwrap();
    let request = request_bytes();
    client.write_all(&request[..request.len() - 5]).await.unwrap();
    client.shutdown().await.unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.unwrap();
    assert!(!reply.starts_with("HTTP/1.1 2"), "{reply}");
    assert_eq!(fixture.engine.submissions(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_stream_cancels_its_request() {
    let mut fixture = Fixture::start(Script::Hang(vec![vec![65]])).await;
    let mut sender = connect(&fixture.socket).await;
    let body = prompt(json!({"stream": true})).to_string();
    let mut response = sender.send_request(request(Method::POST, COMPLETIONS, &[], body)).await.unwrap();
    assert_eq!(fixture.told().await, BackendCall::Submitted(RequestId(0)));
    let first = response.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"data: {"));
    drop((response, sender));
    assert_eq!(fixture.told().await, BackendCall::Cancelled(RequestId(0)));
}

#[tokio::test]
async fn a_stream_that_waits_has_its_headers_and_comments_meanwhile() {
    let limits = ApiLimits {
        stream_head_wait: Duration::from_millis(5),
        stream_keep_alive: Duration::from_millis(5),
        ..ApiLimits::default()
    };
    let fixture = Fixture::with_limits(Script::Hang(vec![]), limits).await;
    let mut response = open(&fixture.socket, CHAT, &chat(json!({"stream": true}))).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    for _ in 0..2 {
        let comment = response.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(&*comment, b": keep-alive\n\n");
    }
    fixture.engine.end_all(finished(FinishReason::Stop));
    let reply = Reply::read(response).await;
    assert_eq!(reply.chunks().last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_stream_that_fails_after_its_headers_ends_with_an_error_event() {
    let limits = ApiLimits { stream_head_wait: Duration::from_millis(5), ..ApiLimits::default() };
    let fixture = Fixture::with_limits(Script::Hang(vec![]), limits).await;
    let response = open(&fixture.socket, CHAT, &chat(json!({"stream": true}))).await;
    fixture.engine.end_all(TokenEvent::Failed(RequestFailure::ShuttingDown));
    let events = Reply::read(response).await.events();
    assert!(events.len() == 1 && events[0].contains("shutting_down"), "{events:?}");
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_given_up() {
    let limits = ApiLimits { request_timeout: Duration::from_millis(50), ..ApiLimits::default() };
    let mut fixture = Fixture::with_limits(Script::Hang(vec![vec![65]]), limits).await;
    let reply = post(&fixture, CHAT, &chat(json!({}))).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (504, &json!("request_timeout")));
    assert_eq!(fixture.told().await, BackendCall::Submitted(RequestId(0)));
    assert_eq!(fixture.told().await, BackendCall::Cancelled(RequestId(0)));
    let events = post(&fixture, CHAT, &chat(json!({"stream": true}))).await.events();
    assert!(events.last().unwrap().contains("request_timeout"));
}

#[tokio::test]
async fn a_connection_that_never_completes_a_head_is_closed() {
    let limits = ApiLimits { header_timeout: Duration::from_millis(50), ..ApiLimits::default() };
    let fixture = Fixture::with_limits(Script::text("x", 1), limits).await;
    for beginning in ["", "POST /v1/completions HTTP/1.1\r\nhost: x\r\n"] {
        let mut client = UnixStream::connect(&fixture.socket).await.unwrap();
        client.write_all(beginning.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        client.read_to_end(&mut reply).await.unwrap();
        assert!(!reply.starts_with(b"HTTP/1.1 2"));
    }
    assert_serving(&fixture).await;
}

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
async fn requests_that_outlast_the_drain_get_a_terminal_error() {
    let mut fixture = Fixture::start(Script::Hang(vec![vec![65]])).await;
    let streaming = open(&fixture.socket, COMPLETIONS, &prompt(json!({"stream": true}))).await;
    let body = prompt(json!({})).to_string();
    let mut whole = connect(&fixture.socket).await;
    let whole = tokio::spawn(whole.send_request(request(Method::POST, COMPLETIONS, &[], body)));
    for _ in 0..2 {
        assert!(matches!(fixture.told().await, BackendCall::Submitted(_)));
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
    assert_eq!(fixture.told().await, BackendCall::Submitted(RequestId(0)));
    fixture.server.close().await;
    assert_eq!(fixture.told().await, BackendCall::Cancelled(RequestId(0)));
    assert!(response.into_body().collect().await.is_err());
    assert!(!fixture.socket.exists());
}
