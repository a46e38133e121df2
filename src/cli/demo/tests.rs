use serde_json::{Value, json};

use super::*;
use crate::cli::testing::{ScriptedHost, chat_answer, chat_answer_with};

fn args(json: bool) -> DemoArgs {
    DemoArgs { policy: PolicyName::Fixed(12), shape: Shape::Chain, draft_max: 8, tokens: 16, rounds: 2, json }
}

/// Answers with the prompt itself, drafting as the daemon's policy says.
fn faithful(config: &Config, body: &Value) -> String {
    let prompt = body["messages"][0]["content"].as_str().unwrap_or_default();
    match config.speculation.policy {
        PolicyName::None => chat_answer(&["An answer: ", prompt]),
        _ => {
            let speculation = json!({ "steps": 2, "drafted": 8, "verified": 8, "accepted": 5 });
            let metrics = json!({ "ttft_ms": 2.5, "tpot_ms": 0.25, "speculative_decoding": speculation });
            chat_answer_with(&["An answer: ", prompt], &metrics)
        }
    }
}

#[tokio::test]
async fn the_json_document_holds_the_figures_of_both_sides() {
    let host = ScriptedHost::new(faithful);
    let mut out = Vec::new();
    run(&args(true), &host, &mut out).await.expect("same texts");
    let document: Value = serde_json::from_slice(&out).expect("one JSON document");
    assert!(document["plain"]["tokens_per_second"].as_f64() > Some(0.0));
    assert!(document["speculative"]["tokens_per_second"].as_f64() > Some(0.0));
    assert_eq!(document["plain"]["acceptance_length"], 1.0);
    assert_eq!(document["plain"]["draft_tokens"], 0);
    assert_eq!(document["speculative"]["acceptance_length"], 3.5);
    assert_eq!(document["speculative"]["draft_tokens"], 64);
    assert_eq!(document["speculative"]["acceptance_rate"], 0.625);
    assert_eq!(document["plain"]["acceptance_rate"], Value::Null);
    assert_eq!(document["speculative"]["output_tokens"], 16);
    assert_eq!(document["speculative"]["ttft_ms"]["p99"], 2.5);
    assert_eq!(document["plain"]["tpot_ms"]["p50"], 0.5);
    assert_eq!(document["identical"], true);
    assert_eq!(document["answers"][1]["text"], "An answer: What is a river?");
    assert_eq!(document["policy"], "fixed:12");
}

#[tokio::test]
async fn the_first_answer_is_shown_pass_by_pass_and_then_the_figures_and_what_to_do_next() {
    let host = ScriptedHost::new(faithful);
    let mut out = Vec::new();
    run(&args(false), &host, &mut out).await.expect("same texts");
    let text = String::from_utf8(out).expect("text");
    assert!(
        text.contains(&format!("\n> {0}\nAn answer: |{0}\n\n2 tokens in 3 passes", PROMPTS[0])),
        "{text}"
    );
    assert_eq!(text.matches("An answer: ").count(), 1);
    assert!(text.contains("All 8 answers are the same text"), "{text}");
    let next = text.find("\nNext:\n").expect("a list of commands");
    assert!(text.find("Speculation ").is_some_and(|verdict| verdict < next), "{text}");
    assert!(text[next..].contains(" chat --model DIR"), "{text}");
}

#[test]
fn the_adaptive_policy_is_the_default() {
    #[derive(clap::Parser)]
    struct Demo {
        #[command(flatten)]
        args: DemoArgs,
    }
    let demo = <Demo as clap::Parser>::parse_from(["demo"]);
    assert_eq!(demo.args.policy, PolicyName::SpecServe);
}

#[tokio::test]
async fn every_prompt_is_asked_greedily_in_every_round_after_a_warm_up() {
    let host = ScriptedHost::new(faithful);
    run(&args(true), &host, &mut Vec::new()).await.expect("same texts");
    let requests = host.requests();
    assert_eq!(requests.len(), 2 * 2 * (1 + PROMPTS.len()));
    assert!(requests.iter().all(|body| body["temperature"] == 0 && body["max_tokens"] == 16));
}

#[tokio::test]
async fn a_text_that_differs_fails_the_demo_and_is_named() {
    let host = ScriptedHost::new(|config, body| {
        let changed = body["messages"][0]["content"] == PROMPTS[3];
        match config.speculation.policy {
            PolicyName::Fixed(_) if changed => chat_answer(&["Something", "else"]),
            _ => faithful(config, body),
        }
    });
    let mut out = Vec::new();
    let error = run(&args(true), &host, &mut out).await.expect_err("one text differs");
    assert!(matches!(error, CliError::TextsDiffer(1)), "{error}");
    assert_eq!(error.exit_code(), 1);
    let document: Value = serde_json::from_slice(&out).expect("the report is still printed");
    assert_eq!(document["identical"], false);
    assert_eq!(document["different_prompts"], json!([PROMPTS[3]]));
}

#[tokio::test]
async fn a_stream_that_breaks_off_fails_the_demo() {
    let host = ScriptedHost::new(|_, _| "data: {\"choices\": []}\n\n".to_owned());
    let error = run(&args(true), &host, &mut Vec::new()).await.expect_err("no [DONE]");
    assert!(error.to_string().contains("before [DONE]"), "{error}");
}
