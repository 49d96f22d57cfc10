//! The order in which compaction writes rows.
//!
//! In segments whose rows have commit timestamps of their own, rows may come in any order, and rows of many commits in one
//! batch. So rows can be sorted, and rows that were committed one by one get into few batches.

use std::sync::Arc;

use hashbrown::HashTable;

use crate::engine::compact::live::batch;
use crate::engine::compact::plan::Candidate;
use crate::engine::options::Order;
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::key::{Key, KeyHasher, KeyKind};
use crate::segment::batch::Batch;

/// Most rows of a batch that compaction makes of others.
pub(super) const BATCH_ROWS: usize = 1 << 16;
/// Most bytes of a batch that compaction makes of others, unless a single row has more.
const BATCH_LEN_BYTES: usize = 8 << 20;

/// A batch of a segment that is rewritten.
#[derive(Debug)]
pub(super) struct SourceBatch {
    /// The position of its segment in the group.
    pub segment: usize,
    pub lane: u16,
    pub batch: Arc<Batch>,
}

/// A batch of a group, which is not read yet.
#[derive(Debug)]
pub(super) struct Commit<'a> {
    pub timestamp: u64,
    /// The position of its segment in the group.
    pub segment: usize,
    pub candidate: &'a Candidate,
    /// Its number in the segment.
    pub number: usize,
}

/// The batches of `group` in commit order, in which commit timestamps ascend as in every segment.
///
/// # Errors
/// IO errors.
pub(super) fn commits(group: &[Candidate]) -> Result<Vec<Commit<'_>>> {
    let mut commits = Vec::new();
    for (segment, candidate) in group.iter().enumerate() {
        for (number, frame) in candidate.segment.batches()?.frames().iter().enumerate() {
            commits.push(Commit { timestamp: frame.timestamp, segment, candidate, number });
        }
    }
    commits.sort_unstable_by_key(|commit| (commit.timestamp, commit.candidate.segment.id, commit.number));
    Ok(commits)
}

/// A live row.
#[derive(Debug, Clone, Copy)]
pub(super) struct LiveRow {
    /// The position of its batch in [`Arranged`].
    pub batch: u32,
    pub row: u32,
}

/// The live rows of a group, in the order in which they are written.
#[derive(Debug)]
pub(super) struct Arranged {
    batches: Vec<SourceBatch>,
    rows: Vec<LiveRow>,
}

impl Arranged {
    /// The live rows of `group` in commit order. Reads keys and no values. O(rows).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a batch is damaged, IO errors, and what `stop` returns.
    pub(super) fn in_commit_order(group: &[Candidate], stop: &dyn Fn() -> Result<()>) -> Result<Self> {
        let commits = commits(group)?;
        let mut arranged = Self { batches: Vec::with_capacity(commits.len()), rows: Vec::new() };
        for Commit { segment, candidate, number, .. } in commits {
            stop()?;
            let (batch, lane) = (batch(&candidate.segment, number)?, candidate.segment.id.lane);
            let at = arranged.batches.len() as u32;
            let live = candidate.live_rows(&batch).into_iter();
            arranged.rows.extend(live.map(|row| LiveRow { batch: at, row: row as u32 }));
            arranged.batches.push(SourceBatch { segment, lane, batch });
        }
        Ok(arranged)
    }

    /// Compares the checksums of all rows. Reads each segment from front to back, whatever the order of rows is. O(bytes of
    /// the rows).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a row is damaged: its copy would get a matching checksum. IO errors, and what `stop`
    /// returns.
    pub(super) fn check_rows(&self, group: &[Candidate], stop: &dyn Fn() -> Result<()>) -> Result<()> {
        for source in &self.batches {
            stop()?;
            if let Some(candidate) = group.get(source.segment) {
                candidate.check_rows(&source.batch, &candidate.live_rows(&source.batch))?;
            }
        }
        Ok(())
    }

