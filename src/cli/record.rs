//! `specserve record`: records draft acceptance for playback in the simulator.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use clap::Args;
use serde_json::{Value, json};

use super::error::CliError;
use super::host::DaemonHost;
use super::replay::prompts::{Prompts, messages_of, read_lines};
use super::whole_file::write_whole;
use super::{logging, parse, progress};
use crate::analyzer::{RecordOptions, RecordPrompt, RecordText};
use crate::config::Config;
use crate::replay::RecordedSequence;
use crate::stats::calibration_error::CalibrationError;

/// Resolution of written probabilities: four decimals.
const PARTS: f64 = 10_000.0;
/// Highest accepted temperature.
const TEMPERATURE_MAX: f64 = 2.0;

/// Decodes prompts with the configured models, one after the other, and records for each
/// position what the draft model or draft head would have proposed, for `simulate --recording`.
#[derive(Args, Debug)]
pub struct RecordArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Output file, .jsonl.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A .jsonl file of objects with prompt (text or tokens), messages or turns, and max_tokens if
    /// it differs; built-in prompts by default.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Maximum output tokens per prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=65_536))]
    max_tokens: u32,
    /// Go on behind the token that ends an output.
    #[arg(long)]
    ignore_eos: bool,
    /// Sampling temperature.
    #[arg(long, value_name = "NUMBER", default_value = "0", value_parser = temperature)]
    temperature: f64,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: an invalid configuration or prompt, a failing executor, or a file that cannot be written.
pub async fn run<H: DaemonHost>(args: &RecordArgs, host: &H, out: &mut impl Write) -> Result<(), CliError> {
    let config = Config::read(&args.config)?;
    logging::start(&config.telemetry);
    let options = RecordOptions {
        prompts: args
            .prompts
            .as_deref()
            .map_or_else(|| Ok(built_in()), |path| read_lines(path, parse_prompt))?,
        tokens_max: args.max_tokens,
        temperature: args.temperature as f32,
        ignore_eos: args.ignore_eos,
    };
    let bar = progress::bar(options.prompts.len() as u64, "recording {bar:40} {pos}/{len} outputs");
    bar.tick();
    let shown = bar.clone();
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&recorded);
    let on_sequence = Box::new(move |sequence| {
        sink.lock().expect("nothing panics with the lock").push(sequence);
        shown.inc(1);
    });
    let ended = host.record(config, options, on_sequence).await;
    bar.finish_and_clear();
    ended.map_err(|error| CliError::Failed(error.to_string()))?;
    let mut sequences = std::mem::take(&mut *recorded.lock().expect("nothing panics with the lock"));
    // An output of one token has no drafted position.
    sequences.retain(|sequence: &RecordedSequence| !sequence.accepted.is_empty());
    if sequences.is_empty() {
        return Err(CliError::Failed(
            "every output ended with its first token, so nothing was recorded".to_owned(),
        ));
    }
    write_whole(&args.out, to_lines(&sequences).as_bytes())?;
    report(args, &sequences, out)
}

fn built_in() -> Vec<RecordPrompt> {
    let messages = Prompts::built_in().conversations().to_vec();
    let asked = |messages| RecordPrompt { text: RecordText::Messages(messages), tokens_max: None };
    messages.into_iter().map(asked).collect()
}

fn parse_prompt(line: &Value) -> Result<RecordPrompt, &'static str> {
    let text = match line.get("prompt") {
        Some(tokens @ Value::Array(_)) => {
            let tokens = serde_json::from_value(tokens.clone());
            RecordText::Tokens(tokens.map_err(|_| "the prompt is neither a text nor a list of tokens")?)
        }
        _ => RecordText::Messages(messages_of(line)?),
    };
    let tokens_max = match line.get("max_tokens") {
        None | Some(Value::Null) => None,
        Some(count) => {
            let count = count.as_u64().and_then(|count| u32::try_from(count).ok());
            Some(count.filter(|&count| count > 0).ok_or("max_tokens is not a positive number of tokens")?)
        }
    };
    Ok(RecordPrompt { text, tokens_max })
}

fn to_lines(sequences: &[RecordedSequence]) -> String {
    let mut text = String::new();
    for sequence in sequences {
        let mut line = json!({
            "probabilities": decimals(&sequence.probabilities),
            "accepted": sequence.accepted,
        });
        if sequence.has_chains() {
            let later: Vec<Vec<f64>> =
                sequence.later_probabilities.iter().map(|later| decimals(later)).collect();
            line["later_probabilities"] = json!(later);
            line["later_accepted"] = json!(sequence.later_accepted);
        }
        if !sequence.runner_up_accepted.is_empty() {
            line["runner_up_accepted"] = json!(sequence.runner_up_accepted);
        }
        text.push_str(&format!("{line}\n"));
    }
    text
}

fn decimals(probabilities: &[f32]) -> Vec<f64> {
    probabilities.iter().map(|&probability| (f64::from(probability) * PARTS).round() / PARTS).collect()
}

