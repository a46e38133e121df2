//! Statistics shared by several rooms: quantiles, running means and their intervals, the
//! calibration error of probabilities, the logistic curve and isotonic regression.
//!
//! May import: nothing.
#![forbid(unsafe_code)]

pub mod calibration_error;
pub mod interval;
pub mod isotonic;
pub mod logistic;
pub mod mean;
pub mod quantile;
