//! What is wrong with a configuration, for the operator who has to mend it.

use std::path::PathBuf;

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `section.key`, or the section's name.
    pub path: String,
    /// The value as the file spells it; `None` when the trouble is that there is none.
    pub value: Option<String>,
    /// What is wrong, with the bound.
    pub what: String,
    /// What to do about it.
    pub advice: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, ": {}; {}", self.what, self.advice)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not a valid configuration; all problems are listed.
    #[error("{}", list(problems))]
    Invalid {
        /// At least one.
        problems: Vec<Problem>,
    },
}

impl ConfigError {
    /// The problems, empty when the file could not be read at all.
    pub fn problems(&self) -> &[Problem] {
        match self {
            ConfigError::Unreadable { .. } => &[],
            ConfigError::Invalid { problems } => problems,
        }
    }
}

fn list(problems: &[Problem]) -> String {
    let noun = if problems.len() == 1 { "problem" } else { "problems" };
    let lines: Vec<String> = problems.iter().map(|problem| format!("  {problem}")).collect();
    format!("{} {noun} in the configuration:\n{}", problems.len(), lines.join("\n"))
}
