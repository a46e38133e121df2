//! Contents of responses, in one piece and streamed.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use specserve::api::{ApiRules, UnknownFields};
use specserve::protocol::{Micros, RequestFailure};

use crate::client::*;
use crate::fake::{BackendCall, CONTEXT, END, END_TEXT, Fixture, MODEL, Script};

#[tokio::test]
async fn a_completion_holds_text_reason_usage_and_metrics() {
    let fixture = Fixture::start(Script::text("Hi!", 2)).await;
    let reply = post(&fixture, COMPLETIONS, &prompt(json!({"seed": 7}))).await;
    let body = reply.json();
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!((&body["object"], &body["model"]), (&json!("text_completion"), &json!(MODEL)));
    let choice = json!({"index": 0, "text": "Hi!", "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    let usage = json!({
        "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    });
    assert_eq!(body["usage"], usage);
    let metrics = json!({
        "queue_ms": 2.0,
        "ttft_ms": 10.0,
        "tpot_ms": 1.5,
        "speculative_decoding": {
            "mean_acceptance_length": 2.5, "draft_acceptance_rate": 0.6,
            "acceptance_histogram": [1, 0, 0, 1, 0],
            "num_spec_steps": 2, "num_accepted_draft_tokens": 3, "num_draft_tokens": 5,
            "num_spec_tokens": 4, "num_proposed_draft_tokens": 6,
        },
        "preemptions": 1,
        "seed": 7,
    });
    assert_eq!(body["metrics"], metrics);
}

#[tokio::test]
async fn a_chat_answer_is_a_message_of_the_assistant() {
    let fixture = Fixture::start(Script::text("Hello.", 3)).await;
    let body = post(&fixture, CHAT, &chat(json!({"max_completion_tokens": 3}))).await.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(
        body["choices"][0]["message"],
        json!({"role": "assistant", "content": "Hel", "refusal": null})
    );
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    let prompt: Vec<u32> = b"user: hi\nassistant: ".iter().map(|&byte| u32::from(byte)).collect();
    assert_eq!(&*fixture.engine.last_submission().prompt, prompt);
}

#[tokio::test]
async fn prompts_may_be_text_tokens_or_a_list_of_one() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    for prompt in [json!("abc"), json!([97, 98, 99]), json!(["abc"]), json!([[97, 98, 99]])] {
        let reply = post(&fixture, COMPLETIONS, &json!({"model": MODEL, "prompt": prompt})).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        assert_eq!(&*fixture.engine.last_submission().prompt, [97, 98, 99]);
    }
}

#[tokio::test]
async fn text_parts_are_joined_and_developers_speak_as_the_system() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let messages = json!([
        {"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "assistant", "content": "d", "refusal": null, "annotations": [], "tool_calls": null},
    ]);
    let reply = post(&fixture, "/tokenize", &json!({"messages": messages})).await.json();
    let text = post(&fixture, "/detokenize", &json!({"tokens": reply["tokens"]})).await.json();
    assert_eq!(text["prompt"], "system: a\nuser: bc\nassistant: d\nassistant: ");
    assert_eq!(reply["count"], reply["tokens"].as_array().unwrap().len());
}

/// The prompt that a chat request is rendered to.
async fn rendered(fixture: &Fixture, body: Value) -> String {
    let reply = post(fixture, "/tokenize", &body).await.json();
    let text = post(fixture, "/detokenize", &json!({"tokens": reply["tokens"]})).await.json();
    text["prompt"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned()
}

#[tokio::test]
async fn tool_calls_and_their_results_reach_the_template_with_arguments_as_objects() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let call = |arguments: &str| json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}});
    let messages = json!([
        {"role": "user", "content": "a", "name": "alice"},
        {"role": "assistant", "content": null, "tool_calls": [call("{\"x\": 1}"), call("")]},
        {"role": "tool", "tool_call_id": "c", "content": "b"},
    ]);
    let read = |arguments: Value| json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}});
    let calls = json!({"tool_calls": [read(json!({"x": 1})), read(json!({}))]});
    let expected = format!(
        "user: a{}\nassistant: {calls}\ntool: b{}\nassistant: ",
        json!({"name": "alice"}),
        json!({"tool_call_id": "c"})
    );
    assert_eq!(rendered(&fixture, json!({"messages": messages})).await, expected);
}

