//! The engine's condition, as admission, the health routes and the daemon watch it.

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
pub struct HealthWatch {
    state: watch::Sender<Condition>,
}

impl HealthWatch {
    /// A watch that shows `Serving`.
    pub fn new() -> HealthWatch {
        HealthWatch { state: watch::Sender::new(Condition::Serving) }
    }

    /// The condition now.
    pub fn get(&self) -> Condition {
        self.state.borrow().clone()
    }

    /// Takes no more requests, unless the engine has failed already.
    pub fn drain(&self) {
        self.state.send_if_modified(|condition| {
            let serving = *condition == Condition::Serving;
            if serving {
                *condition = Condition::Draining;
            }
            serving
        });
    }

    /// Marks the engine as failed; the first reason stays. Whether it was the first.
    pub fn fail(&self, reason: &str) -> bool {
        self.state.send_if_modified(|condition| {
            let first = !matches!(condition, Condition::Failed(_));
            if first {
                *condition = Condition::Failed(reason.to_owned());
            }
            first
        })
    }

    /// Waits until the engine has failed; returns the reason.
    pub async fn failed(&self) -> String {
        let mut state = self.state.subscribe();
        loop {
            if let Condition::Failed(reason) = &*state.borrow_and_update() {
                return reason.clone();
            }
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Default for HealthWatch {
    fn default() -> HealthWatch {
        HealthWatch::new()
    }
}
