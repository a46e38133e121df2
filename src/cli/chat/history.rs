//! Where the history is kept.

use std::ffi::OsString;
use std::path::PathBuf;

/// The history's file in the user's state directory; `None` if there is no such directory.
pub fn file() -> Option<PathBuf> {
    place(std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME"))
}

/// As the XDG base directory specification has it: relative paths are ignored.
fn place(state_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let state = state_home
        .and_then(absolute)
        .or_else(|| home.and_then(absolute).map(|home| home.join(".local/state")))?;
    Some(state.join("specserve/chat_history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_in_the_state_directory() {
        let place = |state: &str, home: &str| place(Some(state.into()), Some(home.into()));
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!(place("/s", "/home/a"), path("/s/specserve/chat_history"));
        assert_eq!(place("", "/home/a"), path("/home/a/.local/state/specserve/chat_history"));
        assert_eq!(place("relative", ""), None);
        assert_eq!(super::place(None, None), None);
    }
}
