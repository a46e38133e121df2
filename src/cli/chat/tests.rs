use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};

use super::dialogue::{Input, Interrupts, Prompt};
use super::*;
use crate::cli::client::Client;
use crate::cli::private::PrivateDaemon;
use crate::cli::signals::Received;
use crate::cli::testing::{ScratchDirectory, ScriptedHost, chat_answer, chat_answer_with, serve_router};
use crate::config::Config;

/// Where no daemon listens.
const NOWHERE: &str = "/nonexistent/specserve.sock";

/// Sends the one message of `args`, without a daemon on the default socket.
async fn run(args: &ChatArgs, host: &ScriptedHost, out: &mut impl Write) -> Result<(), CliError> {
    say_once(args, host, Path::new(NOWHERE), out).await
}

fn args(text: &str) -> ChatArgs {
    ChatArgs {
        text: Some(text.to_owned()),
        socket: None,
        model: None,
        draft: None,
        temperature: Some(0.0),
        seed: Some(7),
        max_tokens: Some(5),
        system: Some("Be brief.".to_owned()),
        no_history: false,
        json: false,
    }
}

#[tokio::test]
async fn one_message_prints_its_answer_from_a_private_daemon() {
    let host = ScriptedHost::new(|_, _| chat_answer(&["Hel", "lo"]));
    let mut out = Vec::new();
    run(&args("Hi"), &host, &mut out).await.expect("answered");
    assert_eq!(String::from_utf8_lossy(&out), "Hello\n");
    let body = &host.requests()[0];
    assert_eq!(body["model"], "tiny");
    assert_eq!(body["seed"], 7);
    assert_eq!(body["max_tokens"], 5);
    assert_eq!(body["messages"][0]["content"], "Be brief.");
    assert_eq!(body["messages"][1]["content"], "Hi");
    assert_eq!(body["stream"], true);
}

#[tokio::test]
async fn a_model_needs_no_configuration_file() {
    let host = ScriptedHost::new(|config, _| {
        chat_answer(&[&format!("{}, {:?}", config.target.model, config.draft)])
    });
    let named =
        ChatArgs { model: Some("models/m".to_owned()), draft: Some("ngram".to_owned()), ..args("Hi") };
    let mut out = Vec::new();
    run(&named, &host, &mut out).await.expect("answered");
    assert_eq!(String::from_utf8_lossy(&out), "models/m, Some(Ngram)\n");
    let nothing = ChatArgs { model: Some(String::new()), ..args("Hi") };
    let error = run(&nothing, &host, &mut Vec::new()).await.expect_err("no model");
    assert_eq!(error.exit_code(), 64);
}

