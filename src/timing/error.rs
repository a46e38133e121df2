//! Why a time model or a profile can't be used.

/// Version of the file format; a file of another version is refused.
pub const PROFILE_FORMAT: u32 = 2;

/// Why a profile can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not TOML, or not of the profile's shape.
    #[error("the profile can't be read: {0}")]
    Parse(#[from] toml::de::Error),
    /// It can't be written as TOML.
    #[error("the profile can't be written: {0}")]
    Write(#[from] toml::ser::Error),
    /// Another format version.
    #[error("the profile has format {actual}, this version reads {PROFILE_FORMAT}; profile again")]
    Format {
        /// The file's.
        actual: u32,
    },
    /// The time model's terms are impossible.
    #[error("the profile's time model is invalid: {0}")]
    Terms(String),
    /// It was made on another machine, for other models or by another version.
    #[error("the profile is stale: {0}; profile again")]
    Stale(String),
    /// There are too few measurements to fit.
    #[error("too few measurements to fit: {0}")]
    TooFew(String),
}
