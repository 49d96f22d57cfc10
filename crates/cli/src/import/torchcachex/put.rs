//! Checks the segments, and puts their rows.

use std::collections::HashSet;
use std::path::PathBuf;

use tensorcask::{Durability, Key, KeyKind, Options, Reader, Store};

use super::arguments::Arguments;
use super::layout::Kind;
use super::segment::{Batch, Segment, list};
use crate::failure::Failure;
use crate::import::{census, put};
use crate::output::Output;
use crate::store::ReadArguments;

/// Checked segments, in the order in which they are put.
pub(super) struct Plan<'a> {
    arguments: &'a Arguments,
    lists: bool,
    pub segments: Vec<Segment>,
    /// Segments that are skipped, and why.
    pub damaged: Vec<(PathBuf, String)>,
    /// Rows that can be imported.
    pub usable: u64,
    /// Distinct keys among these.
    pub distinct: u64,
    /// Rows that have pickled parts.
    pub pickled: u64,
    /// Rows that lack a part.
    pub incomplete: u64,
    /// Whether rows with pickled parts are dicts.
    pub has_dicts: bool,
    /// The name of the cache and a colon, if all keys start with it.
    pub common_prefix: Option<String>,
}

/// Called with a batch and some rows of it.
type EachBatch<'a> = dyn FnMut(&Batch, &[usize]) -> Result<(), Failure> + 'a;

/// What was put, or would be.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Keys that the store did not have.
    pub new: u64,
    /// Bytes of tensors.
    pub bytes: u64,
}

impl<'a> Plan<'a> {
    /// Opens and checks all segments.
    pub(super) fn new(arguments: &'a Arguments) -> Result<Self, Failure> {
        let mut plan = Self {
            arguments,
            lists: arguments.lists(),
            segments: Vec::new(),
            damaged: Vec::new(),
            usable: 0,
            distinct: 0,
            pickled: 0,
            incomplete: 0,
            has_dicts: false,
            common_prefix: None,
        };
        let name = arguments.folder.file_name().and_then(|name| name.to_str());
        let prefix = name.map(|name| format!("{name}:")).unwrap_or_default();
        let mut all_prefixed = !prefix.is_empty();
        let paths = list(&arguments.folder)?;
        if paths.is_empty() {
            return Err(Failure::input(format!(
                "{} has no segments of torchcachex, which are called segment_000000.arrow and so on",
                arguments.folder.join("segments").display()
            )));
        }
        for path in paths {
            match plan.check(&path, &prefix, &mut all_prefixed) {
                Ok(segment) => plan.segments.push(segment),
                Err(failure) if arguments.skip_damaged && !failure.is_of_disk() => {
                    plan.damaged.push((path, failure.message().unwrap_or("it is damaged").to_owned()));
                }
                Err(failure) => return Err(failure.and("; or skip such segments with --skip-damaged")),
            }
        }
        if !arguments.overwrite {
            // Rows that the store has are kept, so the newest row of a key is put first.
            plan.segments.reverse();
        }
        plan.distinct = census::distinct(plan.usable, &|each| plan.each(&mut |batch, rows| each(chosen(batch, rows))))?;
        plan.common_prefix = (all_prefixed && plan.usable > 0).then_some(prefix);
        Ok(plan)
    }

    /// Reads a segment, and adds its rows to the numbers.
    fn check(&mut self, path: &std::path::Path, prefix: &str, all_prefixed: &mut bool) -> Result<Segment, Failure> {
        let segment = Segment::open(path)?;
        let (mut usable, mut incomplete, mut pickled) = (0, 0, 0);
        let skips = self.skips_all(&segment);
        for batch in segment.batches(self.lists)? {
            let batch = batch?;
            let rows = (0..batch.keys.len()).filter(|row| batch.is_complete(*row));
            let complete: Vec<usize> = rows.collect();
            for row in &complete {
                let len_bytes = batch.value(*row).map(|value| crate::import::source::tensor_len_bytes(&value));
                let most = self.arguments.write.most_value_bytes();
                crate::import::source::check_value_len(path, len_bytes.unwrap_or_default(), most)?;
            }
            *all_prefixed &= batch.keys.iter().all(|key| matches!(key, Key::Str(text) if text.starts_with(prefix)));
            if skips {
                pickled += batch.keys.len() as u64;
            } else {
                usable += complete.len() as u64;
                incomplete += (batch.keys.len() - complete.len()) as u64;
            }
        }
        self.usable += usable;
        self.incomplete += incomplete;
        self.pickled += pickled;
        self.has_dicts |= skips && segment.layout.kind == Kind::Dict && !segment.layout.tensors.is_empty();
        Ok(segment)
    }

    /// Whether all rows of a segment are skipped, since they have pickled parts.
    fn skips_all(&self, segment: &Segment) -> bool {
        let layout = &segment.layout;
        if layout.pickled.is_empty() {
            return false;
        }
        let has_others = layout.kind == Kind::Dict && !layout.tensors.is_empty();
        !self.arguments.without_pickled || !has_others
    }