fn report(args: &RecordArgs, sequences: &[RecordedSequence], out: &mut impl Write) -> Result<(), CliError> {
    let positions: usize = sequences.iter().map(|sequence| sequence.accepted.len()).sum();
    let accepted = sequences.iter().flat_map(|sequence| &sequence.accepted).filter(|&&accepted| accepted);
    let share = accepted.count() as f64 / positions as f64;
    let chain_drafts_max = sequences.iter().filter_map(RecordedSequence::chain_drafts_max).max();
    let calibration_error = calibration_error(sequences);
    if args.json {
        let document = json!({
            "recording": args.out,
            "sequences": sequences.len(),
            "positions": positions,
            "acceptance": share,
            "chain_drafts_max": chain_drafts_max,
            "calibration_error": calibration_error,
        });
        writeln!(out, "{document:#}")?;
    } else {
        let (count, path) = (sequences.len(), args.out.display());
        let off = calibration_error.unwrap_or(0.0) * 100.0;
        let accepted = format!("{:.1} % accepted", share * 100.0);
        let accepted = match chain_drafts_max {
            None => accepted,
            Some(most) => format!("chains of up to {most} drafts, {accepted} of the first ones"),
        };
        writeln!(
            out,
            "wrote {path}: {count} outputs, {positions} positions, {accepted}, confidence off by {off:.1} %"
        )?;
    }
    Ok(())
}

/// Expected calibration error of the draft's probabilities over all positions; `None` without any.
/// Every one of them follows a committed token, so none is censored.
fn calibration_error(sequences: &[RecordedSequence]) -> Option<f64> {
    let mut error = CalibrationError::default();
    for sequence in sequences {
        let outcomes = sequence.probabilities.iter().zip(&sequence.accepted);
        outcomes.for_each(|(&probability, &accepted)| error.add(probability, accepted));
    }
    error.get()
}

fn temperature(text: &str) -> Result<f64, String> {
    parse::within(text, TEMPERATURE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{ScratchDirectory, ScriptedHost};
    use crate::replay::Recording;

    #[tokio::test]
    async fn what_is_recorded_can_be_played_back() {
        let folder = ScratchDirectory::new();
        let path = folder.path().join("pair.jsonl");
        let config = folder.path().join("tiny.toml");
        std::fs::write(&config, include_str!("../../config/tiny-cpu.toml")).expect("written");
        let args = RecordArgs {
            config,
            out: path.clone(),
            prompts: None,
            max_tokens: 4,
            ignore_eos: false,
            temperature: 0.0,
            json: true,
        };
        let mut out = Vec::new();
        run(&args, &ScriptedHost::new(|_, _| String::new()), &mut out).await.expect("recorded");
        let document: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!((&document["positions"], &document["acceptance"]), (&json!(72), &json!(1.0)));
        // all accepted, with probabilities of 1/2, 2/3 and 3/4
        let error = document["calibration_error"].as_f64().expect("a number");
        assert!((error - (1.0 - (0.5 + 2.0 / 3.0 + 0.75) / 3.0)).abs() < 1e-6, "{error}");
        let text = std::fs::read_to_string(&path).expect("there");
        let first: serde_json::Value =
            serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        assert_eq!(first, json!({ "probabilities": [0.5, 0.6667, 0.75], "accepted": [true, true, true] }));
        assert_eq!(Recording::parse(&text).expect("good").sequences().len(), 24);
    }

    #[test]
    fn chains_of_a_head_are_written_to_four_decimals_and_read_back() {
        let sequence = RecordedSequence {
            probabilities: vec![0.912_34, 0.5],
            accepted: vec![true, false],
            later_probabilities: vec![vec![1.0 / 3.0, 0.25], vec![]],
            later_accepted: vec![1, 0],
            runner_up_accepted: vec![true, false],
        };
        let text = to_lines(std::slice::from_ref(&sequence));
        let expected = RecordedSequence {
            probabilities: vec![0.9123, 0.5],
            later_probabilities: vec![vec![0.3333, 0.25], vec![]],
            ..sequence
        };
        assert_eq!(Recording::parse(&text).expect("good").sequences(), [expected]);
    }

    #[test]
    fn a_line_has_a_text_a_conversation_or_tokens_and_may_say_how_many_it_wants() {
        let parse = |line: Value| parse_prompt(&line);
        let user = json!([{ "role": "user", "content": "a" }]);
        let messages = RecordPrompt { text: RecordText::Messages(user.clone()), tokens_max: None };
        assert_eq!(parse(json!({ "prompt": "a" })), Ok(messages.clone()));
        assert_eq!(parse(json!({ "messages": user })), Ok(messages.clone()));
        assert_eq!(
            parse(json!({ "turns": ["a"], "max_tokens": 7 })),
            Ok(RecordPrompt { tokens_max: Some(7), ..messages })
        );
        let tokens = RecordPrompt { text: RecordText::Tokens(vec![3, 1]), tokens_max: None };
        assert_eq!(parse(json!({ "prompt": [3, 1] })), Ok(tokens));
        for bad in [json!({}), json!({ "prompt": [-1] }), json!({ "prompt": ["a"] })] {
            assert!(parse(bad).is_err());
        }
        for count in [json!(0), json!(-1), json!(1.5), json!(4294967296u64), json!("7")] {
            let problem = parse(json!({ "prompt": "a", "max_tokens": count }));
            assert_eq!(problem, Err("max_tokens is not a positive number of tokens"));
        }
    }

    #[test]
    fn bad_prompts_are_refused_by_file_and_line() {
        let folder = ScratchDirectory::new();
        let path = folder.path().join("prompts.jsonl");
        let problem = |text: &str| {
            std::fs::write(&path, text).expect("written");
            read_lines(&path, parse_prompt).expect_err("bad").to_string()
        };
        assert!(
            problem("{\"prompt\":\"a\"}\n\n{\"prompt\":3}\n")
                .ends_with("line 3: no messages, prompt or turns")
        );
        assert!(problem("nonsense").contains("line 1: "));
        assert!(problem("\n").ends_with("the file holds no prompts"));
    }
}
