//! `[speculation]`: which policy decides how far to draft.

use std::str::FromStr;

use super::reader::{Integer, Section};
use super::render::Entry;

const DRAFT_TOKENS_MAX: Integer = Integer::new("draft_tokens_max", 8, 1, 32);
const POLICY_BOUND: &str = "\"none\" or \"fixed:K\" with K of 1 to draft_tokens_max";

/// A policy by its name in the config: `name` or `name:argument`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicySpec {
    /// `none`: plain decoding.
    None,
    /// `fixed:K`: always draft `K` tokens.
    Fixed {
        /// `K`, at least 1.
        draft_tokens: u32,
    },
}

impl PolicySpec {
    /// The longest draft that the policy asks for by itself, if it names one.
    pub fn draft_tokens(self) -> Option<u32> {
        match self {
            PolicySpec::None => None,
            PolicySpec::Fixed { draft_tokens } => Some(draft_tokens),
        }
    }

    /// Whether the policy asks a draft model for its tokens.
    pub fn needs_draft_model(self) -> bool {
        match self {
            PolicySpec::None => false,
            PolicySpec::Fixed { .. } => true,
        }
    }
}

impl std::fmt::Display for PolicySpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PolicySpec::None => f.write_str("none"),
            PolicySpec::Fixed { draft_tokens } => write!(f, "fixed:{draft_tokens}"),
        }
    }
}

/// Why a text names no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyParseError {
    /// No policy has this name.
    #[error("{0:?} is not a policy")]
    Unknown(String),
    /// The argument is missing, superfluous or out of its bound.
    #[error("policy {name} takes {expected}")]
    Argument {
        /// The policy.
        name: &'static str,
        /// What may follow its name.
        expected: &'static str,
    },
}

/// The one place that knows the policies' names.
impl FromStr for PolicySpec {
    type Err = PolicyParseError;

    fn from_str(text: &str) -> Result<PolicySpec, PolicyParseError> {
        let (name, argument) = match text.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        match name {
            "none" => match argument {
                None => Ok(PolicySpec::None),
                Some(_) => Err(PolicyParseError::Argument { name: "none", expected: "no argument" }),
            },
            "fixed" => draft_tokens(argument)
                .map(|draft_tokens| PolicySpec::Fixed { draft_tokens })
                .ok_or(PolicyParseError::Argument { name: "fixed", expected: "a draft length of 1 to 32" }),
            _ => Err(PolicyParseError::Unknown(name.to_owned())),
        }
    }
}

fn draft_tokens(argument: Option<&str>) -> Option<u32> {
    let text = argument?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let tokens: u32 = text.parse().ok()?;
    (1..=DRAFT_TOKENS_MAX.max).contains(&u64::from(tokens)).then_some(tokens)
}

/// How the daemon speculates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeculationConfig {
    /// Who decides.
    pub policy: PolicySpec,
    /// Most draft tokens of one sequence in one step.
    pub draft_tokens_max: u32,
}

impl SpeculationConfig {
    pub(super) fn read(mut section: Section<'_>) -> SpeculationConfig {
        let parse = |text: &str| text.parse::<PolicySpec>().map_err(|error| error.to_string());
        let config = SpeculationConfig {
            policy: section
                .parsed("policy", &format!("give {POLICY_BOUND}"), parse)
                .unwrap_or(PolicySpec::None),
            draft_tokens_max: section.integer(&DRAFT_TOKENS_MAX) as u32,
        };
        section.finish();
        config
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        vec![
            Entry::text("policy", self.policy.to_string(), POLICY_BOUND),
            Entry::integer(&DRAFT_TOKENS_MAX, u64::from(self.draft_tokens_max)),
        ]
    }
}
