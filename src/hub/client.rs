//! The hub's HTTP interface, as far as a pull needs it.

use std::io::Read;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LOCATION, RANGE};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::error::HubError;
use super::refusal::Refusal;
use super::settings::HubSettings;
use super::tag::Tag;
use crate::model::{HubName, is_commit};

/// Longest list of a repository's files, in bytes.
const LISTING_BYTES_MAX: u64 = 32 << 20;
/// Most redirections on the hub itself before a file's tag is known.
const REDIRECTS_MAX: u32 = 5;
const USER_AGENT: &str = concat!("specserve/", env!("CARGO_PKG_VERSION"));

/// What is written as `%…` in one segment of an address.
const IN_SEGMENT: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// What is written as `%…` in a file's path.
const IN_PATH: AsciiSet = IN_SEGMENT.remove(b'/');

/// A client of one hub, for one model.
pub(super) struct Client<'a> {
    agent: Agent,
    settings: &'a HubSettings,
    name: &'a HubName,
    /// Scheme and host of the endpoint.
    origin: String,
}

/// A repository at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    /// Paths of its files.
    pub files: Vec<String>,
}

/// A file on the hub.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    /// Its path in the repository.
    pub path: String,
    pub url: String,
    pub tag: Tag,
    pub bytes: u64,
}

/// The rest of a file's content.
pub(super) struct Content {
    /// Where it begins, in bytes.
    pub start: u64,
    pub bytes: Box<dyn Read>,
}

#[derive(Deserialize)]
struct ListingBody {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl<'a> Client<'a> {
    /// A client that connects on use.
    pub(super) fn new(settings: &'a HubSettings, name: &'a HubName) -> Result<Client<'a>, HubError> {
        let uri: Option<Uri> = settings.endpoint.parse().ok();
        let origin = uri.and_then(|uri| match (uri.scheme_str(), uri.authority()) {
            (Some(scheme @ ("http" | "https")), Some(host)) => Some(format!("{scheme}://{host}")),
            _ => None,
        });
        let origin = origin.ok_or_else(|| HubError::Endpoint { given: settings.endpoint.clone() })?;
        let stall = Some(settings.patience.stall);
        // the provider is named because rustls may be compiled with several
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .proxy(settings.proxy.clone())
            .user_agent(USER_AGENT)
            .http_status_as_error(false)
            // the token must not reach the servers that files are redirected to
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_resolve(stall)
            .timeout_connect(stall)
            .timeout_recv_response(stall)
            .timeout_per_read(stall)
            .timeout_per_write(stall)
            .build();
        Ok(Client { agent: Agent::new_with_config(config), settings, name, origin })
    }

    /// The model.
    pub(super) fn name(&self) -> &HubName {
        self.name
    }

    /// The commit and the files of the model's revision.
    pub(super) fn listing(&self) -> Result<Listing, HubError> {
        let revision = utf8_percent_encode(self.name.revision(), &IN_SEGMENT);
        let url =
            format!("{}/api/models/{}/revision/{revision}", self.settings.endpoint, self.name.repository());
        let response =
            self.authorized(self.agent.get(&url)).call().map_err(|error| unanswered(&url, error))?;
        let response = self.succeeded(response, &url).map_err(|refusal| self.refused(refusal))?;
        let answer = |problem: String| HubError::Answer { url: url.clone(), problem };
        let body = response.into_body().into_with_config().limit(LISTING_BYTES_MAX).read_to_vec();
        let body = body.map_err(|error| unanswered(&url, error))?;
        let body: ListingBody = serde_json::from_slice(&body).map_err(|error| answer(error.to_string()))?;
        if !is_commit(&body.sha) {
            return Err(answer(format!("`sha` is {:?}, not a commit", body.sha)));
        }
        let files = body.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok(Listing { commit: body.sha, files })
    }

