//! How the leaves that a read copies lie in rows of one structure.

use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::engine::options::Options;
use crate::engine::read::wanted::{Wanted, WantedLeaf, other_structure};
use crate::engine::rows::decode::described;
use crate::engine::rows::row::Row;
use crate::error::Result;
use crate::schema::{Dims, LeafKind, RowSchema, Schema, leaf_at};
use crate::segment::batch::Verify;

/// Where a wanted leaf is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// `width` bytes in every row, from byte `offset` of them on.
    Copy { leaf: usize, width: usize, offset: usize },
    /// A boolean, one bit a row.
    Bit { leaf: usize },
    /// Packed, down-cast, or of a shape of its own in every row.
    Decode { leaf: usize },
}

impl Step {
    /// The leaf that it reads.
    pub(super) fn leaf(self) -> usize {
        match self {
            Self::Copy { leaf, .. } | Self::Bit { leaf } | Self::Decode { leaf } => leaf,
        }
    }
}

/// The steps of one structure, one a wanted leaf.
#[derive(Debug)]
pub(super) struct Plan {
    pub steps: Vec<Step>,
    /// The leaves that are read, if not all are.
    some: Option<Vec<usize>>,
    /// Whether rows are copied as they are stored.
    pub is_plain: bool,
}

impl Plan {
    /// How `wanted` lies in rows of `schema`. O(leaves).
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] if they do not have it.
    pub(super) fn new(options: &Options, wanted: &Wanted<'_>, schema: &RowSchema) -> Result<Self> {
        if let Some(whole) = wanted.whole
            && !is_of(whole, schema)
        {
            return Err(other_structure(whole, &Schema::of_rows(schema)));
        }
        let step = |(number, wanted_leaf): (usize, &WantedLeaf<'_>)| {
            let leaf = match wanted.whole {
                Some(_) => Some(number),
                None => leaf_at(&schema.tree, wanted_leaf.path),
            };
            match leaf.and_then(|leaf| Some((leaf, schema.leaves.get(leaf)?))) {
                Some((leaf, kind)) => step_of(options, wanted_leaf, schema, leaf, kind),
                None => Err(wanted_leaf.mismatch(described(&Schema::of_rows(schema)))),
            }
        };
        let steps = wanted.leaves.iter().enumerate().map(step).collect::<Result<Vec<_>>>()?;
        let is_plain = !steps.iter().any(|step| matches!(step, Step::Decode { .. }));
        let mut read: Vec<usize> = steps.iter().map(|step| step.leaf()).collect();
        read.sort_unstable();
        read.dedup();
        let some = (read.len() < schema.leaves.len()).then_some(read);
        Ok(Self { steps, some, is_plain })
    }

    /// Whether [`Plan::check`] has nothing left to compare.
    #[inline]
    pub(super) fn is_checked(&self, row: &Row<'_>, verify: Verify) -> bool {
        match &self.some {
            Some(leaves) => row.leaves_are_checked(verify, leaves),
            None => row.is_checked(verify),
        }
    }

    /// Compares the checksums of what is read.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] if they do not match.
    pub(super) fn check(&self, row: &Row<'_>, verify: Verify) -> Result<()> {
        match &self.some {
            Some(leaves) => row.check_leaves(verify, leaves),
            None => row.check(verify),
        }
    }
}

/// Whether values of rows of `schema` have the structure `whole`, apart from dtypes and shapes.
fn is_of(whole: &Schema, schema: &RowSchema) -> bool {
    let same_kinds = || {
        whole.leaves().iter().zip(&schema.leaves).all(|(leaf, kind)| match kind {
            LeafKind::Tensor { .. } => leaf.is_tensor(),
            scalar => leaf.kind() == scalar,
        })
    };
    *whole.tree() == schema.tree && whole.leaves().len() == schema.leaves.len() && same_kinds()
}

fn step_of(
    options: &Options,
    wanted: &WantedLeaf<'_>,
    schema: &RowSchema,
    leaf: usize,
    kind: &LeafKind,
) -> Result<Step> {
    let other = || wanted.mismatch(described(&Schema::of_rows(schema)));
    let scalar = |dtype| wanted.offset_in(dtype, &[]).ok_or_else(other);
    Ok(match kind {
        LeafKind::Tensor { dtype, shape, source_dtype, codec } => {
            let read = source_dtype.filter(|_| options.restore_dtype).unwrap_or(*dtype);
            let Dims::Fixed(shape) = shape else { return Ok(Step::Decode { leaf }) };
            let offset = wanted.part_of(read, shape)?;
            match dtype.tensor_len_bytes(shape) {
                Some(width) if read == *dtype && *codec == Codec::None => Step::Copy { leaf, width, offset },
                _ => Step::Decode { leaf },
            }
        }
        LeafKind::Bool => scalar(Dtype::Bool).map(|_| Step::Bit { leaf })?,
        LeafKind::Int => scalar(Dtype::I64).map(|_| Step::Copy { leaf, width: 8, offset: 0 })?,
        LeafKind::Float => scalar(Dtype::F64).map(|_| Step::Copy { leaf, width: 8, offset: 0 })?,
        LeafKind::Str | LeafKind::Bytes => return Err(other()),
    })
}
