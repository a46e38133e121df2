//! End-to-end tests: a daemon process, its socket and its clients.

mod overload;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const READY_TIMEOUT: Duration = Duration::from_secs(60);

fn specserve() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_specserve"));
    command.stdin(Stdio::null());
    command
}

/// A daemon process on its own socket; killed on drop.
struct Daemon {
    child: Child,
    /// Reads what the daemon logs: a full pipe would stop it.
    log: Option<JoinHandle<String>>,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Daemon {
    /// Starts the embedded pair with a policy that needs no profile, and waits until it is ready.
    fn start() -> Daemon {
        Daemon::start_as("fixed:4")
    }

    fn start_as(policy: &str) -> Daemon {
        let mut daemon = Daemon::spawn(|config| config.replace("\"specserve\"", &format!("\"{policy}\"")));
        daemon.wait_until_ready();
        daemon
    }

    /// Starts the tiny configuration, modified by `change`, without waiting.
    fn spawn(change: impl FnOnce(String) -> String) -> Daemon {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let socket = directory.path().join("socket");
        let tiny = include_str!("../../config/tiny-cpu.toml");
        let config = tiny.replace("/tmp/specserve.sock", socket.to_str().expect("a text path"));
        let file = directory.path().join("config.toml");
        std::fs::write(&file, change(config)).expect("written");
        let mut command = specserve();
        command.arg("serve").arg("--config").arg(&file).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut stderr = child.stderr.take().expect("piped");
        let log = std::thread::spawn(move || {
            let mut said = String::new();
            stderr.read_to_string(&mut said).expect("text");
            said
        });
        Daemon { child, log: Some(log), socket, _directory: directory }
    }

    /// Waits for the process; returns its exit code and stderr.
    fn ended(&mut self) -> (Option<i32>, String) {
        let said = self.log.take().expect("asked once").join().expect("text");
        (self.child.wait().expect("it ends").code(), said)
    }

    #[expect(clippy::disallowed_methods, reason = "a real deadline for another process")]
    fn wait_until_ready(&mut self) {
        let start = Instant::now();
        while !get(&self.socket, "/health/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            if self.child.try_wait().expect("its status can be asked").is_some() {
                panic!("the daemon ended: {:?}", self.ended());
            }
            assert!(start.elapsed() < READY_TIMEOUT, "the daemon is not ready after {READY_TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the daemon runs");
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let output = specserve().args(arguments).arg("--socket").arg(&self.socket).output();
        output.expect("the program starts")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails if the daemon has already exited, as it should have.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The raw response to a GET; `None` if no process is listening.
fn get(socket: &Path, path: &str) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn json_of(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_daemon_serves_until_a_signal_and_removes_its_socket() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start();
        let mode = std::fs::metadata(&daemon.socket).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        daemon.signal(signal);
        let (code, said) = daemon.ended();
        assert_eq!(code, Some(0), "{said}");
        assert!(!daemon.socket.exists());
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a real deadline for another process")]
fn a_signal_as_soon_as_there_is_a_socket_ends_the_start_well() {
    let mut daemon = Daemon::spawn(|config| config);
    let start = Instant::now();
    while !daemon.socket.exists() {
        assert!(start.elapsed() < READY_TIMEOUT, "no socket after {READY_TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    daemon.signal(Signal::TERM);
    let (code, said) = daemon.ended();
    assert_eq!(code, Some(0), "{said}");
    assert!(!daemon.socket.exists());
}

#[test]
fn a_failed_start_is_logged_and_reported_and_leaves_no_socket() {
    let mut daemon = Daemon::spawn(|config| {
        let config = config.replacen("model = \"embedded:tiny\"", "model = \"/nonexistent/model\"", 1);
        config.replace("log_format = \"text\"", "log_format = \"json\"")
    });
    let (code, said) = daemon.ended();
    assert_eq!(code, Some(1), "{said}");
    assert!(!daemon.socket.exists());
    let (last, log) = said.trim_end().rsplit_once('\n').map(|(log, last)| (last, log)).expect("a log");
    assert!(
        last.starts_with("specserve: the daemon failed: ") && last.contains("/nonexistent/model"),
        "{said}"
    );
    let log: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let error = log.last().expect("an event");
    assert_eq!((&error["level"], &error["message"]), (&json!("ERROR"), &json!("the daemon failed")));
    assert!(error["error"].as_str().is_some_and(|error| error.contains("/nonexistent/model")), "{error}");
}

#[test]
fn chat_submit_and_top_talk_to_a_running_daemon() {
    let daemon = Daemon::start();
    let chat = ["chat", "What is a river?", "--temperature", "0", "--max-tokens", "16"];
    let streamed = daemon.run(&chat);
    let answer = json_of(&daemon.run(&[&chat[..], &["--json"]].concat()));
    assert_eq!(String::from_utf8_lossy(&streamed.stdout).trim_end_matches('\n'), answer["text"]);
    assert!(answer["usage"]["completion_tokens"].as_u64() > Some(0));
    assert!(answer["metrics"]["speculative_decoding"]["drafted"].as_u64() > Some(0));

    let mut lines = tempfile::NamedTempFile::new().expect("a file for the test");
    for number in 1..=5 {
        let messages = json!([{ "role": "user", "content": "Tell me a story." }]);
        writeln!(lines, "{}", json!({ "messages": messages, "max_tokens": number, "temperature": 0 }))
            .expect("written");
    }
    let output = daemon.run(&["submit", lines.path().to_str().expect("a text path")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results = String::from_utf8(output.stdout).expect("text");
    let tokens: Vec<Value> = results
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).expect("JSON")["response"]["usage"]["completion_tokens"]
                .take()
        })
        .collect();
    assert_eq!(tokens, [1, 2, 3, 4, 5]);

    let screen = json_of(&daemon.run(&["top", "--once", "--json", "--interval-ms", "100"]));
    assert_eq!(screen["figures"]["requests_finished"], 7);
    assert_eq!(screen["figures"]["policy"], "fixed:4");
}

#[test]
fn the_tiny_file_as_it_is_measures_the_machine_and_serves() {
    let daemon = Daemon::start_as("specserve");
    let chat = ["chat", "What is a river?", "--temperature", "0", "--max-tokens", "32", "--json"];
    let answer = json_of(&daemon.run(&chat));
    assert!(answer["usage"]["completion_tokens"].as_u64() > Some(0));
    let screen = json_of(&daemon.run(&["top", "--once", "--json", "--interval-ms", "100"]));
    assert_eq!(screen["figures"]["policy"], "specserve");
}

#[test]
fn curl_gets_an_answer_over_the_socket() {
    let daemon = Daemon::start();
    let body = r#"{"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": "Why do people sing?"}]}"#;
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--unix-socket"])
        .arg(&daemon.socket)
        .args(["http://localhost/v1/chat/completions", "-H", "content-type: application/json", "-d", body])
        .output()
        .expect("curl is installed");
    let answer = json_of(&output);
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["choices"][0]["message"]["content"].as_str().is_some_and(|text| !text.is_empty()));
}

/// The answer to a chat request over the socket: its status and body.
fn chat(daemon: &Daemon, more: &Value) -> (u16, String) {
    let mut body = json!({"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 120});
    let (Value::Object(all), Value::Object(more)) = (&mut body, more) else { panic!("objects") };
    all.extend(more.clone());
    let body = body.to_string();
    let mut stream = UnixStream::connect(&daemon.socket).expect("the daemon listens");
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    write!(stream, "{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, answer.split_once("\r\n\r\n").expect("a body").1.to_owned())
}

#[test]
fn a_schema_is_fitted_whole_and_streamed_and_a_bad_one_is_refused() {
    let daemon = Daemon::start();
    let schema = json!({
        "type": "object",
        "properties": {"title": {"type": "string", "maxLength": 24}, "pages": {"type": "integer", "maximum": 999}},
        "required": ["title", "pages"],
        "additionalProperties": false,
    });
    let format =
        |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "book", "schema": schema}});
    for temperature in [0.0, 1.0] {
        let request =
            json!({"response_format": format(schema.clone()), "temperature": temperature, "seed": 3});
        let (status, body) = chat(&daemon, &request);
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let text = answer["choices"][0]["message"]["content"].as_str().expect("a text");
        let book: Value = serde_json::from_str(text).expect(text);
        assert!(
            book["title"].is_string() && book["pages"].as_i64().is_some_and(|pages| pages <= 999),
            "{text}"
        );
        assert_eq!(book.as_object().map(serde_json::Map::len), Some(2), "{text}");

        let mut streamed = request.clone();
        streamed["stream"] = json!(true);
        let (status, body) = chat(&daemon, &streamed);
        assert_eq!(status, 200, "{body}");
        let events =
            body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        let events: Vec<Value> = events.map(|data| serde_json::from_str(data).expect(data)).collect();
        let parts = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        assert_eq!(parts.collect::<String>(), text, "streamed as it is whole");
    }
    let (status, body) =
        chat(&daemon, &json!({"response_format": format(json!({"items": {"type": "lst"}}))}));
    let error = serde_json::from_str::<Value>(&body).expect("JSON")["error"].take();
    assert_eq!((status, &error["param"]), (400, &json!("response_format.json_schema.schema")));
    assert!(error["message"].as_str().is_some_and(|message| message.contains("\"/items\"")), "{error}");
    let (status, body) = chat(&daemon, &json!({"response_format": format(schema), "max_tokens": 2}));
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("\"finish_reason\":\"length\""), "cut off, and said so: {body}");
}

#[test]
fn the_demo_finds_the_same_texts_with_and_without_speculation() {
    let arguments = ["demo", "--json", "--policy", "fixed:4", "--tokens", "24", "--rounds", "1"];
    let output = specserve().args(arguments).output();
    let document = json_of(&output.expect("the program starts"));
    assert_eq!(document["identical"], true);
    assert_eq!(document["plain"]["draft_tokens"], 0);
    assert_eq!(document["plain"]["acceptance_length"], 1.0);
    assert!(document["speculative"]["acceptance_length"].as_f64() > Some(1.0));
    assert!(document["speculative"]["tokens_per_second"].as_f64() > Some(0.0));
}

#[test]
fn the_answers_of_the_demo_come_to_an_end_and_repeat_no_sentence() {
    let output = specserve().args(["demo", "--json", "--policy", "fixed:4", "--rounds", "1"]).output();
    let document = json_of(&output.expect("the program starts"));
    let answers = document["answers"].as_array().expect("answers");
    assert_eq!(answers.len(), 8);
    for answer in answers {
        assert_eq!(answer["finish_reason"], "stop", "{answer}");
        let text = answer["text"].as_str().expect("text");
        let sentences: Vec<&str> = text.split_inclusive(['.', '!', '\n']).map(str::trim).collect();
        let long = || sentences.iter().filter(|sentence| sentence.len() > 10);
        let distinct: std::collections::HashSet<_> = long().collect();
        assert_eq!(distinct.len(), long().count(), "{answer}");
    }
}

#[test]
#[ignore = "needs the Python package openai: SPECSERVE_PYTHON names an interpreter that has it"]
fn the_openai_package_talks_to_the_daemon() {
    let python = std::env::var_os("SPECSERVE_PYTHON").expect("SPECSERVE_PYTHON names an interpreter");
    let daemon = Daemon::start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai_client.py");
    let output = Command::new(python).arg(script).arg(&daemon.socket).output().expect("python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n");
}
