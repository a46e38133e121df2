use std::path::Path;

use clap::Parser;
use clap::error::ErrorKind;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_of_the_docs_parses() {
    for line in [
        "specserve serve --config config/tiny-cpu.toml",
        "specserve demo",
        "specserve demo --json --policy fixed:6 --tokens 64 --rounds 1",
        "specserve chat",
        "specserve chat Hello --socket s --temperature 0.8 --seed 1 --max-tokens 9 --system Brief --json",
        "specserve submit in.jsonl --out out.jsonl --concurrency 4 --socket s",
        "specserve top --once --json --interval-ms 500 --socket s",
        "specserve profile --config config/tiny-cpu.toml --out profiles/tiny-cpu.toml --budget-s 30 --json",
        "specserve replay --config c.toml --trace t.csv --policy none,specserve --rate-scale 0.5,1 --repeats 3",
        "specserve replay --socket s --trace poisson:4,60 --prompts p.jsonl --slo tpot_ms=4 --json",
        "specserve check-config config/tiny-cpu.toml",
        "specserve check-config --config config/tiny-cpu.toml --json",
        "specserve completions bash",
        "specserve man pages/man1",
        "specserve submit -",
        "specserve chat --no-history",
        "specserve pull Qwen/Qwen2.5-0.5B-Instruct",
        "specserve pull org/name@refs/pr/1 --json",
        "specserve simulate --trace t.csv --profile p.toml",
        "specserve simulate --trace poisson:8,600 --profile p.toml --policy none --policy fixed:3 \
         --slo ttft_ms=1000,tpot_ms=15 --load 0.5,1 --saturation --seed 2 --lengths spec-bench --thin 0.5 \
         --confidence noisy:1 --time-error 1.4 --jitter 0.05 --json",
        "specserve simulate --trace t.csv --profile p.toml --late reject --class a:share=1,weight=2,ttft_ms=9",
        "specserve simulate --config c.toml --trace t.csv --running-max 8",
        "specserve simulate --trace t.csv --profile p.toml --class a:share=0.5,ttft_ms=1000 --class b:share=0.5",
        "specserve simulate --trace t.csv --profile p.toml --capacity --seeds 3 --policy none --policy adaspec --json",
        "specserve simulate --matrix 24 --profile p.toml --profile q.toml --seed 3 --policy adaspec --rival none \
         --rival fixed:2 --limit 200 --json",
    ] {
        assert!(parse(line).is_ok(), "{line}");
    }
}

