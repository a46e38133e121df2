use clap::Parser;
use serde_json::Value;

use super::*;
use crate::cli::testing::{ScratchDirectory, ScriptedHost, chat_answer, chat_answer_with};

/// A command of its own, so that tests parse arguments as users write them.
#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: ReplayArgs,
}

fn args(line: &str) -> ReplayArgs {
    let words = std::iter::once("replay").chain(line.split_whitespace());
    Command::try_parse_from(words).expect(line).args
}

fn config_file(directory: &ScratchDirectory) -> String {
    let path = directory.path().join("config.toml");
    std::fs::write(&path, crate::config::TINY_CPU_TOML).expect("written");
    path.to_str().expect("a text path").to_owned()
}

/// Plain decoding takes 4 ms a token, everything else 2 ms.
fn host() -> ScriptedHost {
    ScriptedHost::new(|config, _| match config.speculation.policy {
        PolicyName::None => {
            let metrics = json!({
                "ttft_ms": 3.0, "tpot_ms": 4.0,
                "speculative_decoding": { "steps": 2, "drafted": 0, "verified": 0, "accepted": 0 },
            });
            chat_answer_with(&["a", "b"], &metrics)
        }
        _ => {
            let metrics = json!({
                "ttft_ms": 3.0, "tpot_ms": 2.0,
                "speculative_decoding": { "steps": 2, "drafted": 8, "verified": 4, "accepted": 3 },
            });
            chat_answer_with(&["a", "b"], &metrics)
        }
    })
}

async fn replayed(line: &str, host: &ScriptedHost) -> Value {
    let mut out = Vec::new();
    run(&args(&format!("{line} --json")), host, &mut out).await.expect(line);
    serde_json::from_slice(&out).expect("JSON")
}

#[tokio::test]
async fn policies_and_rates_are_compared_with_plain_decoding() {
    let directory = ScratchDirectory::new();
    let line = format!(
        "--config {} --trace poisson:100,0.1 --policy none,fixed:4 --rate-scale 1,2 --repeats 2 --slo tpot_ms=3",
        config_file(&directory)
    );
    let document = replayed(&line, &host()).await;
    assert_eq!(document["runs"].as_array().map(Vec::len), Some(8));
    let summary = document["summary"].as_array().expect("summaries");
    assert_eq!(summary.len(), 4);
    let fixed = summary.iter().find(|one| one["policy"] == "fixed:4").expect("fixed:4");
    assert_eq!(fixed["speed_over_none"], 2.0);
    assert_eq!(fixed["attainment"], 1.0);
    assert_eq!(fixed["mean_draft_tokens"], 4.0);
    assert_eq!(fixed["acceptance_length"], 2.5);
    let plain = summary.iter().find(|one| one["policy"] == "none").expect("none");
    assert_eq!(plain["attainment"], 0.0);
    assert_eq!(plain["speed_over_none"], 1.0);
    // no plain request met its objective: there is no ratio
    assert_eq!(fixed["goodput_over_none"], Value::Null);
}

#[tokio::test]
async fn the_first_to_go_changes_from_repeat_to_repeat() {
    let directory = ScratchDirectory::new();
    let config = config_file(&directory);
    let line = format!("--config {config} --trace poisson:50,0.1 --policy none,fixed:2 --repeats 2");
    let document = replayed(&line, &host()).await;
    let order: Vec<&str> = document["runs"]
        .as_array()
        .expect("runs")
        .iter()
        .map(|run| run["policy"].as_str().expect("text"))
        .collect();
    assert_eq!(order, ["none", "fixed:2", "fixed:2", "none"]);
}

#[tokio::test]
async fn each_shape_of_specserve_is_a_candidate_of_its_own() {
    let directory = ScratchDirectory::new();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = std::sync::Arc::clone(&seen);
    let host = ScriptedHost::new(move |config, _| {
        let speculation = &config.speculation;
        noted.lock().expect("no panic").push((speculation.policy.to_string(), speculation.shape));
        chat_answer(&["a"])
    });
    let config = config_file(&directory);
    let line = format!(
        "--config {config} --trace poisson:50,0.1 --limit 1 --policy none,specserve --shape tree,auto"
    );
    let document = replayed(&line, &host).await;
    let policies: Vec<&str> =
        document["runs"].as_array().expect("runs").iter().flat_map(|run| run["policy"].as_str()).collect();
    assert_eq!(policies, ["none", "specserve tree", "specserve auto"]);
    let mut shapes = seen.lock().expect("no panic").clone();
    shapes.dedup();
    let named = [("none", Shape::Chain), ("specserve", Shape::Tree), ("specserve", Shape::Auto)];
    assert_eq!(shapes, named.map(|(policy, shape)| (policy.to_owned(), shape)));
}

