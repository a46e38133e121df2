//! Time as the pure parts see it: a number that is handed in.
//!
//! Scheduler and policy never read a clock, so that the simulator can run them. Their callers pass
//! [`Micros`]: from the daemon's [`MonotonicClock`] or from the simulator's virtual one.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// Microseconds since an arbitrary start; also used for spans of time.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Micros(pub u64);

impl Micros {
    /// The start of time.
    pub const ZERO: Micros = Micros(0);

    /// From a span in milliseconds.
    pub const fn from_millis(millis: u64) -> Micros {
        Micros(millis * 1000)
    }

    /// From a span in seconds; negative and non-finite values become zero.
    pub fn from_secs_f64(seconds: f64) -> Micros {
        Micros((seconds.max(0.0) * 1e6) as u64)
    }

    /// The span in seconds.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// The span in milliseconds.
    pub fn as_millis_f64(self) -> f64 {
        self.0 as f64 / 1e3
    }

    /// `self - earlier`, or zero when `earlier` is later.
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

/// Where the edges read the time.
pub trait Clock: Send + Sync {
    /// Now, in microseconds since this clock's start; never goes back.
    fn now(&self) -> Micros;
}

/// The machine's monotonic clock, counted from its creation.
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
