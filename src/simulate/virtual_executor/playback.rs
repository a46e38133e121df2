//! Acceptance as a recording has it, played to the requests of a run.

use std::sync::Arc;

use crate::protocol::RequestId;
use crate::random::Draw;
use crate::replay::Recording;

/// Stream of the choice of a sequence for each request.
const SEQUENCE_STREAM: u32 = 0x24;

/// What happens at one position of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Position {
    /// The draft's reported probability of its token.
    pub probability: f32,
    /// Whether the draft's token is the target's.
    pub accepted: bool,
}

/// A recording and the requests that it is played to.
#[derive(Clone, Debug, PartialEq)]
pub struct Playback {
    /// What is played.
    pub recording: Arc<Recording>,
    /// Prompt tokens of each request, by its number: its outputs begin behind them.
    pub prompts: Arc<[u32]>,
    /// Whether each request plays the sequence of its own number instead of one that is drawn.
    pub in_order: bool,
}

impl Playback {
    /// What happens at a position: each request plays one sequence, its own or one drawn by `seed`,
    /// over and over again.
    pub(super) fn at(&self, seed: u64, request: RequestId, position: u32) -> Position {
        let sequences = self.recording.sequences();
        let index = if self.in_order {
            request.0 as usize % sequences.len()
        } else {
            (Draw::new(seed, SEQUENCE_STREAM, request.0, 0).uniform(0) * sequences.len() as f64) as usize
        };
        let sequence = &sequences[index];
        let prompt = self.prompts.get(request.0 as usize).copied().unwrap_or(0);
        let place = position.saturating_sub(prompt + 1) as usize % sequence.accepted.len();
        Position { probability: sequence.probabilities[place], accepted: sequence.accepted[place] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{\"probabilities\":[0.9,0.2,0.5],\"accepted\":[true,false,true]}\n\n\
        {\"probabilities\":[0.7],\"accepted\":[true]}\n";

    #[test]
    fn each_request_plays_one_sequence_from_its_second_output_token_on_and_again() {
        let recording = Arc::new(Recording::parse(TEXT).expect("good"));
        let playback = Playback { recording, prompts: vec![10; 50].into(), in_order: false };
        let at = |request: u64, position| playback.at(3, RequestId(request), position);
        let long: Vec<u64> = (0..50).filter(|&request| at(request, 12).probability == 0.2).collect();
        assert!((10..40).contains(&long.len()), "{} of 50 play the first", long.len());
        let heard = |request| (11..18).map(|place| at(request, place).probability).collect::<Vec<f32>>();
        assert_eq!(heard(long[0]), [0.9, 0.2, 0.5, 0.9, 0.2, 0.5, 0.9]);
        let other = (0..50).find(|request| !long.contains(request)).expect("some play the second");
        assert_eq!(heard(other), [0.7; 7]);
        assert!(!at(long[0], 12).accepted && at(long[0], 13).accepted);
    }

    #[test]
    fn in_order_requests_play_the_sequences_as_the_file_has_them_and_again() {
        let recording = Arc::new(Recording::parse(TEXT).expect("good"));
        let playback = Playback { recording, prompts: Arc::new([]), in_order: true };
        for seed in [1, 2] {
            let first: Vec<f32> =
                (0..5).map(|request| playback.at(seed, RequestId(request), 1).probability).collect();
            assert_eq!(first, [0.9, 0.7, 0.9, 0.7, 0.9]);
        }
    }

    #[test]
    fn another_seed_deals_the_sequences_differently() {
        let recording = Arc::new(Recording::parse(TEXT).expect("good"));
        let playback = Playback { recording, prompts: Arc::new([]), in_order: false };
        let dealt = |seed| -> Vec<f32> {
            (0..50).map(|request| playback.at(seed, RequestId(request), 2).probability).collect()
        };
        assert_eq!(dealt(1), dealt(1));
        assert_ne!(dealt(1), dealt(2));
    }
}
