//! Opens and checks all input before the first row is put.

use tensorcask::{Key, KeyKind};

use super::arguments::Arguments;
use super::input::Inputs;
use super::keys::KeySource;
use super::source::Source;
use super::{census, open};
use crate::failure::Failure;
use crate::key::{check_len, with_prefix};

/// The checked input of an import.
pub(crate) struct Plan {
    pub sources: Vec<(Box<dyn Source>, u64)>,
    pub keys: KeySource,
    prefix: Option<String>,
    pub kind: KeyKind,
    pub rows: u64,
    pub distinct: u64,
}

impl Plan {
    /// Opens and checks all files.
    pub(crate) fn new(arguments: &Arguments, inputs: &Inputs) -> Result<Self, Failure> {
        let mut sources = open::sources(arguments, inputs)?;
        let mut counted = Vec::with_capacity(sources.len());
        for source in &mut sources {
            counted.push((source.path().to_path_buf(), source.check(arguments.write.most_value_bytes())?));
        }
        check_alike(&sources)?;
        let own = sources.first().and_then(|source| source.key_kind());
        let keys = match own {
            Some(_) => KeySource::Own,
            None if arguments.keys.is_empty() => KeySource::Numbers { first: arguments.first_key.unwrap_or(0) },
            None => KeySource::files(&arguments.keys, arguments.key_kind())?,
        };
        open::check_options(arguments, inputs.format, &keys, &sources)?;
        let rows = counted.iter().map(|(_, rows)| rows).sum();
        keys.check(rows, &counted)?;
        let kind = match (&arguments.key_prefix, own.or(keys.kind()).unwrap_or(KeyKind::U64)) {
            (None, kind) => kind,
            (Some(_), KeyKind::Str | KeyKind::U64) => KeyKind::Str,
            (Some(_), KeyKind::Bytes) => {
                return Err(Failure::input("--key-prefix is text and does not apply to keys that are bytes".into()));
            }
        };
        let sources = sources.into_iter().zip(counted).map(|(source, (_, rows))| (source, rows)).collect();
        let mut plan = Self { sources, keys, prefix: arguments.key_prefix.clone(), kind, rows, distinct: rows };
        if !matches!(plan.keys, KeySource::Numbers { .. }) {
            plan.distinct = census::distinct(rows, &|each| plan.each_key(each))?;
        } else if let Some(prefix) = &plan.prefix {
            check_len(&Key::Str(format!("{prefix}{}", u64::MAX)))
                .map_err(|why| Failure::input(format!("--key-prefix: {why}")))?;
        }
        Ok(plan)
    }

    /// Calls `each` with all keys as they will be stored, in batches.
    pub(crate) fn each_key(&self, each: &mut dyn FnMut(Vec<Key>) -> Result<(), Failure>) -> Result<(), Failure> {
        if matches!(self.keys, KeySource::Own) {
            return self.sources.iter().try_for_each(|(source, _)| source.keys(&mut |keys| each(self.prefixed(keys)?)));
        }
        let (mut reader, mut left) = (self.keys.reader(), self.rows);
        while left > 0 {
            let keys = reader.next(left.min(4096) as usize)?;
            if keys.is_empty() {
                return Err(Failure::input("a file of --keys became shorter during the import".into()));
            }
            left -= keys.len() as u64;
            each(self.prefixed(keys)?)?;
        }
        Ok(())
    }

    /// Prepends the prefix, if there is one.
    pub(crate) fn prefixed(&self, keys: Vec<Key>) -> Result<Vec<Key>, Failure> {
        let Some(prefix) = &self.prefix else { return Ok(keys) };
        let key = |key| {
            let key = with_prefix(prefix, key)?;
            check_len(&key).map(|()| key)
        };
        keys.into_iter().map(|found| key(found).map_err(|why| Failure::input(format!("--key-prefix: {why}")))).collect()
    }
}

/// Checks that all files have the same structure and kind of keys.
fn check_alike(sources: &[Box<dyn Source>]) -> Result<(), Failure> {
    let Some((first, others)) = sources.split_first() else { return Ok(()) };
    for other in others {
        let (expected, found) = (first.structure(), other.structure());
        if expected != found {
            return Err(Failure::input(format!(
                "{}: its rows are {}, but those of {} are {}: import the files separately",
                other.path().display(),
                found.unwrap_or_default(),
                first.path().display(),
                expected.unwrap_or_default()
            )));
        }
        if first.key_kind() != other.key_kind() {
            let kind = |source: &dyn Source| source.key_kind().map_or("no", KeyKind::name);
            return Err(Failure::input(format!(
                "{}: it has {} keys, but {} has {} keys: import the files separately",
                other.path().display(),
                kind(other.as_ref()),
                first.path().display(),
                kind(first.as_ref())
            )));
        }
    }
    Ok(())
}
