//! Which Arrow nodes and buffers a row structure has, in the order of the Arrow schema. The writer and the strict
//! reader follow the same plan, so they cannot disagree.

use crate::codec::Codec;
use crate::key::KeyKind;
use crate::schema::{LeafKind, RowLayout, RowSchema, Storage, stored_elements};

/// The length of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeRole {
    /// The number of rows.
    Rows,
    /// A fixed number of elements a row.
    Times(usize),
    /// The number of elements of leaf `.0` in all rows.
    Elements(usize),
}

/// The contents of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// No nulls, so always empty.
    Validity,
    /// Eight bytes a row.
    KeyIntegers,
    KeyOffsets,
    KeyData,
    RowCrc,
    /// Eight bytes a row.
    RowTimes,
    /// Four bytes for each leaf with a checksum of its own.
    LeafCrcs,
    LeafOffsets(usize),
    LeafDims(usize),
    LeafData(usize),
}

impl Role {
    /// Values lie at the end of a message's body, after everything that its structure checksum covers.
    pub(crate) fn is_value(self) -> bool {
        matches!(self, Self::LeafData(_))
    }
}

/// The nodes and buffers of a record batch.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub nodes: Vec<NodeRole>,
    pub buffers: Vec<Role>,
}

impl Plan {
    /// The plan for rows of `schema`, which has been checked.
    pub(crate) fn new(schema: &RowSchema, layout: RowLayout) -> Self {
        let mut plan = Self::default();
        match schema.key {
            KeyKind::U64 => plan.column(&[NodeRole::Rows], &[Role::Validity, Role::KeyIntegers]),
            KeyKind::Str | KeyKind::Bytes => {
                plan.column(&[NodeRole::Rows], &[Role::Validity, Role::KeyOffsets, Role::KeyData]);
            }
        }
        plan.column(&[NodeRole::Rows], &[Role::Validity, Role::RowCrc]);
        if layout.has_times {
            plan.column(&[NodeRole::Rows], &[Role::Validity, Role::RowTimes]);
        }
        if layout.leaf_crcs > 0 {
            let nodes = [NodeRole::Rows, NodeRole::Times(layout.leaf_crcs)];
            plan.column(&nodes, &[Role::Validity, Role::Validity, Role::LeafCrcs]);
        }
        for (leaf, kind) in schema.leaves.iter().enumerate() {
            plan.leaf(leaf, kind);
        }
        plan
    }

    fn column(&mut self, nodes: &[NodeRole], buffers: &[Role]) {
        self.nodes.extend_from_slice(nodes);
        self.buffers.extend_from_slice(buffers);
    }

    fn leaf(&mut self, leaf: usize, kind: &LeafKind) {
        use NodeRole::{Elements, Rows, Times};
        use Role::{LeafData, LeafDims, LeafOffsets, Validity};
        let packed = matches!(kind, LeafKind::Tensor { codec, .. } if *codec != Codec::None);
        match (kind, kind.storage()) {
            // A fixed-size list and its child.
            (LeafKind::Tensor { .. }, Some(Storage::Fixed { .. })) => {
                self.column(&[Rows, Times(stored_elements(kind))], &[Validity, Validity, LeafData(leaf)]);
            }
            // A struct of the data (a list and its child, or a packed binary) and the dimensions.
            (LeafKind::Tensor { .. }, Some(Storage::Variable { rank, .. })) if rank > 0 => {
                if packed {
                    self.column(&[Rows, Rows], &[Validity, Validity, LeafOffsets(leaf), LeafData(leaf)]);
                } else {
                    self.column(
                        &[Rows, Rows, Elements(leaf)],
                        &[Validity, Validity, LeafOffsets(leaf), Validity, LeafData(leaf)],
                    );
                }
                self.column(&[Rows, Times(rank)], &[Validity, Validity, LeafDims(leaf)]);
            }
            (_, Some(Storage::Variable { .. })) => {
                self.column(&[Rows], &[Validity, LeafOffsets(leaf), LeafData(leaf)]);
            }
            _ => self.column(&[Rows], &[Validity, LeafData(leaf)]),
        }
    }
}
