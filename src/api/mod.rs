//! The OpenAI-compatible HTTP API, on a Unix socket and optionally on TCP.
//!
//! A request's body is read within limits ([`body`]) and parsed field by field, so that no
//! field is silently ignored ([`fields`], [`params`], [`prompt`], [`chat`]). The request is submitted
//! to the [`Backend`], and its tokens are detokenized ([`output`]) into one response or a
//! stream of server-sent events. Dropping the answer, as on a client disconnect, cancels
//! the request ([`answer`]).
//!
//! May import: protocol, telemetry.
#![forbid(unsafe_code)]

pub mod answer;
mod app;
pub mod backend;
pub mod body;
pub mod chat;
pub mod counters;
pub mod error;
pub mod error_code;
pub mod fields;
pub mod output;
pub mod params;
pub mod prompt;
mod request;
mod response;
mod routes;
pub mod server;
pub mod slo;
pub mod socket;
mod starting;
pub mod stop;
mod stream;
mod text_routes;
mod write_stall;

pub use app::ApiLimits;
pub use backend::{
    Backend, BackendInfo, ClassInfo, Health, SamplingDefaults, TextDecoder, TextError, TextModel,
};
pub use chat::{ChatMessage, Conversation};
pub use counters::ApiCounters;
pub use error::ApiError;
pub use error_code::ErrorCode;
pub use routes::router;
pub use server::{Server, ServerError};
pub use socket::{BoundSocket, SocketError, SocketOptions};
pub use starting::starting_router;
