//! A clock that moves only when it is told to.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::{Clock, Micros};

/// Virtual time, shared between the executor that spends it and everybody who reads it.
/// Kept in nanoseconds, so that many short calls do not lose their fractions.
#[derive(Debug, Default)]
pub struct VirtualClock {
    nanos: AtomicU64,
}

impl VirtualClock {
    /// Lets `micros` pass; negative and non-finite spans count as none.
    pub fn advance(&self, micros: f64) {
        // a cast saturates, and turns NaN into 0
        self.nanos.fetch_add((micros.max(0.0) * 1e3).round() as u64, Ordering::Relaxed);
    }

    /// Moves on to `time`; does nothing when that has passed.
    pub fn advance_to(&self, time: Micros) {
        self.nanos.fetch_max(time.0.saturating_mul(1000), Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Micros {
        Micros(self.nanos.load(Ordering::Relaxed) / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_goes_back_and_keeps_fractions() {
        let clock = VirtualClock::default();
        clock.advance(0.6);
        assert_eq!(clock.now(), Micros(0));
        clock.advance(0.6);
        assert_eq!(clock.now(), Micros(1));
        clock.advance(-5.0);
        clock.advance(f64::NAN);
        clock.advance_to(Micros::ZERO);
        assert_eq!(clock.now(), Micros(1));
        clock.advance_to(Micros(50));
        assert_eq!(clock.now(), Micros(50));
    }
}
