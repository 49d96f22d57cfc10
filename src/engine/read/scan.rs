//! All live rows, in storage order: keys alone, or with their values.

use std::sync::Arc;

use crate::codec::Decoder;
use crate::engine::lookup::find::Finder;
use crate::engine::lookup::query::Query;
use crate::engine::lookup::unread::is_superseded_in;
use crate::engine::rows::decode::value_of;
use crate::engine::rows::row::{BatchId, Row, RowVersion, Source};
use crate::engine::runs::sources::all_sources;
use crate::engine::state::State;
use crate::engine::state::batches::MemBatch;
use crate::error::{Error, Result};
use crate::key::{Key, KeyRef};
use crate::value::Value;

/// Row `row` of a source and its key, if it is the newest row of that key and not a tombstone.
pub(crate) fn live_row(
    state: &State,
    finder: &mut Finder,
    number: BatchId,
    batch: &MemBatch,
    row: u32,
) -> Result<Option<(Key, Row<'static>)>> {
    let found = match batch.source.row(number, row) {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(None),
        // The key is listed at its newer row.
        Err(_) if is_superseded_in(state, &batch.source, row) => return Ok(None),
        Err(error) => return Err(error),
    };
    if found.is_tombstone() {
        return Ok(None);
    }
    let Some(bytes) = found.key() else { return Err(Error::invalid(format!("row {row} has no key"))) };
    let query = Query { key: KeyRef::Bytes(bytes), hash: state.hasher().hash(bytes) };
    // The version of the row's copy, as of the last check.
    let mut moved = None;
    loop {
        let newest = finder.find_one(state, query, |newest| match newest? {
            Some(newest) => Ok::<_, Error>(Some((found.is_still(&newest.row)?, newest.row.version()))),
            None => Ok(None),
        })?;
        let Some((is_still, newest)) = newest else { return Ok(None) };
        if is_still || moved == Some(newest) {
            break;
        }
        let now = moved_to(state, &batch.source, row).filter(|now| now.timestamp == newest.timestamp);
        if now == Some(newest) {
            break;
        }
        if now == moved {
            return Ok(None);
        }
        // It was copied again since the lookup.
        moved = now;
    }
    let key = found.columns().schema.key.decode(bytes);
    Ok(key.map(|key| (key, found)))
}

/// The version of the copy of row `row` of `source`, if compaction has copied it.
fn moved_to(state: &State, source: &Source, row: u32) -> Option<RowVersion> {
    let source = source.clone().now();
    let (id, first) = source.first_row()?;
    let (target, moved) = state.versions().load().moved(id, u32::try_from(first + u64::from(row)).ok()?)?;
    Some(RowVersion { timestamp: source.version(row).timestamp, lane: target.lane, order: u64::from(moved) })
}

/// The sources to scan with [`live_row`], and a guard. While the guard is held, `live_row` recognizes rows that
/// compaction moved.
pub(crate) fn sources_of_scan(state: &State) -> (Vec<(BatchId, MemBatch)>, Arc<()>) {
    let scan = state.versions().scan();
    (all_sources(state, &state.memtable().lock_inserts()), scan)
}

#[derive(Debug)]
struct LiveRows {
    state: Arc<State>,
    finder: Finder,
    sources: std::vec::IntoIter<(BatchId, MemBatch)>,
    _scan: Option<Arc<()>>,
    current: Option<(BatchId, MemBatch, u32)>,
    /// Why the store cannot be iterated over, until the error is returned.
    forked: Option<Error>,
}

impl LiveRows {
    fn new(state: Arc<State>) -> Self {
        let forked = state.check_fork().err();
        let (sources, scan) = forked.is_none().then(|| sources_of_scan(&state)).unzip();
        let sources = sources.unwrap_or_default().into_iter();
        Self { state, finder: Finder::new(1), sources, _scan: scan, current: None, forked }
    }

    fn next(&mut self) -> Option<Result<(Key, Row<'static>)>> {
        if let Some(forked) = self.forked.take() {
            return Some(Err(forked));
        }
        let is_over = self.current.is_none() && self.sources.len() == 0;
        if let (Err(forked), false) = (self.state.check_fork(), is_over) {
            (self.sources, self.current) = (Vec::new().into_iter(), None);
            return Some(Err(forked));
        }
        loop {
            let (number, batch, row) = match &mut self.current {
                Some(current) if current.2 < current.1.rows => current,
                _ => {
                    let (number, batch) = self.sources.next()?;
                    self.current = Some((number, batch, 0));
                    continue;
                }
            };
            let this = *row;
            *row += 1;
            if let Some(found) = live_row(&self.state, &mut self.finder, *number, batch, this).transpose() {
                return Some(found);
            }
        }
    }
}

/// An iterator over all keys; see [`crate::Reader::keys`].
#[derive(Debug)]
pub struct KeysIter(LiveRows);

impl KeysIter {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self(LiveRows::new(state))
    }
}

impl Iterator for KeysIter {
    type Item = Result<Key>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|found| found.map(|(key, _)| key))
    }
}

/// An iterator over all keys and their values; see [`crate::Reader::iter`].
#[derive(Debug)]
pub struct Entries {
    rows: LiveRows,
    decoder: Decoder,
}

impl Entries {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self { rows: LiveRows::new(state), decoder: Decoder::new() }
    }
}

impl Iterator for Entries {
    type Item = Result<(Key, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.rows.next()?;
        let options = self.rows.state.options();
        Some(found.and_then(|(key, row)| {
            row.check(options.verify)?;
            Ok((key, value_of(options, &row, &mut self.decoder)?))
        }))
    }
}
