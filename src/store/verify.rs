//! Reading and checking everything.

use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::core::Core;
use super::rows::Source;
use crate::error::Result;
use crate::index::block::HashBlock;
use crate::index::keys_fst::KeysFst;
use crate::segment::batch::Batch;
use crate::segment::reader::Segment;

/// What [`crate::Reader::verify`] found.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Rows whose checksums were compared.
    pub rows: u64,
    /// Segments and runs that were read.
    pub files: usize,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// One thing that does not check out.
#[derive(Debug, Clone, serde::Serialize)]
#[non_exhaustive]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
    /// Rows that cannot be served for it. Damage to an index costs no rows.
    pub rows: u64,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty()
    }

    fn add(&mut self, path: &Path, what: impl Into<String>, rows: u64) {
        self.damage.push(Damage { path: path.to_path_buf(), what: what.into(), rows });
    }
}

/// Checks every committed byte of the store.
pub(crate) fn verify(core: &Core, progress: &mut dyn FnMut(u64, u64)) -> Result<VerifyReport> {
    core.check_fork()?;
    let mut report = VerifyReport::default();
    match core.refresh() {
        Err(error) if error.is_corrupt() => {
            report.add(error.path().unwrap_or(Path::new("")), error.to_string(), 0);
        }
        refreshed => drop(refreshed?),
    }
    for found in core.known.lock().damage() {
        report.add(found.path(), found.error.to_string(), found.rows_lost);
    }
    let slots = core.slots.read().sorted();
    let view = core.view.load_full();
    let unsealed: Vec<Arc<Batch>> = slots
        .into_iter()
        .filter_map(|(_, slot)| match slot.source {
            Source::Committed { segment, batch, first: 0 } if !view.segments.contains_key(&segment) => Some(batch),
            _ => None,
        })
        .collect();
    let total = view.segments.values().map(|segment| segment.seal.rows).sum::<u64>()
        + unsealed.iter().map(|batch| batch.columns.rows as u64).sum::<u64>();
    for segment in view.segments.values() {
        report.files += 1;
        verify_segment(core, segment, &mut report, &mut |rows| progress(rows, total));
    }
    for batch in unsealed {
        verify_batch(&batch, &mut report);
        progress(report.rows, total);
    }
    for loaded in view.runs.iter().filter(|run| run.name.is_some()) {
        report.files += 1;
        if let Err(error) = loaded.run.verify_all() {
            report.add(loaded.run.path(), format!("{error} (it will be built anew)"), 0);
        }
    }
    Ok(report)
}

fn verify_batch(batch: &Batch, report: &mut VerifyReport) {
    let damaged = batch.damaged_rows();
    report.rows += batch.columns.rows as u64;
    if let Some(first) = damaged.first() {
        let error =
            batch.corrupt(*first, &format!("the checksums of {} row(s) of the batch do not match", damaged.len()));
        report.add(error.path().unwrap_or(Path::new("")), error.to_string(), damaged.len() as u64);
    }
}

fn verify_segment(core: &Core, segment: &Segment, report: &mut VerifyReport, progress: &mut dyn FnMut(u64)) {
    let path = segment.described();
    for error in segment.check_structure() {
        report.add(path, error.to_string(), 0);
    }
    let mut pairs = Vec::with_capacity(segment.rows() as usize);
    let (frames, lost_rows) = match segment.batches() {
        Ok(batches) => (batches.frames(), batches.lost_rows(&segment.seal)),
        Err(_) => (&[][..], u64::from(segment.rows())),
    };
    if lost_rows > 0 {
        report.rows += lost_rows;
        report.add(path, segment.lost().to_string(), lost_rows);
    }
    let mut whole = lost_rows == 0;
    for (number, frame) in frames.iter().enumerate() {
        match segment.batch(number) {
            Ok(batch) => {
                verify_batch(batch, report);
                let keys = (0..batch.columns.rows).filter_map(|row| batch.columns.key(row));
                pairs.extend(keys.zip(frame.first_row as u32..).map(|(key, row)| (core.hasher.hash(key), row)));
            }
            Err(error) => {
                whole = false;
                report.rows += u64::from(frame.rows);
                report.add(path, error.to_string(), u64::from(frame.rows));
            }
        }
        progress(report.rows);
    }
    pairs.sort_unstable();
    match segment.index_block().and_then(|bytes| HashBlock::parse(bytes).map_err(crate::Error::invalid)) {
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
    let Some((offset, bytes)) = segment.keys_block()? else { return Ok(()) };
    let fst = KeysFst::open(segment.described().to_path_buf(), offset, bytes)?;
    fst.range(Bound::Unbounded, Bound::Unbounded, &mut |key, row| {
        let found = super::rows::Row::of_segment(segment, row);
        let same = found.is_ok_and(|found| found.is_some_and(|found| found.key() == Some(key)));
        if same || !whole {
            Ok(ControlFlow::Continue(()))
        } else {
            Err(crate::Error::corrupt(
                &**segment.described(),
                offset,
                format!("the ordered keys name row {row} for another key"),
            ))
        }
    })
}
