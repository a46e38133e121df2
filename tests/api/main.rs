//! The HTTP API over a real Unix socket, against a scripted engine.

mod answers;
mod bad_input;
mod client;
mod fake;
mod lifecycle;
mod routes;
