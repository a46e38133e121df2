//! Policies by the names that the config and the command line use: parses a name, and builds the
//! policy's learner from a profile and its options.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::baselines::{AdaServe, AdaSpec, AdaSpecGate, AdaSpecVerifier, Eagle2, SmartSpec, Threshold};
use super::specserve::{SpecServeLearner, SpecServeOptions};
use super::survival::POSITIONS_MAX;
use super::{Fixed, Learner, Static};
use crate::timing::ProfileError;
use crate::timing::cost_model::CostModel;
use crate::timing::profile::Profile;

/// All names, for help texts and errors.
pub const POLICY_NAMES: &str = "none, fixed:K, threshold:P, smartspec, adaspec, adaspec-gated, adaspec-verifier[:K], \
     eagle2:N, sglang-tree, adaserve, specserve";

/// A policy's name with its parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PolicyName {
    /// `none`: plain decoding.
    None,
    /// `fixed:K`: always `K` drafts, 1 to 32.
    Fixed(u32),
    /// `threshold:P`: drafts while the batch's mean draft probability is at least `P`, 0 to 1.
    Threshold(f32),
    /// `smartspec`.
    SmartSpec,
    /// `adaspec`: as its authors released it, without the gate.
    AdaSpec,
    /// `adaspec-gated`: as in its paper, which drafts only within the tightest TPOT objective.
    AdaSpecGated,
    /// `adaspec-verifier:K`: AdaSpec's verifier alone, over `K` drafts, 1 to 32. Without `K`, over
    /// as many as the options allow.
    AdaSpecVerifier(Option<u32>),
    /// `eagle2:N`: trees of which `N` drafts are verified, 1 to 32.
    Eagle2(u32),
    /// `sglang-tree`: trees with SGLang's defaults.
    SglangTree,
    /// `adaserve`: trees under objectives.
    AdaServe,
    /// `specserve`: ours.
    #[default]
    SpecServe,
}

impl PolicyName {
    /// The longest draft that the policy asks for by itself, if it names one.
    pub fn draft_tokens(self) -> Option<u32> {
        match self {
            PolicyName::Fixed(length) | PolicyName::Eagle2(length) => Some(length),
            PolicyName::AdaSpecVerifier(length) => length,
            _ => None,
        }
    }

    /// Whether the policy can only work with a draft model.
    pub fn needs_draft_model(self) -> bool {
        self != PolicyName::None
    }

    /// Whether the policy plans with measured times.
    pub fn needs_profile(self) -> bool {
        match self {
            PolicyName::None | PolicyName::Fixed(_) | PolicyName::Threshold(_) => false,
            PolicyName::Eagle2(_) | PolicyName::SglangTree => false,
            PolicyName::SmartSpec | PolicyName::AdaSpec | PolicyName::AdaSpecGated => true,
            PolicyName::AdaSpecVerifier(_) | PolicyName::AdaServe | PolicyName::SpecServe => true,
        }
    }
}

/// An unknown policy name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown policy {0:?}; known are {POLICY_NAMES}")]
pub struct UnknownPolicy(pub String);

impl FromStr for PolicyName {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<PolicyName, UnknownPolicy> {
        let unknown = || UnknownPolicy(text.to_owned());
        let length = |text: &str| match text.parse() {
            Ok(length) if (1..=POSITIONS_MAX as u32).contains(&length) => Ok(length),
            _ => Err(unknown()),
        };
        match text.split_once(':') {
            None => match text {
                "none" => Ok(PolicyName::None),
                "smartspec" => Ok(PolicyName::SmartSpec),
                "adaspec" => Ok(PolicyName::AdaSpec),
                "adaspec-gated" => Ok(PolicyName::AdaSpecGated),
                "adaspec-verifier" => Ok(PolicyName::AdaSpecVerifier(None)),
                "sglang-tree" => Ok(PolicyName::SglangTree),
                "adaserve" => Ok(PolicyName::AdaServe),
                "specserve" => Ok(PolicyName::SpecServe),
                _ => Err(unknown()),
            },
            Some(("fixed", tokens)) => Ok(PolicyName::Fixed(length(tokens)?)),
            Some(("adaspec-verifier", tokens)) => Ok(PolicyName::AdaSpecVerifier(Some(length(tokens)?))),
            Some(("eagle2", drafts)) => Ok(PolicyName::Eagle2(length(drafts)?)),
            Some(("threshold", probability)) => match probability.parse() {
                Ok(probability) if (0.0..=1.0).contains(&probability) => {
                    Ok(PolicyName::Threshold(probability))
                }
                _ => Err(unknown()),
            },
            Some(_) => Err(unknown()),
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicyName::None => f.write_str("none"),
            PolicyName::Fixed(length) => write!(f, "fixed:{length}"),
            PolicyName::Threshold(probability) => write!(f, "threshold:{probability}"),
            PolicyName::SmartSpec => f.write_str("smartspec"),
            PolicyName::AdaSpec => f.write_str("adaspec"),
            PolicyName::AdaSpecGated => f.write_str("adaspec-gated"),
            PolicyName::AdaSpecVerifier(None) => f.write_str("adaspec-verifier"),
            PolicyName::AdaSpecVerifier(Some(length)) => write!(f, "adaspec-verifier:{length}"),
            PolicyName::Eagle2(drafts) => write!(f, "eagle2:{drafts}"),
            PolicyName::SglangTree => f.write_str("sglang-tree"),
            PolicyName::AdaServe => f.write_str("adaserve"),
            PolicyName::SpecServe => f.write_str("specserve"),
        }
    }
}

