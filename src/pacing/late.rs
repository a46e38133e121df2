//! What becomes of prompts whose first token cannot be in time any more.

/// What to do with requests whose first token cannot be in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LateAction {
    /// They keep their turn.
    Queue,
    /// They let all others go first.
    #[default]
    Demote,
    /// They are refused while they wait, so that the caller can try another server.
    Reject,
}

impl LateAction {
    /// The name that the configuration uses.
    pub fn name(self) -> &'static str {
        match self {
            LateAction::Queue => "queue",
            LateAction::Demote => "demote",
            LateAction::Reject => "reject",
        }
    }
}

/// An unknown action.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown action {0:?}; known are queue, demote and reject")]
pub struct UnknownAction(String);

impl std::str::FromStr for LateAction {
    type Err = UnknownAction;

    fn from_str(text: &str) -> Result<LateAction, UnknownAction> {
        match text {
            "queue" => Ok(LateAction::Queue),
            "demote" => Ok(LateAction::Demote),
            "reject" => Ok(LateAction::Reject),
            _ => Err(UnknownAction(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Pacer, Prompt, Ranking, Standing};
    use super::*;
    use crate::protocol::Micros;
    use crate::timing::profile::tests::with_even_rows;

    /// Prompts of so many tokens, 25 µs each, that are due so many milliseconds from now.
    fn prompts(tokens_and_ms: &[(u32, u64)]) -> Vec<Prompt> {
        let prompt = |&(remaining_tokens, ms)| Prompt {
            class: 0,
            arrival: Micros::ZERO,
            done_tokens: 0,
            remaining_tokens,
            deadline: Some(Micros::from_millis(ms)),
            resumes: false,
        };
        tokens_and_ms.iter().map(prompt).collect()
    }

    fn pacer(late: LateAction) -> Pacer {
        Pacer::new(with_even_rows().cost_model().expect("valid")).with_late(late)
    }

    fn ranked(late: LateAction, prompts: &[Prompt]) -> Vec<(u32, Standing)> {
        let mut ranking = Ranking::default();
        pacer(late).rank(Micros::ZERO, prompts, &[], 256, true, &mut ranking);
        ranking.order.iter().map(|ranked| (ranked.index, ranked.standing)).collect()
    }

    #[test]
    fn a_late_prompt_keeps_its_turn_or_lets_all_others_go_first() {
        use Standing::{Late, OnTime};
        // the second takes 25 ms
        let prompts = prompts(&[(100, 40), (1000, 10), (100, 50)]);
        assert_eq!(ranked(LateAction::Queue, &prompts), [(1, Late), (0, OnTime), (2, OnTime)]);
        let mut pacer = pacer(LateAction::Demote);
        let mut ranking = Ranking::default();
        pacer.rank(Micros::ZERO, &prompts, &[], 256, false, &mut ranking);
        assert_eq!(ranking.order.last().map(|ranked| (ranked.index, ranked.standing)), Some((1, Late)));
    }

    #[test]
    fn only_what_an_idle_machine_could_serve_in_time_is_refused_and_only_by_reject() {
        let [possible, hopeless] = [prompts(&[(1000, 30)])[0], prompts(&[(1000, 20)])[0]];
        assert!(pacer(LateAction::Reject).refuses(&possible));
        assert!(!pacer(LateAction::Reject).refuses(&hopeless));
        assert!(!pacer(LateAction::Reject).refuses(&Prompt { deadline: None, ..possible }));
        for late in [LateAction::Queue, LateAction::Demote] {
            assert!(!pacer(late).refuses(&possible), "{late:?}");
        }
    }

    #[test]
    fn actions_are_read_by_their_names() {
        for action in [LateAction::Queue, LateAction::Demote, LateAction::Reject] {
            assert_eq!(action.name().parse(), Ok(action));
        }
        let error = "drop".parse::<LateAction>().expect_err("unknown").to_string();
        assert_eq!(error, "unknown action \"drop\"; known are queue, demote and reject");
    }
}
