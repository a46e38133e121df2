//! Prompts of the replayed requests.

use std::path::Path;

use serde_json::{Value, json};

use crate::cli::demo::PROMPTS;
use crate::cli::error::CliError;

/// Most prompts read from a file; the rest is ignored.
const PROMPTS_MAX: usize = 100_000;

/// Built-in prompts in addition to the demo's.
const MORE: [&str; 16] = [
    "Tell me a story about a girl who found a key.",
    "What is a volcano?",
    "Write a Python function that reverses a string.",
    "Give me three tips to learn a language.",
    "Why is the sky blue?",
    "Tell me a story about a dog and a cat.",
    "Write a Python function that finds the largest number in a list.",
    "Give me three tips to save money.",
    "What is a bridge for?",
    "Tell me a story about a lost robot.",
    "Write a Python function that counts the vowels in a word.",
    "Give me three tips to grow tomatoes.",
    "Why do leaves fall in autumn?",
    "Tell me a story about an old clock.",
    "Write a Python function that computes a factorial.",
    "Give me three tips to stay healthy.",
];

/// Conversations to send, used round-robin.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompts(Vec<Value>);

impl Prompts {
    /// The built-in prompts.
    pub fn built_in() -> Prompts {
        Prompts(PROMPTS.iter().chain(&MORE).map(|text| user(text)).collect())
    }

    /// Reads a JSON Lines file of objects with `messages`, `prompt`, or `turns` (of which the
    /// first is used).
    ///
    /// # Errors
    /// [`CliError::File`], and [`CliError::Failed`] with the first bad line.
    pub fn read(path: &Path) -> Result<Prompts, CliError> {
        read_lines(path, messages_of).map(Prompts)
    }

    /// All conversations.
    pub fn conversations(&self) -> &[Value] {
        &self.0
    }

    /// Number of conversations.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Messages of request `index`.
    pub fn messages(&self, index: usize) -> &Value {
        &self.0[index % self.0.len()]
    }
}

/// Reads a JSON Lines file, with `read_line` for what each line holds; empty lines are skipped.
///
/// # Errors
/// [`CliError::File`], and [`CliError::Failed`] with the first bad line.
pub(in crate::cli) fn read_lines<T>(
    path: &Path,
    read_line: impl Fn(&Value) -> Result<T, &'static str>,
) -> Result<Vec<T>, CliError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| CliError::File { path: path.to_owned(), source })?;
    parse_lines(&text, read_line)
        .map_err(|problem| CliError::Failed(format!("{}: {problem}", path.display())))
}

fn parse_lines<T>(
    text: &str,
    read_line: impl Fn(&Value) -> Result<T, &'static str>,
) -> Result<Vec<T>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parsed = lines.take(PROMPTS_MAX).map(|(index, line)| {
        let problem = |what: &dyn std::fmt::Display| format!("line {}: {what}", index + 1);
        let line = serde_json::from_str(line).map_err(|error| problem(&error))?;
        read_line(&line).map_err(|what| problem(&what))
    });
    let parsed = parsed.collect::<Result<Vec<T>, String>>()?;
    if parsed.is_empty() { Err("the file holds no prompts".to_owned()) } else { Ok(parsed) }
}

/// The conversation of a line.
pub(in crate::cli) fn messages_of(line: &Value) -> Result<Value, &'static str> {
    match (line.get("messages"), line.get("prompt"), line.pointer("/turns/0")) {
        (Some(messages @ Value::Array(_)), _, _) => Ok(messages.clone()),
        (None, Some(Value::String(text)), _) | (None, None, Some(Value::String(text))) => Ok(user(text)),
        _ => Err("no messages, prompt or turns"),
    }
}

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_shapes_of_a_line_are_read_and_repeat() {
        let text = "{\"prompt\":\"a\"}\n\n{\"turns\":[\"b\",\"c\"]}\n{\"messages\":[{\"role\":\"user\",\"content\":\"d\"}]}\n";
        let prompts = Prompts(parse_lines(text, messages_of).expect("good"));
        let asked: Vec<&str> =
            (0..4).map(|index| prompts.messages(index)[0]["content"].as_str().expect("text")).collect();
        assert_eq!(asked, ["a", "b", "d", "a"]);
    }

    #[test]
    fn bad_lines_and_empty_files_are_refused_by_number() {
        let problem = |text: &str| parse_lines(text, messages_of).expect_err("bad");
        assert!(problem("{\"prompt\":\"a\"}\nnot json").starts_with("line 2: "));
        for line in ["{}", "[]", "{\"prompt\":3}", "{\"turns\":[]}", "{\"messages\":\"a\"}"] {
            assert_eq!(problem(line), "line 1: no messages, prompt or turns");
        }
        assert_eq!(problem("\n"), "the file holds no prompts");
    }
}
