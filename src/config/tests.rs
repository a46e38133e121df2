use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::model::{DraftKind, HeadKind, HeadSettings, ModelRef};
use crate::pacing::{LateAction, ServiceOrder};
use crate::policy::registry::PolicyName;
use crate::protocol::{Micros, Slo};

const SMALLEST: &str = "[target]\nmodel = \"embedded:tiny\"\n";

/// Paths of the problems of `text`, in the order of the report.
fn problem_paths(text: &str) -> Vec<String> {
    let error = Config::parse(text).expect_err("the text has problems");
    error.problems().iter().map(|problem| problem.path.clone()).collect()
}

/// The tiny configuration with one line put in place of another.
pub fn tiny_with(line: &str, replacement: &str) -> String {
    assert!(TINY_CPU_TOML.contains(line), "{line} is in the file");
    TINY_CPU_TOML.replacen(line, replacement, 1)
}

#[test]
fn the_tiny_file_parses_to_the_values_it_shows() {
    let config = Config::default_tiny();
    assert_eq!(config.server.socket, PathBuf::from("/tmp/specserve.sock"));
    assert_eq!(config.server.socket_mode, 0o600);
    assert_eq!(config.server.http, None);
    assert_eq!(config.server.body_bytes_max, 1 << 20);
    assert_eq!(config.server.connections_max, 352);
    let target = TargetConfig {
        model: ModelRef::EmbeddedTiny,
        name: "tiny".to_owned(),
        context_tokens_max: None,
        tool_format: ToolFormat::Auto,
        reasoning_format: ReasoningFormat::Auto,
    };
    assert_eq!(config.target, target);
    assert_eq!(config.draft, Some(ModelRef::EmbeddedTiny.into()));
    assert_eq!(config.executor.threads, 0);
    assert_eq!(config.executor.batch_tokens_max, 512);
    assert_eq!(config.kv, KvConfig { size: KvSize::MemoryMib(64) });
    assert_eq!(config.scheduler.running_requests_max, 32);
    assert_eq!(config.speculation.policy, PolicyName::SpecServe);
    assert_eq!(config.telemetry.log_level, LogLevel::Info);
}

#[test]
fn unless_the_file_says_there_is_a_connection_for_each_request_that_runs_or_waits() {
    let connections = |lines: &str| {
        let text = format!("{SMALLEST}[scheduler]\n{lines}");
        Config::parse(&text).map(|config| config.server.connections_max)
    };
    assert_eq!(connections("").expect("valid"), 32 + 256 + 64);
    assert_eq!(connections("queue_requests_max = 1024").expect("valid"), 32 + 1024 + 64);
    assert_eq!(connections("queue_requests_max = 1048576").expect("valid"), 65_536, "the most there may be");
    assert_eq!(connections("[server]\nconnections_max = 3").expect("valid"), 3);
}

#[test]
fn fewer_connections_than_requests_are_warned_about() {
    let warnings = |text: &str| Config::parse(text).expect("valid").warnings();
    for text in [TINY_CPU_TOML, SMALLEST, include_str!("../../config/h100-8b.toml")] {
        assert_eq!(warnings(text), []);
    }
    assert_eq!(warnings(&tiny_with("connections_max = 352", "connections_max = 288")), []);
    let warnings = warnings(&tiny_with("connections_max = 352", "connections_max = 287"));
    assert_eq!(
        warnings[0].to_string(),
        "server.connections_max = 287: is less than scheduler.running_requests_max + \
         scheduler.queue_requests_max = 288: further requests are refused while the queue has room; raise it, \
         or leave it out"
    );
}

