//! Recorded acceptance of a real target and its drafter, for playback in the simulator.
//!
//! A recording is a JSON Lines file with one object per output:
//!
//! ```text
//! {"probabilities":[0.91,0.34,…],"accepted":[true,false,…]}
//! ```
//!
//! Entry `i` of both lists is about the output's token `i + 2` (the first token comes with
//! the prompt and is never drafted): the drafter's probability of its own sample after
//! the target's true tokens, and whether that sample equals the target's.
//!
//! That is all there is to say of a draft model: behind drafts that were right, its next draft is the
//! first one of a later place. It isn't of a draft head, whose later drafts follow from its own states
//! or from those before the block. The recording of a head has two more lists, with what it drafts
//! behind the first draft of each place:
//!
//! ```text
//! "later_probabilities":[[0.88,0.71],[0.5,0.42],…],"later_accepted":[1,0,…]
//! ```
//!
//! the probabilities to the end of the chain, whether it is right or not, and how many of these
//! drafts are right before one is not. What follows a wrong draft stands behind another text than
//! the target's, so it is neither right nor wrong.
//!
//! A tree of drafts also tries the runner-up of a draft: the drafter's second choice under the same noise.
//! A third list, `"runner_up_accepted":[false,true,…]`, says of each place whether the runner-up of the
//! first wrong draft is right. In recordings without it no runner-up is.

use serde::{Deserialize, Serialize};

/// Why a recording is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    /// A malformed line.
    #[error("line {line}: {reason}")]
    Line {
        /// Line number from 1.
        line: usize,
        /// What is wrong with the line.
        reason: String,
    },
    /// The file holds no sequence.
    #[error("the recording holds no sequences")]
    Empty,
}

/// One output of a recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedSequence {
    /// Draft probability of the draft's own sample, 0 to 1.
    pub probabilities: Vec<f32>,
    /// Whether that sample equals the target's.
    pub accepted: Vec<bool>,
    /// Of a draft head, the probabilities of what it drafts behind that sample, in the same round;
    /// empty for a draft model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later_probabilities: Vec<Vec<f32>>,
    /// Of a draft head, how many of these equal the target's tokens before one does not; 0 behind a
    /// sample that does not. Empty for a draft model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later_accepted: Vec<u32>,
    /// Whether the runner-up of the first draft that is wrong, in the chain of a draft head or else the
    /// draft itself, equals the target's token. Empty where that was not recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runner_up_accepted: Vec<bool>,
}

/// One draft of a recording.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecordedDraft {
    /// Draft probability, 0 to 1.
    pub probability: f32,
    /// Whether it equals the target's token, behind drafts that all do.
    pub accepted: bool,
    /// Whether its runner-up does instead.
    pub runner_up_accepted: bool,
}

impl RecordedSequence {
    /// Whether these are the drafts of a draft head, which depend on where their round started.
    pub fn has_chains(&self) -> bool {
        !self.later_probabilities.is_empty()
    }

    /// Draft `depth`, from 0, of a round whose first draft is at index `place` of the lists; indices wrap
    /// around at the end of the sequence. `None` past the end of a draft head's chain.
    pub fn draft(&self, place: usize, depth: usize) -> Option<RecordedDraft> {
        let places = self.accepted.len();
        if depth == 0 || !self.has_chains() {
            let place = (place + depth) % places;
            let (probability, accepted) = (self.probabilities[place], self.accepted[place]);
            return Some(RecordedDraft {
                probability,
                accepted,
                runner_up_accepted: !accepted && self.runner_up_accepted(place),
            });
        }
        let (place, later) = (place % places, depth - 1);
        let probability = *self.later_probabilities[place].get(later)?;
        let right = self.later_accepted[place] as usize;
        Some(RecordedDraft {
            probability,
            accepted: later < right,
            runner_up_accepted: self.accepted[place] && later == right && self.runner_up_accepted(place),
        })
    }

    /// Whether the runner-up of the first wrong draft of a place is right.
    fn runner_up_accepted(&self, place: usize) -> bool {
        self.runner_up_accepted.get(place).copied().unwrap_or(false)
    }

    /// Drafts of the longest chain of a draft head; `None` for a draft model.
    pub fn chain_drafts_max(&self) -> Option<u32> {
        self.later_probabilities.iter().map(|later| 1 + later.len() as u32).max()
    }

