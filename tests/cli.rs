//! Exit codes and outputs of the binary, without a daemon.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn specserve(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_specserve"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is text")
}

fn config_file(contents: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file for the test");
    file.write_all(contents.as_bytes()).expect("written");
    file
}

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/tiny-cpu.toml");

#[test]
fn a_bad_config_prints_every_problem_and_exits_with_64() {
    let file = config_file("[server]\nsocket = \"\"\nconnections_max = 0\n[target]\nmodel = 3\nextra = 1\n");
    let path = file.path().to_str().expect("a text path");
    let simulate = ["simulate", "--config", path, "--trace", "poisson:1,1", "--profile", MODELLED];
    for arguments in [&["check-config", path][..], &["serve", "--config", path], &simulate] {
        let output = specserve(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        let errors = text(&output.stderr);
        assert!(errors.contains("4 problems in the configuration"), "{errors}");
        for key in ["server.socket", "server.connections_max", "target.model", "target.extra"] {
            assert!(errors.contains(key), "{errors}");
        }
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_config_that_is_not_there_exits_with_64() {
    let file = ["--config", "/nonexistent/specserve.toml"];
    for command in [&["serve"][..], &["simulate", "--trace", "poisson:1,1"]] {
        let output = specserve(&[command, &file].concat());
        assert_eq!(output.status.code(), Some(64), "{command:?}");
        assert!(text(&output.stderr).contains("/nonexistent/specserve.toml"));
    }
}

#[test]
fn doctor_says_what_a_model_directory_holds_or_why_it_is_refused() {
    let tiny = |part: &str| format!("{}/assets/tiny/{part}", env!("CARGO_MANIFEST_DIR"));
    let fits = specserve(&["doctor", "--model", &tiny("eagle3"), "--target", "embedded:tiny", "--json"]);
    assert_eq!(fits.status.code(), Some(0), "{}", text(&fits.stderr));
    let report: serde_json::Value = serde_json::from_slice(&fits.stdout).expect("one JSON document");
    let facts = report["report"]["facts"].as_array().expect("a list");
    assert!(facts.contains(&serde_json::json!({"subject": "kind", "finding": "draft head (EAGLE-3)"})));

    let refused = specserve(&["doctor", "--model", &tiny("eagle3"), "--target", &tiny("draft")]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("eagle3/config.json: `hidden_size` is 384"));

    let settings = ["--kind", "eagle3", "--norm-before-residual", "true", "--hidden-state-layers", "0,2,5"];
    let given = specserve(&[&["doctor", "--model", &tiny("eagle3")][..], &settings].concat());
    assert_eq!(given.status.code(), Some(0), "{}", text(&given.stderr));
    let report = text(&given.stdout);
    assert!(report.contains("normalised residual") && report.contains("entering layers 0, 2, 5"), "{report}");
    let other = specserve(&["doctor", "--model", &tiny("eagle3"), "--kind", "dspark"]);
    assert_eq!(other.status.code(), Some(1), "it has no block");
    assert!(text(&other.stderr).contains("has no `block_size`"), "{}", text(&other.stderr));
}

#[test]
fn check_config_prints_the_effective_config_with_bounds() {
    for arguments in [&["check-config", TINY][..], &["check-config", "--config", TINY]] {
        let output = specserve(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("connections_max = 352  # 1 to 65536\n"));
    }
}

#[test]
fn check_config_json_holds_the_config_or_the_problems() {
    let output = specserve(&["check-config", TINY, "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(document["valid"], true);
    assert_eq!(document["config"]["slo"]["classes"][0]["name"], "interactive");

    let file = config_file("[target]\nmodel = \"embedded:tiny\"\n[speculation]\ndraft_tokens_max = 0\n");
    let output = specserve(&["check-config", "--json", file.path().to_str().expect("a text path")]);
    assert_eq!(output.status.code(), Some(64));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(document["valid"], false);
    assert_eq!(document["problems"][0]["path"], "speculation.draft_tokens_max");
    assert_eq!(document["problems"][0]["value"], "0");
}

#[test]
fn wrong_arguments_exit_with_2_and_help_with_0() {
    assert_eq!(specserve(&["dance"]).status.code(), Some(2));
    assert_eq!(specserve(&["demo", "--policy", "always"]).status.code(), Some(2));
    assert_eq!(specserve(&["serve"]).status.code(), Some(2));
    assert_eq!(specserve(&["--help"]).status.code(), Some(0));
    assert_eq!(specserve(&["--version"]).status.code(), Some(0));
}

#[test]
fn commands_without_a_daemon_say_so_and_exit_with_1() {
    let file = config_file("{\"prompt\": \"a\"}\n");
    let lines = file.path().to_str().expect("a text path");
    let socket = "/nonexistent/specserve.sock";
    for arguments in [
        &["top", "--once", "--socket", socket][..],
        &["submit", lines, "--socket", socket],
        &["chat", "Hello", "--socket", socket],
    ] {
        let output = specserve(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains("no daemon: /nonexistent/specserve.sock does not exist"));
    }
}

#[test]
fn a_reader_that_has_left_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_specserve"))
        .args(["check-config", "--config", TINY])
        .stdout(closed_pipe())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
    let mut errors = String::new();
    let mut stderr = child.stderr.take().expect("piped");
    std::io::Read::read_to_string(&mut stderr, &mut errors).expect("text");
    assert_eq!(errors, "");
}

/// The write end of a pipe without a reader.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[test]
fn a_signal_ends_a_command_silently_with_its_number() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let socket = directory.path().join("socket");
    let silent = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let child = Command::new(env!("CARGO_BIN_EXE_specserve"))
            .args(["chat", "Hello", "--socket"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        // Its handlers are in place before it connects.
        let _connection = silent.accept().expect("it connects");
        kill_process(Pid::from_child(&child), signal).expect("it waits for an answer");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn inflate_takes_draft_heads_by_their_role() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let out = directory.path().join("head").display().to_string();
    let tiny = |part: &str| format!("{}/assets/tiny/{part}", env!("CARGO_MANIFEST_DIR"));
    let to_shape = ["--shape", "llama-160m", "--vocab", "4200", "--json", "--role"];
    let inflate = |part: &str, more: &[&str]| {
        specserve(&[&["inflate", &tiny(part), &out][..], &to_shape, more].concat())
    };
    let refused = inflate("eagle3", &["dspark"]);
    assert_eq!(refused.status.code(), Some(1));
    let message = text(&refused.stderr);
    assert!(message.contains("holds a draft head (EAGLE-3), not a draft head (DSpark)"), "{message}");

    let done = inflate("eagle3", &["eagle3", "--draft-vocab", "2100"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one JSON document");
    assert_eq!(report["report"]["parameters_before"], 2_754_048);
    let fits = specserve(&["doctor", "--model", &out, "--json"]);
    assert!(text(&fits.stdout).contains("one token a pass, of 2100 of the target's tokens"));
}

#[test]
fn an_interrupted_inflation_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let names = || -> Vec<_> {
        let entries = std::fs::read_dir(directory.path()).expect("there");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    };
    let out = directory.path().join("model");
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        // gigabytes, of which little is written until the signal comes
        let mut child = Command::new(env!("CARGO_BIN_EXE_specserve"))
            .args(["inflate", "embedded:tiny", "--shape", "llama-3-8b"])
            .arg(&out)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let is_writing = || names().iter().any(|name| name.join("config.json").exists());
        while !is_writing() {
            assert!(child.try_wait().expect("its status can be asked").is_none(), "it ended early");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(!out.exists(), "it appears when it is complete");
        kill_process(Pid::from_child(&child), signal).expect("it is writing");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(code), String::new()));
        assert_eq!(names(), Vec::<std::path::PathBuf>::new());
    }
}

const MODELLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/profiles/h100-8b-160m.toml");
const MEASURED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/profiles/h100-8b-160m-measured.toml");

/// What `simulate` prints, which must succeed.
fn simulated(arguments: &[&str]) -> serde_json::Value {
    let output = specserve(&[&["simulate", "--json"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_matrix_repeats_by_its_seed_and_lists_the_worst_cell_last() {
    let matrix = |seed| {
        let profiles = ["--profile", MODELLED, "--profile", MEASURED];
        simulated(&[&["--matrix", "4", "--limit", "200", "--seed", seed], &profiles[..]].concat())
    };
    let document = matrix("1");
    assert_eq!(document, matrix("1"));
    assert_ne!(document["cells"], matrix("2")["cells"]);

    let cells = document["cells"].as_array().expect("a list");
    let skipped = document["skipped"].as_array().expect("a list");
    assert_eq!(cells.len() + skipped.len(), 4);
    let ratios: Vec<f64> = cells.iter().map(|cell| cell["ratio"].as_f64().expect("a number")).collect();
    assert!(ratios.len() > 1 && ratios.is_sorted_by(|a, b| a >= b), "{ratios:?}");
    assert_eq!(document["summary"]["ratio_min"].as_f64(), ratios.last().copied());
    let rivals = document["summary"]["rivals"].as_array().expect("a list");
    let rivals: Vec<&str> = rivals.iter().filter_map(|rival| rival["policy"].as_str()).collect();
    assert_eq!(rivals, ["none", "fixed:2", "fixed:4", "smartspec", "adaspec"]);
}

#[test]
fn in_a_fixed_set_of_random_situations_no_rival_is_two_percent_ahead() {
    let profiles = ["--profile", MEASURED, "--profile", MODELLED];
    let document = simulated(&[&["--matrix", "30", "--limit", "400", "--seed", "1"], &profiles[..]].concat());
    let summary = &document["summary"];
    let number = |key: &str| summary[key].as_f64().expect("a number");
    assert!(number("cells") >= 20.0, "{summary:#}");
    assert!(number("ratio_min") >= 0.98 && number("ratio_geometric_mean") >= 1.05, "{summary:#}");
    assert_eq!(summary["late_for_nothing"], 0, "{summary:#}");
}

#[test]
fn a_simulation_with_classes_prints_a_row_for_each() {
    let arguments = ["simulate", "--trace", "poisson:5,5", "--profile", MODELLED, "--policy", "none"];
    let classes = ["--class", "chat:share=0.5,ttft_ms=500", "--class", "batch:share=0.5"];
    let output = specserve(&[&arguments[..], &classes].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    let rows: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    for class in ["chat", "batch"] {
        assert!(rows.iter().any(|row| row.get(2) == Some(&class)), "{printed}");
    }
    assert!(!text(&specserve(&arguments).stdout).contains("class"));
}

#[test]
fn capacity_is_printed_for_each_policy_attainment_and_seed() {
    let trace = ["--capacity", "--trace", "poisson:10,5", "--profile", MODELLED, "--slo", "ttft_ms=200"];
    let policies = ["--policy", "none", "--policy", "fixed:2", "--seeds", "2", "--seed", "7"];
    let document = simulated(&[&trace[..], &policies].concat());
    let found = document["capacities"].as_array().expect("a list");
    assert_eq!(found.len(), 6);
    for one in found {
        assert!(one["rps"]["mean"].as_f64() > Some(0.0) && one["rps"]["half_width"].is_number(), "{one}");
        assert_eq!((&one["seeds"][0]["seed"], &one["seeds"][1]["seed"]), (&7.into(), &8.into()));
        assert_ne!(one["seeds"][0]["rps"], one["seeds"][1]["rps"], "each seed draws its own arrivals");
    }
    let means: Vec<_> = found[..3].iter().filter_map(|one| one["rps"]["mean"].as_f64()).collect();
    assert!(means.is_sorted(), "fewer requests attain at a higher rate: {means:?}");
}

#[test]
fn every_shipped_config_can_be_simulated_and_an_explicit_option_wins() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/config");
    let files: Vec<_> =
        std::fs::read_dir(directory).expect("config/").map(|file| file.expect("listed")).collect();
    assert!(files.len() > 1);
    for file in files {
        let path = file.path();
        let path = path.to_str().expect("a text path");
        let line = ["--config", path, "--trace", "poisson:4,3", "--profile", MODELLED];
        let document = simulated(&line);
        assert_eq!(document["policy"], "specserve", "{path}");
        assert_eq!(document["scheduler"], "slo", "{path}");
        assert_eq!(document["classes"][0]["name"], "interactive", "{path}");
        let document = simulated(&[&line[..], &["--policy", "none", "--scheduler", "fifo"]].concat());
        assert_eq!((&document["policy"], &document["scheduler"]), (&"none".into(), &"fifo".into()), "{path}");
    }
}

#[test]
fn requests_refused_for_being_late_are_counted_in_the_table_and_in_json() {
    let trace = ["--trace", "poisson:20,5", "--profile", MODELLED, "--running-max", "4"];
    let line = [&trace[..], &["--slo", "ttft_ms=300", "--late", "reject"]].concat();
    let document = simulated(&line);
    let count = |field: &str| document[field].as_u64().expect("a count");
    assert!(count("refused_late") > 0 && count("refused_late") == count("refused"), "{document}");
    assert_eq!(count("finished") + count("refused"), count("requests"));
    assert_eq!(document["classes"][0]["refused_late"], document["refused_late"]);

    let printed = text(&specserve(&[&["simulate"], &line[..]].concat()).stdout);
    let rows: Vec<Vec<&str>> = printed.lines().map(|line| line.split("  ").collect()).collect();
    let cells = |row: &Vec<&str>| -> Vec<String> {
        row.iter().filter(|cell| !cell.is_empty()).map(|cell| cell.trim().to_owned()).collect()
    };
    let column = cells(&rows[0]).iter().position(|title| title == "refused").expect("a column");
    assert_eq!(cells(&rows[2])[column], document["refused"].to_string(), "{printed}");
    assert_eq!(simulated(&line[..line.len() - 2])["refused"], 0, "by default they are demoted");
}

#[test]
fn arguments_of_simulate_that_do_not_fit_together_exit_with_2() {
    for (arguments, advice) in [
        (&["--trace", "poisson:1,1", "--profile", MODELLED, "--profile", MEASURED][..], "need --matrix"),
        (&["--trace", "poisson:1,1", "--profile", MODELLED, "--class", "a:share=0.5"], "add up to 0.5"),
        (
            &["--trace", "poisson:1,1", "--profile", MODELLED, "--late", "reject", "--scheduler", "fifo"],
            "about the order slo",
        ),
        (
            &["--matrix", "1", "--profile", MODELLED, "--policy", "none", "--policy", "fixed:2"],
            "others with --rival",
        ),
    ] {
        let output = specserve(&[&["simulate"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(advice), "{}", text(&output.stderr));
    }
}
