//! Text files of keys: one key per line.
//!
//! A line ends with LF or CRLF, and its text is the key, including blanks. Likely mistakes are refused with the number
//! of the line: an empty line (except at the end of the file), a CR elsewhere, bytes that are not UTF-8, a NUL.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use tensorcask::{Key, KeyKind, MAX_KEY_LEN_BYTES};

use super::input::{InputFile, looks_like, shown, unreadable};
use crate::failure::Failure;

/// The longest line: a key of the largest length in hexadecimal.
const MOST_LINE_BYTES: u64 = 2 * MAX_KEY_LEN_BYTES as u64 + 8;

/// A text file of keys.
#[derive(Debug)]
pub(crate) struct KeyText {
    /// The file.
    pub file: Arc<InputFile>,
    /// The kind of its keys.
    pub kind: KeyKind,
}

impl KeyText {
    /// Opens `file`, whose keys are of `kind`; checks only its first bytes.
    pub(crate) fn open(file: Arc<InputFile>, kind: KeyKind) -> Result<Self, Failure> {
        let start = file.start(4096)?;
        if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
            return Err(file.refuse("it is UTF-16 text: save the keys as UTF-8"));
        }
        let known = looks_like(&start);
        if !start.is_empty() && !known.is_empty() && std::str::from_utf8(&start).is_err() {
            return Err(file.refuse(format!("it is not a text file of keys{known}")));
        }
        Ok(Self { file, kind })
    }

    /// Reads all lines; returns the number of keys.
    pub(crate) fn check(&self) -> Result<u64, Failure> {
        let mut lines = self.lines()?;
        let mut keys = 0;
        while lines.next()?.is_some() {
            keys += 1;
        }
        Ok(keys)
    }

    /// The first key.
    pub(crate) fn first(&self) -> Result<Option<String>, Failure> {
        Ok(self.lines()?.next()?.map(|key| key.to_string()))
    }

    /// The keys in order.
    pub(crate) fn lines(&self) -> Result<Lines<'_>, Failure> {
        let mut text = BufReader::with_capacity(256 << 10, self.file.stream()?);
        let start = text.fill_buf().map_err(|error| unreadable(&self.file.path, &error))?;
        if start.starts_with("\u{feff}".as_bytes()) {
            text.consume(3);
        }
        Ok(Lines { of: self, text, line: 0, bytes: Vec::new() })
    }
}

/// The keys of a file, in order.
pub(crate) struct Lines<'a> {
    of: &'a KeyText,
    text: BufReader<File>,
    line: u64,
    bytes: Vec<u8>,
}

impl Lines<'_> {
    /// The next key.
    pub(crate) fn next(&mut self) -> Result<Option<Key>, Failure> {
        if !self.read_line()? {
            return Ok(None);
        }
        if self.bytes.is_empty() {
            let empty = self.line;
            return if self.only_empty_lines_follow()? {
                Ok(None)
            } else {
                Err(self.refuse(empty, &self.why_no_empty()))
            };
        }
        let text = std::str::from_utf8(&self.bytes).map_err(|error| {
            let at = error.valid_up_to();
            let byte = self.bytes.get(at).copied().unwrap_or_default();
            let what = format!("its byte {} is {byte:#04x}, which is not UTF-8: save the keys as UTF-8", at + 1);
            self.refuse(self.line, &what)
        })?;
        if text.contains('\0') {
            let what = "it has a NUL: is the file UTF-16 or binary? Save the keys as UTF-8";
            return Err(self.refuse(self.line, what));
        }
        if text.contains('\r') {
            let what = "it has a carriage return inside: end lines with LF or CRLF";
            return Err(self.refuse(self.line, what));
        }
        let key = crate::key::parse(text, self.of.kind).map_err(|why| {
            self.refuse(
                self.line,
                &format!("{:?} cannot be a key: {}", shown(text), why.replacen("its keys", "keys", 1)),
            )
        })?;
        crate::key::check_len(&key).map_err(|why| self.refuse(self.line, &why))?;
        Ok(Some(key))
    }

    /// Reads a line without its end; false at the end of the file.
    fn read_line(&mut self) -> Result<bool, Failure> {
        self.bytes.clear();
        let limited = &mut self.text.by_ref().take(MOST_LINE_BYTES);
        let read =
            limited.read_until(b'\n', &mut self.bytes).map_err(|error| unreadable(&self.of.file.path, &error))?;
        if read == 0 {
            return Ok(false);
        }
        self.line += 1;
        if self.bytes.last() == Some(&b'\n') {
            self.bytes.pop();
            if self.bytes.last() == Some(&b'\r') {
                self.bytes.pop();
            }
        } else if read as u64 == MOST_LINE_BYTES {
            return Err(self.refuse(self.line, &format!("it is longer than a key can be ({MAX_KEY_LEN_BYTES} bytes)")));
        }
        Ok(true)
    }

    fn only_empty_lines_follow(&mut self) -> Result<bool, Failure> {
        while self.read_line()? {
            if !self.bytes.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn why_no_empty(&self) -> String {
        match self.of.kind {
            KeyKind::Bytes => "it is empty: the key of zero bytes is written 0x".into(),
            _ => "it is empty: is a key missing? (The empty string can be a key in a .npy, Arrow or Parquet file.)"
                .into(),
        }
    }

    fn refuse(&self, line: u64, what: &str) -> Failure {
        self.of.file.refuse(format!("line {line}: {what}"))
    }
}