#[test]
fn milliseconds_become_spans_of_time() {
    let config = Config::default_tiny();
    assert_eq!(config.server.header_timeout, Duration::from_secs(10));
    assert_eq!(config.server.request_timeout, Duration::from_secs(600));
    assert_eq!(config.server.drain_timeout, Duration::from_secs(30));
    let interactive = Slo { ttft: Some(Micros(1_000_000)), tpot: Some(Micros(50_000)) };
    assert_eq!(config.slo.classes[0], SloClass::new("interactive", interactive));
    assert_eq!(config.slo.classes[1], SloClass::new("batch", Slo::default()));
    assert_eq!(config.slo.class("batch"), Some(1));
    assert_eq!(config.slo.class("absent"), None);
}

#[test]
fn every_key_of_the_tiny_file_has_a_comment() {
    let lines: Vec<&str> = TINY_CPU_TOML.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let key = line.trim_start_matches("# ");
        let is_key = key.split_once(" = ").is_some_and(|(name, _)| !name.contains(' '));
        let commented = index > 0 && lines[index - 1].starts_with("# ") && !lines[index - 1].contains(" = ");
        assert!(!is_key || commented, "line {} has no comment: {line}", index + 1);
    }
}

#[test]
fn the_effective_configuration_parses_back_to_itself() {
    let blocks = tiny_with("memory_mib_max = 64", "target_blocks = 64\ndraft_blocks = 32");
    let http = tiny_with("# http =", "http =");
    let capped = tiny_with("# context_tokens_max =", "context_tokens_max =");
    let cuda = format!("{SMALLEST}[executor]\nbackend = \"cuda\"\n");
    let uids = tiny_with("# socket_uids =", "socket_uids =");
    let origins = tiny_with("# cors_origins =", "cors_origins =");
    let admin = tiny_with("# admin =", "admin =");
    let head = head_with("kind = \"eagle3\"\nnorm_before_residual = true\nhidden_state_layers = [2, 16, 29]");
    for text in [TINY_CPU_TOML, SMALLEST, &blocks, &http, &uids, &origins, &admin, &capped, &cuda, &head] {
        let config = Config::parse(text).expect("valid");
        assert_eq!(Config::parse(&config.to_toml()).expect("its own text is valid"), config);
        let table = config.to_table().to_string();
        assert_eq!(Config::parse(&table).expect("its own table is valid"), config);
    }
}

#[test]
fn omitted_keys_take_the_values_of_the_tiny_file() {
    let mut expected = Config::default_tiny();
    expected.draft = None;
    expected.speculation.policy = PolicyName::None;
    expected.scheduler.order = ServiceOrder::Fifo;
    expected.slo.late = LateAction::Queue;
    expected.kv.size = KvSize::MemoryPercent(50);
    expected.slo.classes = vec![SloClass::new("default", Slo::default())];
    assert_eq!(Config::parse(SMALLEST).expect("valid"), expected);
}

#[test]
fn a_file_with_ten_mistakes_lists_ten_problems() {
    let text = r#"
        [server]
        socket = ""
        socket_mode = "rw"
        http = "localhost"
        connections_max = 0
        drain_timeout_ms = "30s"
        [target]
        name = "m"
        [executor]
        threads = -1
        cores = 2
        [slo]
        default_class = "gold"
        [speculation]
        policy = "always"
    "#;
    assert_eq!(
        problem_paths(text),
        [
            "server.connections_max",
            "server.socket",
            "server.socket_mode",
            "server.http",
            "server.drain_timeout_ms",
            "target.model",
            "executor.threads",
            "executor.cores",
            "slo.default_class",
            "speculation.policy",
        ]
    );
}

#[test]
fn a_problem_names_key_value_bound_and_remedy() {
    let error =
        Config::parse(&tiny_with("connections_max = 352", "connections_max = 70000")).expect_err("too many");
    assert_eq!(
        error.to_string(),
        "1 problem in the configuration:\n  server.connections_max = 70000: is out of bounds, 1 to 65536; \
         give a whole number, 1 to 65536"
    );
}

