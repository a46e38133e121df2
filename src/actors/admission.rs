//! How many requests may wait. Mailboxes are unbounded, so the bound is a permit that a
//! request must hold before it becomes a message.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::protocol::AdmissionError;

/// Two bounds on the queue: requests, and tokens of their prompts.
#[derive(Clone, Debug)]
pub struct Admission {
    requests: Bound,
    prompt_tokens: Bound,
}

#[derive(Clone, Debug)]
struct Bound {
    what: &'static str,
    limit: u32,
    left: Arc<Semaphore>,
}

/// Held by a request while it waits; dropping it makes room for another.
#[derive(Debug)]
pub struct Permit {
    _request: OwnedSemaphorePermit,
    _prompt_tokens: OwnedSemaphorePermit,
}

impl Admission {
    /// An empty queue with these bounds.
    pub fn new(queue_requests_max: u32, queue_prompt_tokens_max: u32) -> Admission {
        Admission {
            requests: Bound::new("requests", queue_requests_max),
            prompt_tokens: Bound::new("prompt tokens", queue_prompt_tokens_max),
        }
    }

    /// A place in the queue for a prompt of this length.
    ///
    /// # Errors
    /// [`AdmissionError::QueueFull`]. A prompt longer than the whole bound takes all of it.
    pub fn try_enter(&self, prompt_tokens: u32) -> Result<Permit, AdmissionError> {
        Ok(Permit {
            _request: self.requests.take(1)?,
            _prompt_tokens: self.prompt_tokens.take(prompt_tokens.min(self.prompt_tokens.limit))?,
        })
    }

    /// Prompt tokens that wait now.
    pub fn waiting_prompt_tokens(&self) -> u32 {
        self.prompt_tokens.limit - self.prompt_tokens.left.available_permits() as u32
    }
}

impl Bound {
    fn new(what: &'static str, limit: u32) -> Bound {
        Bound { what, limit, left: Arc::new(Semaphore::new(limit as usize)) }
    }

    fn take(&self, count: u32) -> Result<OwnedSemaphorePermit, AdmissionError> {
        self.left.clone().try_acquire_many_owned(count).map_err(|_| {
            let taken = u64::from(self.limit) - self.left.available_permits() as u64;
            AdmissionError::QueueFull {
                what: self.what,
                limit: self.limit.into(),
                actual: taken + u64::from(count),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_takes_as_many_as_it_may_and_a_place_comes_back_with_its_permit() {
        let admission = Admission::new(2, 100);
        let first = admission.try_enter(10).expect("empty");
        let _second = admission.try_enter(10).expect("one place left");
        assert_eq!(
            admission.try_enter(10).expect_err("full"),
            AdmissionError::QueueFull { what: "requests", limit: 2, actual: 3 }
        );
        drop(first);
        assert!(admission.try_enter(10).is_ok());
    }

    #[test]
    fn prompt_tokens_are_bounded_too_and_a_refusal_gives_its_place_back() {
        let admission = Admission::new(2, 100);
        let _first = admission.try_enter(60).expect("empty");
        assert_eq!(
            admission.try_enter(41).expect_err("full"),
            AdmissionError::QueueFull { what: "prompt tokens", limit: 100, actual: 101 }
        );
        assert!(admission.try_enter(40).is_ok());
    }

    #[test]
    fn a_prompt_longer_than_the_bound_is_taken_when_nobody_else_waits() {
        let admission = Admission::new(2, 100);
        let long = admission.try_enter(5000).expect("the queue is empty");
        assert!(admission.try_enter(1).is_err());
        drop(long);
        assert!(admission.try_enter(1).is_ok());
    }
}
