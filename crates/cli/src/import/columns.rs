//! Cells of Arrow columns as values.
//!
//! Lists of numbers become tensors: of one shape if the type fixes it, else with a shape for each row. Exports and sealed
//! segments have dtypes and shapes in the metadata of fields, and are restored exactly.

use arrow::array::{Array, ArrayRef, AsArray, GenericListArray, OffsetSizeTrait, make_array};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type};
use tensorcask::{Bytes, Dtype, Tensor, Value};

use super::elements::{Refusal, dtype_of, elements, flat, no_nulls_within, shapes_of};
use super::packed;

/// Tensors of one dtype and shape, stored consecutively.
#[derive(Debug)]
pub(crate) struct Fixed {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Bytes,
}

/// The dtype of elements of type `stored`: the one that an export or a segment declares in the metadata of `field`, if
/// it has the same representation.
fn declared(field: &Field, stored: Dtype) -> Dtype {
    let Some(declared) = field.metadata().get("dtype").and_then(|name| Dtype::from_name(name)) else { return stored };
    let holds = match declared {
        Dtype::BF16 => Dtype::U16,
        Dtype::C64 => Dtype::F32,
        Dtype::Bool | Dtype::F4 | Dtype::F6E2M3 | Dtype::F6E3M2 => Dtype::U8,
        dtype if dtype.name().starts_with("F8") => Dtype::U8,
        dtype => dtype,
    };
    if holds == stored { declared } else { stored }
}

/// The dtypes of the tensors in a column.
pub(crate) fn dtypes(field: &Field) -> Vec<Dtype> {
    let element = |data_type: &DataType| dtype_of(data_type).map(|stored| declared(field, stored));
    match field.data_type() {
        // Scalars.
        DataType::Boolean | DataType::Int64 | DataType::Float64 => Vec::new(),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            element(item.data_type()).map_or_else(|| dtypes(item), |dtype| vec![dtype])
        }
        DataType::Struct(items) => items.iter().flat_map(|item| dtypes(item)).collect(),
        other => element(other).into_iter().collect(),
    }
}

fn check_nulls(array: &dyn Array) -> Result<(), Refusal> {
    match array.logical_nulls().filter(|nulls| nulls.null_count() > 0) {
        Some(nulls) => Err(Refusal {
            row: (0..array.len()).find(|row| nulls.is_null(*row)),
            why: "the cell is null: remove such rows".into(),
        }),
        None => Ok(()),
    }
}

/// `[2,3]` in JSON.
fn dims(json: &serde_json::Value) -> Option<Vec<usize>> {
    json.as_array()?.iter().map(|dim| dim.as_u64().and_then(|dim| usize::try_from(dim).ok())).collect()
}

/// The metadata of the extension type of `field`, if the type is called `name`.
fn extension(field: &Field, name: &str) -> Option<serde_json::Value> {
    field.extension_type_name().filter(|found| *found == name)?;
    Some(field.extension_type_metadata().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default())
}

/// Refuses tensors with permuted dimensions.
fn check_permutation(extension: Option<&serde_json::Value>) -> Result<(), Refusal> {
    let order = extension.and_then(|json| dims(json.get("permutation")?));
    match order {
        Some(order) if order.iter().enumerate().any(|(at, axis)| at != *axis) => Err(Refusal::from(format!(
            "its tensors are stored with their dimensions in the order {order:?}: store them in row-major order"
        ))),
        _ => Ok(()),
    }
}

/// The tensors of a column of fixed-size lists; `None` for other columns.
pub(crate) fn fixed(field: &Field, array: &dyn Array) -> Result<Option<Fixed>, Refusal> {
    let Some(list) = array.as_fixed_size_list_opt() else { return Ok(None) };
    check_nulls(array)?;
    let (mut lengths, mut child) = (vec![list.value_length() as usize], flat(list));
    while let Some(list) = child.as_fixed_size_list_opt() {
        no_nulls_within(list)?;
        lengths.push(list.value_length() as usize);
        child = flat(list);
    }
    let Some((stored, data)) = elements(&child)? else { return Ok(None) };
    let extension = extension(field, "arrow.fixed_shape_tensor");
    check_permutation(extension.as_ref())?;
    let (dtype, data) = if field.extension_type_name() == Some("arrow.bool8") {
        (stored, data)
    } else {
        (declared(field, stored), data)
    };
    let count: usize = lengths.iter().product();
    let plain = || match dtype {
        Dtype::C64 if lengths.last() == Some(&2) && lengths.len() > 1 => {
            lengths.get(..lengths.len() - 1).map(<[usize]>::to_vec)
        }
        Dtype::C64 => Some(vec![count / 2]),
        dtype if dtype.bits() < 8 => Some(vec![count * 8 / dtype.bits()]),
        _ => Some(lengths.clone()),
    };
    let own = || dims(&serde_json::from_str(field.metadata().get("shape")?).ok()?);
    let extended = || {
        let mut shape = dims(extension.as_ref()?.get("shape")?)?;
        if dtype == Dtype::C64 {
            shape.pop();
        }
        Some(shape)
    };
    let fits = |shape: &Vec<usize>| {
        dtype.tensor_len_bytes(shape).and_then(|len| len.checked_mul(array.len())) == Some(data.len())
    };
    let shape = own().filter(fits).or_else(|| extended().filter(fits)).or_else(|| plain().filter(fits));
    match shape {
        Some(shape) => Ok(Some(Fixed { dtype, shape, data })),
        None => Err(Refusal::from(format!("its rows of {count} elements do not fit the shape of {dtype} tensors"))),
    }
}

