//! What a client sees of a model directory: contexts, defaults, ends and templates.

use std::path::Path;

use serde_json::{Value, json};

use super::assembly::assemble;
use super::startup::StartingDaemon;
use super::*;
use crate::cli::client::{Client, ClientError};

/// The embedded target as a directory on disk, with `files` added or replaced.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/target");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::os::unix::fs::symlink(assets.join(name), directory.path().join(name)).expect("linked");
    }
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).expect("written");
    }
    directory
}

/// A daemon that serves a model directory under the name `m`.
struct Served {
    client: Client,
    daemon: Daemon,
    _directory: tempfile::TempDir,
}

impl Served {
    async fn start(files: &[(&str, &str)], target: &str, kv: &str) -> Served {
        let directory = directory(files);
        let (socket, model) = (directory.path().join("s"), directory.path().display().to_string());
        let text = format!(
            "[server]\nsocket = {socket:?}\n[target]\nname = \"m\"\nmodel = {model:?}\n{target}\n\
             [executor]\nthreads = 1\n[kv]\n{kv}\n"
        );
        let config = Config::parse(&text).expect("valid");
        let mut starting = StartingDaemon::begin(config, assemble).await.expect("the socket is bound");
        let assembled = starting.assembled().await;
        let daemon = starting.finish(assembled).await.expect("it starts");
        Served { client: Client::new(&socket), daemon, _directory: directory }
    }

    async fn complete(&self, mut body: Value) -> Result<Value, ClientError> {
        body["model"] = "m".into();
        self.client.post("/v1/completions", &body).await
    }

    /// The text of a completion.
    async fn text(&self, body: Value) -> String {
        let answer = self.complete(body).await.expect("served");
        answer["choices"][0]["text"].as_str().expect("a text").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_max_tokens_is_served_when_the_context_is_longer_than_the_pool() {
    let served = Served::start(&[], "", "target_blocks = 4").await;
    let models: Value =
        serde_json::from_str(&served.client.get("/v1/models").await.expect("listed")).expect("JSON");
    assert_eq!(models["data"][0]["max_model_len"], 64, "what can be served, not what the model could do");
    let answer = served.complete(json!({ "prompt": [5], "ignore_eos": true })).await.expect("served");
    assert_eq!(
        (&answer["usage"]["total_tokens"], &answer["choices"][0]["finish_reason"]),
        (&json!(64), &json!("length"))
    );

    let prompt = vec![5; 70];
    let Err(ClientError::Refused { status: 400, body: Some(body), .. }) =
        served.complete(json!({ "prompt": prompt })).await
    else {
        panic!("it cannot fit")
    };
    let message = body["error"]["message"].as_str().expect("a message");
    assert_eq!(body["error"]["code"], "context_length_exceeded");
    assert!(message.contains("own context is 2048") && message.contains("kv.target_blocks"), "{message}");
    served.daemon.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capped_context_is_announced_and_ends_outputs() {
    let served = Served::start(&[], "context_tokens_max = 32", "").await;
    let card: Value =
        serde_json::from_str(&served.client.get("/v1/models/m").await.expect("there")).expect("JSON");
    assert_eq!(card["max_model_len"], 32);
    let answer = served.complete(json!({ "prompt": [5], "ignore_eos": true })).await.expect("served");
    assert_eq!(answer["usage"]["completion_tokens"], 31);
    served.daemon.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_models_generation_config_sets_the_defaults_that_a_request_can_override() {
    let recommended = json!({ "temperature": 2.0, "top_k": 1, "eos_token_id": [0, 2] }).to_string();
    let served = Served::start(&[("generation_config.json", &recommended)], "", "").await;
    let asked = |more: Value| {
        let mut body = json!({ "prompt": "Once upon", "max_tokens": 12 });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        served.text(body)
    };
    let greedy = asked(json!({ "temperature": 0 })).await;
    for seed in 0..4 {
        assert_eq!(asked(json!({ "seed": seed })).await, greedy, "one token to choose from");
    }
    let free = [asked(json!({ "seed": 1, "top_k": 0 })).await, asked(json!({ "seed": 2, "top_k": 0 })).await];
    assert!(free.iter().any(|text| *text != greedy), "{free:?}");
    served.daemon.shutdown().await;
}

/// What a conversation is rendered to.
async fn rendered(served: &Served, body: Value) -> String {
    let tokens = served.client.post("/tokenize", &body).await.expect("rendered")["tokens"].clone();
    let text = served.client.post("/detokenize", &json!({ "tokens": tokens })).await.expect("decoded");
    text["prompt"].as_str().expect("a text").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_reads_the_special_tokens_map_the_tool_calls_and_the_requests_variables() {
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}\
                    {% for call in m.tool_calls %}{{ call.function.arguments.x }}{% endfor %};{% endfor %}\
                    {% if tools is iterable %}tools{% endif %}{{ enable_thinking }}";
    let map = json!({ "bos_token": { "content": "<|endoftext|>" } }).to_string();
    let files = [
        ("chat_template.jinja", template),
        ("special_tokens_map.json", &map),
        ("tokenizer_config.json", "{}"),
    ];
    let served = Served::start(&files, "", "").await;
    let call =
        json!({ "id": "c", "type": "function", "function": { "name": "f", "arguments": "{\"x\": 7}" } });
    let body = json!({
        "messages": [
            { "role": "user", "content": "a" },
            { "role": "assistant", "tool_calls": [call] },
            { "role": "tool", "content": "b" },
        ],
        "chat_template_kwargs": { "enable_thinking": true },
    });
    assert_eq!(rendered(&served, body).await, "<|endoftext|>user:a;assistant:7;tool:b;True");
    let body = json!({
        "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }],
        "continue_final_message": true,
    });
    assert_eq!(rendered(&served, body).await, "<|endoftext|>user:a;assistant:b");
    served.daemon.shutdown().await;
}
