//! A batch whose structure is damaged: one wrong bit of a key, of a row checksum or of an offset makes the checksum of
//! the whole structure wrong. Each row has a checksum of its own over its key and its values, which tells whether it is
//! intact.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::{Batch, Verify};
use super::columns::{Columns, KeyColumn};
use super::layout::Frame;
use crate::error::{Error, Result};
use crate::key::{KeyKind, MAX_KEY_LEN_BYTES};
use crate::schema::{RowLayout, RowSchema};

/// Bytes of an integer key.
const INTEGER_LEN_BYTES: usize = 8;

/// A batch, or the remains of one whose structure is damaged. Either is found out once.
pub(crate) type Parsed = Result<Arc<Batch>, Box<Damaged>>;

/// Parses the message that `frame` describes: [`Batch::parse`], or the remains of the batch.
///
/// # Errors
/// IO errors. Damage is not an error.
pub(crate) fn parse(
    path: &Arc<Path>,
    rows: (&Arc<RowSchema>, RowLayout),
    frame: Frame,
    message: &Bytes,
) -> Result<Parsed> {
    match Batch::parse(path, rows, frame, message, true) {
        Ok(batch) => Ok(Ok(Arc::new(batch))),
        Err(error) if error.is_corrupt() => {
            let batch = Batch::parse_damaged(path, rows, frame, message);
            Ok(Err(Box::new(Damaged {
                integers: integers(rows.0, &frame, message),
                ..Damaged::new(error, batch.ok())
            })))
        }
        Err(error) => Err(error),
    }
}

/// The remains of a damaged batch. They are found in O(bytes of the batch), once, and kept.
#[derive(Debug)]
pub(crate) struct Damaged {
    error: Error,
    /// The batch as its bytes say, and for each row whether it matches its checksum.
    rest: Option<(Arc<Batch>, Box<[bool]>)>,
    /// The bytes at the place of integer keys.
    integers: Bytes,
}

impl Damaged {
    /// The remains of a batch that `error` describes; `batch`, if its layout could be understood.
    pub(super) fn new(error: Error, batch: Option<Batch>) -> Self {
        let rest = batch.map(|batch| {
            let readable = readable_rows(&batch);
            (Arc::new(batch), readable)
        });
        Self { error, rest: rest.filter(|(_, readable)| readable.contains(&true)), integers: Bytes::new() }
    }

    /// What is wrong with the batch.
    pub(crate) fn error(&self) -> &Error {
        &self.error
    }

    /// Whether row `row` of the batch matches its own checksum.
    pub(crate) fn is_readable(&self, row: usize) -> bool {
        matches!(&self.rest, Some((_, readable)) if readable.get(row) == Some(&true))
    }

    /// The batch, and the rows of it that match their own checksums; `None` if there are none.
    pub(crate) fn readable(&self) -> Option<(&Arc<Batch>, Vec<usize>)> {
        let (batch, readable) = self.rest.as_ref()?;
        Some((batch, readable.iter().enumerate().filter(|(_, readable)| **readable).map(|(row, _)| row).collect()))
    }

    /// The batch, for row `row` of it. O(1).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the row does not match its own checksum.
    pub(crate) fn batch_of(&self, row: usize) -> Result<&Arc<Batch>> {
        match &self.rest {
            Some((batch, _)) if self.is_readable(row) => Ok(batch),
            _ => Err(self.error.clone()),
        }
    }

    /// The bytes at the place of the key of `row`, which may be wrong.
    pub(crate) fn unchecked_key(&self, row: usize) -> Option<&[u8]> {
        let start = row.checked_mul(INTEGER_LEN_BYTES)?;
        let integer = || self.integers.get(start..start.checked_add(INTEGER_LEN_BYTES)?);
        self.rest.as_ref().and_then(|(batch, _)| batch.columns.key(row)).or_else(integer)
    }
}

/// Integer keys are the first bytes of a body, whatever the metadata says.
fn integers(schema: &RowSchema, frame: &Frame, message: &Bytes) -> Bytes {
    let start = frame.metadata_len_bytes as usize;
    let end = (frame.rows as usize).checked_mul(INTEGER_LEN_BYTES).and_then(|len| len.checked_add(start));
    match end.filter(|end| schema.key == KeyKind::U64 && *end <= message.len()) {
        Some(end) => message.slice(start..end),
        None => Bytes::new(),
    }
}

/// Which rows match their checksums. Damaged offsets may make rows overlap, so the number of bytes that are read is
/// bounded.
fn readable_rows(batch: &Batch) -> Box<[bool]> {
    const MOST_PASSES: usize = 4;
    let columns = &batch.columns;
    let mut budget_bytes = columns.len_bytes().saturating_mul(MOST_PASSES);
    let mut is_readable = |row: usize| {
        let Some(len_bytes) = row_len_bytes(columns, row).filter(|len_bytes| *len_bytes <= budget_bytes) else {
            return false;
        };
        budget_bytes -= len_bytes;
        batch.check_row(row, Verify::FirstRead).is_ok()
    };
    (0..columns.rows).map(&mut is_readable).collect()
}

/// The bytes that the checksum of `row` covers; `None` if some of them are out of bounds.
fn row_len_bytes(columns: &Columns, row: usize) -> Option<usize> {
    let key_len = columns.key(row)?.len();
    if matches!(columns.keys, KeyColumn::Variable { .. }) && key_len > MAX_KEY_LEN_BYTES {
        return None;
    }
    columns.row_len_bytes(row)
}
