//! What all requests have in common: ids, the access log, and what browsers may do.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use specserve::api::{ApiLimits, ApiRules};
use specserve::protocol::RequestFailure;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing_subscriber::fmt::MakeWriter;

use crate::client::*;
use crate::fake::{BackendCall, Fixture, Script};

/// The log of the process. Tests find their own lines by the ids that they give their requests.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start() -> &'static Log {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log = Log::default();
            let subscriber = tracing_subscriber::fmt()
                .json()
                .flatten_event(true)
                .with_max_level(tracing::Level::DEBUG)
                .with_writer(log.clone())
                .finish();
            tracing::subscriber::set_global_default(subscriber).unwrap();
            log
        })
    }

    /// The lines of the access log with this request id.
    fn requests(&self, id: &str) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["message"] == "request" && line["request_id"] == id).collect()
    }

    /// Waits until so many requests were logged: a line is written after the response.
    async fn wait_for(&self, id: &str, count: usize) -> Vec<Value> {
        for _ in 0..1000 {
            if self.requests(id).len() >= count {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let lines = self.requests(id);
        assert_eq!(lines.len(), count, "{lines:?}");
        lines
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Log;

    fn make_writer(&self) -> Log {
        self.clone()
    }
}

#[tokio::test]
async fn a_request_keeps_its_id_or_is_given_one() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let id_of = async |headers: &[(&str, &str)]| {
        let reply = send(&fixture, request(Method::GET, "/v1/models", headers, "")).await;
        reply.headers["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(id_of(&[("x-request-id", "abc-1")]).await, "abc-1");
    let (made, other) = (id_of(&[]).await, id_of(&[]).await);
    assert!(made.len() == 32 && made != other, "{made} {other}");
    assert_eq!(id_of(&[("x-request-id", &"x".repeat(129))]).await.len(), 32, "too long");
    assert_eq!(id_of(&[("x-request-id", "a b")]).await.len(), 32, "not one word");
    let refused = send(&fixture, request(Method::POST, CHAT, &[("x-request-id", "bad")], "{")).await;
    assert_eq!(refused.headers["x-request-id"], "bad");
}

#[tokio::test]
async fn an_answer_is_one_line_in_the_log_with_its_figures_and_no_text() {
    let log = Log::start();
    let fixture = Fixture::start(Script::text("secret", 2)).await;
    for stream in [false, true] {
        let body = prompt(json!({"prompt": "private", "stream": stream})).to_string();
        send(&fixture, request(Method::POST, COMPLETIONS, &[("x-request-id", "figures")], body)).await;
    }
    for line in log.wait_for("figures", 2).await {
        assert_eq!(line["level"], "INFO");
        assert_eq!((&line["method"], &line["path"]), (&json!("POST"), &json!(COMPLETIONS)));
        assert_eq!((&line["status"], &line["reason"]), (&json!(200), &json!("stop")));
        assert_eq!((&line["prompt_tokens"], &line["cached_tokens"]), (&json!(7), &json!(2)));
        assert_eq!(line["output_tokens"], 7);
        assert_eq!((&line["ttft_ms"], &line["tpot_ms"]), (&json!(10.0), &json!(1.5)));
        assert!(line["duration_ms"].as_f64() > Some(0.0));
        let text = line.to_string();
        assert!(!text.contains("private") && !text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn a_line_says_why_a_request_was_refused_or_failed() {
    let log = Log::start();
    let fixture = Fixture::start(Script::Fail(vec![vec![65]], RequestFailure::Numerical)).await;
    let id = [("x-request-id", "refused")];
    for body in [chat(json!({"n": 2})), chat(json!({"stream": true}))] {
        send(&fixture, request(Method::POST, CHAT, &id, body.to_string())).await;
    }
    send(&fixture, request(Method::GET, "/nowhere", &id, "")).await;
    let lines = log.wait_for("refused", 3).await;
    let seen: Vec<_> = lines.iter().map(|line| (&line["status"], &line["reason"])).collect();
    assert_eq!(
        seen,
        [
            (&json!(400), &json!("unsupported_parameter")),
            (&json!(200), &json!("numerical_error")),
            (&json!(404), &json!("unknown_url")),
        ]
    );
}

#[tokio::test]
async fn a_client_that_leaves_is_in_the_log() {
    let log = Log::start();
    let mut fixture = Fixture::start(Script::Hang(vec![vec![65]])).await;
    let body = prompt(json!({"stream": true})).to_string();
    let leaves = request(Method::POST, COMPLETIONS, &[("x-request-id", "leaves")], body);
    let response = connect(&fixture.socket).await.send_request(leaves).await.unwrap();
    assert!(matches!(fixture.told().await, BackendCall::Submitted(_)));
    drop(response);
    let lines = log.wait_for("leaves", 1).await;
    assert_eq!((&lines[0]["reason"], &lines[0]["output_tokens"]), (&json!("disconnected"), &json!(1)));
}

#[tokio::test]
async fn probes_are_logged_at_debug() {
    let log = Log::start();
    let fixture = Fixture::start(Script::text("x", 1)).await;
    for path in ["/health", "/health/live", "/health/ready", "/ping", "/metrics"] {
        send(&fixture, request(Method::GET, path, &[("x-request-id", "probe")], "")).await;
    }
    assert!(log.wait_for("probe", 5).await.iter().all(|line| line["level"] == "DEBUG"));
}

#[tokio::test]
async fn a_response_without_a_body_is_complete() {
    let log = Log::start();
    let rules = ApiRules { cors_origins: vec!["*".parse().unwrap()], ..ApiRules::default() };
    let fixture = Fixture::with_rules(Script::text("x", 1), rules).await;
    for method in [Method::HEAD, Method::OPTIONS] {
        let id = format!("no-body-{method}");
        let mut headers = PREFLIGHT.to_vec();
        headers.push(("x-request-id", &id));
        let reply = send(&fixture, request(method, "/v1/models", &headers, "")).await;
        assert_eq!((reply.status, reply.text.as_str()), (StatusCode::OK, ""));
        assert_eq!(log.wait_for(&id, 1).await[0].get("reason"), None);
    }
}

#[tokio::test]
async fn requests_refused_for_want_of_connections_have_ids_and_lines_too() {
    let log = Log::start();
    let limits = ApiLimits { connections_max: 1, ..ApiLimits::default() };
    let mut fixture = Fixture::with_limits(Script::Hang(vec![vec![65]]), limits).await;
    let _taken = open(&fixture.socket, COMPLETIONS, &prompt(json!({"stream": true}))).await;
    assert!(matches!(fixture.told().await, BackendCall::Submitted(_)));
    let id = [("x-request-id", "turned-away")];
    let reply = send(&fixture, request(Method::POST, CHAT, &id, chat(json!({})).to_string())).await;
    assert_eq!(reply.headers["x-request-id"], "turned-away");
    let lines = log.wait_for("turned-away", 1).await;
    assert_eq!((&lines[0]["status"], &lines[0]["reason"]), (&json!(503), &json!("too_many_connections")));
}

/// Posts over TCP; the status.
async fn post_on_tcp(fixture: &Fixture, headers: &str, body: &str) -> String {
    let mut client = TcpStream::connect(fixture.server.tcp_addresses().http.unwrap()).await.unwrap();
    let head = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    client.write_all((head + body).as_bytes()).await.unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.unwrap();
    reply
}

#[tokio::test]
async fn a_body_over_tcp_must_be_declared_as_json() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let body = prompt(json!({})).to_string();
    for declared in
        ["", "content-type: text/plain\r\n", "content-type: application/x-www-form-urlencoded\r\n"]
    {
        let reply = post_on_tcp(&fixture, declared, &body).await;
        assert!(reply.starts_with("HTTP/1.1 415 ") && reply.contains("unsupported_content_type"), "{reply}");
    }
    assert_eq!(fixture.engine.submissions(), 0);
    let reply = post_on_tcp(&fixture, "content-type: application/json; charset=utf-8\r\n", &body).await;
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    let plain = request(Method::POST, COMPLETIONS, &[("content-type", "text/plain")], body);
    assert_eq!(send(&fixture, plain).await.status, StatusCode::OK, "no browser reaches the socket");
}

const PREFLIGHT: [(&str, &str); 3] = [
    ("origin", "http://localhost:3000"),
    ("access-control-request-method", "POST"),
    ("access-control-request-headers", "authorization,content-type"),
];

#[tokio::test]
async fn pages_of_other_origins_may_not_use_the_api_unless_the_server_says() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let reply = send(&fixture, request(Method::OPTIONS, CHAT, &PREFLIGHT, "")).await;
    assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(!reply.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn pages_of_allowed_origins_may_use_the_api() {
    for (allowed, answered) in [
        ("http://localhost:3000", Some("http://localhost:3000")),
        ("*", Some("*")),
        ("http://localhost:3001", None),
    ] {
        let rules = ApiRules { cors_origins: vec![allowed.parse().unwrap()], ..ApiRules::default() };
        let fixture = Fixture::with_rules(Script::text("x", 1), rules).await;
        let preflight = send(&fixture, request(Method::OPTIONS, CHAT, &PREFLIGHT, "")).await;
        let header = |reply: &Reply, name: &str| {
            reply.headers.get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(header(&preflight, "access-control-allow-origin").as_deref(), answered);
        let headers = header(&preflight, "access-control-allow-headers");
        assert_eq!(headers.as_deref(), Some("authorization,content-type"));
        let body = chat(json!({})).to_string();
        let reply = send(&fixture, request(Method::POST, CHAT, &PREFLIGHT[..1], body)).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(header(&reply, "access-control-allow-origin").as_deref(), answered);
    }
}
