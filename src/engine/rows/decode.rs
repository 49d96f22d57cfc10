//! From the stored bytes of a row to its value, or to parts of it.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use crate::codec::{Codec, Decoder};
use crate::dtype::Dtype;
use crate::engine::options::Options;
use crate::engine::rows::row::Row;
use crate::error::{Error, Result};
use crate::schema::{Dims, LeafKind, RowSchema, Schema};
use crate::segment::build::cast_tensor;
use crate::segment::columns::{LeafBytes, offset_at};
use crate::tensor::Tensor;
use crate::value::Value;

/// The error of a value that has no leaf at `path`.
pub(crate) fn no_such_leaf(schema: &RowSchema, path: &str) -> Error {
    Error::Mismatch { expected: format!("a leaf {path}"), found: described(&Schema::of_rows(schema)) }
}

/// A structure in a message.
pub(crate) fn described(schema: &Schema) -> String {
    const MOST_CHARS: usize = 300;
    let mut text = schema.to_string();
    if let Some((end, _)) = text.char_indices().nth(MOST_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A tensor or a scalar of fixed size in one row, as it is stored.
#[derive(Debug)]
pub(crate) struct StoredLeaf<'r> {
    pub shape: Cow<'r, [usize]>,
    dtype: Dtype,
    /// The dtype as put, if it was down-cast.
    source_dtype: Option<Dtype>,
    codec: Codec,
    bytes: LeafBytes<'r>,
}

impl<'r> StoredLeaf<'r> {
    /// Leaf `leaf` of `row`. Reads dimensions and offsets, no elements.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for strings and byte strings; [`Error::Corrupt`].
    pub(crate) fn of(row: &'r Row<'_>, leaf: usize) -> Result<Self> {
        let columns = row.columns();
        let (Some(kind), Some(bytes)) = (columns.schema.leaves.get(leaf), columns.leaf(leaf, row.row)) else {
            return Err(outside(row));
        };
        let scalar = |dtype| Self { shape: Cow::Borrowed(&[]), dtype, source_dtype: None, codec: Codec::None, bytes };
        match (kind, bytes) {
            (LeafKind::Tensor { dtype, shape, source_dtype, codec }, LeafBytes::Bytes { dims, .. }) => {
                let shape = shape_of(row, shape, dims)?;
                Ok(Self { shape, dtype: *dtype, source_dtype: *source_dtype, codec: *codec, bytes })
            }
            (LeafKind::Bool, LeafBytes::Bit(_)) => Ok(scalar(Dtype::Bool)),
            (LeafKind::Int, LeafBytes::Bytes { .. }) => Ok(scalar(Dtype::I64)),
            (LeafKind::Float, LeafBytes::Bytes { .. }) => Ok(scalar(Dtype::F64)),
            (LeafKind::Str | LeafKind::Bytes, LeafBytes::Bytes { .. }) => Err(Error::Mismatch {
                expected: "a tensor or a scalar of fixed size".into(),
                found: described(&Schema::of_rows(&columns.schema)),
            }),
            _ => Err(other_kind(row)),
        }
    }

    /// The dtype that reads return.
    pub(crate) fn read_dtype(&self, options: &Options) -> Dtype {
        self.source_dtype.filter(|_| options.restore_dtype).unwrap_or(self.dtype)
    }

    /// The decoded size in bytes, before it is restored. It is bounded, so that it may be allocated.
    fn len_bytes(&self, options: &Options, row: &Row<'_>) -> Result<usize> {
        let len = self.dtype.tensor_len_bytes(&self.shape);
        let len = len.ok_or_else(|| row.corrupt("the size of a tensor overflows"))?;
        if len > options.max_value_bytes {
            return Err(Error::TooLarge {
                what: "a decoded value in bytes".into(),
                found: len as u64,
                limit: options.max_value_bytes as u64,
            });
        }
        Ok(len)
    }

    /// As [`StoredLeaf::len_bytes`], compared with the stored bytes: damaged dimensions do not make a caller allocate
    /// more than these unpack to.
    pub(crate) fn backed_len_bytes(&self, options: &Options, row: &Row<'_>) -> Result<usize> {
        let len = self.len_bytes(options, row)?;
        match self.bytes {
            LeafBytes::Bit(_) => {}
            LeafBytes::Bytes { start, end, .. } if self.codec == Codec::None => {
                if end - start != len {
                    return Err(row.corrupt(&format!("expected {len} bytes, found {}", end - start)));
                }
            }
            LeafBytes::Bytes { .. } => {
                Decoder::check_len(self.bytes.as_slice(), len).map_err(|what| unpacking_failed(row, &what))?;
            }
        }
        Ok(len)
    }

    /// Unpacks the elements into `out`, which has as many bytes.
    fn unpack(&self, row: &Row<'_>, decoder: &mut Decoder, out: &mut [u8]) -> Result<()> {
        let decoded = decoder.decode(self.bytes.as_slice(), self.dtype.unit_len_bytes(), out.len(), out);
        decoded.map_err(|what| unpacking_failed(row, &what))
    }

    /// The elements, as they were before packing.
    fn elements(&self, options: &Options, row: &Row<'_>, decoder: &mut Decoder) -> Result<Bytes> {
        let len = self.backed_len_bytes(options, row)?;
        Ok(match self.bytes {
            LeafBytes::Bit(flag) => Bytes::from(vec![u8::from(flag)]),
            LeafBytes::Bytes { column, start, end, .. } if self.codec == Codec::None => column.slice(start..end),
            LeafBytes::Bytes { .. } => {
                let mut out = vec![0; len];
                self.unpack(row, decoder, &mut out)?;
                Bytes::from(out)
            }
        })
    }

    /// The elements in the dtype that reads return.
    fn restored(&self, options: &Options, row: &Row<'_>, decoder: &mut Decoder) -> Result<Bytes> {
        let data = self.elements(options, row, decoder)?;
        let read = self.read_dtype(options);
        if read == self.dtype {
            return Ok(data);
        }
        let mut restored = Vec::new();
        cast_tensor(self.dtype, read, &data, &mut restored)?;
        Ok(restored.into())
    }

    /// The tensor. If it is not packed, it shares the segment's memory.
    fn tensor(&self, options: &Options, row: &Row<'_>, decoder: &mut Decoder) -> Result<Value> {
        let data = self.restored(options, row, decoder)?;
        Tensor::new(self.read_dtype(options), &self.shape, data).map(Value::Tensor)
    }

    /// Copies `part` of the bytes that a read returns into `out`, which is as long. A packed tensor that is read whole
    /// is unpacked right there.
    pub(crate) fn copy(
        &self,
        options: &Options,
        row: &Row<'_>,
        decoder: &mut Decoder,
        part: Range<usize>,
        out: &mut [u8],
    ) -> Result<()> {
        let is_whole = part.start == 0 && self.len_bytes(options, row)? == out.len();
        if is_whole && self.codec != Codec::None && self.read_dtype(options) == self.dtype {
            return self.unpack(row, decoder, out);
        }
        let data = self.restored(options, row, decoder)?;
        match data.get(part).filter(|part| part.len() == out.len()) {
            Some(part) => out.copy_from_slice(part),
            None => return Err(Error::internal(format!("a part of {} bytes of {}", out.len(), data.len()))),
        }
        Ok(())
    }
}

fn outside(row: &Row<'_>) -> Error {
    row.corrupt("a leaf lies outside of its column")
}

fn other_kind(row: &Row<'_>) -> Error {
    row.corrupt("a leaf is of another kind than its column")
}

fn unpacking_failed(row: &Row<'_>, what: &str) -> Error {
    row.corrupt(&format!("unpacking failed: {what}"))
}

/// The shape of a tensor leaf in one row.
fn shape_of<'r>(row: &Row<'_>, shape: &'r Dims, dims: &[u8]) -> Result<Cow<'r, [usize]>> {
    match shape {
        Dims::Fixed(shape) => Ok(Cow::Borrowed(shape.as_slice())),
        Dims::Variable { rank } => {
            let dims = (0..*rank).map(|dim| offset_at(dims, dim)).collect::<Option<Vec<_>>>();
            dims.map(Cow::Owned).ok_or_else(|| row.corrupt("a dimension is negative or missing"))
        }
    }
}

/// The value in `row`. The caller has compared its checksum. Unpacked tensors are zero-copy: they share the segment's
/// memory.
pub(crate) fn value_of(options: &Options, row: &Row<'_>, decoder: &mut Decoder) -> Result<Value> {
    let columns = row.columns();
    let schema = &columns.schema;
    schema.assemble(&mut |number| {
        let (Some(kind), Some(leaf)) = (schema.leaves.get(number), columns.leaf(number, row.row)) else {
            return Err(outside(row));
        };
        let bytes = leaf.as_slice();
        let eight = || bytes.try_into().map_err(|_| row.corrupt("a scalar is not eight bytes long"));
        Ok(match (kind, leaf) {
            (LeafKind::Tensor { .. }, _) => return StoredLeaf::of(row, number)?.tensor(options, row, decoder),
            (LeafKind::Bool, LeafBytes::Bit(flag)) => Value::Bool(flag),
            (LeafKind::Int, _) => Value::Int(i64::from_le_bytes(eight()?)),
            (LeafKind::Float, _) => Value::Float(f64::from_le_bytes(eight()?)),
            (LeafKind::Str, _) => match std::str::from_utf8(bytes) {
                Ok(text) => Value::Str(text.to_owned()),
                Err(_) => return Err(row.corrupt("a string is not UTF-8")),
            },
            (LeafKind::Bytes, LeafBytes::Bytes { column, start, end, .. }) => Value::Bytes(column.slice(start..end)),
            _ => return Err(other_kind(row)),
        })
    })
}
