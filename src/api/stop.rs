//! Stop string matching on streamed text.

/// Finds the first stop string in streamed text. Holds back only text that could still be
/// part of one.
///
/// The match that *ends* first wins; among matches with the same end, the longest. So the
/// result depends on the text alone, not on how it was split.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Held-back text: the longest suffix of the text so far that is a prefix of a stop string.
    held: String,
}

/// Result of scanning a piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scan {
    /// No stop string yet; this text may be released.
    Clear(String),
    /// A stop string is complete; this is the remaining text before it.
    Stopped(String),
}

impl StopMatcher {
    /// Creates a matcher; none of the strings may be empty.
    pub fn new(stops: Vec<String>) -> StopMatcher {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()), "an empty stop string matches everything");
        StopMatcher { stops, held: String::new() }
    }

    /// Scans the next piece. Must not be called after [`Scan::Stopped`].
    pub fn push(&mut self, piece: &str) -> Scan {
        if self.stops.is_empty() {
            return Scan::Clear(piece.to_owned());
        }
        self.held.push_str(piece);
        if let Some(start) = self.first_match() {
            self.held.truncate(start);
            return Scan::Stopped(std::mem::take(&mut self.held));
        }
        let held_from = self.held.len() - self.unsafe_suffix_bytes();
        let held = self.held.split_off(held_from);
        Scan::Clear(std::mem::replace(&mut self.held, held))
    }

    /// Returns the held-back text at the end of the output.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Byte offset of the first match.
    fn first_match(&self) -> Option<usize> {
        let matches = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        matches.min().map(|(_, start)| start)
    }

    /// Length of the longest suffix that is a proper prefix of a stop string.
    fn unsafe_suffix_bytes(&self) -> usize {
        let longest = |stop: &String| {
            let most = self.held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&bytes| self.held.as_bytes().ends_with(&stop.as_bytes()[..bytes]))
        };
        let bytes = self.stops.iter().filter_map(longest).max().unwrap_or(0);
        // Stop strings are whole characters, so a suffix that starts inside one cannot match.
        debug_assert!(self.held.is_char_boundary(self.held.len() - bytes));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()).collect())
    }

    /// Feeds the pieces; returns the released text and whether a stop string matched.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher = matcher(stops);
        let mut text = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                Scan::Clear(more) => text += &more,
                Scan::Stopped(more) => return (text + &more, true),
            }
        }
        (text + &matcher.finish(), false)
    }

    #[test]
    fn a_stop_string_across_pieces_is_found() {
        assert_eq!(run(&["\nUser:"], &["Hi.", "\nUs", "er", ": no"]), ("Hi.".into(), true));
    }

    #[test]
    fn a_false_start_is_released_at_once() {
        let mut matcher = matcher(&["\nUser:"]);
        assert_eq!(matcher.push("a\nUs"), Scan::Clear("a".into()));
        assert_eq!(matcher.push("ual"), Scan::Clear("\nUsual".into()));
        assert_eq!(matcher.push("\n\n"), Scan::Clear("\n".into()));
        assert_eq!(matcher.finish(), "\n");
    }

    #[test]
    fn the_match_that_ends_first_wins_however_the_text_is_cut() {
        let stops = ["ab", "xabyz"];
        assert_eq!(run(&stops, &["1xabyz"]), ("1x".into(), true));
        assert_eq!(run(&stops, &["1", "x", "a", "b", "yz"]), ("1x".into(), true));
        assert_eq!(run(&["bc", "abc"], &["1abc"]), ("1".into(), true));
    }

    #[test]
    fn multibyte_text_is_never_cut_inside_a_character() {
        assert_eq!(run(&["é!"], &["caf", "é", "é", "!x"]), ("café".into(), true));
        assert_eq!(run(&["é"], &["caf", "è"]), ("cafè".into(), false));
    }

    proptest! {
        #[test]
        fn the_outcome_depends_on_the_text_alone(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(0usize..5, 0..24),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let whole = run(&stops, &[&text]);
            let mut rest = text.as_str();
            let mut pieces = Vec::new();
            for cut in cuts {
                let at = rest.char_indices().nth(cut).map_or(rest.len(), |(at, _)| at);
                pieces.push(&rest[..at]);
                rest = &rest[at..];
            }
            pieces.push(rest);
            prop_assert_eq!(&run(&stops, &pieces), &whole);
            prop_assert!(stops.iter().all(|stop| !whole.0.contains(stop)));
            prop_assert_eq!(whole.1, stops.iter().any(|stop| text.contains(stop)));
            prop_assert!(text.starts_with(&whole.0));
        }

        #[test]
        fn no_more_is_held_back_than_could_begin_a_stop_string(
            text in "[ab]{0,24}",
            stop in "[ab]{1,5}",
        ) {
            let mut matcher = matcher(&[&stop]);
            let mut released = String::new();
            for character in text.chars() {
                let Scan::Clear(more) = matcher.push(&character.to_string()) else { break };
                released += &more;
                let held = matcher.clone().finish();
                prop_assert!(held.len() < stop.len() && stop.starts_with(&held));
                prop_assert!(text.starts_with(&(released.clone() + &held)));
            }
        }
    }
}
