//! The HTTP API over a real Unix socket, against a scripted engine.
#![expect(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod answers;
mod bad_input;
mod chat_replies;
mod client;
mod edge;
mod fake;
mod lifecycle;
mod overload;
mod routes;