    /// Calls `each` with the batches of all segments and the rows of them that can be imported.
    fn each(&self, each: &mut EachBatch<'_>) -> Result<(), Failure> {
        for segment in self.segments.iter().filter(|segment| !self.skips_all(segment)) {
            let mut batches = segment.batches(self.lists)?.collect::<Result<Vec<_>, _>>()?;
            if !self.arguments.overwrite {
                batches.reverse();
            }
            for mut batch in batches {
                self.strip(&mut batch, segment)?;
                let rows: Vec<usize> = (0..batch.keys.len()).filter(|row| batch.is_complete(*row)).collect();
                each(&batch, &rows)?;
            }
        }
        Ok(())
    }

    fn strip(&self, batch: &mut Batch, segment: &Segment) -> Result<(), Failure> {
        let Some(prefix) = &self.arguments.strip_prefix else { return Ok(()) };
        for key in &mut batch.keys {
            if let Key::Str(text) = key
                && let Some(rest) = text.strip_prefix(prefix.as_str())
            {
                if rest.is_empty() {
                    return Err(Failure::input(format!(
                        "{}: the key {text:?} is the prefix itself: choose another --strip-prefix",
                        segment.path().display()
                    )));
                }
                *text = rest.to_owned();
            }
        }
        Ok(())
    }

    /// Counts what would be put.
    pub(super) fn count(&self) -> Result<Counts, Failure> {
        let store = self.arguments.store();
        let reader = if store.join("store.json").exists() {
            Some(crate::store::open(&ReadArguments::of(store, &self.arguments.write))?)
        } else {
            None
        };
        self.check_kind(reader.as_ref().and_then(Reader::key_kind))?;
        let absent = |keys: Vec<Key>| -> Result<Vec<Key>, Failure> {
            let Some(reader) = &reader else { return Ok(keys) };
            let found = reader.contains_batch(&keys)?;
            Ok(keys.into_iter().zip(found).filter(|(_, found)| !found).map(|(key, _)| key).collect())
        };
        let new =
            census::distinct(self.usable, &|each| self.each(&mut |batch, rows| each(absent(chosen(batch, rows))?)))?;
        Ok(Counts { new, bytes: 0 })
    }

    /// Puts all rows.
    pub(super) fn put(&self, output: &Output) -> Result<Counts, Failure> {
        let options = Options::new().codec(self.arguments.codec.codec());
        let options = options.buffer_bytes(16 << 20).flush_every(8192, 8 << 20).memtable_keys(1 << 18);
        let store = crate::store::writer(self.arguments.store(), &self.arguments.write, options)?;
        self.check_kind(store.key_kind())?;
        let mut counts = Counts::default();
        let mut seen = 0;
        let bar = output.progress(self.usable);
        let done = self.each(&mut |batch, rows| {
            seen += rows.len() as u64;
            self.put_batch(&store, batch, rows, &mut counts)?;
            bar.set_position(seen);
            Ok(())
        });
        let stored = |failure: Failure| failure.and("; rows that were stored before that are kept");
        done.map_err(stored)?;
        store.close().map_err(|error| stored(error.into()))?;
        bar.finish_and_clear();
        Ok(counts)
    }

    fn put_batch(&self, store: &Store, batch: &Batch, rows: &[usize], counts: &mut Counts) -> Result<(), Failure> {
        let keys = chosen(batch, rows);
        counts.new += census::absent(store, &keys)?;
        let rows = if self.arguments.overwrite { rows.to_vec() } else { newest_absent(store, &keys, rows)? };
        if rows.is_empty() {
            return Ok(());
        }
        counts.bytes += put::put(store, &chosen(batch, &rows), &batch.rows(&rows))?;
        // Written before the next batch is read, so that memory stays bounded.
        store.flush_with(Durability::Buffered)?;
        Ok(())
    }

    fn check_kind(&self, kind: Option<KeyKind>) -> Result<(), Failure> {
        match kind {
            Some(kind) if kind != KeyKind::Str && self.usable > 0 => Err(Failure::input(format!(
                "the keys of {} are {}, but those of torchcachex are text: choose another store with --to",
                self.arguments.store().display(),
                kind.name()
            ))),
            _ => Ok(()),
        }
    }
}

fn chosen(batch: &Batch, rows: &[usize]) -> Vec<Key> {
    rows.iter().filter_map(|row| batch.keys.get(*row).cloned()).collect()
}

/// The rows whose keys the store does not have; of rows with one key, the last.
fn newest_absent(store: &Store, keys: &[Key], rows: &[usize]) -> Result<Vec<usize>, Failure> {
    let found = store.contains_batch(keys)?;
    let mut taken = HashSet::new();
    let mut left: Vec<usize> = Vec::with_capacity(rows.len());
    for ((key, row), found) in keys.iter().zip(rows).zip(found).rev() {
        if !found && taken.insert(key) {
            left.push(*row);
        }
    }
    left.reverse();
    Ok(left)
}