    fn check(&self) -> Result<(), String> {
        let (probabilities, accepted) = (self.probabilities.len(), self.accepted.len());
        if probabilities != accepted {
            return Err(format!("{probabilities} probabilities but {accepted} acceptance flags"));
        }
        if probabilities == 0 {
            return Err("the lists are empty".to_owned());
        }
        let runner_ups = self.runner_up_accepted.len();
        if runner_ups > 0 && runner_ups != accepted {
            return Err(format!("{accepted} positions, but runner-ups of {runner_ups}"));
        }
        self.check_chains()?;
        let mut all = self.probabilities.iter().chain(self.later_probabilities.iter().flatten());
        match all.find(|probability| !(0.0..=1.0).contains(*probability)) {
            Some(probability) => Err(format!("{probability} is not a probability")),
            None => Ok(()),
        }
    }

    /// The lists of a draft head are both there or none is, one entry for each position.
    fn check_chains(&self) -> Result<(), String> {
        let (positions, chains) = (self.accepted.len(), self.later_probabilities.len());
        let counts = self.later_accepted.len();
        if chains == 0 && counts == 0 {
            return Ok(());
        }
        if chains != positions || counts != positions {
            return Err(format!(
                "{positions} positions, but later probabilities of {chains} and later acceptance of {counts}"
            ));
        }
        for (place, (later, &right)) in self.later_probabilities.iter().zip(&self.later_accepted).enumerate()
        {
            if right as usize > later.len() {
                let drafts = later.len();
                return Err(format!("position {place}: {right} of {drafts} later drafts are accepted"));
            }
            if right > 0 && !self.accepted[place] {
                return Err(format!("position {place}: drafts are accepted behind one that is not"));
            }
        }
        Ok(())
    }
}

/// A valid recording: at least one sequence, none of them empty, all of a draft head or all of a draft
/// model.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording(Vec<RecordedSequence>);

impl Recording {
    /// Parses a recording; empty lines are skipped but counted.
    ///
    /// # Errors
    /// The first malformed line, the first one of another kind of drafter than the first, or that
    /// there are no sequences.
    pub fn parse(text: &str) -> Result<Recording, RecordingError> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let mut sequences: Vec<RecordedSequence> = Vec::new();
        for (index, line) in lines {
            let sequence = read_line(line, sequences.first());
            sequences.push(sequence.map_err(|reason| RecordingError::Line { line: index + 1, reason })?);
        }
        if sequences.is_empty() { Err(RecordingError::Empty) } else { Ok(Recording(sequences)) }
    }

    /// Drafts of the longest chain of a draft head; `None` for a draft model, which can draft on.
    pub fn chain_drafts_max(&self) -> Option<u32> {
        self.0.iter().filter_map(RecordedSequence::chain_drafts_max).max()
    }

    /// The sequences, in file order.
    pub fn sequences(&self) -> &[RecordedSequence] {
        &self.0
    }
}

