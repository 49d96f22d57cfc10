//! Values as one Arrow IPC file: a column of keys, and one a leaf, as in a store's segments.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, FixedSizeListArray, Float64Array, Int64Array, RecordBatch, StringArray,
    UInt64Array, make_array,
};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::writer::FileWriter;
use tensorcask::{Dtype, Key, Tensor, Value};

use super::Batches;
use crate::output::Failure;

/// Writes all values to `path`.
pub(crate) fn write(path: &Path, batches: &mut Batches<'_>, progress: &mut dyn FnMut(u64)) -> Result<u64, Failure> {
    let fail = |error: arrow::error::ArrowError| Failure::input(format!("{}: {error}", path.display()));
    let mut writer: Option<FileWriter<BufWriter<File>>> = None;
    let mut rows = 0;
    loop {
        let values = batches.next()?;
        if values.is_empty() {
            break;
        }
        let batch = to_batch(&values)?;
        let writer = match &mut writer {
            Some(writer) => writer,
            None => {
                let file = File::create(path).map_err(|error| Failure::io(path, &error))?;
                writer.insert(FileWriter::try_new(BufWriter::new(file), &batch.schema()).map_err(fail)?)
            }
        };
        if writer.schema() != &batch.schema() {
            return Err(Failure::input(
                "values are of several structures, dtypes or shapes, and an Arrow file has one: select some with --prefix"
                    .into(),
            ));
        }
        writer.write(&batch).map_err(fail)?;
        rows += values.len() as u64;
        progress(values.len() as u64);
    }
    match &mut writer {
        Some(writer) => writer.finish().map_err(fail)?,
        None => return Err(Failure::input("there is nothing to export".into())),
    }
    Ok(rows)
}

/// Leaves of a value with the names of their columns.
fn leaves<'a>(value: &'a Value, name: String, found: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Map(items) => items.iter().for_each(|(part, item)| {
            leaves(item, format!("{name}/{}", part.replace('~', "~0").replace('/', "~1")), found);
        }),
        Value::List(items) | Value::Tuple(items) => {
            items.iter().enumerate().for_each(|(at, item)| leaves(item, format!("{name}/{at}"), found));
        }
        Value::Null => {}
        leaf => found.push((name, leaf)),
    }
}

fn to_batch(values: &[(Key, Value)]) -> Result<RecordBatch, Failure> {
    let mixed = || Failure::input("values are of several structures: select some with --prefix".into());
    let mut columns: Vec<(String, Vec<&Value>)> = Vec::new();
    for (row, (_, value)) in values.iter().enumerate() {
        let mut found = Vec::new();
        leaves(value, "value".into(), &mut found);
        if row == 0 {
            columns = found.iter().map(|(name, _)| (name.clone(), Vec::with_capacity(values.len()))).collect();
        }
        if found.len() != columns.len() {
            return Err(mixed());
        }
        for ((name, leaf), (expected, column)) in found.into_iter().zip(&mut columns) {
            if name != *expected {
                return Err(mixed());
            }
            column.push(leaf);
        }
    }
    let keys = key_column(values);
    let mut fields = vec![Field::new("key", keys.data_type().clone(), false)];
    let mut arrays = vec![keys];
    for (name, column) in &columns {
        let (field, array) = leaf_column(name, column)?;
        fields.push(field);
        arrays.push(array);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|error| Failure::input(error.to_string()))
}

fn key_column(values: &[(Key, Value)]) -> ArrayRef {
    let keys = values.iter().map(|(key, _)| key);
    match values.first() {
        Some((Key::U64(_), _)) => Arc::new(UInt64Array::from_iter_values(
            keys.map(|key| if let Key::U64(number) = key { *number } else { 0 }),
        )),
        Some((Key::Bytes(_), _)) => Arc::new(BinaryArray::from_iter_values(
            keys.map(|key| if let Key::Bytes(bytes) = key { &bytes[..] } else { &[] }),
        )),
        _ => Arc::new(StringArray::from_iter_values(
            keys.map(|key| if let Key::Str(text) = key { text.as_str() } else { "" }),
        )),
    }
}

