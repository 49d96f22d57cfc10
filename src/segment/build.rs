//! From keys and leaves to [`Columns`]: down-casting and packing happen here, on the caller's thread.

use std::sync::Arc;

use bytes::Bytes;

use super::columns::{Columns, KeyColumn, LeafColumn};
use crate::buffers::Buffers;
pub(crate) use crate::cast::cast_tensor;
use crate::codec::{Codec, Encoder};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::key::{KeyKind, KeyRef};
use crate::schema::{Dims, LeafKind, LeafValue, RowSchema, Storage};
use crate::tensor::TensorView;

/// Most bytes of one column of one batch: Arrow's list offsets are 32-bit.
pub(crate) const MAX_COLUMN_LEN_BYTES: usize = i32::MAX as usize - 4096;

/// Collects keys into a column.
#[derive(Debug)]
pub(crate) enum KeyBuilder {
    U64(Vec<u8>),
    Variable { offsets: Vec<u8>, data: Vec<u8> },
}

impl KeyBuilder {
    /// An empty column of `kind`, with room for `rows`.
    pub(crate) fn new(kind: KeyKind, rows: usize) -> Self {
        match kind {
            KeyKind::U64 => Self::U64(Vec::with_capacity(rows * 8)),
            KeyKind::Str | KeyKind::Bytes => {
                let mut offsets = Vec::with_capacity((rows + 1) * 4);
                offsets.extend_from_slice(&0_i32.to_le_bytes());
                Self::Variable { offsets, data: Vec::new() }
            }
        }
    }

    /// Adds a key by its canonical bytes.
    pub(crate) fn push_bytes(&mut self, key: &[u8]) -> Result<()> {
        match self {
            Self::U64(data) => data.extend_from_slice(key),
            Self::Variable { offsets, data } => {
                data.extend_from_slice(key);
                push_offset(offsets, data.len())?;
            }
        }
        Ok(())
    }

    /// Adds integer keys, whose bytes in memory are their canonical bytes.
    pub(crate) fn push_integers(&mut self, keys: &[u64]) -> Result<()> {
        if cfg!(target_endian = "little")
            && let Self::U64(data) = self
        {
            data.extend_from_slice(bytemuck::cast_slice(keys));
            return Ok(());
        }
        keys.iter().try_for_each(|key| self.push_bytes(&key.to_le_bytes()))
    }

    /// Bytes of keys so far.
    pub(crate) fn len_bytes(&self) -> usize {
        match self {
            Self::U64(data) | Self::Variable { data, .. } => data.len(),
        }
    }

    /// The column.
    pub(crate) fn finish(self) -> KeyColumn {
        match self {
            Self::U64(data) => KeyColumn::U64(data.into()),
            Self::Variable { offsets, data } => KeyColumn::Variable { offsets: offsets.into(), data: data.into() },
        }
    }
}

fn push_offset(offsets: &mut Vec<u8>, offset: usize) -> Result<()> {
    match i32::try_from(offset) {
        Ok(offset) => {
            offsets.extend_from_slice(&offset.to_le_bytes());
            Ok(())
        }
        Err(_) => Err(Error::TooLarge {
            what: "a column of one batch".into(),
            found: offset as u64,
            limit: MAX_COLUMN_LEN_BYTES as u64,
        }),
    }
}

enum LeafBuilder {
    Fixed { width: usize, data: Vec<u8> },
    Bits { data: Vec<u8> },
    Variable { offsets: Vec<u8>, unit: usize, data: Vec<u8>, dims: Vec<u8>, rank: usize },
}

/// Collects rows of one structure.
pub(crate) struct ColumnsBuilder {
    schema: Arc<RowSchema>,
    encoder: Encoder,
    rows: usize,
    keys: KeyBuilder,
    leaves: Vec<LeafBuilder>,
    scratch: Vec<u8>,
}

impl ColumnsBuilder {
    /// A builder of rows of `schema`, whose packed leaves are packed with `codec`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the schema's sizes overflow.
    pub(crate) fn new(schema: Arc<RowSchema>, codec: Codec) -> Result<Self> {
        schema.check().map_err(Error::invalid)?;
        let leaves = schema
            .leaves
            .iter()
            .map(|leaf| match leaf.storage() {
                Some(Storage::Fixed { width }) => Ok(LeafBuilder::Fixed { width, data: Vec::new() }),
                Some(Storage::Bits) => Ok(LeafBuilder::Bits { data: Vec::new() }),
                Some(Storage::Variable { unit, rank }) => Ok(LeafBuilder::Variable {
                    offsets: 0_i32.to_le_bytes().to_vec(),
                    unit,
                    data: Vec::new(),
                    dims: Vec::new(),
                    rank,
                }),
                None => Err(Error::invalid("the size of a row overflows")),
            })
            .collect::<Result<_>>()?;
        let keys = KeyBuilder::new(schema.key, 0);
        Ok(Self { schema, encoder: Encoder::new(codec)?, rows: 0, keys, leaves, scratch: Vec::new() })
    }