#[test]
fn unknown_keys_and_sections_are_all_reported() {
    let text = format!(
        "{SMALLEST}[kv]\nblok_tokens = 16\nspare = true\n[servr]\nsocket = \"x\"\n[[slo.classes]]\nname = \"a\"\nttft_s = 1\n"
    );
    assert_eq!(problem_paths(&text), ["kv.blok_tokens", "kv.spare", "slo.classes[0].ttft_s", "servr"]);
}

#[test]
fn a_section_of_the_wrong_kind_is_a_problem() {
    let text = format!("kv = 3\n{SMALLEST}[slo]\nclasses = \"interactive\"\n");
    assert_eq!(problem_paths(&text), ["kv", "slo.classes"]);
}

#[test]
fn a_syntax_error_is_one_problem_with_its_location() {
    let error = Config::parse("[server\nsocket = 1").expect_err("not TOML");
    assert_eq!(error.problems().len(), 1);
    assert!(error.to_string().contains("line 1"), "{error}");
}

#[test]
fn numbers_are_taken_at_their_bounds_and_refused_beyond() {
    for (value, good) in [(0, false), (1, true), (1024, true), (1025, false), (-16, false)] {
        let text = tiny_with("batch_sequences_max = 64", &format!("batch_sequences_max = {value}"));
        let text = text.replace("running_requests_max = 32", "running_requests_max = 1");
        let text = text.replace("batch_tokens_max = 512", "batch_tokens_max = 2048");
        assert_eq!(Config::parse(&text).is_ok(), good, "batch_sequences_max = {value}");
    }
    for (value, good) in
        [("1024", true), ("67108864", true), ("1023", false), ("67108865", false), ("1e6", false)]
    {
        let text = tiny_with("body_bytes_max = 1048576", &format!("body_bytes_max = {value}"));
        assert_eq!(Config::parse(&text).is_ok(), good, "body_bytes_max = {value}");
    }
    for (bytes, good) in [(107, true), (108, false)] {
        let socket = format!("socket = \"{}\"", "s".repeat(bytes));
        let text = tiny_with("socket = \"/tmp/specserve.sock\"", &socket);
        assert_eq!(Config::parse(&text).is_ok(), good, "a socket path of {bytes} bytes");
    }
}

#[test]
fn requests_are_served_by_slack_with_specserve_and_in_turn_with_others_unless_the_file_says() {
    let order = |lines: &str| {
        let text = format!("{SMALLEST}[draft]\nmodel = \"ngram\"\n{lines}");
        Config::parse(&text).expect("valid").scheduler.order
    };
    assert_eq!(order(""), ServiceOrder::Slo);
    assert_eq!(order("[speculation]\npolicy = \"smartspec\"\n"), ServiceOrder::Fifo);
    assert_eq!(order("[scheduler]\norder = \"fifo\"\n"), ServiceOrder::Fifo);
    let slo = "[scheduler]\norder = \"slo\"\n[speculation]\npolicy = \"fixed:3\"\n";
    assert_eq!(order(slo), ServiceOrder::Slo);
    assert_eq!(problem_paths(&format!("{SMALLEST}[scheduler]\norder = \"edf\"\n")), ["scheduler.order"]);
}

#[test]
fn late_requests_give_way_where_service_is_by_slack_and_keep_their_turn_where_it_is_in_turn() {
    let late = |order: &str, late: &str| {
        let text = tiny_with("late = \"demote\"", late);
        Config::parse(&text.replace("order = \"slo\"", &format!("order = \"{order}\"")))
    };
    for (order, line, action) in [
        ("slo", "", LateAction::Demote),
        ("fifo", "", LateAction::Queue),
        ("slo", "late = \"queue\"", LateAction::Queue),
        ("slo", "late = \"reject\"", LateAction::Reject),
        ("fifo", "late = \"reject\"", LateAction::Reject),
    ] {
        assert_eq!(late(order, line).expect("valid").slo.late, action, "{order} {line}");
    }
    let error = late("fifo", "late = \"demote\"").expect_err("nothing can be demoted in turn");
    assert_eq!(error.problems()[0].path, "slo.late");
    assert!(
        error.to_string().contains("in the order \"fifo\", which serves every request in its turn"),
        "{error}"
    );
    assert!(late("slo", "late = \"drop\"").is_err());
}

