//! From the stored bytes of a row to its value.

use std::borrow::Cow;

use bytes::Bytes;

use crate::codec::{Codec, Decoder};
use crate::dtype::Dtype;
use crate::engine::options::Options;
use crate::engine::rows::row::Row;
use crate::error::{Error, Result};
use crate::schema::{Dims, LeafKind};
use crate::segment::build::cast_tensor;
use crate::segment::columns::{LeafBytes, offset_at};
use crate::tensor::Tensor;
use crate::value::Value;

/// The shape of a tensor leaf in one row, and its decoded size in bytes, which is bounded before anything is allocated.
fn shape_of<'s>(
    row: &Row<'_>,
    dtype: Dtype,
    shape: &'s Dims,
    dims: &[u8],
    most_bytes: usize,
) -> Result<(Cow<'s, [usize]>, usize)> {
    let shape = match shape {
        Dims::Fixed(shape) => Cow::Borrowed(shape.as_slice()),
        Dims::Variable { rank } => {
            let dims = (0..*rank).map(|dim| offset_at(dims, dim)).collect::<Option<Vec<_>>>();
            Cow::Owned(dims.ok_or_else(|| row.corrupt("a dimension is negative or missing"))?)
        }
    };
    let len = dtype.tensor_len_bytes(&shape).ok_or_else(|| row.corrupt("the size of a tensor overflows"))?;
    if len > most_bytes {
        return Err(Error::TooLarge {
            what: "a decoded value in bytes".into(),
            found: len as u64,
            limit: most_bytes as u64,
        });
    }
    Ok((shape, len))
}

fn tensor_of(
    options: &Options,
    row: &Row<'_>,
    kind: &LeafKind,
    leaf: LeafBytes<'_>,
    decoder: &mut Decoder,
) -> Result<Value> {
    let (LeafKind::Tensor { dtype, shape, source_dtype, codec }, LeafBytes::Bytes { column, start, end, dims }) =
        (kind, leaf)
    else {
        return Err(row.corrupt("a tensor was expected"));
    };
    let (shape, len) = shape_of(row, *dtype, shape, dims, options.max_value_bytes)?;
    let data = if *codec == Codec::None {
        column.slice(start..end)
    } else {
        let failed = |what: String| row.corrupt(&format!("unpacking failed: {what}"));
        Decoder::check_len(leaf.as_slice(), len).map_err(failed)?;
        let mut out = vec![0; len];
        decoder.decode(leaf.as_slice(), dtype.unit_len_bytes(), len, &mut out).map_err(failed)?;
        Bytes::from(out)
    };
    if data.len() != len {
        return Err(row.corrupt(&format!("expected {len} bytes, found {}", data.len())));
    }
    match source_dtype.filter(|_| options.restore_dtype) {
        None => Tensor::new(*dtype, &shape, data).map(Value::Tensor),
        Some(source) => {
            let mut restored = Vec::new();
            cast_tensor(*dtype, source, &data, &mut restored)?;
            Tensor::new(source, &shape, restored).map(Value::Tensor)
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
            return Err(row.corrupt("a leaf lies outside of its column"));
        };
        let bytes = leaf.as_slice();
        let eight = || bytes.try_into().map_err(|_| row.corrupt("a scalar is not eight bytes long"));
        Ok(match (kind, leaf) {
            (LeafKind::Tensor { .. }, _) => return tensor_of(options, row, kind, leaf, decoder),
            (LeafKind::Bool, LeafBytes::Bit(flag)) => Value::Bool(flag),
            (LeafKind::Int, _) => Value::Int(i64::from_le_bytes(eight()?)),
            (LeafKind::Float, _) => Value::Float(f64::from_le_bytes(eight()?)),
            (LeafKind::Str, _) => match std::str::from_utf8(bytes) {
                Ok(text) => Value::Str(text.to_owned()),
                Err(_) => return Err(row.corrupt("a string is not UTF-8")),
            },
            (LeafKind::Bytes, LeafBytes::Bytes { column, start, end, .. }) => Value::Bytes(column.slice(start..end)),
            _ => return Err(row.corrupt("a leaf is of another kind than its column")),
        })
    })
}
