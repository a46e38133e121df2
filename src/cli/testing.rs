//! A scripted daemon for the commands' tests: HTTP over a real Unix socket, no engine.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::host::{DaemonHost, HostError, OnProgress, OnSequence, RunningDaemon};
use crate::analyzer::{Progress, RecordOptions};
use crate::config::Config;
use crate::replay::RecordedSequence;
use crate::timing::profile::Profile;

/// An HTTP server that runs until dropped.
pub struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves `router` on a socket that must not exist yet.
pub fn serve_router(socket: &Path, router: Router) -> Server {
    let listener = UnixListener::bind(socket).expect("the socket is free");
    Server(tokio::spawn(async move { axum::serve(listener, router).await.expect("serves until aborted") }))
}

/// A temporary directory of a test.
pub struct ScratchDirectory(tempfile::TempDir);

impl ScratchDirectory {
    pub fn new() -> ScratchDirectory {
        ScratchDirectory(tempfile::tempdir().expect("a directory for the test"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

type Script = Arc<dyn Fn(&Config, &Value) -> String + Send + Sync>;

/// Starts scripted daemons: each chat request gets the script's text,
/// which is an event stream.
pub struct ScriptedHost {
    script: Script,
    requests: Arc<Mutex<Vec<Value>>>,
}

impl ScriptedHost {
    pub fn new(script: impl Fn(&Config, &Value) -> String + Send + Sync + 'static) -> ScriptedHost {
        ScriptedHost { script: Arc::new(script), requests: Arc::default() }
    }

    /// Bodies of the chat requests so far, over all daemons of this host.
    pub fn requests(&self) -> Vec<Value> {
        self.requests.lock().expect("no test panics with the lock").clone()
    }
}

pub struct ScriptedDaemon {
    socket: PathBuf,
    _server: Server,
}

#[derive(Clone)]
struct Scripted {
    config: Arc<Config>,
    script: Script,
    requests: Arc<Mutex<Vec<Value>>>,
}

async fn answer(State(scripted): State<Scripted>, Json(body): Json<Value>) -> String {
    let answer = (scripted.script)(&scripted.config, &body);
    scripted.requests.lock().expect("no test panics with the lock").push(body);
    answer
}

impl DaemonHost for ScriptedHost {
    type Daemon = ScriptedDaemon;

    async fn start(&self, config: Config) -> Result<ScriptedDaemon, HostError> {
        let socket = config.server.socket.clone();
        let name = config.target.name.clone();
        let scripted = Scripted {
            config: Arc::new(config),
            script: Arc::clone(&self.script),
            requests: Arc::clone(&self.requests),
        };
        let router = Router::new()
            .route("/health/ready", get(|| async { "ready" }))
            .route("/v1/models", get(|| async move { Json(json!({ "data": [{ "id": name }] })) }))
            .route("/v1/engine/state", get(|| async { Json(json!({ "policy": { "policy": "none" } })) }))
            .route("/v1/chat/completions", post(answer))
            .with_state(scripted);
        Ok(ScriptedDaemon { _server: serve_router(&socket, router), socket })
    }

    async fn run(
        &self,
        _config: Config,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), HostError> {
        shutdown.await;
        Ok(())
    }

    async fn profile(
        &self,
        _config: Config,
        _budget: Duration,
        mut on_progress: OnProgress,
    ) -> Result<Profile, HostError> {
        on_progress(Progress { share: 1.0, passes: 1, shapes: 1 });
        Ok(crate::timing::profile::tests::gpu_like())
    }

    /// Every draft is accepted, with increasing probability.
    async fn record(
        &self,
        _config: Config,
        options: RecordOptions,
        mut on_sequence: OnSequence,
    ) -> Result<(), HostError> {
        for _ in &options.prompts {
            let probabilities = (1..options.tokens_max).map(|place| 1.0 - 1.0 / (1.0 + place as f32));
            let probabilities: Vec<f32> = probabilities.collect();
            let accepted = vec![true; probabilities.len()];
            on_sequence(RecordedSequence { probabilities, accepted, ..RecordedSequence::default() });
        }
        Ok(())
    }
}

impl RunningDaemon for ScriptedDaemon {
    fn socket(&self) -> &Path {
        &self.socket
    }

    async fn shutdown(self) {}
}

/// The event stream of a chat reply: `pieces`, one token each, then the metrics of plain decoding.
pub fn chat_answer(pieces: &[&str]) -> String {
    let metrics = json!({
        "queue_ms": 0.1,
        "ttft_ms": 2.0,
        "tpot_ms": 0.5,
        "speculative_decoding": {
            "mean_acceptance_length": 1.0, "num_spec_steps": 1, "num_proposed_draft_tokens": 0,
            "num_draft_tokens": 0, "num_accepted_draft_tokens": 0,
        },
    });
    chat_answer_with(pieces, &metrics)
}

/// As [`chat_answer`], with these metrics.
pub fn chat_answer_with(pieces: &[&str], metrics: &Value) -> String {
    let mut events: Vec<Value> =
        pieces.iter().map(|piece| json!({ "choices": [{ "delta": { "content": piece } }] })).collect();
    events.push(json!({ "choices": [{ "delta": {}, "finish_reason": "stop" }] }));
    let usage = json!({ "prompt_tokens": 3, "completion_tokens": pieces.len() });
    events.push(json!({ "choices": [], "usage": usage, "metrics": metrics }));
    let text: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    text + "data: [DONE]\n\n"
}
