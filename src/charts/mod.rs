//! Profile charts as SVG. Only the command line draws; nothing that serves depends on it.
//!
//! May import: protocol, timing.
#![forbid(unsafe_code)]

mod panel;
mod plot;
mod profile;
#[cfg(test)]
mod tests;

pub use profile::draw_profile;

use crate::timing::ProfileError;

/// Why there is no chart.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// The profile's time model is invalid.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The drawing library gave up.
    #[error("can't draw the chart: {0}")]
    Drawing(String),
}
