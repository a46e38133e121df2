//! A small hub on 127.0.0.1, with the headers of the real one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use axum::routing::get;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::hub::{HubSettings, Patience, Token};
use crate::model::HubCache;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the hub misbehaves.
#[derive(Clone, Default)]
pub struct Faults {
    /// Files of the list that it does not have.
    pub missing: Vec<&'static str>,
    /// Contents that it sends in place of those it announces.
    pub wrong: BTreeMap<&'static str, Vec<u8>>,
    /// After how many bytes it cuts each of the next connections for a file.
    pub cuts: BTreeMap<&'static str, Vec<usize>>,
    /// Whether it ignores ranges.
    pub whole: bool,
    /// Status and code with which it refuses the list, and those for files.
    pub listing: Option<(u16, &'static str)>,
    pub files: Option<(u16, &'static str)>,
    /// ETag of all files.
    pub tag: Option<&'static str>,
    /// Size that it announces for weights.
    pub size: Option<u64>,
    /// Whether it leaves out size and tag of weights where it redirects.
    pub unlinked: bool,
    /// Statuses of the next requests for files.
    pub busy: Vec<u16>,
}

#[derive(Clone)]
struct Repository {
    files: Arc<BTreeMap<String, Vec<u8>>>,
    faults: Arc<Mutex<Faults>>,
    requests: Arc<Mutex<Vec<String>>>,
    /// Address of the server that holds large files.
    storage: String,
}

/// The hub, until dropped.
pub struct Hub {
    pub settings: HubSettings,
    repository: Repository,
    /// Kept for their drops.
    _runtime: Runtime,
    cache: tempfile::TempDir,
}

impl Hub {
    /// A hub that serves `files` as `org/name`.
    pub fn new(files: &[(&str, &[u8])], faults: Faults) -> Hub {
        let cache = tempfile::tempdir().expect("a directory for the test");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let bind = |host: &str| runtime.block_on(tokio::net::TcpListener::bind((host, 0))).expect("a port");
        // two hosts, as far as a client can tell
        let (hub, storage) = (bind("127.0.0.1"), bind("127.0.0.2"));
        let address = |listener: &tokio::net::TcpListener| {
            format!("http://{}", listener.local_addr().expect("it is bound"))
        };
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()));
        let repository = Repository {
            files: Arc::new(files.collect()),
            faults: Arc::new(Mutex::new(faults)),
            requests: Arc::default(),
            storage: address(&storage),
        };
        let settings = HubSettings {
            cache: HubCache::at(cache.path().join("hub")),
            endpoint: address(&hub),
            token: Token::new("hf_secret"),
            offline: false,
            proxy: None,
            patience: Patience { stall: Duration::from_secs(20), tries: 3, pause: Duration::from_millis(1) },
        };
        let router = Router::new()
            .route("/api/models/org/name/revision/{revision}", get(listing))
            .route("/org/name/resolve/{commit}/{*file}", get(resolve))
            .route("/moved/{*file}", get(moved))
            .with_state(repository.clone());
        runtime.spawn(async { axum::serve(hub, router).await });
        let held = repository.clone();
        runtime.spawn(async move {
            while let Ok((connection, _)) = storage.accept().await {
                tokio::spawn(held.clone().store(connection));
            }
        });
        Hub { settings, repository, _runtime: runtime, cache }
    }

    /// Changes how it misbehaves.
    pub fn set(&self, faults: Faults) {
        *self.repository.faults.lock().expect("nothing panics with the lock") = faults;
    }

    /// The requests since the last call, as `METHOD path RANGE`, and whether they had the token.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.repository.requests.lock().expect("nothing panics with the lock"))
    }

    /// The directory around the cache.
    pub fn directory(&self) -> &std::path::Path {
        self.cache.path()
    }

    /// A path in the repository's part of the cache.
    pub fn cached(&self, path: &str) -> std::path::PathBuf {
        self.settings.cache.root().join("models--org--name").join(path)
    }
}

/// The tag of a file: SHA-256 for weights, Git's hash for others.
pub fn tag(name: &str, bytes: &[u8]) -> String {
    let hex = |hash: &[u8]| hash.iter().map(|byte| format!("{byte:02x}")).collect();
    if name.ends_with(".safetensors") {
        return hex(digest(&SHA256, bytes).as_ref());
    }
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    context.update(format!("blob {}\0", bytes.len()).as_bytes());
    context.update(bytes);
    hex(context.finish().as_ref())
}