#[test]
fn bad_arguments_are_refused_before_anything_runs() {
    for (line, kind) in [
        ("specserve", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
        ("specserve serve", ErrorKind::MissingRequiredArgument),
        ("specserve check-config", ErrorKind::MissingRequiredArgument),
        ("specserve check-config a --config b", ErrorKind::ArgumentConflict),
        ("specserve demo --policy always", ErrorKind::ValueValidation),
        ("specserve demo --tokens 1", ErrorKind::ValueValidation),
        ("specserve submit in.jsonl --concurrency 0", ErrorKind::ValueValidation),
        ("specserve top --interval-ms 1", ErrorKind::ValueValidation),
        ("specserve simulate --trace t.csv", ErrorKind::MissingRequiredArgument),
        ("specserve simulate --trace poisson:8 --profile p", ErrorKind::ValueValidation),
        ("specserve simulate --trace t --profile p --policy fast", ErrorKind::ValueValidation),
        ("specserve simulate --trace t --profile p --slo itl_ms=3", ErrorKind::ValueValidation),
        ("specserve simulate --trace t --profile p --load 0.5,0", ErrorKind::ValueValidation),
        ("specserve simulate --trace t --profile p --class a", ErrorKind::ValueValidation),
        ("specserve simulate --trace t --profile p --late drop", ErrorKind::ValueValidation),
        (
            "specserve simulate --trace t --profile p --class a:share=1 --slo ttft_ms=1",
            ErrorKind::ArgumentConflict,
        ),
        ("specserve simulate --matrix 4 --profile p --class a:share=1", ErrorKind::ArgumentConflict),
        ("specserve simulate --trace t --profile p --capacity --load 2", ErrorKind::ArgumentConflict),
        ("specserve simulate --trace t --profile p --seeds 2", ErrorKind::MissingRequiredArgument),
        ("specserve simulate --matrix 4 --profile p --capacity", ErrorKind::ArgumentConflict),
        ("specserve simulate --matrix 4 --profile p --seeds 2", ErrorKind::ArgumentConflict),
        ("specserve simulate --profile p", ErrorKind::MissingRequiredArgument),
        ("specserve simulate --matrix 4", ErrorKind::MissingRequiredArgument),
        ("specserve simulate --matrix 4 --profile p --config c.toml", ErrorKind::ArgumentConflict),
        ("specserve simulate --matrix 0 --profile p", ErrorKind::ValueValidation),
        ("specserve simulate --matrix 4 --profile p --trace t", ErrorKind::ArgumentConflict),
        ("specserve simulate --matrix 4 --profile p --slo ttft_ms=9", ErrorKind::ArgumentConflict),
        ("specserve simulate --trace t --profile p --rival none", ErrorKind::ArgumentConflict),
        ("specserve profile --config c.toml", ErrorKind::MissingRequiredArgument),
        ("specserve profile --config c.toml --out p.toml --budget-s 0", ErrorKind::ValueValidation),
        ("specserve completions", ErrorKind::MissingRequiredArgument),
        ("specserve pull", ErrorKind::MissingRequiredArgument),
        ("specserve pull gpt2", ErrorKind::ValueValidation),
        ("specserve pull https://huggingface.co/org/name", ErrorKind::ValueValidation),
        ("specserve pull ../org/name", ErrorKind::ValueValidation),
        ("specserve completions csh", ErrorKind::InvalidValue),
        ("specserve dance", ErrorKind::InvalidSubcommand),
    ] {
        assert_eq!(parse(line).expect_err(line).kind(), kind, "{line}");
    }
}

#[test]
fn the_default_socket_is_that_of_the_tiny_configuration() {
    let config = crate::config::Config::default_tiny();
    assert_eq!(config.server.socket, Path::new(SOCKET_DEFAULT));
}

#[test]
fn the_docs_name_every_option_of_every_command() {
    let docs = include_str!("../../docs/cli.md");
    for command in Cli::command().get_subcommands() {
        let heading = format!("## {}", command.get_name());
        let section = docs.split(&heading).nth(1).unwrap_or_else(|| panic!("docs/cli.md has no {heading}"));
        let section = section.split("\n## ").next().unwrap_or(section);
        for option in command.get_opts().filter_map(|option| option.get_long()) {
            assert!(section.contains(&format!("`--{option}")), "{heading} does not describe --{option}");
        }
    }
}

/// The commands of this program in the code blocks of a page, without what is around them in the
/// shell.
fn commands_of(page: &str) -> Vec<String> {
    let blocks = page.split("\n```").skip(1).step_by(2);
    let joined = blocks.map(|block| block.replace("\\\n", " ")).collect::<Vec<_>>().join("\n");
    let parts = joined.lines().flat_map(|line| line.trim_start_matches("$ ").split("&&"));
    let parts = parts.map(|part| part.trim().trim_start_matches("target/release/"));
    let commands = parts.filter(|part| part.starts_with("specserve "));
    // up to a pipe, a redirection, or a comment
    commands
        .map(|command| command.split([';', '|', '>', '#', '<']).next().unwrap_or(command).to_owned())
        .collect()
}

/// Splits at spaces outside of double quotes.
fn words(command: &str) -> Vec<String> {
    let parts = command.split('"').enumerate();
    let mut words = Vec::new();
    for (index, part) in parts {
        match index % 2 {
            1 => words.push(part.to_owned()),
            _ => words.extend(part.split_whitespace().map(str::to_owned)),
        }
    }
    words
}

#[test]
fn every_command_that_the_documents_show_is_one_that_the_program_takes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs =
        std::fs::read_dir(root.join("docs")).expect("docs/").map(|entry| entry.expect("an entry").path());
    let pages = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let mut seen = 0;
    for path in pages.chain([root.join("README.md")]) {
        let (name, page) = (path.display(), std::fs::read_to_string(&path).expect("a page"));
        // an ellipsis stands for more of the same
        for command in commands_of(&page).iter().filter(|command| !command.contains('…')) {
            seen += 1;
            if let Err(error) = Cli::try_parse_from(words(command)) {
                let shown = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion];
                assert!(shown.contains(&error.kind()), "{name}: {command}: {error}");
            }
        }
    }
    assert!(seen > 20, "only {seen} commands were found");
}
