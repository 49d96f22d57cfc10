//! Reads the keys and values to export in batches of bounded size.

use tensorcask::{Dtype, Key, Reader, Tensor, Value};

use crate::failure::Failure;

/// A batch is full at this many bytes of values, …
pub(crate) const BATCH_LEN_BYTES: usize = 8 << 20;
/// … or at this many rows.
const BATCH_ROWS: usize = 1 << 16;
/// The most keys that are read in one call. The size of a compressed value is unknown until it is read, so this bounds
/// the memory that the first large values take.
const MOST_KEYS: usize = 32;
/// The number of bytes that one call should read.
const CALL_LEN_BYTES: usize = 1 << 20;

type Keys = Box<dyn Iterator<Item = tensorcask::Result<Key>> + Send>;

/// Reads keys and values in batches.
pub(crate) struct Rows {
    reader: Reader,
    keys: Keys,
    f16_as_f32: bool,
    /// The number of keys of the next call.
    call_keys: usize,
}

impl Rows {
    /// Reads the values of `keys`; with `f16_as_f32`, converts F16 and BF16 to F32.
    pub(crate) fn new(reader: Reader, keys: Keys, f16_as_f32: bool) -> Self {
        Self { reader, keys, f16_as_f32, call_keys: 1 }
    }

    /// The next keys and their values; empty at the end.
    pub(crate) fn next(&mut self) -> Result<Vec<(Key, Value)>, Failure> {
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        while batch_bytes < BATCH_LEN_BYTES && batch.len() < BATCH_ROWS {
            let keys = self.keys.by_ref().take(self.call_keys).collect::<Result<Vec<_>, _>>()?;
            if keys.is_empty() {
                break;
            }
            let values = self.reader.get_batch(&keys)?;
            let mut largest = 0;
            for (key, value) in keys.into_iter().zip(values) {
                // A key that was deleted since it was listed has no value.
                let Some(value) = value? else { continue };
                let value = if self.f16_as_f32 { widened(value)? } else { value };
                let len = len_bytes(&value);
                largest = largest.max(len);
                batch_bytes += len;
                batch.push((key, value));
            }
            self.call_keys = (CALL_LEN_BYTES / largest.max(1)).clamp(1, MOST_KEYS.min(self.call_keys * 2));
        }
        Ok(batch)
    }
}

/// The approximate memory of a value in bytes.
fn len_bytes(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::Tensor(tensor) => tensor.data().len(),
            Value::Str(text) => text.len(),
            Value::Bytes(bytes) => bytes.len(),
            Value::List(items) | Value::Tuple(items) => items.iter().map(len_bytes).sum(),
            Value::Map(items) => items.iter().map(|(name, item)| name.len() + len_bytes(item)).sum(),
            _ => 0,
        }
}

/// Converts the F16 and BF16 tensors of a value to F32.
pub(crate) fn widened(value: Value) -> Result<Value, Failure> {
    use tensorcask::half::{bf16, f16};
    let all = |items: &[Value]| items.iter().cloned().map(widened).collect::<Result<Vec<_>, _>>();
    Ok(match &value {
        Value::Tensor(tensor) => {
            let floats: Vec<f32> = match tensor.dtype() {
                Dtype::F16 => tensor.to_vec::<f16>()?.into_iter().map(f16::to_f32).collect(),
                Dtype::BF16 => tensor.to_vec::<bf16>()?.into_iter().map(bf16::to_f32).collect(),
                _ => return Ok(value),
            };
            Value::Tensor(Tensor::from_slice(tensor.shape(), &floats)?)
        }
        Value::List(items) => Value::List(all(items)?),
        Value::Tuple(items) => Value::Tuple(all(items)?),
        Value::Map(items) => {
            let widen = |(name, item): &(String, Value)| Ok((name.clone(), widened(item.clone())?));
            Value::Map(items.iter().map(widen).collect::<Result<Vec<_>, Failure>>()?)
        }
        _ => value,
    })
}
