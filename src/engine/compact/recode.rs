//! Re-encoding: compaction can pack or unpack tensors, and store floats in a narrower dtype.

use std::sync::Arc;

use crate::codec::{Codec, Decoder};
use crate::engine::options::{Compaction, Options};
use crate::engine::rows::decode::value_of;
use crate::engine::rows::row::{Holder, Row};
use crate::error::{Error, Result};
use crate::key::KeyRef;
use crate::schema::{Dims, LeafKind, RowSchema, derive, stored_dtype};
use crate::segment::batch::Batch;
use crate::segment::build::ColumnsBuilder;
use crate::segment::columns::Columns;
use crate::value::AsValue;

/// A batch is split where one of its columns reaches this size: unpacked rows may be much larger than packed ones.
const COLUMN_LEN_BYTES: usize = 64 << 20;

/// The structure in which rows of `schema` are stored after a compaction with `options`.
pub(crate) fn target(schema: &Arc<RowSchema>, options: &Compaction) -> Arc<RowSchema> {
    let mut target = RowSchema::clone(schema);
    for leaf in &mut target.leaves {
        if let LeafKind::Tensor { dtype, source_dtype, codec, .. } = leaf {
            let narrower = stored_dtype(*dtype, options.store_as);
            if narrower != *dtype {
                source_dtype.get_or_insert(*dtype);
                *dtype = narrower;
            }
            *codec = options.codec.map_or(*codec, Codec::without_level);
        }
    }
    if target == **schema { Arc::clone(schema) } else { Arc::new(target) }
}

/// How tensors of `target` are packed: as `options` ask, or as they were.
pub(crate) fn codec_of(target: &RowSchema, options: &Compaction) -> Codec {
    let of_leaf = |leaf: &LeafKind| match leaf {
        LeafKind::Tensor { codec, .. } if *codec != Codec::None => Some(*codec),
        _ => None,
    };
    options.codec.or_else(|| target.leaves.iter().find_map(of_leaf)).unwrap_or(Codec::None)
}

/// An upper bound of the bytes of `rows` rows of `schema`, if the tensors in each row take at most 1 MiB where shapes
/// differ from row to row. Only address space is reserved for them.
pub(crate) fn unpacked_bytes(schema: &RowSchema, rows: u64) -> u64 {
    const OF_ANY_SHAPE: u64 = 1 << 20;
    const PACKED_OVERHEAD: u64 = 64;
    let leaf_bytes = |leaf: &LeafKind| match leaf {
        LeafKind::Tensor { dtype, shape: Dims::Fixed(shape), .. } => {
            dtype.tensor_len_bytes(shape).map_or(OF_ANY_SHAPE, |len_bytes| len_bytes as u64)
        }
        LeafKind::Tensor { .. } => OF_ANY_SHAPE,
        LeafKind::Bool | LeafKind::Int | LeafKind::Float | LeafKind::Str | LeafKind::Bytes => 0,
    };
    let row_bytes = schema.leaves.iter().map(|leaf| leaf_bytes(leaf) + PACKED_OVERHEAD);
    rows.saturating_mul(row_bytes.fold(0, u64::saturating_add))
}

/// Converts `rows`, each with its batch and its lane, to `target`, and calls `write` with parts of them of at most
/// `most_rows`, in their order. The caller has compared their checksums. Packed tensors are packed with `codec`. O(bytes
/// of the rows), and the memory of one part.
///
/// # Errors
/// [`Error::Corrupt`] if a row cannot be unpacked; [`Error::Invalid`] and [`Error::TooLarge`] if it cannot be stored in
/// this way; those of `write`.
pub(crate) fn recode<'r>(
    store: &Options,
    rows: impl Iterator<Item = Result<(&'r Arc<Batch>, u16, usize)>>,
    (target, codec): (&Arc<RowSchema>, Codec),
    most_rows: usize,
    write: &mut dyn FnMut(Columns) -> Result<()>,
) -> Result<()> {
    // Values are read as they are stored.
    let reading = store.clone().restore_dtype(false);
    let mut decoder = Decoder::new();
    let mut builder = ColumnsBuilder::new(Arc::clone(target), codec)?;
    for row in rows {
        let (batch, lane, number) = row?;
        let row = Row { holder: Holder::Batch(Arc::clone(batch), lane), row: number };
        let key = row.key().ok_or_else(|| batch.corrupt(number, "its key lies outside of its column"))?;
        let value = value_of(&reading, &row, &mut decoder)?;
        let view = value.as_value();
        let (_, leaves) = derive(&view, target.key, None, Codec::None)?;
        if builder.largest_column_len_bytes() >= COLUMN_LEN_BYTES || builder.rows() >= most_rows {
            let fresh = ColumnsBuilder::new(Arc::clone(target), codec)?;
            write(std::mem::replace(&mut builder, fresh).finish())?;
        }
        builder.push(KeyRef::Bytes(key), &leaves)?;
    }
    if builder.rows() > 0 { write(builder.finish()) } else { Ok(()) }
}

/// Whether `error` is about rows, so that their segment can be left as it is.
pub(crate) fn is_of_rows(error: &Error) -> bool {
    error.is_corrupt() || matches!(error, Error::Invalid { .. } | Error::TooLarge { .. })
}
