//! Values as one `.safetensors` file: tensors named by key, tensors of a structure by key and path.
//!
//! The header has all names, dtypes and shapes, so values are read twice: first for the header, then for the bytes.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use tensorcask::{Dtype, Key, Reader, Tensor, Value};

use super::rows::{Rows, widened};
use super::written::{Written, nothing};
use crate::failure::Failure;
use crate::metadata::Metadata;
use crate::new_file::NewFile;

/// The name that the format reserves for its metadata.
const RESERVED: &str = "__metadata__";
/// The longest header that readers accept.
const MOST_HEADER_LEN_BYTES: usize = 100_000_000;

/// A tensor of the file.
struct Entry {
    /// The position of its row in the order of keys, and its own position among the tensors of the row.
    row: usize,
    leaf: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// Called with the name and the tensor for each tensor of a value.
type Found<'f> = dyn FnMut(&str, &Tensor) -> Result<(), Failure> + 'f;

/// Writes all values of `rows` to `path`.
pub(crate) fn write(
    path: &Path,
    reader: &Reader,
    metadata: &Metadata,
    f16_as_f32: bool,
    mut rows: Rows,
    progress: &mut dyn FnMut(u64),
) -> Result<Written, Failure> {
    let (mut keys, mut entries): (Vec<Key>, BTreeMap<String, Entry>) = Default::default();
    loop {
        let batch = rows.next()?;
        if batch.is_empty() {
            break;
        }
        progress(batch.len() as u64);
        for (key, value) in batch {
            collect(&key, &keys, &value, &mut entries)?;
            keys.push(key);
        }
    }
    if keys.is_empty() {
        return Err(nothing());
    }
    // The widest elements first, so that each tensor is aligned; then in the order of rows.
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| (std::cmp::Reverse(entry.dtype.bits()), entry.row, entry.leaf));
    let mut file = NewFile::create(path)?;
    file.put(&header(&order, metadata)?)?;
    let mut current: (usize, Vec<Tensor>) = (usize::MAX, Vec::new());
    for (name, entry) in order {
        if current.0 != entry.row {
            let key = keys.get(entry.row).ok_or_else(|| changed(name))?;
            let value = reader.get(key)?.ok_or_else(|| changed(name))?;
            let value = if f16_as_f32 { widened(value)? } else { value };
            current = (entry.row, Vec::new());
            tensors(&value, &mut String::new(), &mut |_, tensor| {
                current.1.push(tensor.clone());
                Ok(())
            })?;
        }
        match current.1.get(entry.leaf) {
            Some(tensor) if tensor.dtype() == entry.dtype && tensor.shape() == entry.shape => {
                file.put(tensor.data())?
            }
            _ => return Err(changed(name)),
        }
    }
    let replaced = file.replaces();
    file.finish()?;
    Ok(Written { rows: keys.len() as u64, replaced, shapes_lost: 0 })
}

fn changed(name: &str) -> Failure {
    Failure::input(format!("{name:?} changed during the export: run the command again"))
}

/// Collects the tensors of a row for the header.
fn collect(key: &Key, keys: &[Key], value: &Value, entries: &mut BTreeMap<String, Entry>) -> Result<(), Failure> {
    let (row, mut leaf) = (keys.len(), 0);
    tensors(value, &mut key.to_string(), &mut |name, tensor| {
        if name == RESERVED {
            return Err(Failure::input(format!(
                "the key {name:?} is a reserved name in safetensors files: export to Arrow"
            )));
        }
        let entry = Entry { row, leaf, dtype: tensor.dtype(), shape: tensor.shape().to_vec() };
        leaf += 1;
        match entries.insert(name.to_owned(), entry).map(|earlier| keys.get(earlier.row).map(Key::to_string)) {
            None => Ok(()),
            Some(other) => {
                let (key, other) = (key.to_string(), other.unwrap_or_else(|| key.to_string()));
                Err(Failure::input(format!(
                    "a tensor of the key {other:?} and one of the key {key:?} would both be named {name:?} in a \
                     safetensors file: export to Arrow, or separately with --prefix"
                )))
            }
        }
    })?;
    if leaf > 0 {
        return Ok(());
    }
    let key = key.to_string();
    Err(Failure::input(format!(
        "the value of the key {key:?} has no tensors, so it would be left out: export to Arrow"
    )))
}

/// Calls `found` with each tensor of a value and its name.
fn tensors(value: &Value, name: &mut String, found: &mut Found<'_>) -> Result<(), Failure> {
    let mut below = |part: &str, item: &Value| {
        let len = name.len();
        name.push('/');
        name.push_str(part);
        let done = tensors(item, name, found);
        name.truncate(len);
        done
    };
    match value {
        Value::Tensor(tensor) => found(name, tensor),
        Value::Map(items) if !items.is_empty() => items.iter().try_for_each(|(part, item)| below(part, item)),
        Value::List(items) | Value::Tuple(items) if !items.is_empty() => {
            items.iter().enumerate().try_for_each(|(at, item)| below(&at.to_string(), item))
        }
        _ => Err(Failure::input(format!(
            "{name:?} is not a tensor, and safetensors files hold only tensors: export to Arrow"
        ))),
    }
}

/// The header's length, the header, and spaces up to a multiple of eight.
fn header(order: &[(&String, &Entry)], metadata: &Metadata) -> Result<Vec<u8>, Failure> {
    let mut json = String::from("{");
    if !metadata.is_empty() {
        json.push_str(&format!("{}:{}", json!(RESERVED), json!(metadata)));
    }
    let mut start = 0_usize;
    for (name, entry) in order {
        let end = entry.dtype.tensor_len_bytes(&entry.shape).and_then(|len| start.checked_add(len));
        let end = end.ok_or_else(|| Failure::input(format!("{name:?} is too large for a safetensors file")))?;
        let separator = if json.len() > 1 { "," } else { "" };
        let about = json!({ "dtype": entry.dtype.name(), "shape": entry.shape, "data_offsets": [start, end] });
        json.push_str(&format!("{separator}{}:{about}", json!(name)));
        start = end;
    }
    json.push('}');
    json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
    if json.len() > MOST_HEADER_LEN_BYTES {
        return Err(Failure::input(format!(
            "the names of {} tensors take {} bytes, more than the {MOST_HEADER_LEN_BYTES} that readers of safetensors \
             files allow: export to Arrow, or in parts with --prefix",
            order.len(),
            json.len()
        )));
    }
    Ok([&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat())
}
