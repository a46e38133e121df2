//! The engine's condition, as admission, the health routes and the daemon watch it.

use tokio::sync::watch;

/// What the engine can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Takes requests.
    Serving,
    /// Takes requests, but is about to shut down: load balancers should send no more.
    Leaving,
    /// Finishes what it has and takes nothing new.
    Draining,
    /// Ended for this reason; the process should exit.
    Failed(String),
}

impl Condition {
    /// Whether new requests are admitted.
    pub fn takes_requests(&self) -> bool {
        matches!(self, Condition::Serving | Condition::Leaving)
    }
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

    /// Still takes requests, but says that there should be no more.
    pub fn leave(&self) {
        self.advance(|now| *now == Condition::Serving, Condition::Leaving);
    }

    /// Takes no more requests, unless the engine has failed already.
    pub fn drain(&self) {
        self.advance(Condition::takes_requests, Condition::Draining);
    }

    fn advance(&self, from: impl Fn(&Condition) -> bool, to: Condition) {
        self.state.send_if_modified(|condition| {
            let advances = from(condition);
            if advances {
                *condition = to;
            }
            advances
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
