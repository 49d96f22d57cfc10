//! The columns of a segment besides keys and leaves: checksums and commit timestamps.

use crate::schema::tree::{Header, LeafKind, RowSchema};

/// The first format version whose leaves have checksums of their own, and whose rows can have commit timestamps.
pub(crate) const ROW_LAYOUT_VERSION: u32 = 3;

/// Which columns there are besides keys, row checksums and leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RowLayout {
    /// Each row has a commit timestamp, since rows are not in the order in which they were committed. Otherwise all rows
    /// of a batch have that of its frame.
    pub has_times: bool,
    /// How many leaves have checksums of their own.
    pub leaf_crcs: usize,
}

impl RowLayout {
    /// The layout of rows of `schema` in a segment of version `format`.
    pub(crate) fn new(format: u32, has_times: bool, schema: &RowSchema) -> Self {
        let leaf_crcs = if format < ROW_LAYOUT_VERSION { 0 } else { schema.leaf_crcs() };
        Self { has_times, leaf_crcs }
    }

    /// Bytes that `rows` rows take besides keys, row checksums and leaves.
    pub(crate) fn len_bytes(self, rows: usize) -> usize {
        let times = if self.has_times { 8 } else { 0 };
        rows.saturating_mul(times + self.leaf_crcs * 4)
    }
}

impl Header {
    /// The columns of its rows besides keys and leaves.
    pub(crate) fn layout(&self) -> RowLayout {
        RowLayout::new(self.format, self.row_times, &self.schema)
    }
}

impl LeafKind {
    /// Whether the leaf has a checksum of its own, if its row has several leaves: tensors, strings and bytes have, so
    /// that one leaf can be checked without reading the others. Scalars are as small as a checksum.
    pub(crate) fn has_crc(&self) -> bool {
        match self {
            Self::Tensor { .. } | Self::Str | Self::Bytes => true,
            Self::Bool | Self::Int | Self::Float => false,
        }
    }
}

impl RowSchema {
    /// How many leaves have checksums of their own. The checksum of a row with a single leaf covers the leaf.
    fn leaf_crcs(&self) -> usize {
        if self.leaves.len() < 2 { 0 } else { self.leaves.iter().filter(|leaf| leaf.has_crc()).count() }
    }
}