    /// Adds a row. `leaves` are those of [`crate::schema::derive`] for a value of this structure. After an error the
    /// builder must be dropped.
    pub(crate) fn push(&mut self, key: KeyRef<'_>, leaves: &[LeafValue<'_>]) -> Result<()> {
        key.with_bytes(|bytes| self.keys.push_bytes(bytes))?;
        for ((kind, value), builder) in self.schema.leaves.iter().zip(leaves).zip(&mut self.leaves) {
            let raw: &[u8] = match value {
                LeafValue::Tensor(tensor) => {
                    push_tensor(kind, tensor, builder, &mut self.encoder, &mut self.scratch)?;
                    continue;
                }
                LeafValue::Bool(flag) => {
                    push_bit(builder, self.rows, *flag);
                    continue;
                }
                LeafValue::Int(number) => &number.to_le_bytes(),
                LeafValue::Float(number) => &number.to_le_bytes(),
                LeafValue::Str(text) => text.as_bytes(),
                LeafValue::Bytes(bytes) => bytes,
            };
            push_bytes(builder, raw, &[])?;
        }
        self.rows += 1;
        Ok(())
    }

    /// Rows so far.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes in the largest column so far.
    pub(crate) fn largest_column_len_bytes(&self) -> usize {
        let leaves = self.leaves.iter().map(|leaf| match leaf {
            LeafBuilder::Fixed { data, .. } | LeafBuilder::Bits { data } | LeafBuilder::Variable { data, .. } => {
                data.len()
            }
        });
        leaves.max().unwrap_or(0).max(self.keys.len_bytes())
    }

    /// The columns.
    pub(crate) fn finish(self) -> Columns {
        let leaves = self.leaves.into_iter().map(|leaf| match leaf {
            LeafBuilder::Fixed { width, data } => LeafColumn::Fixed { width, data: data.into() },
            LeafBuilder::Bits { data } => LeafColumn::Bits(data.into()),
            LeafBuilder::Variable { offsets, unit, data, dims, rank } => {
                LeafColumn::Variable { offsets: offsets.into(), unit, data: data.into(), dims: dims.into(), rank }
            }
        });
        Columns {
            rows: self.rows,
            keys: self.keys.finish(),
            times: None,
            leaves: leaves.collect(),
            schema: self.schema,
        }
    }
}

fn push_bit(builder: &mut LeafBuilder, row: usize, flag: bool) {
    if let LeafBuilder::Bits { data } = builder {
        if row.is_multiple_of(8) {
            data.push(0);
        }
        if let Some(last) = data.last_mut() {
            *last |= u8::from(flag) << (row % 8);
        }
    }
}

fn push_bytes(builder: &mut LeafBuilder, raw: &[u8], shape: &[usize]) -> Result<()> {
    match builder {
        LeafBuilder::Fixed { data, .. } => data.extend_from_slice(raw),
        LeafBuilder::Bits { .. } => return Err(Error::internal("bytes for a leaf of bits")),
        LeafBuilder::Variable { offsets, unit, data, dims, rank } => {
            data.extend_from_slice(raw);
            push_offset(offsets, data.len() / *unit)?;
            if *rank > 0 {
                push_dims(dims, shape)?;
            }
        }
    }
    Ok(())
}

fn push_dims(dims: &mut Vec<u8>, shape: &[usize]) -> Result<()> {
    for &dim in shape {
        let dim = i32::try_from(dim).map_err(|_| Error::TooLarge {
            what: "a dimension of a tensor whose shape differs from row to row".into(),
            found: dim as u64,
            limit: i32::MAX as u64,
        })?;
        dims.extend_from_slice(&dim.to_le_bytes());
    }
    Ok(())
}

fn push_tensor(
    kind: &LeafKind,
    tensor: &TensorView<'_>,
    builder: &mut LeafBuilder,
    encoder: &mut Encoder,
    scratch: &mut Vec<u8>,
) -> Result<()> {
    let LeafKind::Tensor { dtype, shape, codec, .. } = kind else {
        return Err(Error::internal("a tensor for a leaf of another kind"));
    };
    scratch.clear();
    let raw = if *dtype == tensor.dtype() {
        tensor.data()
    } else {
        cast_tensor(tensor.dtype(), *dtype, tensor.data(), scratch)?;
        scratch.as_slice()
    };
    let shape = match shape {
        Dims::Variable { .. } => tensor.shape(),
        Dims::Fixed(_) => &[],
    };
    if *codec == Codec::None {
        return push_bytes(builder, raw, shape);
    }
    if let LeafBuilder::Variable { offsets, data, dims, rank, .. } = builder {
        encoder.encode(raw, dtype.unit_len_bytes(), data)?;
        push_offset(offsets, data.len())?;
        if *rank > 0 {
            push_dims(dims, shape)?;
        }
    }
    Ok(())
}

/// The columns of rows that are one contiguous `[rows, …]` tensor of the stored dtype, without its data.
///
/// # Errors
/// [`Error::Invalid`] if the rows of `schema` are not one unpacked tensor of one shape.
pub(crate) fn without_data(schema: Arc<RowSchema>, keys: KeyColumn, rows: usize) -> Result<Columns> {
    let width = match schema.leaves.as_slice() {
        [leaf] => leaf.storage(),
        _ => None,
    };
    match width {
        Some(Storage::Fixed { width }) => {
            let leaves = vec![LeafColumn::Fixed { width, data: Bytes::new() }];
            Ok(Columns { schema, rows, keys, times: None, leaves })
        }
        _ => Err(Error::invalid("contiguous rows need one unpacked tensor of one shape")),
    }
}

/// Adds the data to what [`without_data`] returned: a copy of `values`, which are of dtype `source`. No work for each
/// row.
///
/// # Errors
/// [`Error::Invalid`] if they cannot be converted to the stored dtype.
pub(crate) fn with_data(mut columns: Columns, source: Dtype, values: &[u8], buffers: &Arc<Buffers>) -> Result<Columns> {
    let stored = columns.schema.single_tensor().map_or(source, |(dtype, _, _)| dtype);
    for leaf in &mut columns.leaves {
        if let LeafColumn::Fixed { width, data } = leaf {
            *data = if stored == source {
                buffers.copy(values)
            } else {
                let mut converted = Vec::with_capacity(*width * columns.rows);
                cast_tensor(source, stored, values, &mut converted)?;
                converted.into()
            };
        }
    }
    Ok(columns)
}