#[tokio::test]
async fn json_prints_the_answer_as_one_document() {
    let host = ScriptedHost::new(|_, _| chat_answer(&["Hel", "lo"]));
    let mut out = Vec::new();
    run(&ChatArgs { json: true, ..args("Hi") }, &host, &mut out).await.expect("answered");
    let document: Value = serde_json::from_slice(&out).expect("JSON");
    assert_eq!(document["text"], "Hello");
    assert_eq!(document["finish_reason"], "stop");
    assert_eq!(document["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn a_daemon_on_the_default_socket_is_used_unless_a_model_is_named() {
    let directory = ScratchDirectory::new();
    let socket = directory.path().join("socket");
    let router = Router::new()
        .route("/health/ready", get(|| async { "ready" }))
        .route("/v1/models", get(|| async { Json(json!({ "data": [{ "id": "running" }] })) }))
        .route("/v1/chat/completions", post(|| async { chat_answer(&["from the running one"]) }));
    let _server = serve_router(&socket, router);
    let host = ScriptedHost::new(|_, _| chat_answer(&["from a private one"]));
    let model = |name: &str| ChatArgs { model: Some(name.to_owned()), ..args("Hi") };
    for (args, answer) in [(args("Hi"), "from the running one\n"), (model("m"), "from a private one\n")] {
        let mut out = Vec::new();
        say_once(&args, &host, &socket, &mut out).await.expect("answered");
        assert_eq!(String::from_utf8_lossy(&out), answer);
    }
}

#[tokio::test]
async fn a_daemon_that_is_not_ready_is_not_used_unasked() {
    let directory = ScratchDirectory::new();
    let socket = directory.path().join("socket");
    let starting = || async { (axum::http::StatusCode::SERVICE_UNAVAILABLE, "starting") };
    let _server = serve_router(&socket, Router::new().route("/health/ready", get(starting)));
    let host = ScriptedHost::new(|_, _| chat_answer(&["from a private one"]));
    let mut out = Vec::new();
    say_once(&args("Hi"), &host, &socket, &mut out).await.expect("answered");
    assert_eq!(String::from_utf8_lossy(&out), "from a private one\n");
}

/// Lines in order, then the end.
struct Typed(VecDeque<Input>);

impl Typed {
    fn lines(lines: &[&str]) -> Typed {
        Typed(lines.iter().map(|line| Input::Line((*line).to_owned())).collect())
    }
}

impl Prompt for Typed {
    async fn line(&mut self) -> Result<Input, CliError> {
        Ok(self.0.pop_front().unwrap_or(Input::End))
    }

    fn interrupted(&mut self) {}
}

/// No signals.
struct Quiet;

impl Interrupts for Quiet {
    async fn next(&mut self) -> Received {
        pending().await
    }
}

/// Holds a conversation of these lines; returns what the terminal shows.
async fn conversation(client: &Client, lines: &[&str], interrupts: impl Interrupts, out: impl Write) {
    let conversation = Conversation::start(&args(""), "tiny".to_owned());
    let prompt = Typed::lines(lines);
    let mut dialogue = Dialogue { client, conversation, prompt, interrupts, out, colours: false };
    dialogue.hold().await.expect("ended by the user");
}

/// Holds a conversation with a scripted model; returns the requests and what the terminal shows.
async fn scripted(lines: &[&str], answer: String) -> (Vec<Value>, String) {
    let host = ScriptedHost::new(move |_, _| answer.clone());
    let daemon = PrivateDaemon::start(&host, Config::default_tiny()).await.expect("started");
    let mut out = Vec::new();
    conversation(&daemon.client(), lines, Quiet, &mut out).await;
    daemon.shutdown().await;
    (host.requests(), String::from_utf8(out).expect("text"))
}

/// Roles and texts of a request.
fn messages(request: &Value) -> Vec<(&str, &str)> {
    let messages = request["messages"].as_array().expect("messages");
    messages
        .iter()
        .map(|message| {
            (message["role"].as_str().expect("a role"), message["content"].as_str().expect("a text"))
        })
        .collect()
}

#[tokio::test]
async fn a_conversation_remembers_and_forgets() {
    let lines = ["One", "Two", "/clear", "Three", "/system Rhyme.", "Four", "/system", "Five"];
    let (requests, _) = scripted(&lines, chat_answer(&["Yes"])).await;
    let (brief, yes) = (("system", "Be brief."), ("assistant", "Yes"));
    assert_eq!(messages(&requests[1]), [brief, ("user", "One"), yes, ("user", "Two")]);
    assert_eq!(messages(&requests[2]), [brief, ("user", "Three")], "/clear keeps the system message");
    let rest = [("user", "Three"), yes, ("user", "Four")];
    assert_eq!(messages(&requests[3]), [&[("system", "Rhyme.")], &rest[..]].concat());
    assert_eq!(messages(&requests[4]), [&rest[..], &[yes, ("user", "Five")]].concat());
}

#[tokio::test]
async fn commands_are_not_sent_and_two_slashes_send_one() {
    let lines = ["/typo", "", "/help", "//typo", "/quit", "not read"];
    let (requests, shown) = scripted(&lines, chat_answer(&["Yes"])).await;
    assert_eq!(requests.len(), 1);
    assert_eq!(messages(&requests[0])[1], ("user", "/typo"));
    assert!(shown.contains("no command /typo; /help lists the commands"), "{shown}");
    assert!(shown.contains("/system TEXT") && shown.contains("--max-tokens"), "{shown}");
}

#[tokio::test]
async fn an_answer_is_followed_by_its_length_and_speed_and_cannot_change_the_terminal() {
    let (_, shown) = scripted(&["Hi"], chat_answer(&["a\x1b[2J", "\tb\n"])).await;
    assert!(shown.ends_with("a\u{fffd}[2J\tb\n\n2 tokens, 2000.0 tokens/s\n"), "{shown:?}");
    let speculation = json!({
        "mean_acceptance_length": 2.5, "num_spec_steps": 2, "num_proposed_draft_tokens": 8,
        "num_draft_tokens": 8, "num_accepted_draft_tokens": 3,
    });
    let metrics = json!({ "tpot_ms": 4.0, "speculative_decoding": speculation });
    let (_, shown) = scripted(&["Hi"], chat_answer_with(&["a", "b", "c"], &metrics)).await;
    assert!(shown.ends_with("\n3 tokens, 250.0 tokens/s, 2.50 tokens per target step\n"), "{shown:?}");
}

#[tokio::test]
async fn a_request_that_fails_is_forgotten_and_the_conversation_goes_on() {
    let failed = "data: {\"error\":{\"message\":\"too long\"}}\n\n".to_owned();
    let (requests, _) = scripted(&["One", "Two"], failed).await;
    assert_eq!(messages(&requests[1]), [("system", "Be brief."), ("user", "Two")]);
}

/// SIGINT whenever something is shown that ends in `…`.
struct OnEllipsis(Arc<Notify>);

impl Interrupts for OnEllipsis {
    async fn next(&mut self) -> Received {
        self.0.notified().await;
        Received::INTERRUPT
    }
}

/// A terminal that reports `…`.
struct Screen {
    shown: Vec<u8>,
    ellipsis: Arc<Notify>,
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.shown.extend_from_slice(bytes);
        if bytes.ends_with("…".as_bytes()) {
            self.ellipsis.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reports when it is dropped.
struct Guard(mpsc::UnboundedSender<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        // the test may be over
        let _ = self.0.send(());
    }
}

#[derive(Clone)]
struct Endless {
    requests: Arc<Mutex<Vec<Value>>>,
    cancelled: mpsc::UnboundedSender<()>,
}

/// Says "Once…" and never ends.
async fn endless(State(state): State<Endless>, Json(body): Json<Value>) -> Body {
    state.requests.lock().expect("no panic").push(body);
    let guard = Guard(state.cancelled);
    let event = json!({ "choices": [{ "delta": { "content": "Once…" } }] });
    let first = futures::stream::iter([Ok::<_, Infallible>(Bytes::from(format!("data: {event}\n\n")))]);
    let rest = futures::stream::poll_fn(move |_| {
        let _held = &guard;
        std::task::Poll::Pending
    });
    Body::from_stream(first.chain(rest))
}

#[tokio::test]
async fn ctrl_c_cancels_the_request_and_what_was_said_stays() {
    let directory = ScratchDirectory::new();
    let socket = directory.path().join("socket");
    let (cancelled, mut cancellations) = mpsc::unbounded_channel();
    let state = Endless { requests: Arc::default(), cancelled };
    let router = Router::new().route("/v1/chat/completions", post(endless)).with_state(state.clone());
    let _server = serve_router(&socket, router);
    let ellipsis = Arc::new(Notify::new());
    let mut screen = Screen { shown: Vec::new(), ellipsis: Arc::clone(&ellipsis) };
    conversation(&Client::new(&socket), &["One", "Two"], OnEllipsis(ellipsis), &mut screen).await;
    for _ in 0..2 {
        cancellations.recv().await.expect("the daemon notices each");
    }
    let requests = state.requests.lock().expect("no panic");
    let said = [("system", "Be brief."), ("user", "One"), ("assistant", "Once…"), ("user", "Two")];
    assert_eq!(messages(&requests[1]), said);
    let shown = String::from_utf8(screen.shown).expect("text");
    assert!(shown.ends_with("Once…\nstopped\nOnce…\nstopped\n"), "{shown}");
}

#[tokio::test]
async fn an_answer_that_is_stopped_before_it_begins_leaves_no_message() {
    let directory = ScratchDirectory::new();
    let mut conversation = Conversation::start(&args(""), "tiny".to_owned());
    let socket = directory.path().join("socket");
    let silent = || async { pending::<&str>().await };
    let _server = serve_router(&socket, Router::new().route("/v1/chat/completions", post(silent)));
    let client = Client::new(&socket);
    let said = conversation.say(&client, "One", |_| Ok(()), std::future::ready(7)).await.expect("stopped");
    assert!(matches!(said, Said::Stopped(7)));
    let stopped = conversation.say(&client, "Two", |_| Ok(()), std::future::ready(8)).await;
    assert!(matches!(stopped, Ok(Said::Stopped(8))));
    assert_eq!(conversation.messages().len(), 1, "the system message");
}

/// SIGTERM at once, after `SIGINT`s.
struct Signalled(u32);

impl Interrupts for Signalled {
    async fn next(&mut self) -> Received {
        self.0 = self.0.saturating_sub(1);
        if self.0 > 0 { Received::INTERRUPT } else { Received::TERMINATE }
    }
}

/// A prompt at which no line is ever entered.
struct Idle(u32);

impl Prompt for Idle {
    async fn line(&mut self) -> Result<Input, CliError> {
        pending().await
    }

    fn interrupted(&mut self) {
        self.0 += 1;
    }
}

#[tokio::test]
async fn at_the_prompt_sigint_clears_the_line_and_sigterm_ends() {
    let client = Client::new(Path::new(NOWHERE));
    let conversation = Conversation::start(&args(""), "tiny".to_owned());
    let (prompt, interrupts) = (Idle(0), Signalled(3));
    let mut dialogue =
        Dialogue { client: &client, conversation, prompt, interrupts, out: Vec::new(), colours: false };
    let error = dialogue.hold().await.expect_err("terminated");
    assert_eq!(error.exit_code(), 143);
    assert_eq!(dialogue.prompt.0, 2);
}

#[tokio::test]
async fn a_reader_that_left_ends_the_command_quietly() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let host = ScriptedHost::new(|_, _| chat_answer(&["Hel", "lo"]));
    let error = run(&args("Hi"), &host, &mut Gone).await.expect_err("no reader");
    assert!(error.is_broken_pipe());
    assert_eq!(error.exit_code(), 0);
}
