//! Numbers, dates and names as text on the page.

use std::fmt::Write;

/// Text for HTML and SVG, in elements and in attributes with double quotes. Control characters are shown, not sent.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push_str(&c.escape_default().to_string()),
            // These characters reorder the text around them.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push_str(&c.escape_unicode().to_string()),
            c => out.push(c),
        }
    }
    out
}

/// Text that is cut after `most` characters.
pub(super) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// An integer with a thin space after every three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push('\u{2009}');
        }
        out.push(digit);
    }
    out
}

/// A number with about three significant digits.
pub(super) fn figure(number: f64) -> String {
    match number.abs() {
        _ if number == 0.0 || !number.is_finite() => format!("{number}"),
        size if size >= 100.0 => grouped_figure(number),
        size if size >= 10.0 => trimmed(format!("{number:.1}")),
        size if size >= 1.0 => trimmed(format!("{number:.2}")),
        size if size >= 0.001 => trimmed(format!("{number:.4}")),
        _ => format!("{number:.1e}"),
    }
}

fn grouped_figure(number: f64) -> String {
    if (0.0..1e15).contains(&number) { grouped(number.round() as u64) } else { format!("{number:.2e}") }
}

fn trimmed(text: String) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A time in seconds since 1970 as a date in UTC.
pub(crate) fn date(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut out = format!("{year:04}-{month:02}-{day:02}");
    let _ = write!(out, " {:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60);
    out
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Eras of 400 years that begin on 1 March of year 0, so that leap days are the last of their year.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0.0, "1970-01-01 00:00:00"),
            (951_782_400.0, "2000-02-29 00:00:00"),
            (1_709_251_199.0, "2024-02-29 23:59:59"),
            (1_735_689_600.0, "2025-01-01 00:00:00"),
            (4_107_542_400.0, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escaped("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
        assert_eq!(escaped("a\u{0}\n\u{202e}b"), "a\\u{0}\\n\\u{202e}b");
        assert_eq!((shortened("abcdef", 4), shortened("äöü", 3)), ("abc…".into(), "äöü".into()));
    }

    #[test]
    fn figures_have_three_digits() {
        for (number, expected) in
            [(0.0, "0"), (12.34, "12.3"), (1.0, "1"), (0.5, "0.5"), (1234.5, "1\u{2009}235"), (0.0123, "0.0123")]
        {
            assert_eq!(figure(number), expected);
        }
    }
}
