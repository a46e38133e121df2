//! Statistics shared by several modules.

pub mod isotonic;
pub mod quantile;
