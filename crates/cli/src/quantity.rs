//! Quantities with units, as arguments.

use std::time::Duration;

/// Parses a size such as `1048576`, `10GiB` or `1.5 GB`.
///
/// # Errors
/// What was expected.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 10] = [
        ("", 1),
        ("B", 1),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
    ];
    let expected = "expected a number of bytes, with a unit or without: 1048576, 500MB, 10GiB";
    let (number, unit) = parts(text);
    let unit = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or(expected)?.1;
    scaled(number, unit).ok_or_else(|| expected.to_owned())
}

/// Parses a duration such as `30d`, `12h`, `90min` or `45s`.
///
/// # Errors
/// What was expected.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 5] = [("s", 1), ("min", 60), ("h", 3600), ("d", 24 * 3600), ("w", 7 * 24 * 3600)];
    let expected = "expected a number with a unit, one of s, min, h, d and w: 30d, 12h";
    let (number, unit) = parts(text);
    let unit = UNITS.iter().find(|(name, _)| *name == unit).ok_or(expected)?.1;
    let micros = scaled(number, unit * 1_000_000).ok_or_else(|| expected.to_owned())?;
    Ok(Duration::from_micros(micros))
}

/// The number and the unit after it.
fn parts(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// A whole number times `unit`, exactly; a fraction, to the next unit below.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit);
    }
    let product = number.parse::<f64>().ok()? * unit as f64;
    (product >= 0.0 && product < u64::MAX as f64).then_some(product as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_scale_and_anything_else_is_refused() {
        assert_eq!(parse_bytes("1048576"), Ok(1 << 20));
        assert_eq!(parse_bytes("10GiB"), Ok(10 << 30));
        assert_eq!(parse_bytes("1.5 kB"), Ok(1500));
        assert_eq!(parse_bytes("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(parse_duration("30d"), Ok(Duration::from_secs(30 * 24 * 3600)));
        assert_eq!(parse_duration("0.5s"), Ok(Duration::from_millis(500)));
        for text in ["", "GiB", "-1", "1 parsec", "1e3", "20000000TiB", "1.2.3", "NaN"] {
            assert!(parse_bytes(text).is_err(), "{text}");
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_duration("30").is_err(), "of what?");
    }
}