/// The values of a column.
pub(crate) fn values(field: &Field, array: &dyn Array) -> Result<Vec<Value>, Refusal> {
    if array.data_type() == &DataType::Null {
        return Ok(vec![Value::Null; array.len()]);
    }
    check_nulls(array)?;
    if field.metadata().contains_key("codec") {
        return packed::values(field, array);
    }
    if let Some(tensors) = fixed(field, array)? {
        let width = tensors.data.len() / array.len().max(1);
        let row = |at: usize| tensor(tensors.dtype, &tensors.shape, tensors.data.slice(at * width..(at + 1) * width));
        return (0..array.len()).map(row).collect();
    }
    match array.data_type() {
        DataType::Boolean => Ok(array.as_boolean().values().iter().map(Value::Bool).collect()),
        DataType::Int64 => Ok(array.as_primitive::<Int64Type>().values().iter().map(|n| Value::Int(*n)).collect()),
        DataType::Float64 => {
            Ok(array.as_primitive::<Float64Type>().values().iter().map(|x| Value::Float(*x)).collect())
        }
        DataType::Utf8 => Ok(array.as_string::<i32>().iter().flatten().map(|text| Value::Str(text.into())).collect()),
        DataType::LargeUtf8 => {
            Ok(array.as_string::<i64>().iter().flatten().map(|text| Value::Str(text.into())).collect())
        }
        DataType::Utf8View => Ok(array.as_string_view().iter().flatten().map(|text| Value::Str(text.into())).collect()),
        DataType::Binary => Ok(array.as_binary::<i32>().iter().flatten().map(bytes).collect()),
        DataType::LargeBinary => Ok(array.as_binary::<i64>().iter().flatten().map(bytes).collect()),
        DataType::BinaryView => Ok(array.as_binary_view().iter().flatten().map(bytes).collect()),
        DataType::FixedSizeBinary(_) => Ok(array.as_fixed_size_binary().iter().flatten().map(bytes).collect()),
        DataType::List(item) => lists(field, item, array.as_list::<i32>()),
        DataType::LargeList(item) => lists(field, item, array.as_list::<i64>()),
        DataType::FixedSizeList(item, _) => {
            let list = array.as_fixed_size_list();
            (0..list.len())
                .map(|row| values(item, &list.value(row)).map(Value::List).map_err(|why| at_row(why, row)))
                .collect()
        }
        DataType::Struct(_) => structs(field, array),
        other => match elements(array)? {
            // Numbers of types that are not scalars in a store become tensors without dimensions, to keep their dtype.
            Some((dtype, data)) => {
                let width = dtype.bits() / 8;
                (0..array.len()).map(|at| tensor(dtype, &[], data.slice(at * width..(at + 1) * width))).collect()
            }
            None => Err(Refusal::from(format!(
                "its type {other} cannot be stored: convert it to numbers, strings or lists of numbers, or choose \
                 another column with --tensor"
            ))),
        },
    }
}

fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(Bytes::copy_from_slice(bytes))
}

fn tensor(dtype: Dtype, shape: &[usize], data: Bytes) -> Result<Value, Refusal> {
    if dtype == Dtype::Bool && data.iter().any(|byte| *byte > 1) {
        return Err(Refusal::from("a boolean is neither 0 nor 1: convert it".to_owned()));
    }
    Tensor::new(dtype, shape, data).map(Value::Tensor).map_err(|error| Refusal::from(error.to_string()))
}

fn at_row(refusal: Refusal, row: usize) -> Refusal {
    Refusal { row: Some(row), ..refusal }
}

fn lists<O: OffsetSizeTrait>(field: &Field, item: &Field, list: &GenericListArray<O>) -> Result<Vec<Value>, Refusal> {
    let row = |row: usize| {
        let cell = list.value(row);
        match ragged(field, &cell)? {
            Some((dtype, shape, data)) => complex(field, dtype, shape, data),
            None => values(item, &cell).map(Value::List),
        }
    };
    (0..list.len()).map(|at| row(at).map_err(|refusal| at_row(refusal, at))).collect()
}

type Cell = (Dtype, Vec<usize>, Bytes);

