//! Maps the hub's error responses to errors for the user.

use super::error::HubError;
use crate::model::HubName;

/// An answer other than success.
pub(super) struct Refusal {
    pub url: String,
    pub status: u16,
    /// Header `x-error-code`.
    pub code: Option<String>,
    /// Header `x-error-message`.
    pub message: Option<String>,
}

impl Refusal {
    /// Whether it says that the repository lacks the file.
    pub(super) fn is_missing_file(&self) -> bool {
        self.status == 404 && self.code.as_deref().is_none_or(|code| code == "EntryNotFound")
    }

    /// The error for the user, who asked for `name` of the hub at `endpoint`, with or without a
    /// token.
    pub(super) fn error(self, name: &HubName, endpoint: &str, token: bool) -> HubError {
        let (repository, page) = (name.repository(), format!("{endpoint}/{}", name.repository()));
        match (self.code.as_deref(), self.status) {
            (Some("GatedRepo"), _) | (None, 403) => HubError::Gated { name: repository, page, token },
            (Some("RevisionNotFound"), _) => {
                HubError::NoRevision { name: repository, revision: name.revision().to_owned(), page }
            }
            // the hub does not tell strangers which names exist
            (Some("RepoNotFound"), _) | (_, 401) | (None, 404) => {
                HubError::NoRepository { name: repository, endpoint: endpoint.to_owned(), token }
            }
            _ => HubError::Status {
                url: self.url,
                status: self.status,
                message: self.message.unwrap_or_default(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, code: Option<&str>) -> Refusal {
        let code = code.map(ToOwned::to_owned);
        Refusal { url: "https://hub/x".to_owned(), status, code, message: Some("Why".to_owned()) }
    }

    fn error(status: u16, code: Option<&str>, token: bool) -> String {
        let name = "org/name@v2".parse().expect("a name");
        refusal(status, code).error(&name, "https://hub", token).to_string()
    }

    #[test]
    fn a_gated_model_says_to_accept_its_conditions_and_to_send_a_token() {
        for (status, code) in [(401, Some("GatedRepo")), (403, Some("GatedRepo")), (403, None)] {
            let without = error(status, code, false);
            assert!(
                without.contains("`org/name` is gated: accept its conditions at https://hub/org/name"),
                "{without}"
            );
            assert!(without.ends_with("set HF_TOKEN to a token of an account that has access"), "{without}");
            assert!(error(status, code, true).ends_with("the one that was sent has none"));
        }
    }

    #[test]
    fn an_unknown_model_says_to_check_the_name_or_to_send_a_token() {
        for (status, code) in
            [(404, Some("RepoNotFound")), (401, Some("RepoNotFound")), (401, None), (404, None)]
        {
            let error = error(status, code, false);
            assert!(error.contains("shows no model `org/name` without a token: check the name"), "{error}");
            assert!(error.contains("set HF_TOKEN"), "{error}");
        }
    }

    #[test]
    fn an_unknown_revision_and_any_other_answer_are_named() {
        let unknown = error(404, Some("RevisionNotFound"), false);
        assert!(unknown.contains("`org/name` has no branch, tag or commit `v2`"), "{unknown}");
        assert_eq!(error(451, None, false), "https://hub/x answered 451: Why");
    }

    #[test]
    fn only_a_missing_file_is_a_missing_file() {
        assert!(refusal(404, Some("EntryNotFound")).is_missing_file());
        assert!(refusal(404, None).is_missing_file());
        assert!(!refusal(404, Some("RepoNotFound")).is_missing_file());
        assert!(!refusal(403, None).is_missing_file());
    }
}