#[test]
fn the_weight_of_a_class_is_a_number_within_its_bounds_and_1_by_default() {
    let weight = |line: &str| {
        let text = format!("{SMALLEST}[[slo.classes]]\nname = \"gold\"\n{line}\n");
        Config::parse(&text).map(|config| config.slo.classes[0].weight)
    };
    let good = [("", 1.0), ("weight = 0", 0.0), ("weight = 0.1", 0.1), ("weight = 1000", 1000.0)];
    for (line, value) in good {
        assert_eq!(weight(line).expect("valid"), value, "{line}");
    }
    for wrong in ["-0.1", "1000.1", "nan", "inf", "\"2\""] {
        let error = weight(&format!("weight = {wrong}")).expect_err("out of bounds");
        assert_eq!(error.problems()[0].path, "slo.classes[0].weight", "{wrong}");
    }
}

#[test]
fn to_serve_by_slack_takes_a_profile_whatever_the_policy() {
    let planless = |order: &str, policy: &str| {
        let text = tiny_with("profile_at_start = true", "profile_at_start = false");
        let text = text.replace("policy = \"specserve\"", &format!("policy = \"{policy}\""));
        let text = text.replace("late = \"demote\"", "late = \"queue\"");
        text.replace("order = \"slo\"", &format!("order = \"{order}\""))
    };
    assert!(Config::parse(&planless("fifo", "none")).is_ok_and(|config| !config.needs_profile()));
    assert_eq!(problem_paths(&planless("slo", "none")), ["scheduler.order"]);
    assert_eq!(problem_paths(&planless("slo", "specserve")), ["speculation.policy"], "said once");
    assert!(
        Config::parse(&tiny_with("policy = \"specserve\"", "policy = \"none\""))
            .is_ok_and(|config| config.needs_profile())
    );
}

#[test]
fn socket_modes_are_octal() {
    for (mode, bits) in [("0660", Some(0o660)), ("600", Some(0o600)), ("0777", Some(0o777))] {
        let text = tiny_with("socket_mode = \"0600\"", &format!("socket_mode = \"{mode}\""));
        assert_eq!(Config::parse(&text).ok().map(|config| config.server.socket_mode), bits);
    }
    for mode in ["", "0o600", "+600", "0800", "1777", "-600"] {
        let text = tiny_with("socket_mode = \"0600\"", &format!("socket_mode = \"{mode}\""));
        assert_eq!(problem_paths(&text), ["server.socket_mode"], "{mode}");
    }
}

#[test]
fn users_of_the_socket_are_a_short_list_of_ids() {
    let with = |uids: &str| tiny_with("# socket_uids = [0, 1000]", &format!("socket_uids = {uids}"));
    let uids = |text: &str| Config::parse(&with(text)).expect("valid").server.socket_uids;
    assert_eq!(Config::default_tiny().server.socket_uids, None);
    assert_eq!(uids("[0]"), Some(vec![0]));
    assert_eq!(uids("[1000, 4294967294]"), Some(vec![1000, u32::MAX - 1]));
    assert_eq!(uids(&format!("{:?}", [7; 64])), Some(vec![7; 64]));
    let long = format!("{:?}", [7; 65]);
    for wrong in ["[]", "1000", "[\"root\"]", "[-1]", "[4294967295]", "[1000, 1.5]", "\"1000\"", &long] {
        assert_eq!(problem_paths(&with(wrong)), ["server.socket_uids"], "{wrong}");
    }
}

