//! Statistics shared by several modules.
#![forbid(unsafe_code)]

pub mod isotonic;
pub mod quantile;
