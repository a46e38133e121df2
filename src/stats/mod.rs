//! Statistics shared by several rooms: quantiles and isotonic regression.
//!
//! May import: nothing.
#![forbid(unsafe_code)]

pub mod isotonic;
pub mod quantile;
