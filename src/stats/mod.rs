//! Small statistics that several rooms need.

pub mod isotonic;
pub mod quantile;
