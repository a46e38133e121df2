//! The binary and models of the Hugging Face hub: exit codes, messages, and what Ctrl-C leaves.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// A tag of large file storage.
const TAG: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

/// The program with a cache of its own and a hub on this machine.
fn specserve(home: &Path, endpoint: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_specserve"));
    for name in
        ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
    {
        command.env_remove(name);
    }
    command.env("HF_HOME", home).env("HF_ENDPOINT", endpoint).env("NO_PROXY", "*");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn error(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("output is text")
}

#[test]
fn without_a_network_a_pull_exits_with_1_and_names_what_failed() {
    let home = tempfile::tempdir().expect("a directory for the test");
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let endpoint = format!("http://{}", closed.expect("a port"));
    let output = specserve(home.path(), &endpoint, &["pull", "org/name"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    let error = error(&output);
    let expected = format!("specserve: cannot reach {endpoint}/api/models/org/name/revision/main: ");
    assert!(error.starts_with(&expected) && error.contains("check the network"), "{error}");
}

#[test]
fn a_model_that_is_not_in_the_cache_is_an_error_that_says_how_to_fetch_it() {
    let home = tempfile::tempdir().expect("a directory for the test");
    let out = home.path().join("out").display().to_string();
    for arguments in [
        &["chat", "--model", "org/name", "Hello"][..],
        &["serve", "org/name", "--socket", &home.path().join("s").display().to_string()],
        &["inflate", "org/name", &out, "--shape", "llama-160m"],
    ] {
        let output = specserve(home.path(), "http://127.0.0.1:1", arguments).output().expect("it starts");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let error = error(&output);
        let looked_for = home.path().join("hub/models--org--name").display().to_string();
        assert!(error.contains("`org/name` is neither a directory nor a model in"), "{error}");
        assert!(error.contains(&looked_for) && error.contains("`specserve pull org/name`"), "{error}");
    }
}

/// Answers one request of a pull, with the weights cut after half of their bytes and the
/// connection held open.
fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut send = |headers: &str, body: &str| {
        write!(connection, "HTTP/1.1 200 OK\r\nconnection: close\r\n{headers}\r\n\r\n{body}")
    };
    if request.contains("/api/models/") {
        let files = ["config.json", "tokenizer.json", "model.safetensors"];
        let files = files.map(|file| format!("{{\"rfilename\": \"{file}\"}}")).join(", ");
        let body = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{files}]}}");
        return send(&format!("content-length: {}", body.len()), &body);
    }
    let weights = request.contains("model.safetensors");
    let (tag, bytes) = if weights { (TAG, 200_000) } else { ("b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0", 5) };
    let headers = format!("etag: \"{tag}\"\r\ncontent-length: {bytes}");
    match (request.starts_with("GET"), weights) {
        (false, _) => send(&headers, ""),
        (true, false) => send(&headers, "hello"),
        (true, true) => {
            send(&headers, &"x".repeat(100_000))?;
            loop {
                std::thread::park();
            }
        }
    }
}

#[test]
fn ctrl_c_leaves_what_the_next_pull_can_use_and_nothing_that_looks_complete() {
    let home = tempfile::tempdir().expect("a directory for the test");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(|| answer(connection));
        }
    });
    let mut pull = specserve(home.path(), &endpoint, &["pull", "org/name"]).spawn().expect("it starts");
    let repository = home.path().join("hub/models--org--name");
    let part = repository.join(format!("blobs/{TAG}.incomplete"));
    while std::fs::metadata(&part).map_or(0, |found| found.len()) < 100_000 {
        assert!(pull.try_wait().expect("a child").is_none(), "it ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&pull), Signal::INT).expect("it is running");
    let output = pull.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), error(&output).as_str()), (Some(130), ""));
    assert_eq!(std::fs::read(&part).expect("it is kept").len(), 100_000);
    assert!(!repository.join("refs").exists());
    assert!(!repository.join(format!("snapshots/{COMMIT}/model.safetensors")).exists());
    let output = specserve(home.path(), &endpoint, &["chat", "--model", "org/name@main", "Hello"]).output();
    assert!(error(&output.expect("it starts")).contains("`specserve pull org/name@main`"));
}
