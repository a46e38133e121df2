//! Stop strings in text that arrives in pieces.

/// Finds the first stop string in a text that arrives in pieces, and holds back only
/// what could still turn out to belong to one.
///
/// The match that *ends* first wins; of those with the same end, the longest. So the
/// outcome depends on the text alone, not on how it was cut into pieces.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text not released yet: the longest suffix of the text so far that begins a stop string.
    held: String,
}

/// What a piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scan {
    /// No stop string yet; this much more may be released.
    Clear(String),
    /// A stop string is complete; this is the last text before it.
    Stopped(String),
}

impl StopMatcher {
    /// A matcher for these strings, none of them empty.
    pub fn new(stops: Vec<String>) -> StopMatcher {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()), "an empty stop string matches everything");
        StopMatcher { stops, held: String::new() }
    }

    /// Takes the next piece. After [`Scan::Stopped`] the matcher must not be used.
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

    /// The text still held back, at the end of the output.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the winning match begins.
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
        // A suffix that begins inside a character cannot match: stop strings are whole characters.
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

    /// Feeds the pieces; the text released and whether a stop string was met.
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