#[test]
fn formats_of_answers_are_named() {
    let with =
        |key: &str, value: &str| tiny_with(&format!("{key} = \"auto\""), &format!("{key} = \"{value}\""));
    let target = |key: &str, value: &str| Config::parse(&with(key, value)).expect("valid").target;
    assert_eq!(target("tool_format", "llama3").tool_format, ToolFormat::Llama3);
    assert_eq!(target("reasoning_format", "think").reasoning_format, ReasoningFormat::Think);
    for key in ["tool_format", "reasoning_format"] {
        assert_eq!(problem_paths(&with(key, "gpt")), [format!("target.{key}")]);
    }
}

#[test]
fn unknown_request_fields_are_refused_unless_the_file_says_ignore() {
    let with = |choice: &str| tiny_with("unknown_fields = \"refuse\"", choice);
    let choice = |line: &str| Config::parse(&with(line)).expect("valid").server.unknown_fields;
    assert_eq!(choice(""), UnknownFields::Refuse);
    assert_eq!(choice("unknown_fields = \"ignore\""), UnknownFields::Ignore);
    assert_eq!(problem_paths(&with("unknown_fields = \"drop\"")), ["server.unknown_fields"]);
}

#[test]
fn origins_have_a_scheme_and_a_host_and_no_path() {
    let with = |list: &str| {
        tiny_with("# cors_origins = [\"https://example.org\"]", &format!("cors_origins = {list}"))
    };
    let origins = |list: &str| Config::parse(&with(list)).expect("valid").server.cors_origins;
    assert_eq!(Config::default_tiny().server.cors_origins, None);
    assert_eq!(origins("[\"*\"]"), Some(vec!["*".to_owned()]));
    assert_eq!(origins("[\"http://localhost:3000\", \"http://[::1]:80\"]").map(|list| list.len()), Some(2));
    for wrong in
        ["[]", "\"*\"", "[\"example.org\"]", "[\"https://\"]", "[\"http://a/\"]", "[\"http://a\\n\"]", "[1]"]
    {
        assert_eq!(problem_paths(&with(wrong)), ["server.cors_origins"], "{wrong}");
    }
}

#[test]
fn logs_have_three_formats() {
    for (text, format) in
        [("text", LogFormat::Text), ("compact", LogFormat::Compact), ("json", LogFormat::Json)]
    {
        let file = tiny_with("log_format = \"text\"", &format!("log_format = \"{text}\""));
        let config = Config::parse(&file).expect("valid");
        assert_eq!(config.telemetry.log_format, format);
        assert_eq!(Config::parse(&config.to_toml()).expect("its own text is valid"), config);
    }
    let wrong = tiny_with("log_format = \"text\"", "log_format = \"JSON\"");
    assert_eq!(problem_paths(&wrong), ["telemetry.log_format"]);
}

#[test]
fn rules_between_keys_hold() {
    let running = tiny_with("running_requests_max = 32", "running_requests_max = 65");
    assert_eq!(problem_paths(&running), ["scheduler.running_requests_max"]);
    let chunk = tiny_with("prefill_chunk_tokens_max = 256", "prefill_chunk_tokens_max = 513");
    assert_eq!(problem_paths(&chunk), ["scheduler.prefill_chunk_tokens_max"]);
    for policy in ["\"fixed:9\"", "\"adaspec-verifier:9\"", "\"eagle2:9\""] {
        let long_draft = tiny_with("\"specserve\"", policy);
        assert_eq!(problem_paths(&long_draft), ["speculation.policy"], "{policy}");
    }
    let no_draft = format!("{SMALLEST}[speculation]\npolicy = \"fixed:2\"\n");
    assert_eq!(problem_paths(&no_draft), ["speculation.policy"]);
}

#[test]
fn a_rule_between_keys_is_silent_when_one_of_them_is_already_reported() {
    let text = tiny_with("batch_tokens_max = 512", "batch_tokens_max = 0").replacen(
        "prefill_chunk_tokens_max = 256",
        "prefill_chunk_tokens_max = 4096",
        1,
    );
    assert_eq!(problem_paths(&text), ["executor.batch_tokens_max"]);
}