/// A valid line, of the same kind of drafter as the first one of the file.
fn read_line(line: &str, first: Option<&RecordedSequence>) -> Result<RecordedSequence, String> {
    let sequence: RecordedSequence = serde_json::from_str(line).map_err(|error| error.to_string())?;
    sequence.check()?;
    match first {
        Some(first) if first.has_chains() != sequence.has_chains() => {
            Err("one of this and the first line has later drafts, as of a draft head, and the other has not"
                .to_owned())
        }
        _ => Ok(sequence),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{\"probabilities\":[0.9,0.2,0.5],\"accepted\":[true,false,true]}\n\n\
        {\"probabilities\":[0.7],\"accepted\":[true]}\n";

    #[test]
    fn the_recording_that_is_shipped_can_be_played_back() {
        let shipped = Recording::parse(include_str!("../../profiles/tiny-acceptance.jsonl"));
        let sequences = shipped.expect("good").sequences().to_vec();
        assert_eq!(sequences.len(), 24);
        assert_eq!(sequences.iter().map(|sequence| sequence.accepted.len()).sum::<usize>(), 1421);
    }

    #[test]
    fn bad_lines_are_refused_by_number_and_reason() {
        let problem = |line: &str| Recording::parse(&format!("{TEXT}{line}\n")).expect_err("bad").to_string();
        assert!(problem("nonsense").starts_with("line 4: "));
        for (line, reason) in [
            ("{\"probabilities\":[0.5],\"accepted\":[]}", "1 probabilities but 0 acceptance flags"),
            ("{\"probabilities\":[],\"accepted\":[]}", "the lists are empty"),
            ("{\"probabilities\":[1.5],\"accepted\":[true]}", "1.5 is not a probability"),
        ] {
            assert_eq!(problem(line), format!("line 4: {reason}"));
        }
        assert!(
            problem("{\"probabilities\":[0.5],\"accepted\":[true],\"task\":1}").contains("unknown field")
        );
        assert!(problem("{\"probabilities\":[0.5]}").contains("missing field"));
        assert_eq!(Recording::parse("\n"), Err(RecordingError::Empty));
    }

    const HEAD: &str = "{\"probabilities\":[0.9,0.2],\"accepted\":[true,false],\
        \"later_probabilities\":[[0.8,0.7],[0.6]],\"later_accepted\":[1,0]}\n";

    fn draft(probability: f32, accepted: bool) -> Option<RecordedDraft> {
        Some(RecordedDraft { probability, accepted, runner_up_accepted: false })
    }

    #[test]
    fn a_runner_up_stands_beside_the_first_wrong_draft() {
        let with = |text: &str, runner_ups: &str| {
            let line = text.lines().next().expect("one").trim_end_matches('}');
            Recording::parse(&format!("{line},\"runner_up_accepted\":{runner_ups}}}"))
        };
        let seconds = |recording: &Recording, place, depths: usize| -> Vec<bool> {
            let drafts = (0..depths).map_while(|depth| recording.sequences()[0].draft(place, depth));
            drafts.map(|draft| draft.runner_up_accepted).collect()
        };
        let model = with(TEXT, "[true,true,false]").expect("good");
        assert_eq!(seconds(&model, 0, 4), [false, true, false, false]);
        let head = with(HEAD, "[true,true]").expect("good");
        assert_eq!(seconds(&head, 0, 4), [false, false, true]);
        assert_eq!(seconds(&head, 1, 4), [true, false]);
        let error = with(TEXT, "[true]").expect_err("bad").to_string();
        assert_eq!(error, "line 1: 3 positions, but runner-ups of 1");
    }

    #[test]
    fn later_drafts_of_a_model_are_the_first_ones_of_later_places() {
        let recording = Recording::parse(TEXT).expect("good");
        let sequence = &recording.sequences()[0];
        assert_eq!((sequence.has_chains(), recording.chain_drafts_max()), (false, None));
        for (place, depth) in [(0, 2), (1, 1), (2, 0), (5, 0), (0, 5)] {
            assert_eq!(sequence.draft(place, depth), draft(0.5, true), "{place} {depth}");
        }
    }

    #[test]
    fn later_drafts_of_a_head_are_those_of_its_chain_which_ends() {
        let recording = Recording::parse(HEAD).expect("good");
        let sequence = &recording.sequences()[0];
        assert_eq!((sequence.has_chains(), recording.chain_drafts_max()), (true, Some(3)));
        for place in [0, 2] {
            let chain = [0, 1, 2, 3].map(|depth| sequence.draft(place, depth));
            assert_eq!(chain, [draft(0.9, true), draft(0.8, true), draft(0.7, false), None]);
        }
        assert_eq!(
            [0, 1, 2].map(|depth| sequence.draft(1, depth)),
            [draft(0.2, false), draft(0.6, false), None]
        );
    }

    #[test]
    fn what_is_written_is_read_and_a_model_has_no_lists_of_a_head() {
        for text in [HEAD, TEXT] {
            let recording = Recording::parse(text).expect("good");
            let written = recording.sequences().iter().map(|one| serde_json::to_string(one).expect("JSON"));
            let written = written.collect::<Vec<String>>().join("\n");
            assert_eq!(written.contains("later"), text == HEAD);
            assert_eq!(Recording::parse(&written), Ok(recording));
        }
    }

    #[test]
    fn chains_that_contradict_themselves_or_the_rest_are_refused_with_the_reason() {
        let problem = |line: &str| Recording::parse(&format!("{HEAD}{line}\n")).expect_err("bad").to_string();
        let with = |later: &str| problem(&format!("{{\"probabilities\":[0.5],\"accepted\":[true],{later}}}"));
        for (later, reason) in [
            (
                "\"later_probabilities\":[[0.5],[]],\"later_accepted\":[1]",
                "1 positions, but later probabilities of 2 and later acceptance of 1",
            ),
            (
                "\"later_probabilities\":[[0.5]]",
                "1 positions, but later probabilities of 1 and later acceptance of 0",
            ),
            ("\"later_accepted\":[1]", "1 positions, but later probabilities of 0 and later acceptance of 1"),
            (
                "\"later_probabilities\":[[0.5]],\"later_accepted\":[2]",
                "position 0: 2 of 1 later drafts are accepted",
            ),
            ("\"later_probabilities\":[[-0.5]],\"later_accepted\":[0]", "-0.5 is not a probability"),
        ] {
            assert_eq!(with(later), format!("line 2: {reason}"));
        }
        assert_eq!(
            problem(&HEAD.trim().replace("[1,0]", "[1,1]")),
            "line 2: position 1: drafts are accepted behind one that is not"
        );
        let other =
            "one of this and the first line has later drafts, as of a draft head, and the other has not";
        assert_eq!(problem(TEXT), format!("line 2: {other}"));
        let behind = Recording::parse(&format!("{TEXT}{HEAD}")).expect_err("bad").to_string();
        assert_eq!(behind, format!("line 4: {other}"));
    }
}
