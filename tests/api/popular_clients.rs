//! Clients that people use, against the API on its Unix socket.

use std::process::Command;

use specserve::api::ApiLimits;

use crate::fake::{Fixture, MODEL, Script};

/// Runs a client to its end and returns what it printed.
fn output(client: &mut Command) -> String {
    let output = client.output().unwrap_or_else(|error| panic!("{client:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{client:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the Python package openai: SPECSERVE_PYTHON names an interpreter that has it"]
async fn the_openai_package_is_served_over_the_socket() {
    let fixture =
        Fixture::with_limits(Script::text("Hello from a Unix socket, é.", 3), ApiLimits::default()).await;
    let python = std::env::var_os("SPECSERVE_PYTHON").expect("SPECSERVE_PYTHON names an interpreter");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai_client.py");
    assert_eq!(output(Command::new(python).arg(script).arg(&fixture.socket)), "ok\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs curl; .ci/run has it"]
async fn curl_is_served_over_the_socket() {
    let fixture = Fixture::start(Script::text("Hello.", 3)).await;
    let body = serde_json::json!({"model": MODEL, "prompt": "x"}).to_string();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail-with-body", "--unix-socket"]).arg(&fixture.socket);
    curl.args(["http://specserve/v1/completions", "--data", &body]);
    assert!(output(&mut curl).contains("Hello."));
}
