//! `strftime_now` of chat templates: the date in UTC, in the C locale.

use jiff::Timestamp;
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
use jiff::tz::Offset;

/// Formats as Python's `strftime` on Linux does. Unknown directives are copied verbatim.
pub(super) fn format_utc(format: &str, unix_seconds: u64) -> String {
    // the year 9999 is the last that jiff and Python represent
    let seconds = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
    let moment = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
    let civil = BrokenDownTime::from(Offset::UTC.to_datetime(moment));
    let config = Config::new().custom(PosixCustom::new()).lenient(true);
    let format = in_jiff_terms(format);
    civil.to_string_with_config(&config, &format).unwrap_or(format)
}

/// Rewrites the directives that jiff and Python's `datetime.now()` define differently: a naive
/// datetime has no zone, so `%Z` and `%z` are empty, and `%f` always has six digits.
fn in_jiff_terms(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        match rest.next() {
            Some('Z' | 'z') => {}
            Some('f') => out.push_str("%6f"),
            Some(directive) => out.extend(['%', directive]),
            None => out.push('%'),
        }
    }
    out
}
