//! Merges other stores into one: copies those of their newest rows that are newer than the rows of this store.
//!
//! Rows keep their commit timestamps, as in compaction. So the newest row of a key wins whichever store it came from
//! and in whichever order stores are merged, and a merge that was stopped and runs again finds its own rows: they are
//! as new as those of the source, and are not copied twice. Linking whole segments would be faster, but they name
//! another store, their checksums are seeded with it, and their index blocks have its hashes.
//!
//! Batches of all sources are taken in the order of their timestamps ([`source`]), as segments require. Rows go to
//! active segments of this writer's lane that nobody else appends to ([`target`]). If the process is killed, they are
//! recovered like all active segments.
//!
//! A key is looked up in its own store (is this its newest row?), in the other sources, and in this store. The newest
//! row among the sources is the only one that is copied.

mod compare;
mod source;
mod target;

use std::sync::Arc;
use std::time::Instant;

use crate::engine::compact::context::Context;
use crate::engine::lookup::find::find;
use crate::engine::lookup::query::{Located, Query};
use crate::engine::merge_stores::compare::Comparer;
use crate::engine::merge_stores::source::{Piece, pieces};
use crate::engine::merge_stores::target::Target;
use crate::engine::options::Merge;
use crate::engine::report::MergeReport;
use crate::engine::rows::row::RowVersion;
use crate::engine::state::State;
use crate::engine::write::key_kind::claim_key_kind;
use crate::error::{Error, Result};
use crate::key::{KeyKind, KeyRef};
use crate::schema::ROW_LAYOUT_VERSION;
use crate::segment::batch::{Batch, Verify};

/// The number of keys in one lookup.
const KEYS: usize = 4096;
/// The number of keys that a report lists.
const MOST_KEYS_LISTED: usize = 100;

/// The kind of keys that all of `stores` have; `None` if all are empty.
///
/// # Errors
/// [`Error::KeyKind`] if they differ.
pub(crate) fn common_key_kind<'a>(stores: impl Iterator<Item = &'a State>) -> Result<Option<KeyKind>> {
    let mut common: Option<KeyKind> = None;
    for kind in stores.filter_map(|store| store.identity().key_kind()) {
        common.get_or_insert(kind).expect(kind)?;
    }
    Ok(common)
}

/// Merges `sources`, which do not change meanwhile and have keys of `kind`, into the store of `context`. `sealed` is
/// called whenever rows have become visible. O(rows of the sources · stores) lookups, and O(bytes copied).
///
/// # Errors
/// [`Error::Corrupt`] if a row of a source is damaged, unless `options` allow it; [`Error::Conflict`]; IO errors. Rows
/// that were copied before stay.
pub(crate) fn merge_stores(
    context: Context<'_>,
    (sources, kind): (&[Arc<State>], Option<KeyKind>),
    options: &Merge,
    sealed: &dyn Fn() -> Result<()>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<MergeReport> {
    let start = Instant::now();
    let pieces = pieces(sources)?;
    let format = context.state.identity().recorded().format;
    if format < ROW_LAYOUT_VERSION && pieces.iter().any(Piece::has_times) {
        return Err(Error::invalid(format!(
            "this store has format version {format}, which cannot hold rows that a compaction has put into another order; \
             merge into a new store instead"
        )));
    }
    if options.fail_on_conflict && !options.dry_run {
        let found = Merging::new(context, sources, options).run(&pieces, None, progress)?;
        if found.conflicts > 0 {
            return Err(conflict(&found));
        }
    }
    if let (Some(kind), false) = (kind, options.dry_run) {
        claim_key_kind(context.state, kind)?;
    }
    let newest = pieces.last().map_or(0, |piece| piece.timestamp);
    let mut target = (!options.dry_run).then(|| Target::new(context, newest, sealed));
    let mut report = Merging::new(context, sources, options).run(&pieces, target.as_mut(), progress)?;
    if let Some(target) = target {
        (report.segments_written, report.bytes_written) = target.finish()?;
    }
    if options.fail_on_conflict && report.conflicts > 0 {
        return Err(conflict(&report));
    }
    report.elapsed = start.elapsed();
    Ok(report)
}

fn conflict(report: &MergeReport) -> Error {
    let first = report.conflicting_keys.first().map(ToString::to_string).unwrap_or_default();
    Error::Conflict { keys: report.conflicts, first }
}

/// What is known of a row of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// No other row of a source is newer.
    Newest,
    Superseded,
    /// Damage hides whether it is.
    Unknown,
}

