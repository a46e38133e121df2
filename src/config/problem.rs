//! Configuration errors, for the operator.

use std::path::PathBuf;

/// One problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Location: `section.key`, or the section's name.
    pub path: String,
    /// The offending value as written in the file; `None` if it is missing.
    pub value: Option<String>,
    /// What is wrong, including the bound.
    pub what: String,
    /// How to fix it.
    pub advice: String,
}

impl std::fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, ": {}; {}", self.what, self.advice)
    }
}

/// Why a configuration could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The configuration is invalid.
    #[error("{}", list(problems))]
    Invalid {
        /// All problems found; at least one.
        problems: Vec<ConfigProblem>,
    },
}

impl ConfigError {
    /// The problems; empty if the file could not be read.
    pub fn problems(&self) -> &[ConfigProblem] {
        match self {
            ConfigError::Unreadable { .. } => &[],
            ConfigError::Invalid { problems } => problems,
        }
    }
}

fn list(problems: &[ConfigProblem]) -> String {
    let noun = if problems.len() == 1 { "problem" } else { "problems" };
    let lines: Vec<String> = problems.iter().map(|problem| format!("  {problem}")).collect();
    format!("{} {noun} in the configuration:\n{}", problems.len(), lines.join("\n"))
}
