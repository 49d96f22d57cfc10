//! Parses the header of a `.npy` file: a Python dictionary with three entries.

/// A Python literal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Literal {
    Text(String),
    Number(i128),
    Flag(bool),
    Tuple(Vec<Literal>),
    List(Vec<Literal>),
}

/// The deepest nesting that is parsed. Only the types of structured elements nest, and those are refused later.
const MAX_DEPTH: usize = 16;

/// Parses a dictionary.
///
/// # Errors
/// A message about what is wrong with the text.
pub(crate) fn parse_dictionary(text: &str) -> Result<Vec<(String, Literal)>, String> {
    let mut parser = Parser { rest: text.trim_start_matches(BLANK) };
    let mut entries: Vec<(String, Literal)> = Vec::new();
    parser.expect('{')?;
    while !parser.take('}') {
        let Literal::Text(name) = parser.value(0)? else {
            return Err("a name in the header is not a string".into());
        };
        parser.expect(':')?;
        let value = parser.value(0)?;
        if entries.iter().any(|(found, _)| *found == name) {
            return Err(format!("the header has the entry {name:?} twice"));
        }
        entries.push((name, value));
        if !parser.take(',') {
            parser.expect('}')?;
            break;
        }
    }
    if parser.rest.is_empty() {
        Ok(entries)
    } else {
        Err(format!("the header continues with {:?} after its end", head(parser.rest)))
    }
}

/// Whitespace between tokens.
const BLANK: [char; 4] = [' ', '\t', '\n', '\r'];

/// The start of a text, for messages.
fn head(text: &str) -> String {
    text.chars().take(24).collect()
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    /// Consumes `expected` and the whitespace after it, if it is next.
    fn take(&mut self, expected: char) -> bool {
        match self.rest.strip_prefix(expected) {
            Some(rest) => {
                self.rest = rest.trim_start_matches(BLANK);
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, expected: char) -> Result<(), String> {
        if self.take(expected) {
            return Ok(());
        }
        let found = if self.rest.is_empty() { "its end".into() } else { format!("{:?}", head(self.rest)) };
        Err(format!("the header cannot be read: expected {expected:?}, found {found}"))
    }

    fn value(&mut self, depth: usize) -> Result<Literal, String> {
        if depth > MAX_DEPTH {
            return Err("the header is nested too deep".into());
        }
        if self.take('(') {
            let (items, commas) = self.items(')', depth)?;
            // Parentheses around one value without a comma are not a tuple.
            return Ok(match <[Literal; 1]>::try_from(items) {
                Ok([only]) if commas == 0 => only,
                Ok(items) => Literal::Tuple(items.into()),
                Err(items) => Literal::Tuple(items),
            });
        }
        if self.take('[') {
            return Ok(Literal::List(self.items(']', depth)?.0));
        }
        // Python 2 writes strings with a prefix.
        if let Some(text) = self.rest.strip_prefix(['u', 'b']).filter(|text| text.starts_with(['\'', '"'])) {
            self.rest = text;
        }
        match self.rest.chars().next() {
            Some(quote @ ('\'' | '"')) => self.text(quote),
            Some(first) if first.is_ascii_digit() || first == '-' => self.number(),
            _ => self.word(),
        }
    }

    fn items(&mut self, end: char, depth: usize) -> Result<(Vec<Literal>, usize), String> {
        let (mut items, mut commas) = (Vec::new(), 0);
        while !self.take(end) {
            items.push(self.value(depth + 1)?);
            if !self.take(',') {
                self.expect(end)?;
                break;
            }
            commas += 1;
        }
        Ok((items, commas))
    }

    fn text(&mut self, quote: char) -> Result<Literal, String> {
        let inner = self.rest.strip_prefix(quote).unwrap_or_default();
        let (text, rest) =
            inner.split_once(quote).ok_or_else(|| "a string in the header has no closing quote".to_owned())?;
        if text.contains('\\') {
            return Err(format!("the string {:?} in the header has an escape, which is not supported", head(text)));
        }
        self.rest = rest.trim_start_matches(BLANK);
        Ok(Literal::Text(text.to_owned()))
    }

    fn number(&mut self) -> Result<Literal, String> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        let number = digits.parse().map_err(|_| format!("{:?} in the header is not an integer", head(self.rest)))?;
        // Python 2 writes long integers with a suffix.
        let rest = rest.strip_prefix(['L', 'l']).unwrap_or(rest);
        self.rest = rest.trim_start_matches(BLANK);
        Ok(Literal::Number(number))
    }

    fn word(&mut self) -> Result<Literal, String> {
        for (word, flag) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest.trim_start_matches(BLANK);
                return Ok(Literal::Flag(flag));
            }
        }
        Err(format!("the header cannot be read at {:?}", head(self.rest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionaries_of_every_writer() {
        let shape = |text: &str| {
            let entries = parse_dictionary(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {text}, }}"));
            entries.unwrap().into_iter().find(|(name, _)| name == "shape").unwrap().1
        };
        let numbers = |numbers: &[i128]| Literal::Tuple(numbers.iter().map(|n| Literal::Number(*n)).collect());
        assert_eq!(shape("(3, 2)"), numbers(&[3, 2]));
        assert_eq!(shape("(3L, 2L)"), numbers(&[3, 2]));
        assert_eq!(shape("(6,)"), numbers(&[6]));
        assert_eq!(shape("()"), numbers(&[]));
        assert_eq!(shape("(6)"), Literal::Number(6));
        assert_eq!(shape("(-1,)"), numbers(&[-1]));
        assert_eq!(parse_dictionary("{u'a': b'x'}"), Ok(vec![("a".into(), Literal::Text("x".into()))]));
        assert!(parse_dictionary("{\"a\":[('x', '<i8', (3,))],}").is_ok());
    }

    #[test]
    fn other_text_is_refused() {
        let deep = format!("{{'a': {}", "[".repeat(100_000));
        for text in ["", "{", "{'a'}", "{'a': }", "{'a': 1} x", "{'a': '", "{'a': 1, 'a': 2}", "{1: 2}", &deep] {
            assert!(parse_dictionary(text).is_err(), "{}", head(text));
        }
    }
}
