//! The profile file (TOML): what the offline analyzer measured on one machine, the fitted time
//! model, and the fingerprint of machine, models and version that it is valid for.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::cost_model::{CostModel, LatencyModel, LatencyTerms};
use super::error::{PROFILE_FORMAT, ProfileError};
use super::fit::FitError;
use super::point::ProfilePoint;
use super::reliability::Reliability;

/// What a profile is valid for. Any difference makes it stale.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// `cpu`, `cuda` or `virtual`.
    pub backend: String,
    /// Human-readable device name.
    pub device: String,
    /// Driver version; empty on a CPU.
    pub driver: String,
    /// Digest of the target model's shape and weights.
    pub target_digest: String,
    /// Digest of the draft model's; empty without one.
    pub draft_digest: String,
    /// Number format of the weights.
    pub dtype: String,
    /// Compute threads; 0 where that has no meaning.
    pub threads: u32,
    /// Version of this program.
    pub engine_version: String,
}

impl Fingerprint {
    /// Every field that differs, with both values, the profile's first; empty when equal.
    pub fn differences(&self, machine: &Fingerprint) -> Vec<String> {
        let fields: [(&str, &dyn fmt::Display, &dyn fmt::Display); 8] = [
            ("backend", &self.backend, &machine.backend),
            ("device", &self.device, &machine.device),
            ("driver", &self.driver, &machine.driver),
            ("target model", &self.target_digest, &machine.target_digest),
            ("draft model", &self.draft_digest, &machine.draft_digest),
            ("dtype", &self.dtype, &machine.dtype),
            ("threads", &self.threads, &machine.threads),
            ("engine version", &self.engine_version, &machine.engine_version),
        ];
        fields
            .iter()
            .map(|(name, mine, theirs)| (name, mine.to_string(), theirs.to_string()))
            .filter(|(_, mine, theirs)| mine != theirs)
            .map(|(name, mine, theirs)| format!("{name} was {mine:?}, is {theirs:?}"))
            .collect()
    }
}

/// A profile file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// [`PROFILE_FORMAT`].
    pub format: u32,
    /// Where the numbers come from: `measured`, or `modelled` with the reason.
    pub origin: String,
    /// What a step costs beside the models, in microseconds.
    pub host_us: f64,
    /// What it is valid for.
    pub fingerprint: Fingerprint,
    /// Time of the target model.
    pub target: LatencyTerms,
    /// Time of the draft model, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<LatencyTerms>,
    /// Error of the target's fit on points that it did not see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_error: Option<FitError>,
    /// Error of the draft's fit on points that it did not see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft_error: Option<FitError>,
    /// Warm start of the acceptance calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reliability: Option<Reliability>,
    /// The measurements.
    #[serde(default, rename = "point", skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<ProfilePoint>,
}

/// The part of a profile that every version can read.
#[derive(Deserialize)]
struct Header {
    format: u32,
}

impl Profile {
    /// Reads a profile and checks all of it but the fingerprint.
    ///
    /// # Errors
    /// [`ProfileError::Parse`], [`ProfileError::Format`] or [`ProfileError::Terms`].
    pub fn from_toml(text: &str) -> Result<Profile, ProfileError> {
        let Header { format } = toml::from_str(text)?;
        if format != PROFILE_FORMAT {
            return Err(ProfileError::Format { actual: format });
        }
        let profile: Profile = toml::from_str(text)?;
        profile.cost_model()?;
        if profile.reliability.as_ref().is_some_and(|table| !table.is_valid()) {
            return Err(ProfileError::Terms("the reliability table is not one".to_owned()));
        }
        Ok(profile)
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`ProfileError::Write`]; does not happen for values that `from_toml` accepts.
    pub fn to_toml(&self) -> Result<String, ProfileError> {
        Ok(toml::to_string(self)?)
    }

    /// Rejects a profile of another machine, other models or another version.
    ///
    /// # Errors
    /// [`ProfileError::Stale`] with every difference.
    pub fn check_fresh(&self, machine: &Fingerprint) -> Result<(), ProfileError> {
        let differences = self.fingerprint.differences(machine);
        if differences.is_empty() { Ok(()) } else { Err(ProfileError::Stale(differences.join("; "))) }
    }

