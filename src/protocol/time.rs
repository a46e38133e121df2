//! Time as plain data.
//!
//! Scheduler and policies never read a clock, so that the simulator can run the same code.
//! Their callers pass [`Micros`] from the daemon's [`MonotonicClock`] or the simulator's
//! virtual clock.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// Microseconds since an arbitrary start, or a duration.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Micros(pub u64);

impl Micros {
    /// Time zero.
    pub const ZERO: Micros = Micros(0);

    /// Converts from milliseconds.
    pub const fn from_millis(millis: u64) -> Micros {
        Micros(millis * 1000)
    }

    /// Converts from seconds; negative and non-finite values become zero.
    pub fn from_secs_f64(seconds: f64) -> Micros {
        Micros((seconds.max(0.0) * 1e6) as u64)
    }

    /// Converts to seconds.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Converts to milliseconds.
    pub fn as_millis_f64(self) -> f64 {
        self.0 as f64 / 1e3
    }

    /// `self - earlier`, or zero if `earlier` is later.
    pub fn saturating_sub(self, earlier: Micros) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add for Micros {
    type Output = Micros;
    fn add(self, span: Micros) -> Micros {
        Micros(self.0 + span.0)
    }
}

impl AddAssign for Micros {
    fn add_assign(&mut self, span: Micros) {
        self.0 += span.0;
    }
}

impl Sub for Micros {
    type Output = Micros;
    fn sub(self, earlier: Micros) -> Micros {
        Micros(self.0 - earlier.0)
    }
}

impl From<Duration> for Micros {
    fn from(span: Duration) -> Micros {
        Micros(span.as_micros() as u64)
    }
}

impl From<Micros> for Duration {
    fn from(span: Micros) -> Duration {
        Duration::from_micros(span.0)
    }
}

/// A clock, read at the edges of the system.
pub trait Clock: Send + Sync {
    /// Current time since the clock's start; monotonic.
    fn now(&self) -> Micros;
}

/// The machine's monotonic clock, relative to its creation.
#[derive(Clone, Debug)]
pub struct MonotonicClock {
    start: std::time::Instant,
}

impl MonotonicClock {
    /// A clock that reads zero now.
    #[expect(clippy::disallowed_methods, reason = "the clock itself")]
    pub fn start() -> MonotonicClock {
        MonotonicClock { start: std::time::Instant::now() }
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Micros {
        self.start.elapsed().into()
    }
}

/// Wall-clock time since the Unix epoch, for names and dates; zero if the system's clock is set
/// before it. Spans come from a [`Clock`].
#[expect(clippy::disallowed_methods, reason = "the clock itself")]
pub fn unix_time() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
