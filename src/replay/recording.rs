//! Recorded acceptance of a real model pair, for playback in the simulator.
//!
//! A recording is a JSON Lines file with one object per output:
//!
//! ```text
//! {"probabilities":[0.91,0.34,…],"accepted":[true,false,…]}
//! ```
//!
//! Entry `i` of both lists is about the output's token `i + 2` (the first token comes with
//! the prompt and is never drafted): the draft model's probability of its own sample after
//! the target's true tokens, and whether that sample equals the target's.

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
}

impl RecordedSequence {
    fn check(&self) -> Result<(), String> {
        let (probabilities, accepted) = (self.probabilities.len(), self.accepted.len());
        if probabilities != accepted {
            return Err(format!("{probabilities} probabilities but {accepted} acceptance flags"));
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

/// A valid recording: at least one sequence, none of them empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording(Vec<RecordedSequence>);

impl Recording {
    /// Parses a recording; empty lines are skipped but counted.
    ///
    /// # Errors
    /// The first malformed line, or that there are no sequences.
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

    /// The sequences, in file order.
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
}
