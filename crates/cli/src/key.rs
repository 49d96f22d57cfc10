//! Keys as text, on the command line and in key files.

use tensorcask::{Key, KeyKind, MAX_KEY_LEN_BYTES};

use crate::failure::Failure;

/// Parses a key of the store's kind: text, a number, or hexadecimal bytes.
pub(crate) fn parse_key(text: &str, kind: Option<KeyKind>) -> Result<Key, Failure> {
    let kind = kind.unwrap_or(KeyKind::Str);
    parse(text, kind).map_err(|why| Failure::input(format!("{text:?} is not a key of this store: {why}")))
}

/// Parses a key of `kind`. A number has one accepted spelling, so two different strings are never the same key.
///
/// # Errors
/// A message that names the kind of the keys and what is wrong with the text.
pub(crate) fn parse(text: &str, kind: KeyKind) -> Result<Key, String> {
    match kind {
        KeyKind::Str => Ok(Key::Str(text.to_owned())),
        KeyKind::U64 => match text.parse::<u64>() {
            Ok(number) if number.to_string() == text => Ok(Key::U64(number)),
            Ok(number) => {
                Err(format!("its keys are unsigned integers, and {number} must be written {:?}", number.to_string()))
            }
            Err(_) => Err("its keys are unsigned integers of 64 bits".into()),
        },
        KeyKind::Bytes => {
            let hex = text.strip_prefix("0x").unwrap_or(text);
            let digits: Option<Vec<u8>> =
                hex.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
            let digits = digits.ok_or("its keys are bytes, given in hexadecimal")?;
            if !digits.len().is_multiple_of(2) {
                return Err("its keys are bytes, given in hexadecimal: two digits per byte".into());
            }
            Ok(Key::Bytes(digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect()))
        }
    }
}

/// Prepends `prefix` to the key; numbers become text.
///
/// # Errors
/// A message, if the key is bytes.
pub(crate) fn with_prefix(prefix: &str, key: Key) -> Result<Key, String> {
    match key {
        Key::Str(text) => Ok(Key::Str(format!("{prefix}{text}"))),
        Key::U64(number) => Ok(Key::Str(format!("{prefix}{number}"))),
        Key::Bytes(_) => Err("--key-prefix is text and does not apply to keys that are bytes".into()),
    }
}

/// Checks the length of a key.
///
/// # Errors
/// A message, if the key is too long.
pub(crate) fn check_len(key: &Key) -> Result<(), String> {
    let len_bytes = match key {
        Key::Str(text) => text.len(),
        Key::U64(_) => 8,
        Key::Bytes(bytes) => bytes.len(),
    };
    if len_bytes <= MAX_KEY_LEN_BYTES {
        return Ok(());
    }
    Err(format!("the key is {len_bytes} bytes long, more than the limit of {MAX_KEY_LEN_BYTES}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_accepted_spelling() {
        for text in ["0", "7", "18446744073709551615"] {
            assert!(matches!(parse(text, KeyKind::U64), Ok(Key::U64(number)) if number.to_string() == text));
        }
        for text in ["", "007", "00", "+7", " 7", "7 ", "-1", "-0", "7.0", "0x7", "18446744073709551616", "٧", "7_0"] {
            assert!(parse(text, KeyKind::U64).is_err(), "{text:?}");
        }
    }

    #[test]
    fn bytes_are_hexadecimal() {
        assert_eq!(parse("0x00fF", KeyKind::Bytes), Ok(Key::Bytes(vec![0, 255])));
        assert_eq!(parse("0x", KeyKind::Bytes), Ok(Key::Bytes(Vec::new())));
        for text in ["abc", "0xg0", "0x 0", "é"] {
            assert!(parse(text, KeyKind::Bytes).is_err(), "{text:?}");
        }
    }
}
