//! Reading draft heads, good and bad.
#![forbid(unsafe_code)]

mod bad_heads;
mod loading;
mod settings;
mod synthetic;