impl Repository {
    fn faults(&self) -> std::sync::MutexGuard<'_, Faults> {
        self.faults.lock().expect("nothing panics with the lock")
    }

    fn note_request(&self, request: &Request, path: &str) {
        let header = |name| text(request.headers(), name);
        self.note(request.method().as_str(), path, header("range"), header("authorization"));
    }

    fn note(&self, method: &str, path: &str, range: Option<&str>, authorization: Option<&str>) {
        let token = if authorization == Some("Bearer hf_secret") { "token" } else { "no token" };
        let line = format!("{method} {path} {} {token}", range.unwrap_or("-"));
        self.requests.lock().expect("nothing panics with the lock").push(line);
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn refused((status, code): (u16, &str)) -> Response<Body> {
    let response = Response::builder().status(status).header("x-error-message", "Sorry");
    let response = if code.is_empty() { response } else { response.header("x-error-code", code) };
    response.body(Body::empty()).expect("a response")
}

async fn listing(
    State(hub): State<Repository>,
    Path(revision): Path<String>,
    request: Request,
) -> Response<Body> {
    hub.note_request(&request, request.uri().path());
    if let Some(refusal) = hub.faults().listing {
        return refused(refusal);
    }
    if !["main", "refs/pr/1", COMMIT].contains(&revision.as_str()) {
        return refused((404, "RevisionNotFound"));
    }
    let files: Vec<_> = hub.files.keys().map(|name| json!({ "rfilename": name })).collect();
    Response::new(Body::from(json!({ "sha": COMMIT, "siblings": files }).to_string()))
}

/// Large files are on another server, others at another place of this one.
async fn resolve(
    State(hub): State<Repository>,
    Path((commit, file)): Path<(String, String)>,
    request: Request,
) -> Response<Body> {
    hub.note_request(&request, &file);
    assert_eq!(commit, COMMIT);
    if let Some(refusal) = hub.faults().files {
        return refused(refusal);
    }
    let bytes = hub.files.get(&file).filter(|_| !hub.faults().missing.contains(&file.as_str()));
    let Some(bytes) = bytes else { return refused((404, "EntryNotFound")) };
    let response = Response::builder().header("x-repo-commit", COMMIT);
    let response = if file.ends_with(".safetensors") {
        let own = tag(&file, bytes);
        let tag = hub.faults().tag.unwrap_or(&own).to_owned();
        let size = hub.faults().size.unwrap_or(bytes.len() as u64);
        let response = match hub.faults().unlinked {
            true => response.header("etag", "\"of-the-redirection\""),
            false => response.header("x-linked-etag", format!("\"{tag}\"")).header("x-linked-size", size),
        };
        response
            .status(StatusCode::FOUND)
            .header("location", format!("{}/{}", hub.storage, file.replace(' ', "%20")))
    } else {
        response.status(StatusCode::TEMPORARY_REDIRECT).header("location", format!("/moved/{file}"))
    };
    response.body(Body::empty()).expect("a response")
}

/// A file, or a part of it.
struct Content {
    status: u16,
    headers: Vec<(&'static str, String)>,
    bytes: Vec<u8>,
}

impl Repository {
    fn content(&self, file: &str, range: Option<&str>) -> Content {
        let mut faults = self.faults();
        if let (Some(_), Some(status)) = (range, faults.busy.pop()) {
            return Content {
                status,
                headers: vec![("x-error-message", "Sorry".to_owned())],
                bytes: Vec::new(),
            };
        }
        let announced = &self.files[file];
        let bytes = faults.wrong.get(file).unwrap_or(announced);
        let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let from: Option<usize> = from.filter(|_| !faults.whole);
        let tag = faults.tag.map_or_else(|| format!("W/\"{}\"", tag(file, announced)), ToOwned::to_owned);
        let mut headers = vec![("etag", tag)];
        if let Some(from) = from {
            headers.push(("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())));
        }
        let bytes = bytes[from.unwrap_or(0)..].to_vec();
        headers.push(("content-length", bytes.len().to_string()));
        Content { status: if from.is_some() { 206 } else { 200 }, headers, bytes }
    }

    /// Answers one request as the server of large files, or begins to.
    async fn store(self, mut connection: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await?);
        }
        let head = String::from_utf8(head).expect("text");
        let mut lines = head.lines().map(str::to_ascii_lowercase);
        let file = lines.next().expect("a request").split(' ').nth(1).expect("a path").replace("%20", " ");
        let file = file.trim_start_matches('/').to_owned();
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())))
            .collect();
        let header = |name: &str| headers.get(name).map(String::as_str);
        self.note("GET", &format!("content of {file}"), header("range"), header("authorization"));
        let Content { status, headers, bytes } = self.content(&file, header("range"));
        let mut answer = format!("HTTP/1.1 {status} .\r\nconnection: close\r\n");
        headers.iter().for_each(|(name, value)| answer += &format!("{name}: {value}\r\n"));
        connection.write_all(format!("{answer}\r\n").as_bytes()).await?;
        let cut = self
            .faults()
            .cuts
            .get_mut(file.as_str())
            .and_then(|cuts| (!cuts.is_empty()).then(|| cuts.remove(0)));
        connection.write_all(&bytes[..cut.unwrap_or(bytes.len())]).await?;
        connection.shutdown().await
    }
}

async fn moved(State(hub): State<Repository>, Path(file): Path<String>, request: Request) -> Response<Body> {
    let range = text(request.headers(), "range");
    if request.method() == Method::GET {
        hub.note_request(&request, &format!("content of {file}"));
    }
    let content = hub.content(&file, range);
    let response = Response::builder().status(content.status);
    let response =
        content.headers.into_iter().fold(response, |response, (name, value)| response.header(name, value));
    response.body(Body::from(content.bytes)).expect("a response")
}