    /// Sorts the rows. Returns whether they were in this order already. O(rows · log rows).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a row has no key.
    pub(super) fn sort(&mut self, state: &State, order: &Order) -> Result<bool> {
        let places = match order {
            Order::Keys => None,
            Order::Given(keys) => Some(Places::new(state.hasher(), keys)),
        };
        let mut ranked = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let key = self.key(*row).ok_or_else(|| Error::internal("a live row has no key"))?;
            let place = places.as_ref().map_or(u32::MAX, |places| places.of(key));
            ranked.push((place, leading(self.kind(), key), *row));
        }
        let compare = |a: &(u32, u64, LiveRow), b: &(u32, u64, LiveRow)| {
            (a.0, a.1).cmp(&(b.0, b.1)).then_with(|| self.key(a.2).cmp(&self.key(b.2)))
        };
        let in_order = ranked.is_sorted_by(|a, b| compare(a, b).is_le());
        if !in_order {
            ranked.sort_unstable_by(compare);
            self.rows = ranked.into_iter().map(|(_, _, row)| row).collect();
        }
        Ok(in_order)
    }

    fn kind(&self) -> Option<KeyKind> {
        self.batches.first().map(|source| source.batch.columns.schema.key)
    }

    fn key(&self, row: LiveRow) -> Option<&[u8]> {
        self.batches.get(row.batch as usize)?.batch.columns.key(row.row as usize)
    }

    /// The batch of a row.
    pub(super) fn source(&self, row: LiveRow) -> Result<&SourceBatch> {
        self.batches.get(row.batch as usize).ok_or_else(|| Error::internal("a row of no batch"))
    }

    /// The rows in their order.
    pub(super) fn rows(&self) -> &[LiveRow] {
        &self.rows
    }

    /// The rows of each new batch.
    pub(super) fn batches(&self) -> impl Iterator<Item = &[LiveRow]> {
        let mut rest = self.rows.as_slice();
        std::iter::from_fn(move || {
            let mut len_bytes = 0_usize;
            let fits = rest.iter().take(BATCH_ROWS).take_while(|row| {
                let before = len_bytes;
                len_bytes = before.saturating_add(self.len_bytes(**row));
                before == 0 || len_bytes <= BATCH_LEN_BYTES
            });
            let (rows, others) = rest.split_at_checked(fits.count())?;
            rest = others;
            (!rows.is_empty()).then_some(rows)
        })
    }

    /// About the bytes that a row takes.
    fn len_bytes(&self, row: LiveRow) -> usize {
        let source = self.batches.get(row.batch as usize);
        source.and_then(|source| source.batch.row_len_bytes(row.row as usize)).unwrap_or(0)
    }
}

/// The leading bytes of a key, so that most comparisons need no more; all of an integer.
fn leading(kind: Option<KeyKind>, key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(key).for_each(|(byte, of_key)| *byte = *of_key);
    if kind == Some(KeyKind::U64) { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) }
}

/// The place of each key in a given order.
struct Places<'a> {
    hasher: KeyHasher,
    keys: &'a [Key],
    /// Positions in `keys`.
    table: HashTable<u32>,
}

impl<'a> Places<'a> {
    fn new(hasher: KeyHasher, keys: &'a [Key]) -> Self {
        // A segment has no more rows than that.
        let keys = keys.get(..u32::MAX as usize).unwrap_or(keys);
        let mut places = Self { hasher, keys, table: HashTable::with_capacity(keys.len()) };
        for (place, key) in (0_u32..).zip(keys) {
            key.as_ref().with_bytes(|bytes| {
                if places.find(bytes).is_none() {
                    let hash_of = |place: &u32| hash(hasher, keys, *place);
                    places.table.insert_unique(hasher.hash(bytes), place, hash_of);
                }
            });
        }
        places
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        let is_key = |place: &u32| {
            self.keys.get(*place as usize).is_some_and(|other| other.as_ref().with_bytes(|bytes| bytes == key))
        };
        self.table.find(self.hasher.hash(key), is_key).copied()
    }

    /// The place of `key`; behind all others if it has none.
    fn of(&self, key: &[u8]) -> u32 {
        self.find(key).unwrap_or(u32::MAX)
    }
}

fn hash(hasher: KeyHasher, keys: &[Key], place: u32) -> u64 {
    keys.get(place as usize).map_or(0, |key| hasher.hash_key(key.as_ref()))
}
