//! When speculation rests after a fault, and for how long. Pure.

use std::time::Duration;

use crate::protocol::Micros;

/// Rest after the first fault; doubled with each further one.
const REST: Duration = Duration::from_millis(100);
/// Longest rest.
const REST_MAX: Duration = Duration::from_secs(10);
/// After so long without a fault the next one counts as the first again.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// Faults of the drafter or the policy, and whether speculation rests because of them.
#[derive(Debug, Default)]
pub struct DrafterHealth {
    /// Faults since the start.
    total: u64,
    /// Faults that lengthen the next rest.
    recent: u32,
    rests: bool,
    resumed: Micros,
    last_fault: Option<String>,
}

impl DrafterHealth {
    /// Counts a fault; how long to rest, or `None` if speculation rests already.
    pub fn fault(&mut self, what: String, now: Micros) -> Option<Duration> {
        self.total += 1;
        self.last_fault = Some(what);
        if self.rests {
            return None;
        }
        if now.saturating_sub(self.resumed) > FORGIVEN_AFTER.into() {
            self.recent = 0;
        }
        let rest = (REST * 2u32.saturating_pow(self.recent)).min(REST_MAX);
        self.recent = self.recent.saturating_add(1);
        self.rests = true;
        Some(rest)
    }

    /// Ends the rest.
    pub fn resume(&mut self, now: Micros) {
        self.rests = false;
        self.resumed = now;
    }

    /// Whether steps may draft.
    pub fn is_well(&self) -> bool {
        !self.rests
    }

    /// For `/v1/engine/state`.
    pub fn state(&self) -> serde_json::Value {
        serde_json::json!({ "resting": self.rests, "faults": self.total, "last_fault": self.last_fault })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn each_fault_doubles_the_rest_up_to_ten_seconds() {
        let mut health = DrafterHealth::default();
        let mut rests = Vec::new();
        for n in 0..9 {
            let now = Micros(n * SECOND);
            rests.push(health.fault("x".to_owned(), now).expect("well before").as_millis());
            assert!(!health.is_well());
            health.resume(now);
        }
        assert_eq!(rests, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert!(health.is_well());
    }

    #[test]
    fn a_fault_while_resting_is_counted_and_does_not_prolong_the_rest() {
        let mut health = DrafterHealth::default();
        assert!(health.fault("first".to_owned(), Micros(0)).is_some());
        assert_eq!(health.fault("second".to_owned(), Micros(1)), None);
        assert_eq!(health.state()["faults"], 2);
        assert_eq!(health.state()["last_fault"], "second");
    }

    #[test]
    fn a_minute_without_a_fault_makes_the_next_one_the_first() {
        let mut health = DrafterHealth::default();
        for _ in 0..5 {
            health.fault("x".to_owned(), Micros(0));
            health.resume(Micros(0));
        }
        let rest = health.fault("x".to_owned(), Micros(61 * SECOND)).expect("well before");
        assert_eq!(rest.as_millis(), 100);
    }
}
