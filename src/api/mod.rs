//! The OpenAI-compatible HTTP API, on a Unix socket and optionally on TCP.
//!
//! A request's body is read within limits ([`body`]) and parsed field by field, so that no
//! field is silently ignored ([`fields`], [`params`], [`prompt`], [`chat`], [`output_format`]). The request is submitted
//! to the [`Backend`], and its tokens are detokenized ([`output`]) into one response or a
//! stream of server-sent events; the text of a chat is read for reasoning and tool calls
//! ([`reply`]). Dropping the answer, as on a client disconnect, cancels the request ([`answer`]).
//!
//! May import: protocol, telemetry, grammar.
#![forbid(unsafe_code)]

mod access;
pub mod answer;
mod app;
pub mod backend;
pub mod body;
pub mod chat;
pub mod chat_features;
mod chat_message;
mod connections;
mod content_type;
mod cors;
pub mod counters;
pub mod error;
pub mod error_code;
pub mod fields;
mod gate;
mod half_close;
mod info_routes;
mod min_tokens;
mod neutral;
pub mod output;
pub mod output_format;
pub mod params;
mod probes;
pub mod prompt;
mod reasoning_tokens;
pub mod reply;
mod reply_rules;
mod request;
mod response;
mod routes;
pub mod server;
pub mod slo;
pub mod socket;
mod stage;
mod starting;
pub mod stop;
mod stream;
mod text_routes;
mod thinking;
pub mod tools;
mod tracker;
mod watched_body;
mod write_stall;

pub use app::{ApiLimits, ApiRules};
pub use backend::{
    Backend, BackendInfo, ClassInfo, Health, SamplingDefaults, TextDecoder, TextError, TextModel,
};
pub use chat::{ChatMessage, Conversation};
pub use chat_features::ChatFeatures;
pub use connections::OVERFLOW_CONNECTIONS_MAX;
pub use counters::ApiCounters;
pub use error::ApiError;
pub use error_code::ErrorCode;
pub use fields::UnknownFields;
pub use reply::{ReasoningFormat, ToolFormat};
pub use routes::router;
pub use server::{Server, ServerError, TcpListeners};
pub use socket::{BoundSocket, SocketError, SocketOptions};
pub use starting::starting_router;