#[tokio::test]
async fn a_request_sets_variables_of_the_template_and_where_the_prompt_ends() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let body = |mut more: Value| {
        more["messages"] = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        more
    };
    let variables = json!({"chat_template_kwargs": {"enable_thinking": false}});
    let expected = "{\"enable_thinking\":false}user: a\nassistant: b\nassistant: ";
    assert_eq!(rendered(&fixture, body(variables)).await, expected);
    let without = json!({"add_generation_prompt": false});
    assert_eq!(rendered(&fixture, body(without)).await, "user: a\nassistant: b\n");
    let continued = json!({"continue_final_message": true});
    assert_eq!(rendered(&fixture, body(continued)).await, "user: a\nassistant: b");
}

#[tokio::test]
async fn a_completion_goes_on_with_its_prompt_and_a_new_message_begins_a_text() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    post(&fixture, COMPLETIONS, &prompt(json!({}))).await;
    assert_eq!(fixture.engine.last_continued(), 3);
    post(&fixture, CHAT, &chat(json!({}))).await;
    assert_eq!(fixture.engine.last_continued(), 0);
    post(&fixture, CHAT, &chat(json!({"continue_final_message": true}))).await;
    assert_eq!(fixture.engine.last_continued(), "user: hi".len());
}

#[tokio::test]
async fn special_tokens_are_added_to_texts_and_not_to_conversations_unless_the_request_says() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let added = async |path: &str, extra: Value| {
        let messages = json!([{"role": "user", "content": "special"}]);
        let body = if path == CHAT { json!({"messages": messages}) } else { json!({"prompt": "special"}) };
        let reply = post(&fixture, path, &with(body, extra)).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        fixture.engine.last_submission().prompt[0] == END
    };
    assert!(added(COMPLETIONS, json!({})).await);
    assert!(!added(COMPLETIONS, json!({"add_special_tokens": false})).await);
    assert!(!added(CHAT, json!({})).await);
    assert!(added(CHAT, json!({"add_special_tokens": true})).await);
}

#[tokio::test]
async fn participants_may_have_names() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let messages = json!([{"role": "user", "name": "bob", "content": "hi"}]);
    post(&fixture, CHAT, &json!({"messages": messages})).await;
    let prompt: Vec<u32> =
        b"user: hi{\"name\":\"bob\"}\nassistant: ".iter().map(|&byte| u32::from(byte)).collect();
    assert_eq!(&*fixture.engine.last_submission().prompt, prompt);
}

#[tokio::test]
async fn the_one_served_model_need_not_be_named() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    for body in [json!({"prompt": "abc"}), prompt(json!({"model": null})), prompt(json!({"model": ""}))] {
        let reply = post(&fixture, COMPLETIONS, &body).await;
        assert_eq!((reply.status, &reply.json()["model"]), (StatusCode::OK, &json!(MODEL)));
    }
}

#[tokio::test]
async fn whole_numbers_may_be_written_with_a_point() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let body = r#"{"prompt": [97.0], "max_tokens": 9.0, "seed": 7.0, "top_k": 3.0, "n": 1.0,
        "stop_token_ids": [8.0]}"#;
    let reply = send(&fixture, request(Method::POST, COMPLETIONS, &[], body)).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
    let submission = fixture.engine.last_submission();
    let sampling = &submission.sampling;
    assert_eq!((submission.max_tokens, sampling.seed, sampling.top_k), (9, 7, 3));
    assert_eq!((&*submission.prompt, &*submission.stop_tokens), (&[97][..], &[8, END][..]));
}

#[tokio::test]
async fn many_stop_strings_are_taken_and_empty_ones_stop_nothing() {
    let fixture = Fixture::start(Script::text("Hi you", 1)).await;
    let text = async |stop: Value| {
        let reply = post(&fixture, COMPLETIONS, &prompt(json!({"stop": stop}))).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        reply.json()["choices"][0]["text"].clone()
    };
    let mut many: Vec<String> = (0..63).map(|number| format!("{number} never")).collect();
    many.push(" y".to_owned());
    assert_eq!(text(json!(many)).await, "Hi");
    assert_eq!(text(json!("")).await, "Hi you");
    assert_eq!(text(json!(["", "u"])).await, "Hi yo");
}

