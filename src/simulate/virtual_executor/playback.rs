//! Acceptance as a recording has it, played to the requests of a run.

use std::sync::Arc;

use crate::protocol::RequestId;
use crate::random::Draw;
use crate::replay::{RecordedDraft, Recording};

/// Stream of the choice of a sequence for each request.
const SEQUENCE_STREAM: u32 = 0x24;

/// What happens at one position of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Position {
    /// The draft's reported probability of its token.
    pub probability: f32,
    /// Whether the draft's token is the target's.
    pub accepted: bool,
    /// Whether the runner-up is, where the draft's token is not.
    pub runner_up_accepted: bool,
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
    /// Draft `depth`, from 0, of a round whose first draft is for the position `start`: each request
    /// plays one sequence, its own or one drawn by `seed`, over and over again. `None` where the draft
    /// head that was recorded drafts no further.
    pub(super) fn draft(&self, seed: u64, request: RequestId, start: u32, depth: u32) -> Option<Position> {
        let sequences = self.recording.sequences();
        let index = if self.in_order {
            request.0 as usize % sequences.len()
        } else {
            (Draw::new(seed, SEQUENCE_STREAM, request.0, 0).uniform(0) * sequences.len() as f64) as usize
        };
        let prompt = self.prompts.get(request.0 as usize).copied().unwrap_or(0);
        let place = start.saturating_sub(prompt + 1) as usize;
        let draft = sequences[index].draft(place, depth as usize)?;
        let RecordedDraft { probability, accepted, runner_up_accepted } = draft;
        Some(Position { probability, accepted, runner_up_accepted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{\"probabilities\":[0.9,0.2,0.5],\"accepted\":[true,false,true]}\n\n\
        {\"probabilities\":[0.7],\"accepted\":[true]}\n";

    /// The first draft of a round.
    fn first(playback: &Playback, seed: u64, request: u64, start: u32) -> Position {
        playback.draft(seed, RequestId(request), start, 0).expect("a place has a first draft")
    }

    #[test]
    fn each_request_plays_one_sequence_from_its_second_output_token_on_and_again() {
        let recording = Arc::new(Recording::parse(TEXT).expect("good"));
        let playback = Playback { recording, prompts: vec![10; 50].into(), in_order: false };
        let at = |request: u64, position| first(&playback, 3, request, position);
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
                (0..5).map(|request| first(&playback, seed, request, 1).probability).collect();
            assert_eq!(first, [0.9, 0.7, 0.9, 0.7, 0.9]);
        }
    }

    #[test]
    fn a_round_plays_the_chain_of_the_place_where_it_starts() {
        let text = "{\"probabilities\":[0.9,0.2],\"accepted\":[true,false],\
            \"later_probabilities\":[[0.8,0.7],[0.6]],\"later_accepted\":[1,0]}";
        let recording = Arc::new(Recording::parse(text).expect("good"));
        let playback = Playback { recording, prompts: vec![10].into(), in_order: true };
        let chain = |start| -> Vec<(f32, bool)> {
            let drafts = (0..5).map_while(|depth| playback.draft(1, RequestId(0), start, depth));
            drafts.map(|draft| (draft.probability, draft.accepted)).collect()
        };
        assert_eq!(chain(11), [(0.9, true), (0.8, true), (0.7, false)]);
        assert_eq!(chain(12), [(0.2, false), (0.6, false)]);
        assert_eq!(chain(13), chain(11));
    }

    #[test]
    fn another_seed_deals_the_sequences_differently() {
        let recording = Arc::new(Recording::parse(TEXT).expect("good"));
        let playback = Playback { recording, prompts: Arc::new([]), in_order: false };
        let dealt = |seed| -> Vec<f32> {
            (0..50).map(|request| first(&playback, seed, request, 2).probability).collect()
        };
        assert_eq!(dealt(1), dealt(1));
        assert_ne!(dealt(1), dealt(2));
    }
}
