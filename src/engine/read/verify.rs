//! Reads and checks everything.

use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::Arc;

use crate::engine::findings::findings;
use crate::engine::follow::refresh;
use crate::engine::lookup::find::Finder;
use crate::engine::lookup::query::Query;
use crate::engine::lookup::unread::{is_superseded, keys_of_unread};
use crate::engine::report::VerifyReport;
use crate::engine::rows::ordered_keys::ordered_keys_of;
use crate::engine::rows::row::{Holder, Row, RowVersion, Source};
use crate::engine::runs::hashes::room_for_hashes;
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::index::block::HashBlock;
use crate::key::KeyRef;
use crate::names::SegmentId;
use crate::segment::batch::Batch;
use crate::segment::damaged::Damaged;
use crate::segment::reader::Segment;

/// Checks every committed byte of the store.
pub(crate) fn verify(state: &State, progress: &mut dyn FnMut(u64, u64)) -> Result<VerifyReport> {
    state.check_fork()?;
    let mut report = VerifyReport::default();
    match refresh(state) {
        Err(error) if error.is_corrupt() => {
            report.add(error.path().unwrap_or(Path::new("")), error.to_string(), 0);
        }
        refreshed => drop(refreshed?),
    }
    let found = findings(state)?;
    for file in found.files {
        report.add(&file.path, file.why, file.rows_lost.unwrap_or(0));
    }
    for missing in found.missing {
        report.add(&missing.path, missing.to_string(), missing.rows.unwrap_or(0));
    }
    let batches = state.memtable().sorted();
    let version = state.versions().load_full();
    let unsealed: Vec<(SegmentId, Arc<Batch>)> = batches
        .into_iter()
        .filter_map(|(_, batch)| match batch.source {
            Source::Committed { segment, batch, first: 0 } if !version.segments().contains_key(&segment) => {
                Some((segment, batch))
            }
            _ => None,
        })
        .collect();
    let total = version.segments().values().map(|segment| segment.seal.rows).sum::<u64>()
        + unsealed.iter().map(|(_, batch)| batch.columns.rows as u64).sum::<u64>();
    for segment in version.segments().values() {
        report.files += 1;
        verify_segment(state, segment, &mut report, &mut |rows| progress(rows, total))?;
    }
    for (segment, batch) in unsealed {
        verify_batch(state, &batch, segment.lane, &mut report);
        progress(report.rows, total);
    }
    for loaded in version.runs().iter().filter(|run| run.name().is_some()) {
        report.files += 1;
        if let Err(error) = loaded.run().verify_all() {
            report.add(loaded.run().path(), format!("{error} (it will be rebuilt)"), 0);
        }
    }
    report.list_once();
    Ok(report)
}

/// Compares the checksums of all rows of a batch whose structure is intact. Rows whose keys have newer rows are
/// ignored.
fn verify_batch(state: &State, batch: &Arc<Batch>, lane: u16, report: &mut VerifyReport) {
    report.rows += batch.columns.rows as u64;
    let mut damaged = batch.damaged_rows();
    damaged.retain(|row| {
        let row = Row { holder: Holder::Batch(Arc::clone(batch), lane), row: *row };
        !row.key().is_some_and(|key| has_newer(state, key, row.version()))
    });
    if let Some(first) = damaged.first() {
        let error =
            batch.corrupt(*first, &format!("the checksums of {} row(s) of the batch do not match", damaged.len()));
        let kind = batch.columns.schema.key;
        let keys = damaged.iter().filter_map(|row| kind.decode(batch.columns.key(*row)?)).collect();
        report.add_rows(error.path().unwrap_or(Path::new("")), error.to_string(), damaged.len() as u64, keys);
    }
}

/// Whether the current row of `key` is newer than `version`.
fn has_newer(state: &State, key: &[u8], version: RowVersion) -> bool {
    let query = Query { key: KeyRef::Bytes(key), hash: state.hasher().hash(key) };
    Finder::new(1).find_one(state, query, |newest| {
        newest.is_ok_and(|newest| newest.is_some_and(|newest| newest.row.version() > version))
    })
}