/// One pass over the sources.
struct Merging<'a> {
    context: Context<'a>,
    sources: &'a [Arc<State>],
    options: &'a Merge,
    comparer: Comparer<'a>,
    report: MergeReport,
}

impl<'a> Merging<'a> {
    fn new(context: Context<'a>, sources: &'a [Arc<State>], options: &'a Merge) -> Self {
        let report = MergeReport { dry_run: options.dry_run, stores: sources.len(), ..MergeReport::default() };
        Self { context, sources, options, comparer: Comparer::new(context.state.options()), report }
    }

    /// Passes over `pieces`; copies rows if there is a `target`.
    fn run(
        mut self,
        pieces: &[Piece],
        mut target: Option<&mut Target<'_>>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<MergeReport> {
        let total = pieces.iter().map(|piece| u64::from(piece.rows)).sum();
        let mut done = 0;
        for piece in pieces {
            (self.context.stop)()?;
            match piece.batch() {
                Ok(batch) => {
                    let rows = self.choose(piece, &batch)?;
                    if let (Some(target), false) = (&mut target, rows.is_empty()) {
                        target.append(&batch, &rows)?;
                    }
                }
                Err(error) if error.is_corrupt() => self.damaged(u64::from(piece.rows), error)?,
                Err(error) => return Err(error),
            }
            done += u64::from(piece.rows);
            progress(done, total);
        }
        self.report.rows = total;
        Ok(self.report)
    }

    /// Counts damaged rows, or fails.
    fn damaged(&mut self, rows: u64, error: Error) -> Result<()> {
        self.report.rows_damaged += rows;
        if self.options.damaged { Ok(()) } else { Err(error) }
    }

    /// The rows of a batch that are to be copied.
    fn choose(&mut self, piece: &Piece, batch: &Arc<Batch>) -> Result<Vec<usize>> {
        let mut chosen = Vec::new();
        let all: Vec<usize> = (0..batch.columns.rows).collect();
        for rows in all.chunks(KEYS) {
            let newest = self.newest_of_sources(piece, batch, rows)?;
            chosen.extend(self.newer_than_target(piece, batch, newest)?);
        }
        let (mut damaged, mut first) = (0, None);
        chosen.retain(|row| match batch.check_row(*row, Verify::Always) {
            Ok(()) => true,
            Err(error) => {
                damaged += 1;
                first.get_or_insert(error);
                false
            }
        });
        first.map_or(Ok(()), |error| self.damaged(damaged, error))?;
        let merged = chosen.len() as u64;
        match batch.columns.schema.is_tombstones() {
            true => self.report.tombstones_merged += merged,
            false => self.report.rows_merged += merged,
        }
        Ok(chosen)
    }

