//! What a reader of the demo can do next.

/// Commands to go on with, for a program that is called by this name.
pub struct NextSteps<'a>(pub &'a str);

/// How this program was called; its package's name if that is unknown.
pub fn program() -> String {
    std::env::args().next().unwrap_or_else(|| env!("CARGO_PKG_NAME").to_owned())
}

impl std::fmt::Display for NextSteps<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let program = self.0;
        let steps = [
            ("chat", "talk with the embedded model"),
            ("chat --model DIR --draft ngram", "talk with your own Hugging Face model"),
            ("serve DIR --port 8000", "serve it to OpenAI clients"),
            ("demo --policy fixed:4", "compare: always four guesses"),
            ("help", "all commands (docs/cli.md)"),
        ];
        let width = steps.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
        writeln!(f, "\nNext:")?;
        for (command, what) in steps {
            writeln!(f, "  {program} {command:<width$}  {what}")?;
        }
        Ok(())
    }
}