#[test]
fn memory_and_blocks_exclude_each_other() {
    let both = tiny_with("memory_mib_max = 64", "memory_mib_max = 64\ntarget_blocks = 8");
    assert_eq!(problem_paths(&both), ["kv.memory_mib_max"]);
    let draft_alone = tiny_with("memory_mib_max = 64", "draft_blocks = 8");
    assert_eq!(problem_paths(&draft_alone), ["kv.draft_blocks"]);
}

#[test]
fn memory_is_split_so_that_both_pools_hold_the_same_tokens() {
    let kv = KvConfig { size: KvSize::MemoryMib(1) };
    assert_eq!(kv.pool_blocks(96 << 10, Some(32 << 10)), Some(PoolBlocks { target: 8, draft: 8 }));
    assert_eq!(kv.pool_blocks(128 << 10, None), Some(PoolBlocks { target: 8, draft: 0 }));
    assert_eq!(kv.pool_blocks(2 << 20, None), Some(PoolBlocks { target: 0, draft: 0 }));
    let given = KvConfig { size: KvSize::Blocks { target: 5, draft: 3 } };
    assert_eq!(given.pool_blocks(1, Some(1)), Some(PoolBlocks { target: 5, draft: 3 }));
    assert_eq!(given.pool_blocks(1, None), Some(PoolBlocks { target: 5, draft: 0 }));
}

#[test]
fn without_a_size_the_caches_take_what_the_machine_has_room_for() {
    let size = |executor: &str| Config::parse(&format!("{SMALLEST}{executor}")).expect("valid").kv.size;
    assert_eq!(size(""), KvSize::MemoryPercent(50));
    assert_eq!(size("[executor]\nbackend = \"cuda\""), KvSize::GpuMemoryPercent(90));
    assert_eq!(size("[kv]\nmemory_percent = 20"), KvSize::MemoryPercent(20));
    let both = tiny_with("memory_mib_max = 64", "memory_mib_max = 64\nmemory_percent = 20");
    assert_eq!(problem_paths(&both), ["kv.memory_percent"]);
}

#[test]
fn models_are_embedded_directories_or_names_on_the_hub() {
    let directory = Config::parse("[target]\nmodel = \"./models/Qwen2.5\"\n").expect("valid");
    assert_eq!(directory.target.model, ModelRef::Directory("./models/Qwen2.5".into()));
    assert_eq!(directory.target.name, "Qwen2.5");
    let hub =
        Config::parse("[target]\nmodel = \"Qwen/Qwen2.5@v1\"\n[draft]\nmodel = \"a/b\"\n").expect("valid");
    assert_eq!(hub.target.model, ModelRef::Hub("Qwen/Qwen2.5@v1".parse().expect("a name")));
    assert_eq!(hub.target.name, "Qwen2.5");
    assert_eq!(hub.draft, Some(ModelRef::Hub("a/b".parse().expect("a name")).into()));
    assert_eq!(
        problem_paths("[target]\nmodel = \"embedded:large\"\n[draft]\n"),
        ["target.model", "draft.model"]
    );
}

#[test]
fn classes_have_valid_names_of_their_own() {
    let twice = tiny_with("name = \"batch\"", "name = \"interactive\"");
    assert_eq!(problem_paths(&twice), ["slo.classes[1].name"]);
    let loud = tiny_with("name = \"batch\"", "name = \"Batch!\"");
    assert_eq!(problem_paths(&loud), ["slo.classes[1].name"]);
    let nameless = tiny_with("name = \"batch\"", "ttft_ms = 0");
    assert_eq!(problem_paths(&nameless), ["slo.classes[1].name", "slo.classes[1].ttft_ms"]);
}

#[test]
fn with_a_draft_the_policy_is_specserve_and_without_one_there_is_none() {
    let policy = |text: &str| Config::parse(text).expect("valid").speculation.policy;
    assert_eq!(policy(SMALLEST), PolicyName::None);
    for draft in ["embedded:tiny", "ngram"] {
        assert_eq!(policy(&format!("{SMALLEST}[draft]\nmodel = \"{draft}\"\n")), PolicyName::SpecServe);
    }
}