#[tokio::test]
async fn nothing_ends_an_output_before_its_min_tokens() {
    let fixture = Fixture::start(Script::text("END END", 1)).await;
    let body = prompt(json!({"min_tokens": 4, "stop": "END"}));
    assert_eq!(post(&fixture, COMPLETIONS, &body).await.json()["choices"][0]["text"], "END ");
    let submission = fixture.engine.last_submission();
    let constraint = submission.sampling.constraint.as_ref().expect("end tokens are forbidden");
    assert!(constraint.mask(&[1; 3]).is_some_and(|mask| !mask.allows(END) && mask.allows(END - 1)));
    assert!(constraint.mask(&[1; 4]).is_none());
    post(&fixture, COMPLETIONS, &prompt(json!({"min_tokens": 4, "ignore_eos": true}))).await;
    assert!(fixture.engine.last_submission().sampling.constraint.is_none(), "nothing to forbid");
}

#[tokio::test]
async fn a_description_of_the_output_reaches_the_engine_as_a_constraint() {
    let fixture = Fixture::start(Script::text("ab", 1)).await;
    let mask = async |more: Value, output: &[u32]| {
        let reply = post(&fixture, COMPLETIONS, &prompt(more)).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        let submission = fixture.engine.last_submission();
        let constraint = submission.sampling.constraint.as_ref().expect("the output is described");
        assert!(submission.stop_tokens.contains(&END), "the end is told by a token");
        constraint.mask(output).expect("a mask").allowed().collect::<Vec<_>>()
    };
    let (a, b) = (u32::from(b'a'), u32::from(b'b'));
    assert_eq!(mask(json!({"guided_regex": "ab?"}), &[]).await, [a]);
    assert_eq!(mask(json!({"guided_regex": "ab?"}), &[a]).await, [b, END]);
    let longer = json!({"guided_regex": "ab?", "min_tokens": 2, "max_tokens": 9});
    assert_eq!(mask(longer, &[a]).await, [b], "it may go on");
    let longest = json!({"guided_regex": "ab?", "min_tokens": 9, "max_tokens": 9});
    assert_eq!(mask(longest, &[a, b]).await, [END], "it may not");
    let stops = json!({"structured_outputs": {"choice": ["a"]}, "stop_token_ids": [9], "ignore_eos": true});
    assert_eq!(mask(stops, &[a]).await, [9, END]);
}

#[tokio::test]
async fn fields_of_other_servers_are_taken_at_their_neutral_values() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let body = chat(json!({
        // vLLM
        "min_tokens": 0, "skip_special_tokens": true, "spaces_between_special_tokens": true,
        "include_stop_str_in_output": false, "use_beam_search": false, "length_penalty": 1.0,
        "include_reasoning": true, "priority": 0, "request_id": "abc", "bad_words": [],
        "return_token_ids": false, "return_tokens_as_token_ids": false, "structured_outputs": null,
        // SGLang
        "separate_reasoning": true, "stream_reasoning": true, "return_hidden_states": false,
        "no_stop_trim": false, "continue_final_message": false, "rid": "abc", "stop_regex": [], "lora_path": null,
        // llama.cpp
        "cache_prompt": true, "typical_p": 1.0, "mirostat": 0, "repeat_penalty": 1.0, "id_slot": -1,
        // OpenAI
        "store": true, "verbosity": "medium", "reasoning_effort": "none", "metadata": {"a": "b"},
        "parallel_tool_calls": true, "service_tier": "auto", "top_logprobs": 0, "n": 1, "logprobs": false,
    }));
    let reply = post(&fixture, CHAT, &body).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
}

#[tokio::test]
async fn unknown_fields_are_served_without_if_the_server_is_told_to() {
    let rules = ApiRules { unknown_fields: UnknownFields::Ignore, ..ApiRules::default() };
    let fixture = Fixture::with_rules(Script::text("x", 1), rules).await;
    let messages = json!([{"role": "user", "content": "hi", "mood": "good"}]);
    let body = json!({"messages": messages, "temprature": 1, "slo": {"p99_ms": 1}});
    assert_eq!(post(&fixture, CHAT, &body).await.status, StatusCode::OK);
    let reply = post(&fixture, CHAT, &chat(json!({"n": 2}))).await;
    assert_eq!(reply.json()["error"]["code"], "unsupported_parameter", "this one is known");
}