    /// The time model.
    ///
    /// # Errors
    /// [`ProfileError::Terms`].
    pub fn cost_model(&self) -> Result<CostModel, ProfileError> {
        if !self.host_us.is_finite() || self.host_us < 0.0 {
            return Err(ProfileError::Terms("host_us must be finite and not negative".to_owned()));
        }
        Ok(CostModel {
            target: LatencyModel::new(self.target.clone())?,
            draft: self.draft.clone().map(LatencyModel::new).transpose()?,
            host_us: self.host_us,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::cost_model::Between;
    use super::*;
    use crate::protocol::ModelRole;

    /// An 8B-like target and a small draft on a fast device, in round numbers.
    pub(crate) fn gpu_like() -> Profile {
        let rows = [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024];
        let target =
            rows.map(|n| 7000.0 + 6.0 * f64::from(n) + 14.0 * (f64::from(n) - 256.0).max(0.0)).to_vec();
        let draft = rows.map(|n| 400.0 + 0.6 * f64::from(n)).to_vec();
        Profile {
            format: PROFILE_FORMAT,
            origin: "modelled: a test".to_owned(),
            fingerprint: Fingerprint { backend: "virtual".to_owned(), ..Fingerprint::default() },
            host_us: 60.0,
            target: LatencyTerms {
                context_token_us: 0.05,
                prefill_attended_us: 0.002,
                prefill_step_us: 50.0,
                ..LatencyTerms::staircase(Between::Pad, &rows, &target)
            },
            draft: Some(LatencyTerms {
                context_token_us: 0.004,
                ..LatencyTerms::staircase(Between::Pad, &rows, &draft)
            }),
            target_error: None,
            draft_error: None,
            reliability: None,
            points: vec![ProfilePoint {
                model: ModelRole::Target,
                rows: 8,
                sequences: 2,
                context_tokens: 512,
                prefill_tokens: 4,
                prefill_done_tokens: 10,
                head_calls: None,
                micros: 7100.5,
            }],
        }
    }

    /// The same, but that every row takes 25 us, and so every prefill token beside any others.
    pub(crate) fn with_even_rows() -> Profile {
        let profile = gpu_like();
        let (rows, micros) = ([1, 1001], [7006.0, 32_006.0]);
        let even = LatencyTerms::staircase(Between::Interpolate, &rows, &micros);
        let target =
            LatencyTerms { rows: even.rows, micros: even.micros, between: even.between, ..profile.target };
        Profile { target, ..profile }
    }

    #[test]
    fn a_profile_survives_its_file() {
        let profile = Profile { reliability: Some(Reliability::default()), ..gpu_like() };
        let text = profile.to_toml().unwrap();
        assert_eq!(Profile::from_toml(&text).unwrap(), profile);
    }

    #[test]
    fn a_stale_profile_names_every_difference() {
        let profile = gpu_like();
        let machine = Fingerprint { threads: 8, dtype: "bf16".to_owned(), ..profile.fingerprint.clone() };
        assert!(profile.check_fresh(&profile.fingerprint).is_ok());
        let error = profile.check_fresh(&machine).unwrap_err().to_string();
        assert!(error.contains("threads was \"0\", is \"8\"") && error.contains("dtype"), "{error}");
    }

    #[test]
    fn unknown_keys_other_formats_and_bad_terms_are_refused() {
        let text = gpu_like().to_toml().unwrap();
        assert!(Profile::from_toml(&format!("surprise = 1\n{text}")).is_err());
        let newer = text.replacen("format = 2\n", "format = 3\nsurprise = 1\n", 1);
        assert!(matches!(Profile::from_toml(&newer), Err(ProfileError::Format { actual: 3 })));
        let negative = text.replacen("host_us = 60.0", "host_us = -1.0", 1);
        assert!(matches!(Profile::from_toml(&negative), Err(ProfileError::Terms(_))));
    }

    #[test]
    fn a_point_counts_context_per_sequence_and_per_row() {
        let work = gpu_like().points[0].work();
        assert_eq!((work.context_tokens, work.attended_tokens), (1024, 4096));
        assert_eq!(work.prefill_attended_tokens, 4 * 10 + 10);
    }
}