#[test]
fn a_policy_that_plans_with_times_needs_a_profile_or_leave_to_measure() {
    let forbidden = tiny_with("profile_at_start = true", "profile_at_start = false");
    assert_eq!(problem_paths(&forbidden), ["speculation.policy"]);
    let silent = tiny_with("profile_at_start = true\n", "");
    assert!(Config::parse(&silent).expect("valid").speculation.profile_at_start);
    let named = silent.replace("# profile =", "profile =");
    let named = Config::parse(&named).expect("valid").speculation;
    assert!(named.profile.is_some() && !named.profile_at_start, "a stale profile has to be known");
    let wrong = tiny_with("profile_at_start = true", "profile_at_start = \"yes\"\nprofile = \"\"");
    assert_eq!(problem_paths(&wrong), ["speculation.profile", "speculation.profile_at_start"]);
}

#[test]
fn names_that_are_no_policies_are_refused() {
    for text in ["", "Fixed:4", " none", "fixed", "fixed:0", "fixed:33", "fixed:4.0", "none:1", "threshold:2"]
    {
        assert_eq!(
            problem_paths(&tiny_with("\"specserve\"", &format!("\"{text}\""))),
            ["speculation.policy"]
        );
    }
}

#[test]
fn a_file_that_can_not_be_read_is_named() {
    let error = Config::read(std::path::Path::new("/nonexistent/specserve.toml")).expect_err("missing");
    assert!(error.to_string().contains("/nonexistent/specserve.toml"), "{error}");
    assert!(error.problems().is_empty());
}

#[test]
fn a_share_of_gpu_memory_is_a_size_of_its_own() {
    let text = tiny_with("memory_mib_max = 64", "gpu_memory_percent = 80");
    let config = Config::parse(&text).expect("one size");
    assert_eq!(config.kv, KvConfig { size: KvSize::GpuMemoryPercent(80) });
    assert_eq!(config.kv.pool_blocks(1, None), None, "only the GPU can tell");
    let text = tiny_with("memory_mib_max = 64", "memory_mib_max = 64\ngpu_memory_percent = 80");
    assert_eq!(Config::parse(&text).expect_err("two sizes").problems().len(), 1);
}

#[test]
fn drafts_may_be_looked_up_instead_of_computed() {
    let text = TINY_CPU_TOML.replace("[draft]\n", "[draft]\nmodel = \"ngram\"\n#");
    let text = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let text = text.replacen("model = \"ngram\"\nmodel = \"embedded:tiny\"", "model = \"ngram\"", 1);
    let config = Config::parse(&text).expect("ngram is a drafter");
    assert_eq!(config.draft, Some(DraftConfig::Ngram));
}

/// A deployment whose draft is in a directory, with these lines in `[draft]`.
fn head_with(lines: &str) -> String {
    format!("{SMALLEST}[draft]\nmodel = \"./head\"\n{lines}\n")
}

#[test]
fn a_draft_may_say_what_its_files_leave_open() {
    let settings =
        |lines: &str| Config::parse(&head_with(lines)).expect("valid").draft.expect("set").settings();
    assert_eq!(settings(""), HeadSettings::default());
    for (name, kind) in [
        ("model", DraftKind::Model),
        ("eagle3", DraftKind::Head(HeadKind::Eagle3)),
        ("dflash", DraftKind::Head(HeadKind::DFlash)),
        ("dspark", DraftKind::Head(HeadKind::DSpark)),
    ] {
        assert_eq!(settings(&format!("kind = \"{name}\"")).kind, Some(kind));
    }
    assert_eq!(settings("norm_before_residual = false").norm_before_residual, Some(false));
    let layers = settings("kind = \"dflash\"\nhidden_state_layers = [29, 0, 4095]").hidden_state_layers;
    assert_eq!(layers, Some(vec![29, 0, 4095]), "in this order");
    let embedded = "[draft]\nmodel = \"embedded:tiny\"\nkind = \"model\"\n";
    Config::parse(&format!("{SMALLEST}{embedded}")).expect("it is a model");
}