#[tokio::test]
async fn every_sampling_parameter_reaches_the_engine() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let all = json!({
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "min_p": 0.125, "seed": u64::MAX,
        "repetition_penalty": 1.5, "presence_penalty": -0.5, "frequency_penalty": 0.75,
        "logit_bias": {"7": -100, "3": 2.5}, "stop_token_ids": [9, 8], "ignore_eos": true,
        "user": "u", "metadata": {}, "store": false, "n": 1, "stream": false, "logprobs": null,
    });
    let reply = post(&fixture, COMPLETIONS, &prompt(all)).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
    let submission = fixture.engine.last_submission();
    let sampling = &submission.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.min_p), (0.5, 0.25, 0.125));
    assert_eq!((sampling.top_k, sampling.seed, sampling.repetition_penalty), (3, u64::MAX, 1.5));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (-0.5, 0.75));
    assert_eq!(sampling.logit_bias, [(3, 2.5), (7, -100.0)]);
    assert_eq!((submission.max_tokens, &*submission.stop_tokens), (9, &[8, 9][..]));
}

#[tokio::test]
async fn omitted_parameters_come_from_the_models_defaults() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let seeds = [
        post(&fixture, COMPLETIONS, &prompt(json!({}))).await,
        post(&fixture, COMPLETIONS, &prompt(json!({}))).await,
    ]
    .map(|reply| reply.json()["metrics"]["seed"].as_u64().unwrap());
    assert_ne!(seeds[0], seeds[1], "a fresh seed each time");
    let submission = fixture.engine.last_submission();
    assert_eq!((submission.sampling.temperature, submission.sampling.seed), (0.7, seeds[1]));
    assert_eq!((submission.max_tokens, &*submission.stop_tokens), (100, &[END][..]));
    let long = "x".repeat(CONTEXT as usize - 10);
    post(&fixture, COMPLETIONS, &json!({"model": MODEL, "prompt": long})).await;
    assert_eq!(fixture.engine.last_submission().max_tokens, 10);
}

#[tokio::test]
async fn objectives_come_from_body_then_headers_then_class() {
    let fixture = Fixture::start(Script::text("x", 1)).await;
    let ask = async |slo: Value, headers: &[(&str, &str)]| {
        let body = prompt(json!({"slo": slo})).to_string();
        let reply = send(&fixture, request(Method::POST, COMPLETIONS, headers, body)).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        let submission = fixture.engine.last_submission();
        let micros = |bound: Option<Micros>| bound.map(|bound| bound.0);
        (submission.class, micros(submission.slo.ttft), micros(submission.slo.tpot))
    };
    let headers = [("x-slo-ttft-ms", "200"), ("x-llm-d-slo-tpot-ms", "12.5")];
    assert_eq!(ask(Value::Null, &[]).await, (0, Some(500_000), Some(50_000)));
    assert_eq!(fixture.engine.last_submission().weight, 2.5, "the class's");
    assert_eq!(ask(json!({"class": "batch"}), &[]).await, (1, None, None));
    assert_eq!(fixture.engine.last_submission().weight, 0.0);
    assert_eq!(ask(Value::Null, &headers).await, (0, Some(200_000), Some(12_500)));
    assert_eq!(
        ask(json!({"ttft_ms": 90, "class": "batch"}), &headers).await,
        (1, Some(90_000), Some(12_500))
    );
}

