//! Compares the values of two rows of different stores.

use std::sync::Arc;

use crate::codec::Decoder;
use crate::engine::options::Options;
use crate::engine::rows::decode::value_of;
use crate::engine::rows::row::{Holder, Row};
use crate::segment::batch::Batch;
use crate::segment::columns::{Columns, LeafBytes};

/// Compares values. It keeps what unpacking needs.
pub(super) struct Comparer<'a> {
    options: &'a Options,
    decoder: Decoder,
}

impl<'a> Comparer<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        Self { options, decoder: Decoder::new() }
    }

    /// Whether row `row` of `batch`, of lane `lane`, and `other` are values and not equal. A value that cannot be read
    /// differs from every other.
    pub(super) fn differ(&mut self, batch: &Arc<Batch>, row: usize, lane: u16, other: &Row<'_>) -> bool {
        if batch.columns.schema.is_tombstones() || other.is_tombstone() {
            return false;
        }
        if are_same_bytes(&batch.columns, row, other) {
            return false;
        }
        let own = Row { holder: Holder::Batch(Arc::clone(batch), lane), row };
        let own = value_of(self.options, &own, &mut self.decoder);
        let other = value_of(self.options, other, &mut self.decoder);
        !matches!((own, other), (Ok(own), Ok(other)) if own == other)
    }
}

/// Whether two rows have the same structure and the same stored bytes.
fn are_same_bytes(columns: &Columns, row: usize, other: &Row<'_>) -> bool {
    let others = other.columns();
    let same_leaf = |leaf: usize| match (columns.leaf(leaf, row), others.leaf(leaf, other.row)) {
        (Some(LeafBytes::Bit(one)), Some(LeafBytes::Bit(other))) => one == other,
        (Some(one @ LeafBytes::Bytes { dims, .. }), Some(other @ LeafBytes::Bytes { dims: other_dims, .. })) => {
            dims == other_dims && one.as_slice() == other.as_slice()
        }
        _ => false,
    };
    columns.schema == others.schema && (0..columns.leaves.len()).all(same_leaf)
}
