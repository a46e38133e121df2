//! `[speculation]`: the policy and its time model.

use std::path::PathBuf;
use std::time::Duration;

use toml::Value;

use super::reader::{Integer, Section};
use super::render::Entry;
use crate::policy::registry::{POLICY_NAMES, PolicyName};
use crate::policy::specserve::{SHAPE_NAMES, Shape};

const DRAFT_TOKENS_MAX: Integer = Integer::new("draft_tokens_max", 8, 1, 32);
const PROFILE_AT_START_MS_MAX: Integer = Integer::new("profile_at_start_ms_max", 5000, 100, 600_000);
const PROFILE_BOUND: &str = "a file written by `specserve profile`";
const PROFILE_AT_START_BOUND: &str = "true or false";

/// Speculation policy and time model.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeculationConfig {
    /// Policy that sets the draft lengths.
    pub policy: PolicyName,
    /// Most draft tokens per sequence and step.
    pub draft_tokens_max: u32,
    /// How drafts may stand to each other; of the policy `specserve` alone.
    pub shape: Shape,
    /// Profile file with the time model.
    pub profile: Option<PathBuf>,
    /// Whether to profile at startup if the profile is missing or stale. Defaults to true iff
    /// no profile is configured: operators who configure one want an error if it is stale.
    pub profile_at_start: bool,
    /// Longest time that this may take.
    pub profile_at_start_max: Duration,
}

impl SpeculationConfig {
    /// Reads the section. `drafts` tells whether a draft model or method is configured.
    pub(super) fn read(mut section: Section<'_>, drafts: bool) -> SpeculationConfig {
        let default_policy = if drafts { PolicyName::default() } else { PolicyName::None };
        let policy = |text: &str| text.parse::<PolicyName>().map_err(|_| "is not a policy".to_owned());
        let profile = |text: &str| match text {
            "" => Err("is empty".to_owned()),
            path => Ok(PathBuf::from(path)),
        };
        let policy = section
            .parsed("policy", &format!("give one of {POLICY_NAMES}"), policy)
            .unwrap_or(default_policy);
        let draft_tokens_max = section.integer(&DRAFT_TOKENS_MAX) as u32;
        let read_shape = |text: &str| text.parse::<Shape>().map_err(|_| "is not a shape".to_owned());
        let shape =
            section.parsed("shape", &format!("give one of {SHAPE_NAMES}"), read_shape).unwrap_or_default();
        let profile = section.parsed("profile", &format!("give {PROFILE_BOUND}"), profile);
        let profile_at_start = section.boolean("profile_at_start").unwrap_or(profile.is_none());
        let profile_at_start_max = Duration::from_millis(section.integer(&PROFILE_AT_START_MS_MAX));
        section.finish();
        SpeculationConfig { policy, draft_tokens_max, shape, profile, profile_at_start, profile_at_start_max }
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        let profile = self.profile.as_ref().map(|path| Value::String(path.display().to_string()));
        vec![
            Entry::text("policy", self.policy.to_string(), POLICY_NAMES),
            Entry::integer(&DRAFT_TOKENS_MAX, u64::from(self.draft_tokens_max)),
            Entry::text("shape", self.shape.name().to_owned(), SHAPE_NAMES),
            Entry::optional("profile", profile, PROFILE_BOUND),
            Entry::optional(
                "profile_at_start",
                Some(Value::Boolean(self.profile_at_start)),
                PROFILE_AT_START_BOUND,
            ),
            Entry::integer(&PROFILE_AT_START_MS_MAX, self.profile_at_start_max.as_millis() as u64),
        ]
    }
}