#[test]
fn settings_of_a_draft_are_checked_one_by_one() {
    for (line, path) in [
        ("kind = \"medusa\"", "draft.kind"),
        ("kind = \"EAGLE3\"", "draft.kind"),
        ("kind = 3", "draft.kind"),
        ("norm_before_residual = \"true\"", "draft.norm_before_residual"),
        ("hidden_state_layers = []", "draft.hidden_state_layers"),
        ("hidden_state_layers = \"2,16,29\"", "draft.hidden_state_layers"),
        ("hidden_state_layers = [-1, 2]", "draft.hidden_state_layers"),
        ("hidden_state_layers = [1.5]", "draft.hidden_state_layers"),
        ("hidden_state_layers = [4096]", "draft.hidden_state_layers"),
    ] {
        assert_eq!(problem_paths(&head_with(line)), [path], "{line}");
    }
    let many = format!("hidden_state_layers = {:?}", (0..257).collect::<Vec<_>>());
    assert_eq!(problem_paths(&head_with(&many)), ["draft.hidden_state_layers"]);
    let error =
        Config::parse(&head_with("hidden_state_layers = [1, 4, 4]")).expect_err("4 twice").to_string();
    assert!(error.contains("draft.hidden_state_layers = [1, 4, 4]: names a layer twice"), "{error}");
}

#[test]
fn settings_that_mean_nothing_for_the_draft_are_refused() {
    let problems = |model: &str, lines: &str| -> Vec<String> {
        let text = format!("{SMALLEST}[draft]\nmodel = \"{model}\"\n{lines}\n");
        let error = Config::parse(&text).expect_err("it would be ignored");
        error.problems().iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        problems("ngram", "kind = \"model\"\nnorm_before_residual = true\nhidden_state_layers = [1]"),
        [
            "draft.kind = \"model\": means nothing for draft.model = \"ngram\"; remove it",
            "draft.norm_before_residual = true: means nothing for draft.model = \"ngram\"; remove it",
            "draft.hidden_state_layers = [1]: means nothing for draft.model = \"ngram\"; remove it",
        ]
    );
    assert_eq!(
        problems("embedded:tiny", "kind = \"eagle3\"\nnorm_before_residual = false"),
        [
            "draft.kind = \"eagle3\": is not what draft.model = \"embedded:tiny\" is: a model; set it to \
             \"model\", or remove it",
            "draft.norm_before_residual = false: only EAGLE-3 heads have it, and \"embedded:tiny\" is a model; \
             remove it",
        ]
    );
    assert_eq!(
        problems("embedded:tiny", "hidden_state_layers = [1, 2]"),
        ["draft.hidden_state_layers = [1, 2]: only draft heads have it, and \"embedded:tiny\" is a model; \
          remove it"]
    );
    assert_eq!(
        problems("./draft", "kind = \"model\"\nhidden_state_layers = [1]"),
        ["draft.hidden_state_layers = [1]: only draft heads have it, and draft.kind is \"model\"; remove it"]
    );
    assert_eq!(
        problems("./head", "kind = \"dflash\"\nnorm_before_residual = true"),
        ["draft.norm_before_residual = true: only EAGLE-3 heads have it, and draft.kind is \"dflash\"; \
          remove it"]
    );
    let nameless = format!("{SMALLEST}[draft]\nkind = \"eagle3\"\n");
    assert_eq!(problem_paths(&nameless), ["draft.model"], "what it names is not known");
}

#[test]
fn every_configuration_that_is_shipped_is_valid() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/config");
    let files: Vec<_> = std::fs::read_dir(folder).expect("the folder is there").flatten().collect();
    assert!(files.len() >= 2);
    for file in files {
        let path = file.path();
        Config::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
