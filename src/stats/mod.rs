//! Statistics shared by several rooms: quantiles, intervals of means and isotonic regression.
//!
//! May import: nothing.
#![forbid(unsafe_code)]

pub mod interval;
pub mod isotonic;
pub mod quantile;
