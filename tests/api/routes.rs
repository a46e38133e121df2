//! Routes other than generation, and connection handling.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde_json::json;
use specserve::api::{ApiRules, Health, starting_router};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::client::*;
use crate::fake::{CONTEXT, Fixture, MODEL, Script};

#[tokio::test]
async fn models_state_and_metrics_are_there() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let models = get(&fixture, "/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], MODEL);
    assert_eq!(get(&fixture, &format!("/v1/models/{MODEL}")).await.json(), models["data"][0]);
    assert_eq!(get(&fixture, "/v1/engine/state").await.json(), json!({"fake": true}));
    let metrics = get(&fixture, "/metrics").await;
    assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert!(
        metrics.text.starts_with("fake_total 1\n# HELP specserve_http_errors_total "),
        "{}",
        metrics.text
    );
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

/// Method and path of each route in docs/api.md.
fn documented_routes() -> Vec<(Method, String)> {
    let docs = include_str!("../../docs/api.md");
    let rows = docs.split("\n| route | answer |").nth(1).expect("a table of routes");
    let rows = rows.lines().skip(1).take_while(|line| line.is_empty() || line.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let names =
        cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>());
    let routes = names.filter_map(|name| {
        let (method, path) = name.split_once(' ')?;
        Some((method.parse().unwrap(), path.replace("{id}", MODEL)))
    });
    routes.collect()
}

#[tokio::test]
async fn every_route_of_the_docs_answers() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let routes = documented_routes();
    assert!(routes.len() >= 15, "{routes:?}");
    for (method, path) in routes {
        let status = send(&fixture, request(method.clone(), &path, &[], "")).await.status;
        let expected = if method == Method::POST && path != "/ping" { 400 } else { 200 };
        assert_eq!(status.as_u16(), expected, "{method} {path}");
    }
}

#[tokio::test]
async fn the_health_routes_of_other_servers_mean_readiness() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let ask = async || {
        let mut statuses = Vec::new();
        for (method, path) in [(Method::GET, "/health"), (Method::GET, "/ping"), (Method::POST, "/ping")] {
            statuses.push(send(&fixture, request(method, path, &[], "")).await.status);
        }
        statuses
    };
    assert_eq!(ask().await, [StatusCode::OK; 3]);
    fixture.engine.set_health(Health { not_live: None, not_ready: Some("loading weights".into()) });
    assert_eq!(ask().await, [StatusCode::SERVICE_UNAVAILABLE; 3]);
    let (_phase, phases) = tokio::sync::watch::channel("the tests are running".to_owned());
    fixture.server.route_to(starting_router(phases, &ApiRules::default(), Arc::default()));
    assert_eq!(ask().await, [StatusCode::SERVICE_UNAVAILABLE; 3]);
}

#[tokio::test]
async fn version_server_and_tokenizer_describe_themselves() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(get(&fixture, "/version").await.json(), json!({"version": version}));
    assert_eq!(get(&fixture, "/").await.json()["name"], "specserve");
    let server = get(&fixture, "/server_info").await.json();
    assert_eq!((&server["served_model_name"], &server["context_length"]), (&json!(MODEL), &json!(CONTEXT)));
    assert_eq!(get(&fixture, "/model_info").await.json()["model_path"], MODEL);
    let tokenizer = get(&fixture, "/tokenizer_info").await.json();
    assert_eq!(
        tokenizer,
        json!({
            "bos_token": "<s>", "eos_token": "", "chat_template": "{{ messages }}",
            "vocab_size": 257, "model_max_length": CONTEXT,
        })
    );
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

/// The raw response, including the head.
async fn get_on_tcp(fixture: &Fixture, path: &str) -> String {
    let mut client = TcpStream::connect(fixture.server.tcp_addresses().http.unwrap()).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.unwrap();
    reply
}

#[tokio::test]
async fn listed_users_are_served_and_others_are_disconnected_and_counted() {
    let own = rustix::process::geteuid().as_raw();
    let fixture = Fixture::for_users(Script::text("ok", 1), vec![own ^ 1, own]).await;
    assert_serving(&fixture).await;
    let fixture = Fixture::for_users(Script::text("ok", 1), vec![own ^ 1]).await;
    for _ in 0..3 {
        let mut client = UnixStream::connect(&fixture.socket).await.unwrap();
        let mut reply = Vec::new();
        assert_eq!(client.read_to_end(&mut reply).await.unwrap_or(0), 0, "{reply:?}");
    }
    let page = get_on_tcp(&fixture, "/metrics").await;
    assert!(page.contains("\nspecserve_connections_refused_total{reason=\"uid\"} 3\n"), "{page}");
}

#[tokio::test]
async fn the_same_routes_answer_on_tcp() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let reply = get_on_tcp(&fixture, "/health/live").await;
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
async fn new_routes_answer_on_connections_that_are_open_already() {
    let fixture = Fixture::start(Script::text("ok", 1)).await;
    let mut sender = connect(&fixture.socket).await;
    let mut ask = async || {
        let request = request(Method::POST, COMPLETIONS, &[], prompt(json!({})).to_string());
        Reply::read(sender.send_request(request).await.unwrap()).await
    };
    assert_eq!(ask().await.status, StatusCode::OK);
    let (_phase, phases) = tokio::sync::watch::channel("the tests are running".to_owned());
    fixture.server.route_to(starting_router(phases, &ApiRules::default(), Arc::default()));
    let refused = ask().await;
    let reason = json!("the daemon is starting: the tests are running");
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["message"]), (503, &reason));
    assert_eq!(refused.headers["retry-after"], "1");
}