impl TryFrom<String> for PolicyName {
    type Error = UnknownPolicy;

    fn try_from(text: String) -> Result<PolicyName, UnknownPolicy> {
        text.parse()
    }
}

impl From<PolicyName> for String {
    fn from(name: PolicyName) -> String {
        name.to_string()
    }
}

/// Options of the policies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyOptions {
    /// Of `specserve`; its `draft_tokens_max` holds for all policies that choose a length.
    pub specserve: SpecServeOptions,
    /// Of `adaspec-gated`.
    pub adaspec_gate: AdaSpecGate,
}

/// Why a policy can't be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The policy plans with measured times, and there is no profile.
    #[error("policy {0} needs a profile; make one with `specserve profile`")]
    NeedsProfile(PolicyName),
    /// The profile is unusable.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

/// Builds a policy's learner. `profile` may be absent for those that [need none](PolicyName::needs_profile).
///
/// # Errors
/// [`BuildError`].
pub fn build(
    name: PolicyName,
    profile: Option<&Profile>,
    options: &PolicyOptions,
) -> Result<Box<dyn Learner>, BuildError> {
    let draft_tokens_max = options.specserve.draft_tokens_max;
    let cost = || -> Result<CostModel, BuildError> {
        Ok(profile.ok_or(BuildError::NeedsProfile(name))?.cost_model()?)
    };
    Ok(match name {
        PolicyName::None => Box::new(Static::new(Fixed::NONE)),
        PolicyName::Fixed(draft_tokens) => Box::new(Static::new(Fixed { draft_tokens })),
        PolicyName::Threshold(probability) => {
            Box::new(Static::new(Threshold { probability, draft_tokens_max }))
        }
        PolicyName::SmartSpec => Box::new(SmartSpec::new(cost()?, draft_tokens_max)),
        PolicyName::AdaSpec => Box::new(AdaSpec::released(cost()?, draft_tokens_max)),
        PolicyName::AdaSpecGated => Box::new(AdaSpec::gated(cost()?, draft_tokens_max, options.adaspec_gate)),
        PolicyName::AdaSpecVerifier(None) => {
            Box::new(Static::new(AdaSpecVerifier::new(cost()?, draft_tokens_max)))
        }
        PolicyName::AdaSpecVerifier(Some(draft_tokens)) => {
            Box::new(Static::new(AdaSpecVerifier::with_draft_tokens(cost()?, draft_tokens)))
        }
        PolicyName::Eagle2(drafts) => Box::new(Static::new(Eagle2::with_budget(drafts, draft_tokens_max))),
        PolicyName::SglangTree => Box::new(Static::new(Eagle2::sglang(draft_tokens_max))),
        PolicyName::AdaServe => Box::new(Static::new(AdaServe::new(cost()?, draft_tokens_max))),
        PolicyName::SpecServe => {
            let warm_start = profile.and_then(|profile| profile.reliability.clone());
            Box::new(SpecServeLearner::new(cost()?, warm_start, options.specserve.clone()))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::profile::tests::gpu_like;

    const GOOD: [&str; 15] = [
        "none",
        "fixed:1",
        "fixed:16",
        "threshold:0.6",
        "smartspec",
        "adaspec",
        "adaspec-gated",
        "adaspec-verifier",
        "adaspec-verifier:1",
        "adaspec-verifier:16",
        "eagle2:1",
        "eagle2:16",
        "sglang-tree",
        "adaserve",
        "specserve",
    ];

    #[test]
    fn every_name_is_read_printed_and_built_under_itself() {
        let profile = gpu_like();
        for text in GOOD {
            let name: PolicyName = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
            let learner = build(name, Some(&profile), &PolicyOptions::default()).unwrap();
            assert_eq!(learner.name(), text);
            assert_eq!(learner.state()["policy"], text);
            assert_eq!(learner.snapshot().name(), text);
        }
    }

    #[test]
    fn names_that_mean_nothing_are_refused_with_the_known_ones() {
        for text in [
            "",
            "fixed",
            "fixed:",
            "fixed:0",
            "fixed:33",
            "fixed:-1",
            "threshold:1.5",
            "threshold:nan",
            "None",
            "adaspec:1",
            "adaspec-gated:1",
            "adaspec-verifier:",
            "adaspec-verifier:0",
            "adaspec-verifier:33",
            "eagle2",
            "eagle2:0",
            "eagle2:33",
            "sglang-tree:4",
            "none:0",
            "threshold",
            "fixed:3:4",
        ] {
            let error = text.parse::<PolicyName>().unwrap_err().to_string();
            assert!(error.contains("adaspec-verifier"), "{text}: {error}");
        }
    }

    #[test]
    fn policies_that_plan_with_times_need_a_profile() {
        for text in GOOD {
            let name: PolicyName = text.parse().unwrap();
            let built = build(name, None, &PolicyOptions::default());
            assert_eq!(built.is_err(), name.needs_profile(), "{text}");
        }
    }

    #[test]
    fn the_config_holds_a_name_as_a_string() {
        #[derive(serde::Deserialize, serde::Serialize)]
        struct Config {
            policy: PolicyName,
        }
        let config: Config = toml::from_str("policy = \"fixed:4\"").unwrap();
        assert_eq!(config.policy, PolicyName::Fixed(4));
        assert_eq!(toml::to_string(&config).unwrap(), "policy = \"fixed:4\"\n");
        assert!(toml::from_str::<Config>("policy = \"fast\"").is_err());
    }
}