fn leaf_column(name: &str, column: &[&Value]) -> Result<(Field, ArrayRef), Failure> {
    let mixed = || Failure::input(format!("the leaf {name} is of several types: select some with --prefix"));
    macro_rules! scalars {
        ($array:ident, $variant:ident, $convert:expr) => {{
            let items: Option<Vec<_>> = column
                .iter()
                .map(|value| if let Value::$variant(item) = value { Some($convert(item)) } else { None })
                .collect();
            Arc::new($array::from(items.ok_or_else(mixed)?)) as ArrayRef
        }};
    }
    let array = match column.first() {
        Some(Value::Tensor(first)) => return tensor_column(name, first, column),
        Some(Value::Bool(_)) => scalars!(BooleanArray, Bool, |flag: &bool| *flag),
        Some(Value::Int(_)) => scalars!(Int64Array, Int, |number: &i64| *number),
        Some(Value::Float(_)) => scalars!(Float64Array, Float, |number: &f64| *number),
        Some(Value::Str(_)) => scalars!(StringArray, Str, |text: &String| text.clone()),
        Some(Value::Bytes(_)) => {
            let items: Option<Vec<&[u8]>> = column
                .iter()
                .map(|value| if let Value::Bytes(bytes) = value { Some(&bytes[..]) } else { None })
                .collect();
            Arc::new(BinaryArray::from_iter_values(items.ok_or_else(mixed)?)) as ArrayRef
        }
        _ => return Err(mixed()),
    };
    Ok((Field::new(name, array.data_type().clone(), false), array))
}

fn tensor_column(name: &str, first: &Tensor, column: &[&Value]) -> Result<(Field, ArrayRef), Failure> {
    let fail = |error: arrow::error::ArrowError| Failure::input(format!("{name}: {error}"));
    let (dtype, shape) = (first.dtype(), first.shape());
    let mut data = Vec::with_capacity(first.data().len() * column.len());
    for value in column {
        match value {
            Value::Tensor(tensor) if tensor.dtype() == dtype && tensor.shape() == shape => {
                data.extend_from_slice(tensor.data())
            }
            _ => {
                return Err(Failure::input(format!(
                    "the tensors {name} differ in dtype or shape, and a column of an Arrow file has one: select some with --prefix"
                )));
            }
        }
    }
    let (element, unit) = element(dtype);
    let elements = data.len() / unit;
    let row =
        i32::try_from(first.data().len() / unit).map_err(|_| Failure::input(format!("{name}: rows are too large")))?;
    let child = arrow::array::ArrayData::builder(element.clone())
        .len(elements)
        .add_buffer(Buffer::from_vec(data))
        .align_buffers(true)
        .build()
        .map_err(fail)?;
    let item = Arc::new(Field::new("item", element, false));
    let list = FixedSizeListArray::try_new_with_length(Arc::clone(&item), row, make_array(child), None, column.len())
        .map_err(fail)?;
    let mut dims = shape.to_vec();
    if dtype == Dtype::C64 {
        dims.push(2);
    }
    let text = |dims: &[usize]| dims.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut metadata = HashMap::from([
        ("dtype".to_owned(), dtype.name().to_owned()),
        ("shape".to_owned(), format!("[{}]", text(shape))),
    ]);
    if !shape.is_empty() && dtype.bits() >= 8 {
        // Written by hand: pyarrow refuses the nulls that arrow-rs's canonical type puts there.
        metadata.insert("ARROW:extension:name".into(), "arrow.fixed_shape_tensor".into());
        metadata.insert("ARROW:extension:metadata".into(), format!("{{\"shape\":[{}]}}", text(&dims)));
    }
    Ok((Field::new(name, DataType::FixedSizeList(item, row), false).with_metadata(metadata), Arc::new(list)))
}

/// The Arrow type of the elements, and its bytes.
fn element(dtype: Dtype) -> (DataType, usize) {
    match dtype {
        Dtype::U16 | Dtype::BF16 => (DataType::UInt16, 2),
        Dtype::I16 => (DataType::Int16, 2),
        Dtype::F16 => (DataType::Float16, 2),
        Dtype::U32 => (DataType::UInt32, 4),
        Dtype::I32 => (DataType::Int32, 4),
        Dtype::F32 | Dtype::C64 => (DataType::Float32, 4),
        Dtype::U64 => (DataType::UInt64, 8),
        Dtype::I64 => (DataType::Int64, 8),
        Dtype::F64 => (DataType::Float64, 8),
        Dtype::I8 => (DataType::Int8, 1),
        _ => (DataType::UInt8, 1),
    }
}
