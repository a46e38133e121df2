//! Client-visible behaviour of a daemon whose executor is slow to build.

use std::path::{Path, PathBuf};

use crossbeam::channel::{Receiver, Sender, bounded};
use serde_json::{Value, json};

use super::assembly::assemble_with;
use super::executor_plan::ExecutorPlan;
use super::startup::{Assembled, OnPhase, StartingDaemon};
use super::*;
use crate::cli::client::{Client, ClientError};
use crate::config::DraftConfig;
use crate::model::{HeadSettings, ModelRef};
use crate::pacing::ServiceOrder;
use crate::policy::registry::PolicyName;

/// The embedded pair on a socket in `directory`, with a policy and an order that need no profile.
fn config(directory: &Path) -> Config {
    let mut config = Config::default_tiny();
    config.server.socket = directory.join("s");
    config.speculation.policy = PolicyName::None;
    config.scheduler.order = ServiceOrder::Fifo;
    config
}

/// Assembles like a daemon, but builds the executor only after `go` sends its result. Signals
/// on `building` when it gets there.
fn slow(
    building: Sender<()>,
    go: Receiver<Result<(), String>>,
) -> impl FnOnce(&Config, OnPhase<'_>) -> Assembled + Send + 'static {
    move |config, on_phase| {
        assemble_with(config, on_phase, move |plan, target, draft| {
            building.send(()).expect("the test waits for this");
            go.recv().expect("the test sends the result")?;
            ExecutorPlan::build(plan, target, draft)
        })
    }
}

/// A daemon that waits in front of its executor, and the sender that lets it continue.
async fn starting(directory: &Path) -> (StartingDaemon, Sender<Result<(), String>>) {
    let ((building, begun), (go, gone)) = (bounded(1), bounded(1));
    let starting =
        StartingDaemon::begin(config(directory), slow(building, gone)).await.expect("the socket is bound");
    tokio::task::spawn_blocking(move || begun.recv()).await.expect("waits").expect("comes to the executor");
    (starting, go)
}

fn request() -> Value {
    json!({ "model": "tiny", "prompt": "Once", "max_tokens": 2, "temperature": 0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_starts_is_live_not_ready_and_refuses_at_once_then_serves() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let (mut starting, go) = starting(directory.path()).await;
    let client = Client::new(&directory.path().join("s"));
    assert_eq!(client.get("/health/live").await.expect("live"), "{\"status\":\"live\"}");
    let Err(ClientError::Refused { status: 503, body: Some(body), .. }) = client.get("/health/ready").await
    else {
        panic!("it cannot be ready")
    };
    let reason = "the daemon is starting: building the executor";
    assert_eq!(*body, json!({ "status": "not ready", "reason": reason }));
    for path in ["/v1/completions", "/v1/chat/completions", "/tokenize"] {
        let error = client.post(path, &request()).await.expect_err("there is no engine");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
        let ClientError::Refused { status: 503, body: Some(body), .. } = error else { panic!("{error}") };
        assert_eq!((&body["error"]["code"], &body["error"]["message"]), (&json!("starting"), &json!(reason)));
    }
    let page = client.get("/metrics").await.expect("its own counters");
    assert!(page.contains("{status=\"503\",code=\"starting\"} 3"), "{page}");

    go.send(Ok(())).expect("it waits");
    let assembled = starting.assembled().await;
    let daemon = starting.finish(assembled).await.expect("it starts");
    client.wait_until_ready().await.expect("ready");
    let answer = client.post("/v1/completions", &request()).await.expect("served");
    assert_eq!(answer["usage"]["completion_tokens"], 2);
    // the counter of the finished request follows its answer
    let finished = "specserve_request_success_total{finished_reason=\"length\"} 1";
    let page = async {
        loop {
            let page = client.get("/metrics").await.expect("counters");
            if page.contains(finished) {
                break page;
            }
        }
    };
    let page = tokio::time::timeout(Duration::from_secs(10), page).await.expect("it is counted");
    assert!(page.contains("code=\"starting\"} 3"), "{page}");
    daemon.shutdown().await;
    assert!(!directory.path().join("s").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_is_not_ready_first_then_refuses_requests_and_shows_metrics_to_the_end() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let mut config = config(directory.path());
    config.server.drain_delay = Duration::from_millis(400);
    let daemon = Daemon::start(config).await.expect("it starts");
    let client = Client::new(&directory.path().join("s"));
    let long =
        json!({ "model": "tiny", "prompt": "Once", "max_tokens": 1500, "ignore_eos": true, "stream": true });
    let mut stream = client.stream("/v1/completions", &long).await.expect("it starts");
    stream.next().await.expect("a token");
    let shutdown = tokio::spawn(daemon.shutdown());
    let refused = async |path| match client.get(path).await {
        Err(ClientError::Refused { status: 503, .. }) => true,
        Ok(_) => false,
        Err(error) => panic!("{path}: {error}"),
    };
    let in_time = async {
        while !refused("/health/ready").await {}
        assert_eq!(
            client.post("/v1/completions", &request()).await.expect("served")["object"],
            "text_completion"
        );
        while !refused("/v1/models").await {}
    };
    tokio::time::timeout(Duration::from_secs(10), in_time).await.expect("the stages come in time");
    let error = client.post("/v1/completions", &request()).await.expect_err("it drains");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
    let page = client.get("/metrics").await.expect("metrics");
    assert!(
        page.contains("specserve_requests_running 1") && page.contains("code=\"shutting_down\"} "),
        "{page}"
    );
    client.get("/health/live").await.expect("it is live");
    while stream.next().await.expect("it may finish").is_some() {}
    shutdown.await.expect("it ends");
    assert!(!directory.path().join("s").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_the_model_waits_for_the_start() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let (mut starting, go) = starting(directory.path()).await;
    let client = Client::new(&directory.path().join("s"));
    let mut asking = std::pin::pin!(client.model());
    while client.get("/metrics").await.is_ok_and(|page| page.contains("code=\"starting\"} 0")) {
        assert!(futures::poll!(&mut asking).is_pending());
    }
    go.send(Ok(())).expect("it waits");
    let (name, daemon) = tokio::join!(asking, async {
        let assembled = starting.assembled().await;
        starting.finish(assembled).await.expect("it starts")
    });
    assert_eq!(name.expect("it has a model"), "tiny");
    daemon.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_reports_the_error_and_removes_the_socket() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let (starting, go) = starting(directory.path()).await;
    go.send(Err("no memory for the weights".to_owned())).expect("it waits");
    let error = serve(starting, std::future::pending()).await.expect_err("there is no executor");
    assert_eq!(error.to_string(), "starting the engine failed: no memory for the weights");
    assert!(!directory.path().join("s").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_panics_is_an_error_too() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let panics = |_: &Config, _: OnPhase<'_>| -> Assembled { panic!("a fault in the assembly") };
    let starting =
        StartingDaemon::begin(config(directory.path()), panics).await.expect("the socket is bound");
    let error = serve(starting, std::future::pending()).await.expect_err("nothing was assembled");
    assert!(error.to_string().contains("startup panicked"), "{error}");
    assert!(!directory.path().join("s").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_during_the_start_ends_it_and_removes_the_socket() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let (starting, go) = starting(directory.path()).await;
    serve(starting, std::future::ready(())).await.expect("a start may be given up");
    assert!(!directory.path().join("s").exists());
    go.send(Err("given up".to_owned())).expect("it still waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn unlisted_users_are_disconnected() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let own = rustix::process::geteuid().as_raw();
    for (uid, answered) in [(own, true), (own ^ 1, false)] {
        let mut config = config(directory.path());
        config.server.socket_uids = Some(vec![uid]);
        let idle = |_: &Config, _: OnPhase<'_>| -> Assembled { Err(DaemonError::Start("idle".into())) };
        let starting = StartingDaemon::begin(config, idle).await.expect("the socket is bound");
        let live = Client::new(&directory.path().join("s")).get("/health/live").await;
        match answered {
            true => assert!(live.is_ok(), "{live:?}"),
            false => assert!(matches!(live, Err(ClientError::HungUp { .. })), "{live:?}"),
        }
        starting.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_in_use_is_reported_before_anything_is_assembled() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let _other = std::os::unix::net::UnixListener::bind(directory.path().join("s")).expect("free");
    let never = |_: &Config, _: OnPhase<'_>| -> Assembled { unreachable!("the socket is taken") };
    let error = StartingDaemon::begin(config(directory.path()), never).await.err().expect("in use");
    assert!(matches!(error, DaemonError::Socket(SocketError::InUse { .. })), "{error}");
    assert!(directory.path().join("s").exists());
}

/// What a daemon answers to a prompt, and how many drafts were accepted.
async fn served(draft: Option<DraftConfig>, policy: PolicyName) -> (Value, u64) {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let mut config = Config::default_tiny();
    config.server.socket = directory.path().join("s");
    config.speculation.policy = policy;
    config.draft = draft;
    let daemon = Daemon::start(config).await.expect("it starts");
    let client = Client::new(&directory.path().join("s"));
    let prompt = json!({ "model": "tiny", "prompt": "Once upon a time", "max_tokens": 80, "temperature": 0,
                         "ignore_eos": true });
    let answer = client.post("/v1/completions", &prompt).await.expect("served");
    let page = client.get("/metrics").await.expect("counters");
    let accepted = page
        .lines()
        .find_map(|line| line.strip_prefix("specserve_spec_decode_accepted_tokens_total ")?.parse().ok());
    daemon.shutdown().await;
    (answer["choices"][0]["text"].clone(), accepted.expect("a counter"))
}

#[tokio::test(flavor = "multi_thread")]
async fn draft_heads_draft_and_the_answers_are_those_of_plain_decoding() {
    let (plain, accepted) = served(None, PolicyName::None).await;
    assert_eq!(accepted, 0);
    for head in ["eagle3", "dspark"] {
        let draft = || Some(ModelRef::Directory(tiny(head)).into());
        let (answer, accepted) = served(draft(), PolicyName::Fixed(4)).await;
        assert_eq!(answer, plain, "{head}");
        assert!(accepted > 10, "{head}: {accepted}");
        // how much this policy drafts depends on how busy the machine is
        let (answer, _) = served(draft(), PolicyName::SpecServe).await;
        assert_eq!(answer, plain, "{head}");
    }
}

fn tiny(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny").join(part)
}

/// Writes the EAGLE-3 head of the embedded target with a config.json as the speculators library
/// writes it, which does not say whether the residual is normalised.
fn speculators_head_without_norm_before_residual(directory: &Path) {
    let text = std::fs::read_to_string(tiny("eagle3").join("config.json")).expect("it is readable");
    let layers: Value = serde_json::from_str(&text).expect("it is JSON");
    let config = json!({
        "architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3",
        "model_type": "speculators", "draft_vocab_size": layers["draft_vocab_size"],
        "eagle_aux_hidden_state_layer_ids": [1, 3, 5], "transformer_layer_config": layers,
    });
    std::fs::write(directory.join("config.json"), config.to_string()).expect("it is written");
    let weights = "model.safetensors";
    std::fs::copy(tiny("eagle3").join(weights), directory.join(weights)).expect("it is copied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_whose_config_leaves_the_residual_open_drafts_once_the_deployment_says_it() {
    let head = tempfile::tempdir().expect("a directory for the head");
    speculators_head_without_norm_before_residual(head.path());
    let model = ModelRef::Directory(head.path().to_owned());
    let mut config = Config::default_tiny();
    config.draft = Some(model.clone().into());
    let error = super::models::load_models(&config).expect_err("it is open").to_string();
    assert!(error.contains("or draft.norm_before_residual in the deployment's TOML"), "{error}");

    let settings = HeadSettings { norm_before_residual: Some(false), ..HeadSettings::default() };
    let (answer, accepted) = served(Some(DraftConfig::Model { model, settings }), PolicyName::Fixed(4)).await;
    assert_eq!(answer, served(None, PolicyName::None).await.0);
    assert!(accepted > 10, "{accepted}");
}
