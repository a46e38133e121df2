//! `strftime_now` of chat templates: the date in UTC, C locale, without a dependency on
//! time zone data.

use std::fmt::Write;

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAY_SECONDS: u64 = 86_400;

/// Characters that a three-letter abbreviation takes of a name.
const SHORT_NAME: usize = 3;

/// A moment, taken apart.
struct Moment {
    year: u64,
    /// From 1.
    month: u64,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// From 0, Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

/// Formats as Python's `strftime` on Linux does. A directive that is not known stands as it
/// is written.
pub(super) fn format_utc(format: &str, unix_seconds: u64) -> String {
    let moment = Moment::at(unix_seconds);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut directive = rest.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = rest.next();
        }
        match directive {
            Some(directive) => moment.write(directive, unpadded, &mut out),
            None => out.push('%'),
        }
    }
    out
}

impl Moment {
    /// Civil date from a count of days, after Howard Hinnant, "chrono-Compatible Low-Level
    /// Date Algorithms": years begin in March, so that the leap day is the last of its year.
    fn at(unix_seconds: u64) -> Self {
        let days = unix_seconds / DAY_SECONDS;
        let second_of_day = unix_seconds % DAY_SECONDS;
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let day = day_from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        // 1 March is day 60, or 61 of a leap year.
        let day_of_year =
            if month > 2 { day_from_march + 60 + u64::from(leap) } else { day_from_march - 305 };
        Self {
            year,
            month,
            day,
            day_of_year,
            weekday: (days + 4) % 7,
            hour: second_of_day / 3_600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    fn write(&self, directive: char, unpadded: bool, out: &mut String) {
        let weekday = DAYS[self.weekday as usize];
        let month = MONTHS[self.month as usize - 1];
        let hour_of_12 = (self.hour + 11) % 12 + 1;
        let mut number = |value: u64, width: usize| {
            let width = if unpadded { 0 } else { width };
            // Writing to a String can't fail.
            let _ = write!(out, "{value:0width$}");
        };
        match directive {
            'Y' => number(self.year, 1),
            'y' => number(self.year % 100, 2),
            'm' => number(self.month, 2),
            'd' => number(self.day, 2),
            'j' => number(self.day_of_year, 3),
            'H' => number(self.hour, 2),
            'I' => number(hour_of_12, 2),
            'M' => number(self.minute, 2),
            'S' => number(self.second, 2),
            'w' => number(self.weekday, 1),
            'e' if unpadded => number(self.day, 1),
            'e' => out.push_str(&format!("{:2}", self.day)),
            'A' => out.push_str(weekday),
            'a' => out.push_str(&weekday[..SHORT_NAME]),
            'B' => out.push_str(month),
            'b' | 'h' => out.push_str(&month[..SHORT_NAME]),
            'p' => out.push_str(if self.hour < 12 { "AM" } else { "PM" }),
            'f' => out.push_str("000000"),
            // Python's datetime.now() knows no zone.
            'Z' | 'z' => {}
            '%' => out.push('%'),
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'F' => self.write_all("%Y-%m-%d", out),
            'T' | 'X' => self.write_all("%H:%M:%S", out),
            'R' => self.write_all("%H:%M", out),
            'D' | 'x' => self.write_all("%m/%d/%y", out),
            'c' => self.write_all("%a %b %e %H:%M:%S %Y", out),
            unknown => out.extend(['%', unknown]),
        }
    }

    fn write_all(&self, format: &str, out: &mut String) {
        let mut rest = format.chars();
        while let Some(character) = rest.next() {
            match (character, rest.clone().next()) {
                ('%', Some(directive)) => {
                    rest.next();
                    self.write(directive, false, out);
                }
                _ => out.push(character),
            }
        }
    }
}
