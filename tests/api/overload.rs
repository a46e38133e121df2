//! Connections at their bound, the listener for probes, and the stages of a shutdown.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::json;
use specserve::api::{ApiLimits, OVERFLOW_CONNECTIONS_MAX};
use specserve::protocol::FinishReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::client::*;
use crate::fake::{BackendCall, Fixture, Script, finished};

const PROBES: [&str; 7] =
    ["/health/live", "/health/ready", "/health", "/ping", "/version", "/metrics", "/v1/engine/state"];

async fn with_connections(connections_max: usize, script: Script) -> Fixture {
    Fixture::with_limits(script, ApiLimits { connections_max, ..ApiLimits::default() }).await
}

/// The raw response on a TCP connection that the client leaves open.
async fn on_tcp(address: std::net::SocketAddr, head: &str, body: &[u8]) -> String {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(format!("{head}\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    client.write_all(body).await.unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.unwrap();
    reply
}

#[tokio::test]
async fn when_all_connections_are_taken_probes_are_answered_and_requests_refused() {
    let mut fixture = with_connections(1, Script::Hang(vec![vec![65]])).await;
    let taken = open(&fixture.socket, COMPLETIONS, &prompt(json!({"stream": true}))).await;
    assert!(matches!(fixture.told().await, BackendCall::Submitted(_)));
    for probe in PROBES {
        let reply = get(&fixture, probe).await;
        assert_eq!(reply.status, StatusCode::OK, "{probe}");
        assert_eq!(reply.headers["connection"], "close");
    }
    for (method, path) in [(Method::POST, CHAT), (Method::GET, "/v1/models")] {
        let reply = send(&fixture, request(method, path, &[], chat(json!({})).to_string())).await;
        let code = &reply.json()["error"]["code"];
        assert_eq!((reply.status.as_u16(), code), (503, &json!("too_many_connections")));
        assert_eq!(reply.headers["retry-after"], "1");
        assert_eq!(reply.headers["connection"], "close");
    }
    let page = get(&fixture, "/metrics").await.text;
    assert!(page.contains("{status=\"503\",code=\"too_many_connections\"} 2\n"), "{page}");
    drop(taken);
    assert!(matches!(fixture.told().await, BackendCall::Cancelled(_)));
    assert_serving_after_play(&fixture).await;
}

#[tokio::test]
async fn a_refused_request_gets_its_answer_however_long_its_body_is() {
    let fixture = with_connections(1, Script::Hang(vec![vec![65]])).await;
    let address = fixture.server.tcp_addresses().http.unwrap();
    let body = prompt(json!({})).to_string();
    let mut taken = TcpStream::connect(address).await.unwrap();
    let json = "content-type: application/json";
    let head =
        format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\n{json}\r\ncontent-length: {}\r\n\r\n", body.len());
    taken.write_all((head + &body).as_bytes()).await.unwrap();
    while fixture.engine.submissions() == 0 {
        tokio::task::yield_now().await;
    }
    let long = vec![b' '; 2 << 20];
    let head = format!("POST {COMPLETIONS} HTTP/1.1\r\ncontent-length: {}", long.len());
    let reply = on_tcp(address, &head, &long).await;
    assert!(reply.starts_with("HTTP/1.1 503 ") && reply.contains("too_many_connections"), "{reply}");
}

#[tokio::test]
async fn the_connection_that_has_been_idle_the_longest_is_closed_for_the_next_client() {
    let fixture = with_connections(2, Script::text("ok", 1)).await;
    let ask = async |sender: &mut hyper::client::conn::http1::SendRequest<_>| {
        let body = prompt(json!({})).to_string();
        sender.send_request(request(Method::POST, COMPLETIONS, &[], body)).await
    };
    let (mut first, mut second) = (connect(&fixture.socket).await, connect(&fixture.socket).await);
    for idle in [&mut first, &mut second] {
        assert_eq!(Reply::read(ask(idle).await.unwrap()).await.status, StatusCode::OK);
    }
    assert_eq!(post(&fixture, COMPLETIONS, &prompt(json!({}))).await.status, StatusCode::OK);
    assert!(ask(&mut first).await.is_err(), "it made room");
    assert_eq!(ask(&mut second).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn connections_that_send_nothing_do_not_keep_probes_out() {
    let fixture = with_connections(2, Script::text("ok", 1)).await;
    let mut silent = Vec::new();
    for _ in 0..2 + OVERFLOW_CONNECTIONS_MAX {
        silent.push(UnixStream::connect(&fixture.socket).await.unwrap());
    }
    let reply = tokio::time::timeout(Duration::from_secs(5), get(&fixture, "/health/live")).await;
    assert_eq!(reply.expect("long before their heads time out").status, StatusCode::OK);
}

#[tokio::test]
async fn the_admin_listener_serves_probes_and_nothing_else() {
    let fixture = with_connections(1, Script::Hang(vec![vec![65]])).await;
    let admin = fixture.server.tcp_addresses().admin.unwrap();
    let taken = open(&fixture.socket, COMPLETIONS, &prompt(json!({"stream": true}))).await;
    for probe in PROBES {
        let reply = on_tcp(admin, &format!("GET {probe} HTTP/1.1\r\nconnection: close"), b"").await;
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    }
    for path in ["/v1/models", "/tokenize"] {
        let reply = on_tcp(admin, &format!("GET {path} HTTP/1.1\r\nconnection: close"), b"").await;
        assert!(reply.starts_with("HTTP/1.1 404 ") && reply.contains("server.admin"), "{reply}");
    }
    drop(taken);
}

#[tokio::test]
async fn a_server_that_leaves_serves_requests_and_closes_their_connections() {
    let fixture = Fixture::start(Script::text("ok", 1)).await;
    let mut kept = connect(&fixture.socket).await;
    let ask = || request(Method::POST, COMPLETIONS, &[], prompt(json!({})).to_string());
    assert!(!Reply::read(kept.send_request(ask()).await.unwrap()).await.headers.contains_key("connection"));
    fixture.server.leave();
    let last = Reply::read(kept.send_request(ask()).await.unwrap()).await;
    assert_eq!(last.status, StatusCode::OK);
    assert_eq!(last.headers["connection"], "close");
    assert!(kept.send_request(ask()).await.is_err(), "its connection is closed");
    assert_serving(&fixture).await;
}

#[tokio::test]
async fn a_server_that_refuses_requests_answers_probes_until_the_last_response_is_sent() {
    let mut fixture = Fixture::start(Script::Hang(vec![vec![65]])).await;
    let running = open(&fixture.socket, COMPLETIONS, &prompt(json!({"stream": true}))).await;
    fixture.server.leave();
    fixture.server.refuse_requests();
    let refused = post(&fixture, COMPLETIONS, &prompt(json!({}))).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (503, &json!("shutting_down")));
    assert_eq!(refused.headers["retry-after"], "1");
    for probe in PROBES {
        assert_eq!(get(&fixture, probe).await.status, StatusCode::OK, "{probe}");
    }
    assert!(!fixture.server.answered(Duration::from_millis(20)).await, "one is in flight");
    fixture.engine.end_all(finished(FinishReason::Length));
    assert_eq!(Reply::read(running).await.chunks().len(), 2);
    assert!(fixture.server.answered(Duration::from_secs(30)).await);
    assert_eq!(get(&fixture, "/metrics").await.status, StatusCode::OK);
    fixture.server.drain();
    assert!(fixture.server.drained(Duration::from_secs(30)).await);
    assert!(!fixture.socket.exists());
}

#[tokio::test]
async fn those_who_connect_before_the_end_get_an_answer() {
    let mut fixture = Fixture::start(Script::text("ok", 1)).await;
    fixture.server.refuse_requests();
    // they are in the backlog, as the server has not run since
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let client = std::os::unix::net::UnixStream::connect(&fixture.socket).unwrap();
            client.set_nonblocking(true).unwrap();
            UnixStream::from_std(client).unwrap()
        })
        .collect();
    fixture.server.drain();
    for mut client in waiting {
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        let mut reply = String::new();
        client.read_to_string(&mut reply).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 503 ") && reply.contains("shutting_down"), "{reply}");
    }
    assert!(fixture.server.drained(Duration::from_secs(30)).await);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_connections_that_send_nothing() {
    let mut fixture = Fixture::start(Script::text("ok", 1)).await;
    let _silent = UnixStream::connect(&fixture.socket).await.unwrap();
    assert_serving(&fixture).await;
    fixture.server.drain();
    assert!(fixture.server.drained(Duration::from_secs(3)).await, "its head may take ten");
}

#[tokio::test]
async fn a_server_stops_although_clients_keep_connecting() {
    let mut fixture = Fixture::start(Script::text("ok", 1)).await;
    let address = fixture.server.tcp_addresses().http.unwrap();
    let insistent = tokio::spawn(async move {
        while let Ok(mut client) = TcpStream::connect(address).await {
            let _ = client.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    while get(&fixture, "/health/live").await.status != StatusCode::OK {}
    fixture.server.refuse_requests();
    fixture.server.drain();
    assert!(fixture.server.drained(Duration::from_secs(5)).await);
    insistent.await.unwrap();
}
