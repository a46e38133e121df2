//! Markers in streamed text.

/// Bytes at the end of `text` that could begin `marker`.
pub fn partial_bytes(text: &str, marker: &str) -> usize {
    let most = text.len().min(marker.len().saturating_sub(1));
    (1..=most).rev().find(|&bytes| text.as_bytes().ends_with(&marker.as_bytes()[..bytes])).unwrap_or(0)
}

/// Takes the text up to the first of `markers` out of `held`, and the marker with it. Without one,
/// takes all but what could begin a marker.
pub fn take_until(held: &mut String, markers: &[&'static str]) -> (String, Option<&'static str>) {
    let found = markers.iter().filter_map(|marker| Some((held.find(marker)?, *marker))).min();
    if let Some((at, marker)) = found {
        let rest = held.split_off(at + marker.len());
        let mut text = std::mem::replace(held, rest);
        text.truncate(at);
        return (text, Some(marker));
    }
    let kept = markers.iter().map(|marker| partial_bytes(held, marker)).max().unwrap_or(0);
    let kept = held.split_off(held.len() - kept);
    (std::mem::replace(held, kept), None)
}

/// What `text` is to a marker that must stand at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// It begins with the marker.
    Marker,
    /// It could still become it.
    Open,
    /// It begins otherwise.
    Other,
}

/// Compares the beginning of `text` with `marker`.
pub fn beginning(text: &str, marker: &str) -> Beginning {
    if text.starts_with(marker) {
        Beginning::Marker
    } else if marker.starts_with(text) {
        Beginning::Open
    } else {
        Beginning::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_beginning_of_a_marker_is_held_back() {
        let mut held = "a <tool".to_owned();
        assert_eq!(take_until(&mut held, &["<tool_call>"]), ("a ".to_owned(), None));
        held += "box> <<tool_call>b";
        assert_eq!(take_until(&mut held, &["<tool_call>"]), ("<toolbox> <".to_owned(), Some("<tool_call>")));
        assert_eq!(held, "b");
    }

    #[test]
    fn the_first_of_several_markers_is_taken() {
        let mut held = "x[B][A]".to_owned();
        assert_eq!(take_until(&mut held, &["[A]", "[B]"]), ("x".to_owned(), Some("[B]")));
        assert_eq!(held, "[A]");
    }

    #[test]
    fn a_beginning_is_open_until_it_differs() {
        assert_eq!(beginning("", "<t>"), Beginning::Open);
        assert_eq!(beginning("<t", "<t>"), Beginning::Open);
        assert_eq!(beginning("<t>x", "<t>"), Beginning::Marker);
        assert_eq!(beginning("<x", "<t>"), Beginning::Other);
    }
}
