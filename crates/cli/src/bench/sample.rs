//! A sample of a store's rows, and the two ways to read it.

use std::collections::BTreeMap;
use std::hint::black_box;

use tensorcask::{Dtype, Error, Key, Reader, Value};

use crate::failure::Failure;
use crate::structure::structure;

/// The most bytes of values that are held for comparison.
const MOST_BYTES: u64 = 256 << 20;

/// How rows are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    /// Into one buffer: every row is one tensor of this dtype and shape.
    Into(Dtype, Vec<usize>),
    /// As values, which are then copied.
    Values,
}

impl Call {
    /// The call for `values`, and the structures among them by how often they occur.
    pub(super) fn of(values: &[Value]) -> Self {
        let tensor = |value: &Value| value.as_tensor().map(|tensor| (tensor.dtype(), tensor.shape().to_vec()));
        match values.first().and_then(tensor) {
            Some(first) if values.iter().all(|value| tensor(value).as_ref() == Some(&first)) => {
                Self::Into(first.0, first.1)
            }
            _ => Self::Values,
        }
    }

    /// Its name for people.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Into(..) => "get_batch_into",
            Self::Values => "get_batch, and a copy of each value",
        }
    }
}

/// Reads batches, and keeps the buffers for them.
pub(super) struct Batches<'r> {
    reader: &'r Reader,
    call: Call,
    out: Vec<u8>,
    found: Vec<bool>,
}

/// What a batch gave.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub bytes: u64,
    /// The keys whose rows are damaged.
    pub damaged: Vec<Key>,
}

impl<'r> Batches<'r> {
    pub(super) fn new(reader: &'r Reader, call: Call) -> Self {
        Self { reader, call, out: Vec::new(), found: Vec::new() }
    }

    /// Reads `keys`.
    pub(super) fn read(&mut self, keys: &[Key]) -> Result<Batch, Failure> {
        let Call::Into(dtype, shape) = &self.call else { return self.read_values(keys) };
        let width = dtype.tensor_len_bytes(shape).unwrap_or(0);
        self.out.resize(width * keys.len(), 0);
        self.found.resize(keys.len(), false);
        match self.reader.get_batch_into_bytes(keys, *dtype, shape, &mut self.out, &mut self.found) {
            Ok(found) => Ok(Batch { bytes: (found * width) as u64, damaged: Vec::new() }),
            Err(Error::DamagedRows { rows }) => {
                let damaged = rows.iter().filter_map(|row| keys.get(row.position).cloned()).collect();
                Ok(Batch { bytes: 0, damaged })
            }
            // The sample from which the call was chosen had no row of the other structure.
            Err(error) if matches!(error.cause(), Error::Mismatch { .. }) => {
                self.call = Call::Values;
                self.read_values(keys)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn read_values(&mut self, keys: &[Key]) -> Result<Batch, Failure> {
        let (values, damaged) = values(self.reader, keys)?;
        self.out.clear();
        values.iter().for_each(|value| append(value, &mut self.out));
        black_box(&mut self.out);
        Ok(Batch { bytes: self.out.len() as u64, damaged })
    }

    pub(super) fn call(&self) -> &Call {
        &self.call
    }
}

/// The values of `keys`, and the keys whose rows are damaged.
pub(super) fn values(reader: &Reader, keys: &[Key]) -> Result<(Vec<Value>, Vec<Key>), Failure> {
    let (mut values, mut damaged) = (Vec::with_capacity(keys.len()), Vec::new());
    for (key, value) in keys.iter().zip(reader.get_batch(keys)?) {
        match value {
            Ok(value) => values.extend(value),
            Err(error) if matches!(error.cause(), Error::Corrupt { .. }) => damaged.push(key.clone()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((values, damaged))
}

/// How many rows of `row_bytes` are held for comparison at most.
pub(super) fn most_rows(row_bytes: f64) -> usize {
    (MOST_BYTES as f64 / row_bytes.max(1.0)) as usize
}

/// Appends the bytes of a value's leaves.
fn append(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Tensor(tensor) => out.extend_from_slice(tensor.data()),
        Value::Str(text) => out.extend_from_slice(text.as_bytes()),
        Value::Bytes(bytes) => out.extend_from_slice(bytes),
        Value::Int(number) => out.extend_from_slice(&number.to_ne_bytes()),
        Value::Float(number) => out.extend_from_slice(&number.to_ne_bytes()),
        Value::Bool(flag) => out.push(u8::from(*flag)),
        Value::Null => {}
        Value::List(items) | Value::Tuple(items) => items.iter().for_each(|item| append(item, out)),
        Value::Map(items) => items.iter().for_each(|(_, item)| append(item, out)),
    }
}

/// The bytes of a value's leaves.
pub(crate) fn len_bytes(value: &Value) -> u64 {
    match value {
        Value::Tensor(tensor) => tensor.data().len() as u64,
        Value::Str(text) => text.len() as u64,
        Value::Bytes(bytes) => bytes.len() as u64,
        Value::Int(_) | Value::Float(_) => 8,
        Value::Bool(_) => 1,
        Value::Null => 0,
        Value::List(items) | Value::Tuple(items) => items.iter().map(len_bytes).sum(),
        Value::Map(items) => items.iter().map(|(_, item)| len_bytes(item)).sum(),
    }
}

/// Copies values one after the other: the control. It touches the start of later values early, so that the processor
/// waits for several of them at once.
pub(super) fn copy(values: &[&Value], out: &mut Vec<u8>) -> u64 {
    const AHEAD: usize = 4;
    out.clear();
    for (position, value) in values.iter().enumerate() {
        if let Some(Value::Tensor(next)) = values.get(position + AHEAD) {
            black_box(next.data().iter().step_by(64).take(8).fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
        }
        append(value, out);
    }
    black_box(&mut *out);
    out.len() as u64
}

/// The most frequent structure of values, and how many others there are.
pub(super) fn structures(values: &[Value]) -> String {
    let mut counts = BTreeMap::<String, usize>::new();
    values.iter().for_each(|value| *counts.entry(structure(value)).or_default() += 1);
    match (counts.iter().max_by_key(|(_, count)| **count), counts.len()) {
        (None, _) => "no values".to_owned(),
        (Some((only, _)), 1) => only.clone(),
        (Some((most, _)), several) => format!("{most} and {} more structure(s)", several - 1),
    }
}
