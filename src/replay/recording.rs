//! Acceptance as a real pair of models had it, to be played back.
//!
//! A recording is a text file with one JSON object a line, one line for each output:
//!
//! ```text
//! {"probabilities":[0.91,0.34,…],"accepted":[true,false,…]}
//! ```
//!
//! Place `i` of both lists is the output's token `i + 2` (the first comes with the prompt and
//! is never drafted): the probability that the draft model gave its own choice there, behind
//! the target's true tokens, and whether that choice was the target's.

use serde::{Deserialize, Serialize};

/// What is wrong with a recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    /// A line that can't be used.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no line.
    #[error("there is no sequence in it")]
    Empty,
}

/// One output of a recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedSequence {
    /// Draft probability of the draft's own choice, 0 to 1.
    pub probabilities: Vec<f32>,
    /// Whether that was the target's choice, too.
    pub accepted: Vec<bool>,
}

impl RecordedSequence {
    fn check(&self) -> Result<(), String> {
        let (probabilities, accepted) = (self.probabilities.len(), self.accepted.len());
        if probabilities != accepted {
            return Err(format!("{probabilities} probabilities, but {accepted} times accepted or not"));
        }
        if probabilities == 0 {
            return Err("the lists are empty".to_owned());
        }
        match self.probabilities.iter().find(|probability| !(0.0..=1.0).contains(*probability)) {
            Some(probability) => Err(format!("{probability} is not a probability")),
            None => Ok(()),
        }
    }
}

/// A recording that can be played back: at least one sequence, none of them empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording(Vec<RecordedSequence>);

impl Recording {
    /// Reads a file's text; empty lines count but say nothing.
    ///
    /// # Errors
    /// The first line that can't be used, or that there is none.
    pub fn parse(text: &str) -> Result<Recording, RecordingError> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let read = |(index, line): (usize, &str)| {
            let sequence = serde_json::from_str(line).map_err(|error| error.to_string());
            let checked = sequence.and_then(|sequence: RecordedSequence| sequence.check().map(|()| sequence));
            checked.map_err(|reason| RecordingError::Line { line: index + 1, reason })
        };
        let sequences: Vec<RecordedSequence> = lines.map(read).collect::<Result<_, _>>()?;
        if sequences.is_empty() { Err(RecordingError::Empty) } else { Ok(Recording(sequences)) }
    }

    /// The sequences, in the order of the file.
    pub fn sequences(&self) -> &[RecordedSequence] {
        &self.0
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
            ("{\"probabilities\":[0.5],\"accepted\":[]}", "1 probabilities, but 0 times accepted or not"),
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
}
