//! `[server]`: sockets, timeouts and request limits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::Value;

use super::reader::{Integer, IntegerList, Section, TextList};
use super::render::{Entry, number};
use super::scheduler::SchedulerConfig;

/// Longest socket path in bytes: `sun_path` holds 108, including the NUL terminator.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

const SOCKET_DEFAULT: &str = "/tmp/specserve.sock";
const SOCKET_MODE_DEFAULT: u32 = 0o600;
/// `u32::MAX` is reserved for "no user".
const SOCKET_UIDS: IntegerList =
    IntegerList { name: "socket_uids", what: "user ids", entries_max: 64, max: u32::MAX as u64 - 1 };
const BODY_BYTES_MAX: Integer = Integer::new("body_bytes_max", 1 << 20, 1 << 10, 64 << 20);
/// Connections beside those of requests: health checks, scrapes, clients that keep theirs open.
const CONNECTIONS_SPARE: usize = 64;
const CONNECTIONS_MAX: Integer = Integer::new("connections_max", CONNECTIONS_SPARE as u64, 1, 65_536);
const DRAIN_DELAY_MS: Integer = Integer::new("drain_delay_ms", 0, 0, 600_000);
const HEADER_TIMEOUT_MS: Integer = Integer::new("header_timeout_ms", 10_000, 100, 600_000);
const REQUEST_TIMEOUT_MS: Integer = Integer::new("request_timeout_ms", 600_000, 100, 86_400_000);
const DRAIN_TIMEOUT_MS: Integer = Integer::new("drain_timeout_ms", 30_000, 0, 3_600_000);

const SOCKET_BOUND: &str = "a path of 1 to 107 bytes";
const SOCKET_MODE_BOUND: &str = "octal, \"0000\" to \"0777\"";
const CORS_ORIGINS: TextList = TextList {
    name: "cors_origins",
    what: "origins such as \"https://example.org\", or \"*\"",
    entries_max: 64,
};
const UNKNOWN_FIELDS_BOUND: &str = "\"refuse\" or \"ignore\"";
const HTTP_BOUND: &str = "an address and a port, such as \"127.0.0.1:8000\"";
const ADMIN_BOUND: &str = "an address and a port, such as \"127.0.0.1:9090\"";

/// What happens to requests with fields that the API does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// They are refused, naming the field.
    #[default]
    Refuse,
    /// They are served as if the field were not there.
    Ignore,
}

impl UnknownFields {
    fn name(self) -> &'static str {
        match self {
            UnknownFields::Refuse => "refuse",
            UnknownFields::Ignore => "ignore",
        }
    }

    fn parse(text: &str) -> Result<UnknownFields, String> {
        let known = [UnknownFields::Refuse, UnknownFields::Ignore];
        known.into_iter().find(|choice| choice.name() == text).ok_or_else(|| "is neither".to_owned())
    }
}

/// The server's sockets and limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// Permission bits of the socket.
    pub socket_mode: u32,
    /// User ids that may connect, among those that the socket's mode admits; `None` for all.
    pub socket_uids: Option<Vec<u32>>,
    /// Additional TCP address to listen on.
    pub http: Option<SocketAddr>,
    /// TCP address for health, metrics and engine state alone.
    pub admin: Option<SocketAddr>,
    /// Origins whose web pages may use the API, or `*` for all; `None` for none.
    pub cors_origins: Option<Vec<String>>,
    /// What happens to requests with unknown fields.
    pub unknown_fields: UnknownFields,
    /// Longest request body, in bytes.
    pub body_bytes_max: usize,
    /// Most open connections per listener.
    pub connections_max: usize,
    /// Time limit for receiving a request's head.
    pub header_timeout: Duration,
    /// Time limit from a request's arrival to its last byte.
    pub request_timeout: Duration,
    /// Time between the first signal, from which on the daemon is not ready, and the first request
    /// that is refused.
    pub drain_delay: Duration,
    /// Time that requests in flight get after that.
    pub drain_timeout: Duration,
}

