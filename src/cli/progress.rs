//! Progress bars, on standard error and only if it is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `length` units; `template` in indicatif's language. It is first drawn when it is
/// first moved.
pub fn bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}

/// As [`bar`], without a known end.
pub fn spinner(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::new_spinner().with_style(style)
}
