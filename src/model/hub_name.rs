//! Names of models on the Hugging Face hub.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// Longest `org/name`, in bytes; the hub's own bound.
const REPOSITORY_BYTES_MAX: usize = 96;
/// Longest revision, in bytes.
const REVISION_BYTES_MAX: usize = 128;
/// Revision of a name without one.
const REVISION_DEFAULT: &str = "main";
/// Length of a commit's full hash, in hexadecimal digits.
const COMMIT_DIGITS: usize = 40;

/// A model of the hub: `org/name`, or `org/name@revision`. Every part can be used in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    organisation: String,
    name: String,
    revision: Option<String>,
}

/// Why a text names no model of the hub.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HubNameError(String);

impl HubName {
    /// Name without organisation and revision.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `org/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.organisation, self.name)
    }

    /// Branch, tag or commit; `main` if none is given.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(REVISION_DEFAULT)
    }

    /// Name of the repository's directory in a cache.
    pub(super) fn cache_directory(&self) -> String {
        format!("models--{}--{}", self.organisation, self.name)
    }
}

impl FromStr for HubName {
    type Err = HubNameError;

    /// Accepts what the hub accepts as `org/name`, by its form only.
    fn from_str(text: &str) -> Result<HubName, HubNameError> {
        let refused = |why: &str| HubNameError(format!("{why}; write org/name or org/name@revision"));
        let (repository, revision) = match text.split_once('@') {
            None => (text, None),
            Some((repository, revision)) => (repository, Some(revision)),
        };
        let (organisation, name) = repository.split_once('/').ok_or_else(|| refused("there is no `/`"))?;
        if name.contains('/') {
            return Err(refused("there is more than one `/`"));
        }
        if repository.len() > REPOSITORY_BYTES_MAX {
            return Err(refused(&format!("org/name is longer than {REPOSITORY_BYTES_MAX} bytes")));
        }
        if !is_repository_part(organisation) || !is_repository_part(name) || name.ends_with(".git") {
            let rule = "org and name consist of letters, digits, `-`, `_` and `.`, without `--` or `..`, and \
                        neither begin nor end with `-` or `.`, nor end with .git";
            return Err(refused(rule));
        }
        if revision.is_some_and(|revision| !is_revision(revision)) {
            let rule = format!(
                "a revision is a branch, tag or commit of letters, digits, `-`, `_`, `.`, `+` and `/`, up to \
                 {REVISION_BYTES_MAX} bytes"
            );
            return Err(refused(&rule));
        }
        let [organisation, name] = [organisation, name].map(ToOwned::to_owned);
        Ok(HubName { organisation, name, revision: revision.map(ToOwned::to_owned) })
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
    }
}

/// Whether `text` is the full hash of a commit.
pub fn is_commit(text: &str) -> bool {
    text.len() == COMMIT_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_repository_part(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let edge = |end: Option<&u8>| end.is_some_and(|byte| !b"-.".contains(byte));
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|&byte| allowed(byte))
        && !text.contains("--")
        && !text.contains("..")
}

fn is_revision(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed);
    text.len() <= REVISION_BYTES_MAX && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_organisation_and_a_name_with_or_without_a_revision() {
        let plain: HubName = "Qwen/Qwen2.5-0.5B".parse().expect("a name");
        assert_eq!((plain.repository().as_str(), plain.revision()), ("Qwen/Qwen2.5-0.5B", "main"));
        assert_eq!((plain.name(), plain.to_string().as_str()), ("Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"));
        let revised: HubName = "a_b/c@refs/pr/1".parse().expect("a name");
        assert_eq!((revised.repository().as_str(), revised.revision()), ("a_b/c", "refs/pr/1"));
        assert_eq!(revised.to_string(), "a_b/c@refs/pr/1");
    }

    #[test]
    fn what_the_hub_does_not_allow_or_a_path_must_not_hold_is_no_name() {
        for text in [
            "",
            "gpt2",
            "/",
            "a/",
            "/b",
            "a/b/",
            "a/b/c",
            "/a/b",
            "./a",
            "../a",
            "a/..",
            "a/.",
            "~/a",
            "a b/c",
            "a/b--c",
            "a--b/c",
            "a/b..c",
            "-a/b",
            "a/b-",
            "a/b.git",
            "a/b@",
            "a/b@/c",
            "a/b@c/../../d",
            "a/b@.c",
            "a/b@c//d",
            "a/b@c@d",
            "a/b@c d",
            "a/b\0",
            "ä/b",
            "https://huggingface.co/a/b",
            "embedded:tiny",
        ] {
            let error = text.parse::<HubName>().expect_err(text).to_string();
            assert!(error.ends_with("; write org/name or org/name@revision"), "{text}: {error}");
        }
        let longest = format!("a/{}", "b".repeat(94));
        assert!(longest.parse::<HubName>().is_ok());
        assert!(format!("{longest}b").parse::<HubName>().is_err());
        assert!(format!("a/b@{}", "c".repeat(129)).parse::<HubName>().is_err());
    }

    #[test]
    fn a_commit_is_a_full_hash() {
        assert!(is_commit(&"0a".repeat(20)));
        for text in ["main", "0a", &"0g".repeat(20), &"0a".repeat(21)] {
            assert!(!is_commit(text), "{text}");
        }
    }
}