    /// Those of `rows` that are the newest of their keys in all sources, and whether another source has another value.
    fn newest_of_sources(&mut self, piece: &Piece, batch: &Arc<Batch>, rows: &[usize]) -> Result<Vec<(usize, bool)>> {
        let mut candidates: Vec<(usize, bool)> = rows.iter().map(|row| (*row, false)).collect();
        // Its own store first: superseded rows are not looked up further.
        let others = (0..self.sources.len()).filter(|other| *other != piece.source);
        for source in std::iter::once(piece.source).chain(others) {
            let Some(state) = self.sources.get(source) else { continue };
            let comparer = &mut self.comparer;
            let (standings, error) = look_up(state, batch, &candidates, |at, located| {
                let (row, differs) = *candidates.get(at)?;
                let found = located.rows.get(at)?.as_ref();
                let own = piece.version(batch, row);
                let standing = match found {
                    _ if located.errors.iter().any(|(position, _)| *position == at) => Standing::Unknown,
                    None if source == piece.source => Standing::Superseded,
                    Some(found) if source == piece.source && found.version() != own => Standing::Superseded,
                    Some(found) if is_after(found.version(), source, own, piece.source) => Standing::Superseded,
                    _ => Standing::Newest,
                };
                let other = found.filter(|_| standing == Standing::Newest && source != piece.source);
                let differs = differs || other.is_some_and(|other| comparer.differ(batch, row, piece.lane(), other));
                Some((standing, row, differs))
            })?;
            let unknown = standings.iter().filter(|(standing, ..)| *standing == Standing::Unknown).count() as u64;
            if let Some(error) = error.filter(|_| unknown > 0) {
                self.damaged(unknown, error)?;
            }
            let newest = standings.into_iter().filter(|(standing, ..)| *standing == Standing::Newest);
            candidates = newest.map(|(_, row, differs)| (row, differs)).collect();
            if candidates.is_empty() {
                break;
            }
        }
        Ok(candidates)
    }

    /// Those of `candidates` that are newer than the rows of this store.
    fn newer_than_target(
        &mut self,
        piece: &Piece,
        batch: &Arc<Batch>,
        candidates: Vec<(usize, bool)>,
    ) -> Result<Vec<usize>> {
        let mut chosen = Vec::new();
        let (comparer, report) = (&mut self.comparer, &mut self.report);
        look_up(self.context.state, batch, &candidates, |at, located| {
            let (row, mut differs) = *candidates.get(at)?;
            // An unreadable row here stays the newest if it is: lookups compare the timestamps.
            match located.rows.get(at)?.as_ref() {
                Some(found) => {
                    differs |= comparer.differ(batch, row, piece.lane(), found);
                    if found.version().timestamp >= batch.timestamp(row) {
                        report.rows_kept += 1;
                    } else {
                        report.rows_replaced += u64::from(!found.is_tombstone());
                        chosen.push(row);
                    }
                }
                None => chosen.push(row),
            }
            if differs {
                report.conflicts += 1;
                let key = batch.columns.key(row).and_then(|key| batch.columns.schema.key.decode(key));
                let is_listed = report.conflicting_keys.len() < MOST_KEYS_LISTED;
                report.conflicting_keys.extend(key.filter(|_| is_listed));
            }
            Some(())
        })?;
        Ok(chosen)
    }
}

/// Whether a row of source `one` is newer than that of source `other`. Of equal timestamps, the first source counts.
fn is_after(one: RowVersion, source: usize, other: RowVersion, of: usize) -> bool {
    one.timestamp > other.timestamp || one.timestamp == other.timestamp && source < of
}

/// Looks up the keys of rows, and calls `use_row` for each position. Returns the results, and the first error.
fn look_up<T>(
    state: &State,
    batch: &Batch,
    rows: &[(usize, bool)],
    mut use_row: impl FnMut(usize, &Located<'_>) -> Option<T>,
) -> Result<(Vec<T>, Option<Error>)> {
    let queries: Option<Vec<Query<'_>>> = rows
        .iter()
        .map(|(row, _)| {
            let key = batch.columns.key(*row)?;
            Some(Query { key: KeyRef::Bytes(key), hash: state.hasher().hash(key) })
        })
        .collect();
    let queries = queries.ok_or_else(|| batch.corrupt(0, "a row has no key"))?;
    let positions = 0..queries.len();
    Ok(find(state, &queries, |located| {
        let results = positions.filter_map(|at| use_row(at, &located)).collect();
        (results, located.errors.into_iter().next().map(|(_, error)| error))
    }))
}
