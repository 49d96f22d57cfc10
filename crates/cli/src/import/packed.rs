//! Compressed tensors of sealed segments (FORMAT.md, 2.4).

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field};
use tensorcask::{Dtype, Tensor, Value};

use super::elements::{Refusal, shapes_of};

/// The tensors of a compressed column.
pub(crate) fn values(field: &Field, array: &dyn Array) -> Result<Vec<Value>, Refusal> {
    let wrong = || {
        Refusal::from(
            "its metadata declares compressed tensors, but its type is not that of a segment's column".to_owned(),
        )
    };
    let dtype = field.metadata().get("dtype").and_then(|name| Dtype::from_name(name)).ok_or_else(wrong)?;
    let fixed = field.metadata().get("shape").and_then(|text| serde_json::from_str::<Vec<usize>>(text).ok());
    let (packed, shapes): (&dyn Array, _) = match (array.data_type(), fixed) {
        (DataType::Binary, Some(shape)) => (array, vec![shape; array.len()]),
        (DataType::Struct(_), _) => {
            let column = |name| array.as_struct().column_by_name(name);
            let shapes: Option<&ArrayRef> = column("shape");
            (column("data").ok_or_else(wrong)?, shapes.and_then(shapes_of).ok_or_else(wrong)?)
        }
        _ => return Err(wrong()),
    };
    let packed = packed.as_binary_opt::<i32>().ok_or_else(wrong)?;
    let rows = packed.iter().flatten().zip(shapes).enumerate();
    let unpack = |(row, (packed, shape)): (usize, (&[u8], Vec<usize>))| {
        let tensor = unpack(packed, dtype, &shape)
            .ok_or_else(|| Refusal { row: Some(row), why: "its compressed bytes are damaged".into() })?;
        Ok(Value::Tensor(tensor))
    };
    rows.map(unpack).collect()
}

fn unpack(packed: &[u8], dtype: Dtype, shape: &[usize]) -> Option<Tensor> {
    let len_bytes = dtype.tensor_len_bytes(shape).filter(|len| *len <= i32::MAX as usize)?;
    let (&how, packed) = packed.split_first()?;
    let data = match how {
        0 => packed.to_vec(),
        1 | 2 => zstd::bulk::decompress(packed, len_bytes).ok()?,
        _ => return None,
    };
    let unit = if dtype == Dtype::C64 { 4 } else { (dtype.bits() / 8).max(1) };
    let data = if how == 2 { unshuffle(&data, unit)? } else { data };
    Tensor::new(dtype, shape, data).ok()
}

/// Undoes the byte shuffle: byte `b` of element `i` of `n` is at `b * n + i`. Bytes after the last whole element are
/// not shuffled.
fn unshuffle(data: &[u8], unit: usize) -> Option<Vec<u8>> {
    let count = data.len().checked_div(unit)?;
    let mut out = data.to_vec();
    for (at, element) in out.chunks_exact_mut(unit).enumerate() {
        for (byte, target) in element.iter_mut().enumerate() {
            *target = *data.get(byte * count + at)?;
        }
    }
    Some(out)
}