/// Reports the rows of `segment` that cannot be read because of `error`, except rows whose keys have newer rows.
fn report_unread(state: &State, segment: &Segment, mut rows: Vec<u32>, error: &Error, report: &mut VerifyReport) {
    rows.retain(|row| !is_superseded(state, segment, *row));
    if !rows.is_empty() {
        let keys = keys_of_unread(state, segment, &rows);
        report.add_rows(segment.described(), error.to_string(), rows.len() as u64, keys);
    }
}

/// The rows of a damaged batch that cannot be read, by their number in the segment.
fn unread_rows(damaged: &Damaged, first_row: u64, rows: u32) -> Vec<u32> {
    let numbers = (first_row as u32..).zip(0..rows as usize);
    numbers.filter(|(_, within)| !damaged.is_readable(*within)).map(|(row, _)| row).collect()
}

/// Checks every byte of a sealed segment.
///
/// # Errors
/// IO errors. Damage goes into `report`.
pub(crate) fn verify_segment(
    state: &State,
    segment: &Segment,
    report: &mut VerifyReport,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let (path, before) = (segment.described(), report.damage.len());
    for error in segment.check_structure() {
        report.add(path, error.to_string(), 0);
    }
    let mut pairs = room_for_hashes(segment)?;
    let frames = segment.batches()?.frames();
    let (mut lost, mut end_row) = (Vec::new(), 0_u64);
    let mut whole = true;
    for (number, frame) in frames.iter().enumerate() {
        lost.extend(end_row as u32..frame.first_row as u32);
        end_row = frame.first_row + u64::from(frame.rows);
        match segment.parse_anew(number)? {
            Ok(batch) => {
                verify_batch(state, &batch, segment.id.lane, report);
                let keys = (0..batch.columns.rows).filter_map(|row| batch.columns.key(row));
                pairs.extend(keys.zip(frame.first_row as u32..).map(|(key, row)| (state.hasher().hash(key), row)));
            }
            Err(damaged) => {
                whole = false;
                report.rows += u64::from(frame.rows);
                let rows = unread_rows(&damaged, frame.first_row, frame.rows);
                report_unread(state, segment, rows, damaged.error(), report);
            }
        }
        progress(report.rows);
    }
    lost.extend(end_row as u32..segment.rows());
    if !lost.is_empty() {
        whole = false;
        report.rows += lost.len() as u64;
        report_unread(state, segment, lost, &segment.lost(), report);
    }
    verify_index(segment, pairs, whole, report);
    if report.damage.len() > before {
        segment.note_damaged();
    }
    Ok(())
}

/// Checks the index block and the ordered keys. `pairs` are hashes and rows of keys; if `whole`, they are complete and
/// the index block is compared with them.
fn verify_index(segment: &Segment, mut pairs: Vec<(u64, u32)>, whole: bool, report: &mut VerifyReport) {
    let path = segment.described();
    pairs.sort_unstable();
    match segment.index_block().and_then(|bytes| HashBlock::parse(bytes).map_err(Error::invalid)) {
        Ok(block) => {
            if let Err(what) = block.validate() {
                report.add(path, format!("index block: {what}"), 0);
            } else if whole && !block.iter().eq(pairs.iter().copied()) {
                report.add(path, "the index block does not index the segment's keys", 0);
            }
        }
        Err(error) => report.add(path, error.to_string(), 0),
    }
    if let Err(error) = verify_ordered_keys(segment, whole) {
        report.add(path, error.to_string(), 0);
    }
}

fn verify_ordered_keys(segment: &Segment, whole: bool) -> Result<()> {
    let Some((offset, fst)) = ordered_keys_of(segment)? else { return Ok(()) };
    fst.range(Bound::Unbounded, Bound::Unbounded, &mut |key, row| {
        let found = Row::of_segment(segment, row);
        let same = found.is_ok_and(|found| found.is_some_and(|found| found.key() == Some(key)));
        if same || !whole {
            Ok(ControlFlow::Continue(()))
        } else {
            Err(Error::corrupt(
                &**segment.described(),
                offset,
                format!("the ordered keys name row {row} for another key"),
            ))
        }
    })
}
