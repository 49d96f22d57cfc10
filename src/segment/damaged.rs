//! A batch whose structure is damaged: one bit of a key, of a row checksum or of an offset makes the checksum of the whole
//! structure wrong. Each row has a checksum of its own over its key and its values, which tells what is still right.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::{Batch, Verify};
use super::columns::{Columns, KeyColumn, LeafBytes};
use super::layout::Frame;
use crate::error::{Error, Result};
use crate::key::MAX_KEY_LEN_BYTES;
use crate::schema::RowSchema;

/// A batch, or what is left of one whose structure is damaged: either is found out once.
pub(crate) type Parsed = Result<Arc<Batch>, Box<Damaged>>;

/// Parses the message that `frame` describes: [`Batch::parse`], or what is left of the batch.
///
/// # Errors
/// Those of reading. Damage is an answer.
pub(crate) fn parse(path: &Arc<Path>, schema: &Arc<RowSchema>, frame: Frame, message: &Bytes) -> Result<Parsed> {
    match Batch::parse(path, schema, frame, message, true) {
        Ok(batch) => Ok(Ok(Arc::new(batch))),
        Err(error) if error.is_corrupt() => {
            let batch = Batch::parse_damaged(path, schema, frame, message);
            Ok(Err(Box::new(Damaged::new(error, batch.ok()))))
        }
        Err(error) => Err(error),
    }
}

/// What is left of a damaged batch. It is found out once, in O(bytes of the batch), and kept.
#[derive(Debug)]
pub(crate) struct Damaged {
    error: Error,
    /// The batch as its bytes have it, and for each row whether it matches its checksum.
    rest: Option<(Arc<Batch>, Box<[bool]>)>,
}

impl Damaged {
    /// The batch that `error` is the damage of; `batch`, if its layout could be understood.
    pub(super) fn new(error: Error, batch: Option<Batch>) -> Self {
        let rest = batch.map(|batch| {
            let readable = readable_rows(&batch);
            (Arc::new(batch), readable)
        });
        Self { error, rest: rest.filter(|(_, readable)| readable.contains(&true)) }
    }

    /// What is wrong with the batch.
    pub(crate) fn error(&self) -> &Error {
        &self.error
    }

    /// Whether row `row` of the batch matches its own checksum.
    pub(crate) fn is_readable(&self, row: usize) -> bool {
        matches!(&self.rest, Some((_, readable)) if readable.get(row) == Some(&true))
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

    /// What the bytes of the batch have for the key of `row`. Nothing vouches for it.
    pub(crate) fn unchecked_key(&self, row: usize) -> Option<&[u8]> {
        self.rest.as_ref().and_then(|(batch, _)| batch.columns.key(row))
    }
}

/// Which rows match their checksums. Damaged offsets may make rows overlap: the bytes that are looked at are bounded.
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
    let leaves = columns.leaves.iter().map(|leaf| match leaf.get(row)? {
        LeafBytes::Bit(_) => Some(1),
        LeafBytes::Bytes { start, end, dims, .. } => Some(end - start + dims.len()),
    });
    leaves.sum::<Option<usize>>()?.checked_add(key_len)
}