#[tokio::test]
async fn a_stop_string_that_is_a_special_token_stops_at_that_token() {
    let fixture = Fixture::start(Script::text("Hi!", 2)).await;
    let asked = prompt(json!({"stop": ["x", END_TEXT], "ignore_eos": true}));
    let reply = post(&fixture, COMPLETIONS, &asked).await;
    assert_eq!(&*fixture.engine.last_submission().stop_tokens, [END]);
    let choice = &reply.json()["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("Hi!"), &json!("stop")));
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_and_tells_the_engine() {
    let bursts = ["ab", "c E", "ND x"].map(|burst| burst.bytes().map(u32::from).collect()).to_vec();
    let mut fixture = Fixture::start(Script::Hang(bursts)).await;
    for stream in [false, true] {
        let reply = post(&fixture, COMPLETIONS, &prompt(json!({"stop": ["END"], "stream": stream}))).await;
        if stream {
            let text: String =
                reply.chunks().iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
            assert_eq!(text, "abc ");
        } else {
            assert_eq!(reply.json()["choices"][0]["text"], "abc ");
            assert_eq!(reply.json()["choices"][0]["finish_reason"], "stop");
            assert_eq!(reply.json()["usage"]["completion_tokens"], 7);
        }
        assert!(matches!(fixture.told().await, BackendCall::Submitted(_)));
        assert!(matches!(fixture.told().await, BackendCall::Finished(_)));
    }
    assert_serving_after_play(&fixture).await;
    assert!(matches!(fixture.told().await, BackendCall::Submitted(_)), "nothing was cancelled");
}

#[tokio::test]
async fn a_chat_stream_opens_with_the_role_and_closes_with_reason_and_done() {
    let fixture = Fixture::start(Script::text("Hi you", 2)).await;
    let reply = post(&fixture, CHAT, &chat(json!({"stream": true}))).await;
    assert_eq!(reply.headers["content-type"], "text/event-stream; charset=utf-8");
    let chunks = reply.chunks();
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert_eq!(deltas[0], &json!({"role": "assistant", "content": "Hi"}));
    assert_eq!(deltas[1..3], [&json!({"content": " y"}), &json!({"content": "ou"})]);
    assert_eq!(deltas[3], &json!({}));
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[3]["metrics"]["preemptions"], 1);
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none() && chunk["id"] == chunks[0]["id"]));
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
}

#[tokio::test]
async fn usage_comes_in_a_separate_chunk_if_requested() {
    let fixture = Fixture::start(Script::text("Hi", 1)).await;
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let chunks = post(&fixture, COMPLETIONS, &prompt(options)).await.chunks();
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    let usage = json!({
        "prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 2},
    });
    assert_eq!(last["usage"], usage);
    assert!(last["metrics"]["seed"].is_u64());
    assert!(rest.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("metrics").is_none()));
}

#[tokio::test]
async fn the_usage_so_far_is_on_every_chunk_if_requested() {
    let fixture = Fixture::start(Script::text("Hi", 1)).await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = prompt(json!({"stream": true, "stream_options": options}));
    let chunks = post(&fixture, COMPLETIONS, &body).await.chunks();
    let counts = chunks.iter().map(|chunk| &chunk["usage"]["completion_tokens"]).collect::<Vec<_>>();
    assert_eq!(counts, [1, 2, 3, 3]);
    assert_eq!(chunks[0]["usage"], json!({"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}));
    let body = prompt(json!({"stream": true, "stream_options": {"continuous_usage_stats": true}}));
    let chunks = post(&fixture, COMPLETIONS, &body).await.chunks();
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()), "only with include_usage");
}

#[tokio::test]
async fn an_empty_answer_still_opens_the_stream() {
    let fixture = Fixture::start(Script::Answer(vec![vec![END]])).await;
    let chunks = post(&fixture, CHAT, &chat(json!({"stream": true}))).await.chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_stream_that_fails_midway_ends_with_an_error_and_without_done() {
    let fixture = Fixture::start(Script::Fail(vec![vec![65]], RequestFailure::Numerical)).await;
    let reply = post(&fixture, COMPLETIONS, &prompt(json!({"stream": true}))).await;
    assert_eq!(reply.status, StatusCode::OK);
    let events = reply.events();
    assert_eq!(events.len(), 2);
    let error: Value = serde_json::from_str(&events[1]).unwrap();
    assert_eq!(error["error"]["code"], "numerical_error");
}

#[tokio::test]
async fn a_failure_before_the_first_token_has_an_error_status() {
    for (failure, status, code) in [
        (RequestFailure::ShuttingDown, 503, "shutting_down"),
        (RequestFailure::Late { ttft: Micros::from_millis(250) }, 503, "slo_too_late"),
        (RequestFailure::Numerical, 500, "numerical_error"),
        (RequestFailure::NothingAllowed, 500, "grammar_error"),
        (RequestFailure::Engine("device lost".into()), 500, "engine_error"),
    ] {
        let fixture = Fixture::start(Script::Fail(vec![], failure)).await;
        for stream in [false, true] {
            let reply = post(&fixture, CHAT, &chat(json!({"stream": stream}))).await;
            assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (status, &json!(code)));
        }
    }
}
