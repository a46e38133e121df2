//! A small HTTP client over the Unix socket, and requests to send with it.

use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::fake::{Fixture, MODEL};

pub const COMPLETIONS: &str = "/v1/completions";
pub const CHAT: &str = "/v1/chat/completions";

pub async fn connect(socket: &Path) -> SendRequest<Full<Bytes>> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub fn request(
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

pub async fn open(socket: &Path, path: &str, body: &Value) -> Response<Incoming> {
    let request = request(Method::POST, path, &[], body.to_string());
    connect(socket).await.send_request(request).await.unwrap()
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Reply {
    pub async fn read(response: Response<Incoming>) -> Reply {
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Reply { status: parts.status, headers: parts.headers, text }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {:?}", self.text))
    }

    /// The data of a stream's events, without the comments.
    pub fn events(&self) -> Vec<String> {
        let events = self.text.split_terminator("\n\n").filter(|event| !event.starts_with(':'));
        events.map(|event| event.strip_prefix("data: ").expect(event).to_owned()).collect()
    }

    /// The JSON events of a stream that ends with [DONE].
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", self.text);
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

pub async fn send(fixture: &Fixture, request: Request<Full<Bytes>>) -> Reply {
    Reply::read(connect(&fixture.socket).await.send_request(request).await.unwrap()).await
}

pub async fn get(fixture: &Fixture, path: &str) -> Reply {
    send(fixture, request(Method::GET, path, &[], "")).await
}

pub async fn post(fixture: &Fixture, path: &str, body: &Value) -> Reply {
    Reply::read(open(&fixture.socket, path, body).await).await
}

pub fn prompt(extra: Value) -> Value {
    with(json!({"model": MODEL, "prompt": "abc"}), extra)
}

pub fn chat(extra: Value) -> Value {
    with(json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}), extra)
}

pub fn with(mut body: Value, extra: Value) -> Value {
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

pub async fn assert_serving(fixture: &Fixture) {
    let reply = post(fixture, COMPLETIONS, &prompt(json!({}))).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
}

/// Gives the backend an ordinary script and checks that it is served.
pub async fn assert_serving_after_play(fixture: &Fixture) {
    fixture.engine.play(crate::fake::Script::text("x", 1));
    assert_serving(fixture).await;
}
