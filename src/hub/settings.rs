//! Settings of a pull: endpoint, cache, token, proxy, retries.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::{HubCache, hub_home};

/// How often the pause between tries doubles at most.
const DOUBLINGS_MAX: u32 = 5;
const ENDPOINT_DEFAULT: &str = "https://huggingface.co";

/// Settings of a pull.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// The cache that is filled.
    pub cache: HubCache,
    /// Address of the hub or a mirror, without a slash at the end.
    pub endpoint: String,
    /// The user's access token.
    pub token: Option<Token>,
    /// Whether the network must not be used.
    pub offline: bool,
    /// The proxy to connect through.
    pub proxy: Option<ureq::Proxy>,
    /// How long to wait and how often to try.
    pub patience: Patience,
}

/// How long to wait for the hub, and how often to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Longest time to connect, and to wait for anything more to arrive.
    pub stall: Duration,
    /// Tries in a row that yield nothing before a file is given up.
    pub tries: u32,
    /// Pause before the second try; it doubles with each further one.
    pub pause: Duration,
}

/// An access token, which is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl HubSettings {
    /// Settings by this process's environment.
    pub fn of_process() -> HubSettings {
        let settings = HubSettings::of_variables(&|name| std::env::var_os(name), std::env::home_dir());
        HubSettings { proxy: ureq::Proxy::try_from_env(), ..settings }
    }

    /// Settings by environment variables, as in Hugging Face's programs; without a proxy. A token
    /// that no variable gives is read from the file that `hf auth login` writes.
    pub fn of_variables(variable: &dyn Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> HubSettings {
        let text = |name: &str| {
            let text = variable(name)?.into_string().ok()?.trim().to_owned();
            Some(text).filter(|text| !text.is_empty())
        };
        let flag = |name: &str| {
            let value = text(name).unwrap_or_default().to_ascii_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
        };
        let token_file = text("HF_TOKEN_PATH")
            .map_or_else(|| hub_home(variable, home.clone()).join("token"), PathBuf::from);
        let given = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let token = given.or_else(|| std::fs::read_to_string(token_file).ok());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT_DEFAULT.to_owned());
        HubSettings {
            cache: HubCache::of_variables(variable, home),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.as_deref().and_then(Token::new),
            offline: flag("HF_HUB_OFFLINE") || flag("TRANSFORMERS_OFFLINE"),
            proxy: None,
            patience: Patience::default(),
        }
    }
}

impl Patience {
    /// Sleeps before the next try, after so many in a row that yielded nothing.
    pub(super) fn pause_after(&self, failures: u32) {
        std::thread::sleep(self.pause * (1 << failures.saturating_sub(1).min(DOUBLINGS_MAX)));
    }
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { stall: Duration::from_secs(30), tries: 5, pause: Duration::from_secs(1) }
    }
}

impl Token {
    /// The token in `text`, without the white space around it; `None` for nothing else.
    pub fn new(text: &str) -> Option<Token> {
        let text = text.trim();
        (!text.is_empty()).then(|| Token(text.to_owned()))
    }

    /// Value of the header that carries the token.
    pub(super) fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> HubSettings {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        HubSettings::of_variables(&variable, Some("/nowhere".into()))
    }

    #[test]
    fn without_variables_the_public_hub_is_used_without_a_token() {
        let settings = settings(&[]);
        assert_eq!(settings.endpoint, "https://huggingface.co");
        assert_eq!((settings.token, settings.offline), (None, false));
        assert_eq!(settings.cache.root(), std::path::Path::new("/nowhere/.cache/huggingface/hub"));
    }

    #[test]
    fn variables_name_the_endpoint_and_forbid_the_network() {
        assert_eq!(settings(&[("HF_ENDPOINT", "https://mirror/hf/ ")]).endpoint, "https://mirror/hf");
        for (value, offline) in [("1", true), ("true", true), ("on", true), ("0", false), ("", false)] {
            assert_eq!(settings(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
    }

    #[test]
    fn the_token_is_that_of_the_variable_else_of_the_file_and_is_not_shown() {
        let home = tempfile::tempdir().expect("a directory for the test");
        let file = home.path().join("token");
        std::fs::write(&file, "hf_of_the_file\n").expect("written");
        let home = home.path().to_str().expect("a text path");
        let token = |variables: &[(&str, &str)]| {
            settings(variables).token.map(|token| token.authorization()).unwrap_or_default()
        };
        assert_eq!(token(&[("HF_HOME", home)]), "Bearer hf_of_the_file");
        assert_eq!(token(&[("HF_TOKEN_PATH", file.to_str().expect("text"))]), "Bearer hf_of_the_file");
        assert_eq!(
            token(&[("HF_HOME", home), ("HF_TOKEN", " hf_of_the_variable\n")]),
            "Bearer hf_of_the_variable"
        );
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN", "")]), "Bearer hf_of_the_file");
        assert_eq!(format!("{:?}", Token::new("hf_secret")), "Some(Token(…))");
    }
}