    /// Tag and size of the file `path`; `None` if the hub has none there.
    pub(super) fn describe(&self, commit: &str, path: &str) -> Result<Option<RemoteFile>, HubError> {
        let (endpoint, repository) = (&self.settings.endpoint, self.name.repository());
        let url = format!("{endpoint}/{repository}/resolve/{commit}/{}", utf8_percent_encode(path, &IN_PATH));
        let mut asked = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let request = self.agent.head(&asked).config().max_redirects(0).build();
            let response = self.authorized(request).call().map_err(|error| unanswered(&asked, error))?;
            match self.redirected(&response) {
                Some(next) => asked = next,
                None => return self.described(response, path, url),
            }
        }
        Err(HubError::Answer { url, problem: format!("it redirects more than {REDIRECTS_MAX} times") })
    }

    /// Where on the hub itself the file is instead. A redirection to another host is to the
    /// content, whose server knows less than the hub.
    fn redirected(&self, response: &Response<Body>) -> Option<String> {
        if !response.status().is_redirection() {
            return None;
        }
        let target = text(response.headers(), LOCATION.as_str())?;
        match target.strip_prefix(&self.origin) {
            Some(path) if path.starts_with('/') => Some(target.to_owned()),
            _ if target.starts_with('/') && !target.starts_with("//") => {
                Some(format!("{}{target}", self.origin))
            }
            _ => None,
        }
    }

    fn described(
        &self,
        response: Response<Body>,
        path: &str,
        url: String,
    ) -> Result<Option<RemoteFile>, HubError> {
        let response = match response.status().is_redirection() {
            true => response,
            false => match self.succeeded(response, &url) {
                Ok(response) => response,
                Err(refusal) if refusal.is_missing_file() => return Ok(None),
                Err(refusal) => return Err(self.refused(refusal)),
            },
        };
        // a redirection's own tag and length are not those of the file
        let own = |name| text(response.headers(), name).filter(|_| response.status().is_success());
        let either = |linked, name| text(response.headers(), linked).or_else(|| own(name));
        let tag = either("x-linked-etag", ETAG.as_str()).and_then(Tag::parse);
        let bytes = either("x-linked-size", CONTENT_LENGTH.as_str()).and_then(|bytes| bytes.parse().ok());
        let path = path.to_owned();
        match (tag, bytes) {
            (Some(tag), Some(bytes)) => Ok(Some(RemoteFile { path, url, tag, bytes })),
            (None, _) => Err(HubError::Answer { url, problem: "it sends no ETag".to_owned() }),
            (_, None) => Err(HubError::Answer { url, problem: "it does not say the file's size".to_owned() }),
        }
    }

    /// The content of a file from byte `from` on, or from the start if the server cannot do that.
    pub(super) fn content(&self, file: &RemoteFile, from: u64) -> Result<Content, HubError> {
        let request = self.authorized(self.agent.get(&file.url)).header(RANGE, format!("bytes={from}-"));
        let response = request.call().map_err(|error| unanswered(&file.url, error))?;
        let response = self.succeeded(response, &file.url).map_err(|refusal| self.refused(refusal))?;
        let start = match response.status().as_u16() {
            206 => text(response.headers(), CONTENT_RANGE.as_str()).and_then(first_byte),
            _ => Some(0),
        };
        let start = start.filter(|&start| start == from || start == 0).ok_or_else(|| HubError::Answer {
            url: file.url.clone(),
            problem: format!("it sends another range than the one from byte {from} on"),
        })?;
        Ok(Content { start, bytes: Box::new(response.into_body().into_reader()) })
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        // sizes and ranges are of the file itself
        let request = request.header("accept-encoding", "identity");
        match &self.settings.token {
            Some(token) => request.header(AUTHORIZATION, token.authorization()),
            None => request,
        }
    }

    fn succeeded(&self, response: Response<Body>, url: &str) -> Result<Response<Body>, Refusal> {
        if response.status().is_success() {
            return Ok(response);
        }
        let header = |name| text(response.headers(), name).map(ToOwned::to_owned);
        Err(Refusal {
            url: url.to_owned(),
            status: response.status().as_u16(),
            code: header("x-error-code"),
            message: header("x-error-message"),
        })
    }

    fn refused(&self, refusal: Refusal) -> HubError {
        refusal.error(self.name, &self.settings.endpoint, self.settings.token.is_some())
    }
}

/// A request without an answer.
fn unanswered(url: &str, error: ureq::Error) -> HubError {
    match error {
        ureq::Error::Io(error) => network(url, &error),
        ureq::Error::Rustls(rustls::Error::General(error)) if error.contains("No CA certificates") => {
            network(url, &"this system has no certificates to check it with (package ca-certificates)")
        }
        error => network(url, &error),
    }
}

/// A connection that failed or broke.
pub(super) fn network(url: &str, problem: &dyn std::fmt::Display) -> HubError {
    HubError::Network { url: url.to_owned(), problem: problem.to_string() }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// The first byte of a range, as in `bytes 5-9/10`.
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
