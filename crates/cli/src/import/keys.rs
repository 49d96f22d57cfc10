//! The keys of rows: from files, or row numbers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tensorcask::{Key, KeyKind};

use super::input::{Format, InputFile};
use super::key_array::KeyArray;
use super::key_text::KeyText;
use crate::failure::Failure;

/// A file of keys.
#[derive(Debug)]
pub(crate) enum KeyFile {
    /// A text file with one key per line.
    Text(KeyText),
    /// Integers or strings in a `.npy` file.
    Array(KeyArray),
}

impl KeyFile {
    /// Opens the file at `path`, whose keys are of `kind` (default: str, or the type of the array).
    fn open(path: &Path, kind: Option<KeyKind>) -> Result<Self, Failure> {
        let file = Arc::new(InputFile::open(path)?);
        match Format::of(path) {
            Some(Format::Npy) => KeyArray::open(&file, kind).map(Self::Array),
            Some(other) => Err(file.refuse(format!(
                "keys are in text files and in .npy files of integers or strings, not {} files",
                other.name()
            ))),
            None => Ok(Self::Text(KeyText::open(file, kind.unwrap_or(KeyKind::Str))?)),
        }
    }

    fn kind(&self) -> KeyKind {
        match self {
            Self::Text(text) => text.kind,
            Self::Array(array) => array.kind,
        }
    }
}

/// Where the keys of rows come from.
#[derive(Debug)]
pub(crate) enum KeySource {
    /// The input has its own keys: names of tensors, or a column.
    Own,
    /// Row numbers from `first` on.
    Numbers { first: u64 },
    /// Key files, in order.
    Files(Vec<KeyFile>),
}

impl KeySource {
    /// The keys in the files at `paths`.
    pub(crate) fn files(paths: &[PathBuf], kind: Option<KeyKind>) -> Result<Self, Failure> {
        let files = paths.iter().map(|path| KeyFile::open(path, kind)).collect::<Result<Vec<_>, _>>()?;
        let mut kinds = files.iter().map(KeyFile::kind);
        let first = kinds.next();
        match kinds.find(|kind| Some(*kind) != first).zip(first) {
            Some((other, first)) => Err(Failure::input(format!(
                "the files of --keys hold {} and {} keys, but a store has keys of one kind: choose it with --key-kind",
                first.name(),
                other.name()
            ))),
            None => Ok(Self::Files(files)),
        }
    }

    /// The kind of the keys; `None` if the input has its own keys.
    pub(crate) fn kind(&self) -> Option<KeyKind> {
        match self {
            Self::Own => None,
            Self::Numbers { .. } => Some(KeyKind::U64),
            Self::Files(files) => files.first().map(KeyFile::kind),
        }
    }

    /// Reads and checks all keys: there must be as many as `rows`. `inputs` has the number of rows of each input file.
    pub(crate) fn check(&self, rows: u64, inputs: &[(PathBuf, u64)]) -> Result<(), Failure> {
        match self {
            Self::Own => Ok(()),
            Self::Numbers { first } => match first.checked_add(rows) {
                Some(_) => Ok(()),
                None => {
                    Err(Failure::input(format!("{rows} rows from --first-key {first} on exceed 64-bit row numbers")))
                }
            },
            Self::Files(files) if files.len() == inputs.len() => {
                // One key file per input file: the counts must match per file, so that keys do not shift between files.
                files.iter().zip(inputs).try_for_each(|(keys, (path, rows))| check_file(keys, *rows, Some(path)))
            }
            Self::Files(files) => match files.as_slice() {
                [only] => check_file(only, rows, None),
                files => Err(Failure::input(format!(
                    "{} files of keys were given for {} input files: give --keys once, or once per file",
                    files.len(),
                    inputs.len()
                ))),
            },
        }
    }

    /// A reader that starts at the first key.
    pub(crate) fn reader(&self) -> KeyReader<'_> {
        let numbers = if let Self::Numbers { first } = self { *first } else { 0 };
        let files = if let Self::Files(files) = self { files.iter() } else { [].iter() };
        KeyReader { source: self, numbers, files, current: None }
    }
}

/// Checks the keys of one file: there must be `rows` of them.
fn check_file(file: &KeyFile, rows: u64, input: Option<&Path>) -> Result<(), Failure> {
    let (path, found, unit) = match file {
        KeyFile::Text(text) => (&text.file.path, text.check()?, "lines"),
        KeyFile::Array(array) => (&array.array.file.path, array.check()?, "elements"),
    };
    if found == rows {
        return Ok(());
    }
    let of = input.map(|input| format!(" of {}", input.display())).unwrap_or_default();
    let hint = match (file, found == rows + 1) {
        (KeyFile::Text(text), true) => match text.first()? {
            Some(first) => format!(": is {first:?} in line 1 a heading?"),
            None => String::new(),
        },
        _ => String::new(),
    };
    Err(Failure::input(format!(
        "{}: expected {rows} keys for the {rows} rows{of}, found {found} {unit}{hint}",
        path.display()
    )))
}

/// Reads keys in order.
pub(crate) struct KeyReader<'a> {
    source: &'a KeySource,
    numbers: u64,
    files: std::slice::Iter<'a, KeyFile>,
    current: Option<Current<'a>>,
}

enum Current<'a> {
    Text(super::key_text::Lines<'a>),
    Array(&'a KeyArray, usize),
}

impl KeyReader<'_> {
    /// All keys that are left of files.
    pub(crate) fn rest(&mut self) -> Result<Vec<Key>, Failure> {
        const STEP: usize = 1 << 16;
        let mut keys = Vec::new();
        loop {
            let more = self.next(STEP)?;
            if more.is_empty() {
                return Ok(keys);
            }
            keys.extend(more);
        }
    }

    /// The next `count` keys; fewer only at the end.
    pub(crate) fn next(&mut self, count: usize) -> Result<Vec<Key>, Failure> {
        let mut keys = Vec::with_capacity(count);
        if let KeySource::Numbers { .. } = self.source {
            let first = self.numbers;
            self.numbers = first.saturating_add(count as u64);
            keys.extend((first..self.numbers).map(Key::U64));
            return Ok(keys);
        }
        while keys.len() < count {
            let wanted = count - keys.len();
            let before = keys.len();
            match &mut self.current {
                Some(Current::Text(lines)) => {
                    while keys.len() < count
                        && let Some(key) = lines.next()?
                    {
                        keys.push(key);
                    }
                }
                Some(Current::Array(array, at)) => {
                    let now = wanted.min(array.array.rows() - *at);
                    keys.extend(array.read(*at, now)?);
                    *at += now;
                }
                None => {}
            }
            if keys.len() == before {
                self.current = match self.files.next() {
                    Some(KeyFile::Text(text)) => Some(Current::Text(text.lines()?)),
                    Some(KeyFile::Array(array)) => Some(Current::Array(array, 0)),
                    None => break,
                };
            }
        }
        Ok(keys)
    }
}