impl ServerConfig {
    /// Reads the section. Where it names no number of connections the default depends on the
    /// scheduler, which is read later: see [`connections_for`](Self::connections_for).
    pub(super) fn read(mut section: Section<'_>) -> (ServerConfig, Option<usize>) {
        let connections_max =
            section.optional_integer(&CONNECTIONS_MAX).map(|connections| connections as usize);
        let config = ServerConfig {
            socket: section
                .parsed("socket", &format!("give {SOCKET_BOUND}"), parse_socket)
                .unwrap_or_else(|| SOCKET_DEFAULT.into()),
            socket_mode: section
                .parsed("socket_mode", &format!("give it in {SOCKET_MODE_BOUND}"), parse_mode)
                .unwrap_or(SOCKET_MODE_DEFAULT),
            socket_uids: section
                .integer_list(&SOCKET_UIDS)
                .map(|uids| uids.into_iter().map(|uid| uid as u32).collect()),
            http: section.parsed("http", &format!("give {HTTP_BOUND}, or leave it out"), parse_address),
            admin: section.parsed("admin", &format!("give {ADMIN_BOUND}, or leave it out"), parse_address),
            cors_origins: section.text_list(&CORS_ORIGINS, is_origin),
            unknown_fields: section
                .parsed("unknown_fields", &format!("give {UNKNOWN_FIELDS_BOUND}"), UnknownFields::parse)
                .unwrap_or_default(),
            body_bytes_max: section.integer(&BODY_BYTES_MAX) as usize,
            connections_max: connections_max.unwrap_or(CONNECTIONS_SPARE),
            header_timeout: Duration::from_millis(section.integer(&HEADER_TIMEOUT_MS)),
            request_timeout: Duration::from_millis(section.integer(&REQUEST_TIMEOUT_MS)),
            drain_delay: Duration::from_millis(section.integer(&DRAIN_DELAY_MS)),
            drain_timeout: Duration::from_millis(section.integer(&DRAIN_TIMEOUT_MS)),
        };
        section.finish();
        (config, connections_max)
    }

    /// The number of connections where none is configured: one for each request that runs or waits,
    /// so that the queue fills up and refuses requests before the listener stops accepting them.
    pub fn connections_for(scheduler: &SchedulerConfig) -> usize {
        let requests = scheduler.running_requests_max as usize + scheduler.queue_requests_max as usize;
        (requests + CONNECTIONS_SPARE).min(CONNECTIONS_MAX.max as usize)
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        let address = |address: Option<SocketAddr>| address.map(|some| Value::String(some.to_string()));
        let uids = self.socket_uids.as_ref();
        let uids = uids.map(|uids| Value::Array(uids.iter().map(|&uid| number(uid.into())).collect()));
        let origins = self.cors_origins.as_ref();
        let origins = origins.map(|origins| origins.iter().cloned().map(Value::String).collect());
        let origins = origins.map(Value::Array);
        vec![
            Entry::text("socket", self.socket.to_string_lossy(), SOCKET_BOUND),
            Entry::text("socket_mode", format!("{:04o}", self.socket_mode), SOCKET_MODE_BOUND),
            Entry::optional(SOCKET_UIDS.name, uids, SOCKET_UIDS.bound()),
            Entry::optional("http", address(self.http), HTTP_BOUND),
            Entry::optional("admin", address(self.admin), ADMIN_BOUND),
            Entry::optional(CORS_ORIGINS.name, origins, CORS_ORIGINS.bound()),
            Entry::text("unknown_fields", self.unknown_fields.name(), UNKNOWN_FIELDS_BOUND),
            Entry::integer(&BODY_BYTES_MAX, self.body_bytes_max as u64),
            Entry::integer(&CONNECTIONS_MAX, self.connections_max as u64),
            Entry::integer(&HEADER_TIMEOUT_MS, self.header_timeout.as_millis() as u64),
            Entry::integer(&REQUEST_TIMEOUT_MS, self.request_timeout.as_millis() as u64),
            Entry::integer(&DRAIN_DELAY_MS, self.drain_delay.as_millis() as u64),
            Entry::integer(&DRAIN_TIMEOUT_MS, self.drain_timeout.as_millis() as u64),
        ]
    }
}

fn parse_socket(text: &str) -> Result<PathBuf, String> {
    match text.len() {
        0 => Err("is empty".to_owned()),
        bytes if bytes > SOCKET_PATH_BYTES_MAX => {
            Err(format!("has {bytes} bytes, and a socket's path holds {SOCKET_PATH_BYTES_MAX}"))
        }
        _ if text.contains('\0') => Err("contains a zero byte".to_owned()),
        _ => Ok(PathBuf::from(text)),
    }
}

/// Whether a text is an origin as browsers send it: scheme, host, perhaps a port, and no path.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let is_host = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
    };
    text == "*" || host.is_some_and(is_host)
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if digits && mode <= 0o777 => Ok(mode),
        _ => Err("is not a file mode".to_owned()),
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "is not an address with a port".to_owned())
}