#[tokio::test]
async fn requests_carry_lengths_objectives_and_seeds_and_ignore_the_end() {
    let directory = ScratchDirectory::new();
    let trace = directory.path().join("trace.csv");
    std::fs::write(&trace, "arrival_s,prompt_tokens,output_tokens\n0,5,7\n0.01,5,900\n").expect("written");
    let host = host();
    let line = format!(
        "--config {} --trace {} --slo ttft_ms=250 --max-output 50 --temperature 0.8 --seed 5",
        config_file(&directory),
        trace.display()
    );
    let document = replayed(&line, &host).await;
    assert_eq!(document["runs"][0]["requests"], 2);
    let mut measured: Vec<Value> =
        host.requests().into_iter().filter(|body| body["ignore_eos"] == true).collect();
    measured.sort_by_key(|body| body["seed"].as_u64());
    let lengths: Vec<&Value> = measured.iter().map(|body| &body["max_tokens"]).collect();
    assert_eq!(lengths, [7, 50]);
    assert_eq!(measured[1]["seed"], 6);
    assert!(
        measured.iter().all(|body| body["slo"] == json!({ "ttft_ms": 250.0 }) && body["temperature"] == 0.8)
    );
    assert_ne!(measured[0]["messages"], measured[1]["messages"]);
}

#[tokio::test]
async fn a_profile_is_measured_once_for_all_daemons_that_need_it() {
    let directory = ScratchDirectory::new();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = std::sync::Arc::clone(&seen);
    let host = ScriptedHost::new(move |config, _| {
        let readable = config.speculation.profile.as_ref().is_some_and(|path| path.exists());
        noted.lock().expect("no panic").push((config.speculation.profile.clone(), readable));
        chat_answer(&["a"])
    });
    let line = format!(
        "--config {} --trace poisson:50,0.1 --policy specserve,smartspec --repeats 2",
        config_file(&directory)
    );
    replayed(&line, &host).await;
    let mut paths = seen.lock().expect("no panic").clone();
    paths.dedup();
    assert!(paths.len() == 1 && paths[0].1, "{paths:?}");
    let path = paths[0].0.as_ref().expect("a profile");
    assert!(!path.exists(), "it goes with the command");
}

#[tokio::test]
async fn a_broken_answer_counts_as_failed_and_its_reason_is_kept() {
    let directory = ScratchDirectory::new();
    let host = ScriptedHost::new(|_, body| match body["ignore_eos"] == true {
        true => "data: {\"choices\": []}\n\n".to_owned(),
        false => chat_answer(&["warm"]),
    });
    let line = format!("--config {} --trace poisson:50,0.1", config_file(&directory));
    let document = replayed(&line, &host).await;
    let run = &document["runs"][0];
    assert_eq!((&run["failed"], &run["finished"]), (&run["requests"], &json!(0)));
    assert_eq!(run["goodput_rps"], 0.0);
    assert_eq!(run["ttft_ms"]["p50"], Value::Null);
    assert!(run["failures"][0].as_str().is_some_and(|why| why.contains("before [DONE]")));
}

#[tokio::test]
async fn the_table_has_a_line_for_each_policy_and_rate() {
    let directory = ScratchDirectory::new();
    let line = format!("--config {} --trace poisson:50,0.1 --policy none,fixed:3", config_file(&directory));
    let mut out = Vec::new();
    run(&args(&line), &host(), &mut out).await.expect("replayed");
    let text = String::from_utf8(out).expect("text");
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.contains("fixed:3"));
}

#[test]
fn arguments_that_do_not_go_together_are_refused() {
    let refused = |line: &str| {
        let words = std::iter::once("replay").chain(line.split_whitespace());
        assert!(Command::try_parse_from(words).is_err(), "{line}");
    };
    refused("--trace a.csv");
    refused("--config c --socket s --trace a.csv");
    refused("--socket s --policy none --trace a.csv");
    refused("--config c --trace poisson:1");
    refused("--config c --trace a.csv --policy fast");
    refused("--config c --trace a.csv --rate-scale 0");
    refused("--config c --trace a.csv --slo itl_ms=3");
    refused("--config c --trace a.csv --repeats 0");
    refused("--config c --trace a.csv --temperature 3");
    refused("--config c --trace a.csv --lengths guess");
}

#[tokio::test]
async fn traces_and_prompts_that_can_not_be_read_end_the_command() {
    let directory = ScratchDirectory::new();
    let config = config_file(&directory);
    for (line, what) in [
        ("--trace absent.csv", "absent.csv"),
        ("--trace poisson:50,0.1 --prompts absent.jsonl", "absent.jsonl"),
    ] {
        let args = args(&format!("--config {config} {line}"));
        let error = run(&args, &host(), &mut Vec::new()).await.expect_err(line);
        assert!(error.to_string().contains(what), "{error}");
    }
}
