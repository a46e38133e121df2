//! Whether to colour the output.

use std::ffi::OsStr;

/// Whether what goes to a terminal, if it is one, may be coloured.
pub fn on(is_terminal: bool) -> bool {
    is_terminal && wanted(std::env::var_os("NO_COLOR").as_deref()) && !is_dumb()
}

/// Whether the terminal understands no escape sequences.
pub fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|name| name == "dumb")
}

/// Colours are unwanted if `NO_COLOR` is set to anything but an empty text (no-color.org).
fn wanted(no_color: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_left_out_if_no_color_is_set() {
        assert!(wanted(None) && wanted(Some(OsStr::new(""))));
        assert!(!wanted(Some(OsStr::new("1"))) && !wanted(Some(OsStr::new("0"))));
    }
}