/// The tensor in a cell of a column of lists; `None` if the items are not numbers.
fn ragged(field: &Field, cell: &dyn Array) -> Result<Option<Cell>, Refusal> {
    if let Some((stored, data)) = elements(cell)? {
        // Complex numbers count as two floats until the shape is known.
        let dtype = Some(declared(field, stored)).filter(|dtype| *dtype != Dtype::C64).unwrap_or(stored);
        let count = if dtype.bits() < 8 { data.len() * 8 / dtype.bits() } else { cell.len() };
        return Ok(Some((dtype, vec![count], data)));
    }
    if cell.as_fixed_size_list_opt().is_some() {
        no_nulls_within(cell)?;
        let tensors = fixed(field, cell)?;
        return Ok(
            tensors.map(|tensors| (tensors.dtype, [&[cell.len()], tensors.shape.as_slice()].concat(), tensors.data))
        );
    }
    match cell.data_type() {
        DataType::List(_) => rectangle(field, cell.as_list::<i32>()),
        DataType::LargeList(_) => rectangle(field, cell.as_list::<i64>()),
        _ => Ok(None),
    }
}

/// The tensor of the elements of a cell. Of complex numbers, the last dimension holds the two parts.
fn complex(field: &Field, stored: Dtype, mut shape: Vec<usize>, data: Bytes) -> Result<Value, Refusal> {
    let dtype = declared(field, stored);
    if dtype == Dtype::C64 && stored == Dtype::F32 {
        match shape.pop() {
            Some(2) if !shape.is_empty() => {}
            Some(parts) if shape.is_empty() && parts.is_multiple_of(2) => shape.push(parts / 2),
            _ => {
                return Err(Refusal::from(
                    "its lists are not complex numbers: the innermost lists must have two elements".to_owned(),
                ));
            }
        }
    }
    tensor(dtype, &shape, data)
}

/// The tensor of nested lists, which must all have the same shape.
fn rectangle<O: OffsetSizeTrait>(field: &Field, lists: &GenericListArray<O>) -> Result<Option<Cell>, Refusal> {
    no_nulls_within(lists)?;
    let mut all: Option<(Dtype, Vec<usize>, Vec<u8>)> = None;
    for at in 0..lists.len() {
        let Some((dtype, shape, data)) = ragged(field, &lists.value(at))? else { return Ok(None) };
        match &mut all {
            None => all = Some((dtype, shape, data.to_vec())),
            Some((_, first, bytes)) if *first == shape => bytes.extend_from_slice(&data),
            Some((_, first, _)) => {
                return Err(Refusal::from(format!(
                    "its lists have the shapes {first:?} and {shape:?} within one row, which is not a tensor"
                )));
            }
        }
    }
    let empty = || ragged(field, &make_array(lists.values().slice(0, 0).to_data()));
    match all {
        Some((dtype, shape, data)) => Ok(Some((dtype, [&[lists.len()], shape.as_slice()].concat(), data.into()))),
        None => Ok(empty()?.map(|(dtype, shape, data)| (dtype, [&[0], shape.as_slice()].concat(), data))),
    }
}

/// Tensors with a shape for each row, if the struct is of the extension type or declared in metadata; other structs are
/// maps.
fn structs(field: &Field, array: &dyn Array) -> Result<Vec<Value>, Refusal> {
    let columns = array.as_struct();
    let variable = extension(field, "arrow.variable_shape_tensor");
    let names: Vec<&str> = columns.fields().iter().map(|field| field.name().as_str()).collect();
    if variable.is_some() || field.metadata().contains_key("dtype") && names == ["data", "shape"] {
        check_permutation(variable.as_ref())?;
        return shaped(field, columns.column_by_name("data"), columns.column_by_name("shape"));
    }
    let mut cells = Vec::with_capacity(columns.num_columns());
    for (item, column) in columns.fields().iter().zip(columns.columns()) {
        cells.push((item.name().clone(), values(item, column)?.into_iter()));
    }
    let row = |_| cells.iter_mut().map(|(name, cells)| (name.clone(), cells.next().unwrap_or(Value::Null))).collect();
    Ok((0..array.len()).map(row).map(Value::Map).collect())
}

fn shaped(field: &Field, data: Option<&ArrayRef>, shapes: Option<&ArrayRef>) -> Result<Vec<Value>, Refusal> {
    let wrong = || {
        Refusal::from(
            "its type declares tensors with a shape for each row, but it has no lists called data and shape".to_owned(),
        )
    };
    let (data, shapes) = data.zip(shapes).ok_or_else(wrong)?;
    let lists = data.as_list_opt::<i32>().ok_or_else(wrong)?;
    let shapes = shapes_of(shapes).ok_or_else(wrong)?;
    check_nulls(lists)?;
    let row = |(at, shape): (usize, Vec<usize>)| {
        let (stored, _, data) = ragged(field, &lists.value(at))?.ok_or_else(wrong)?;
        tensor(declared(field, stored), &shape, data)
    };
    let rows = shapes.into_iter().enumerate();
    rows.map(|(at, shape)| row((at, shape)).map_err(|refusal| at_row(refusal, at))).collect()
}
