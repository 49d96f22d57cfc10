//! The description of a module without its weights: the name of its type, and its `Debug` output, which shows its
//! configuration.
//!
//! Parts that differ between processes are removed: values of variables, addresses, devices, and the order of hash
//! maps.

use std::fmt::Debug;

use xxhash_rust::xxh3::xxh3_128;

use crate::fingerprint::Variables;

/// Longer descriptions are truncated, and end with a digest of the whole.
const LONGEST: usize = 4096;
/// A number of at least so many hexadecimal digits is taken for an address, which differs between processes.
const ADDRESS_DIGITS: usize = 8;

/// How a module describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Structure {
    pub text: String,
    /// Whether functions are part of it. All functions look alike.
    pub has_functions: bool,
}

impl Structure {
    /// The description of a module with these variables. Their values are fingerprinted separately.
    ///
    /// `Debug` shows the elements of small variables. They are replaced by the variable's name, so that a configuration
    /// with the same text still differs. If values do not count (`by_name` is off), they are replaced by the size
    /// instead.
    pub(crate) fn of<M: Debug>(module: &M, variables: &Variables, by_name: bool) -> Self {
        let mut shown = format!("{module:?}");
        for (name, tensor) in variables.iter().filter(|(_, tensor)| tensor.defined() && tensor.dim() < 2) {
            // `tch` shows the elements of small tensors.
            let values = format!("{tensor:?}");
            if !values.starts_with("Tensor[") {
                let instead =
                    if by_name { format!("Tensor[{name:?}]") } else { format!("Tensor[{:?}]", tensor.size()) };
                shown = shown.replace(&values, &instead);
            }
        }
        let (shown, has_functions) = without_places(&sorted(&shown));
        let mut text = format!("{} {shown}", std::any::type_name::<M>());
        if text.len() > LONGEST {
            let digest = xxh3_128(text.as_bytes());
            let end = (0..=LONGEST).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
            text.truncate(end);
            text = format!("{text}… {digest:032x}");
        }
        Self { text, has_functions }
    }
}

/// An open bracket.
struct Open {
    bracket: char,
    /// Whether it is a map or a set, whose items are in hash order.
    unordered: bool,
    items: Vec<String>,
}

/// Sorts the items of maps and sets in a `Debug` output.
fn sorted(shown: &str) -> String {
    let mut open: Vec<Open> = Vec::new();
    // The text of the current item, and of the items around it.
    let mut around: Vec<String> = Vec::new();
    let mut item = String::new();
    let mut chars = shown.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => {
                item.push(char);
                while let Some(char) = chars.next() {
                    item.push(char);
                    match char {
                        '\\' => item.extend(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '{' | '[' | '(' => {
                // The name of a struct precedes its bracket.
                let named = item.trim_end().ends_with(|char: char| char.is_alphanumeric() || "_>".contains(char));
                open.push(Open { bracket: char, unordered: char == '{' && !named, items: Vec::new() });
                around.push(std::mem::take(&mut item));
            }
            ',' => match open.last_mut() {
                Some(open) => open.items.push(std::mem::take(&mut item).trim().to_owned()),
                None => item.push(char),
            },
            '}' | ']' | ')' => match (open.pop(), around.pop()) {
                (Some(mut closed), Some(before)) => {
                    closed.items.push(std::mem::take(&mut item).trim().to_owned());
                    item = joined(before, closed, Some(char));
                }
                _ => item.push(char),
            },
            char => item.push(char),
        }
    }
    // Brackets that were never closed.
    while let (Some(mut unclosed), Some(before)) = (open.pop(), around.pop()) {
        unclosed.items.push(std::mem::take(&mut item));
        item = joined(before, unclosed, None);
    }
    item
}

fn joined(before: String, mut open: Open, end: Option<char>) -> String {
    if open.unordered {
        open.items.sort_unstable();
    }
    let mut text = before;
    text.push(open.bracket);
    text.push_str(&open.items.join(", "));
    text.extend(end);
    text
}

/// Removes addresses and devices. Also returns whether there are functions, which are shown as addresses or as the
/// `func` of `tch`.
fn without_places(shown: &str) -> (String, bool) {
    let mut text = String::with_capacity(shown.len());
    let mut has_functions = false;
    let mut quoted = false;
    let mut rest = shown;
    while let Some(first) = rest.chars().next() {
        let is_word = |char: char| char.is_alphanumeric() || char == '_';
        let len = rest.find(|char| !is_word(char)).unwrap_or(rest.len());
        if len == 0 {
            let escaped = quoted && first == '\\';
            let len = if escaped { rest.chars().take(2).map(char::len_utf8).sum() } else { first.len_utf8() };
            quoted ^= first == '"';
            let (part, next) = rest.split_at(len);
            text.push_str(part);
            rest = next;
            continue;
        }
        let (word, next) = rest.split_at(len);
        rest = next;
        match word {
            word if quoted => text.push_str(word),
            "func" | "funcT" => {
                has_functions = true;
                text.push_str(word);
            }
            word if is_address(word) => {
                has_functions = true;
                text.push_str("0x");
            }
            "Cpu" | "Cuda" | "Mps" | "Vulkan" => {
                text.push_str("Device");
                if let Some((_, next)) = rest.strip_prefix('(').and_then(|index| index.split_once(')')) {
                    rest = next;
                }
            }
            word => text.push_str(word),
        }
    }
    (text, has_functions)
}

fn is_address(word: &str) -> bool {
    let digits = word.strip_prefix("0x").unwrap_or_default();
    digits.len() >= ADDRESS_DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_sorted_and_structs_are_not() {
        for (shown, expected) in [
            (r#"Net { b: 1, a: {"y": [2, 1], "x": (3, 0)} }"#, r#"Net {b: 1, a: {"x": (3, 0), "y": [2, 1]}}"#),
            (r#"{"}, {": 1, "a\"": {2, 1}}"#, r#"{"a\"": {1, 2}, "}, {": 1}"#),
            ("Some([3, 1])", "Some([3, 1])"),
            ("no, brackets", "no, brackets"),
            ("a { b: [1, 0", "a { b: [1,  0"),
            (")", ")"),
            ("", ""),
        ] {
            let normal = sorted(shown);
            assert_eq!(normal.replace(' ', ""), expected.replace(' ', ""), "{shown}");
        }
    }

    #[test]
    fn places_are_left_out() {
        let of = without_places;
        assert_eq!(of("a: 0x7f3a12345678, b: 0x1f"), ("a: 0x, b: 0x1f".to_owned(), true));
        assert_eq!(of("VarStore { device: Cuda(1), n: 2 }"), ("VarStore { device: Device, n: 2 }".to_owned(), false));
        assert_eq!(of("device: Cpu"), ("device: Device".to_owned(), false));
        assert!(of(r#""func \" Cpu 0x7f3a12345678" [func]"#).1);
        assert_eq!(of(r#""func \" Cpu 0x7f3a12345678""#), (r#""func \" Cpu 0x7f3a12345678""#.to_owned(), false));
        assert_eq!(of("functional: 1"), ("functional: 1".to_owned(), false));
    }

    #[test]
    fn long_descriptions_are_cut_but_count_whole() {
        let of = |last: u8| Structure::of(&[vec![1_u8; 5000], vec![last]], &Variables::none(), true).text;
        assert!(of(1).len() < LONGEST + 100);
        assert_ne!(of(1), of(2));
        assert_eq!(of(1), of(1));
    }
}
