//! The engine's condition, for whoever must know: the door, the health routes, the daemon.

use tokio::sync::watch;

/// What the engine can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Takes requests.
    Serving,
    /// Finishes what it has and takes nothing new.
    Draining,
    /// Ended for this reason; the process should exit.
    Failed(String),
}

/// Shows the [`Condition`]; all clones show the same.
#[derive(Clone, Debug)]
pub struct ConditionBoard {
    board: watch::Sender<Condition>,
}

impl ConditionBoard {
    /// A board that shows `Serving`.
    pub fn new() -> ConditionBoard {
        ConditionBoard { board: watch::Sender::new(Condition::Serving) }
    }

    /// The condition now.
    pub fn get(&self) -> Condition {
        self.board.borrow().clone()
    }

    /// Takes no more requests, unless the engine has failed already.
    pub fn drain(&self) {
        self.board.send_if_modified(|condition| {
            let serving = *condition == Condition::Serving;
            if serving {
                *condition = Condition::Draining;
            }
            serving
        });
    }

    /// Marks the engine as failed; the first reason stays. Whether it was the first.
    pub fn fail(&self, reason: &str) -> bool {
        self.board.send_if_modified(|condition| {
            let first = !matches!(condition, Condition::Failed(_));
            if first {
                *condition = Condition::Failed(reason.to_owned());
            }
            first
        })
    }

    /// Waits until the engine has failed; returns the reason.
    pub async fn failed(&self) -> String {
        let mut board = self.board.subscribe();
        loop {
            if let Condition::Failed(reason) = &*board.borrow_and_update() {
                return reason.clone();
            }
            if board.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Default for ConditionBoard {
    fn default() -> ConditionBoard {
        ConditionBoard::new()
    }
}
