//! Whether a stream gets colours.

use std::ffi::OsStr;
use std::io::IsTerminal;

/// Whether `stream` is a terminal and `NO_COLOR` does not forbid colours there.
pub fn wanted(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && allowed(std::env::var_os("NO_COLOR").as_deref())
}

/// Colours are forbidden if `NO_COLOR` is set to anything but an empty text (no-color.org).
fn allowed(no_color: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_forbids_colours_unless_it_is_empty() {
        assert!(allowed(None) && allowed(Some(OsStr::new(""))));
        assert!(!allowed(Some(OsStr::new("1"))) && !allowed(Some(OsStr::new("0"))));
    }

    #[test]
    fn a_file_gets_no_colours() {
        assert!(!wanted(&tempfile::tempfile().expect("a file for the test")));
    }
}
