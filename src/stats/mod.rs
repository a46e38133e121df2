//! Small statistics that several rooms need.
#![forbid(unsafe_code)]

pub mod isotonic;
pub mod quantile;
