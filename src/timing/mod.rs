//! The time model: how long a forward pass of either model takes, as a function of its work.
//!
//! [`cost_model`] is the form (a staircase over rows, plus slopes), [`fit`] finds its terms from
//! measurements ([`conservative`] does if they are few or doubtful), [`profile`] is the file that holds both, and [`correction`] adjusts the model
//! online from measured steps. docs/policy.md, section "Time", has the formula.
//!
//! May import: protocol, stats.
#![forbid(unsafe_code)]

pub mod conservative;
pub mod correction;
pub mod cost_model;
mod error;
mod error_window;
pub mod fit;
mod point;
pub mod profile;
pub mod reliability;
mod sizes;

pub use error::{PROFILE_FORMAT, ProfileError};
pub use point::{ProfilePoint, ROUND_CALLS};
pub use reliability::Reliability;
