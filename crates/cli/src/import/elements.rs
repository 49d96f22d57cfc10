//! The elements of Arrow arrays as bytes, and helpers for lists of them.

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Int64Type};
use tensorcask::{Bytes, Dtype};

/// Why a cell cannot be a value, and its row if it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub row: Option<usize>,
    pub why: String,
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self { row: None, why }
    }
}

/// Owns a buffer while its bytes are used.
struct Owner(Buffer);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The dtype that corresponds to an Arrow type, if there is one.
pub(crate) fn dtype_of(data_type: &DataType) -> Option<Dtype> {
    Some(match data_type {
        DataType::Boolean => Dtype::Bool,
        DataType::UInt8 => Dtype::U8,
        DataType::Int8 => Dtype::I8,
        DataType::UInt16 => Dtype::U16,
        DataType::Int16 => Dtype::I16,
        DataType::UInt32 => Dtype::U32,
        DataType::Int32 => Dtype::I32,
        DataType::UInt64 => Dtype::U64,
        DataType::Int64 => Dtype::I64,
        DataType::Float16 => Dtype::F16,
        DataType::Float32 => Dtype::F32,
        DataType::Float64 => Dtype::F64,
        _ => return None,
    })
}

/// Refuses nulls inside lists.
pub(crate) fn no_nulls_within(array: &dyn Array) -> Result<(), Refusal> {
    if array.logical_nulls().is_some_and(|nulls| nulls.null_count() > 0) {
        return Err(Refusal::from("a list contains a null: fill it in first".to_owned()));
    }
    Ok(())
}

/// The elements of an array of numbers, as bytes.
pub(crate) fn elements(array: &dyn Array) -> Result<Option<(Dtype, Bytes)>, Refusal> {
    let Some(dtype) = dtype_of(array.data_type()) else { return Ok(None) };
    no_nulls_within(array)?;
    if let Some(flags) = array.as_boolean_opt() {
        let bytes: Vec<u8> = flags.values().iter().map(u8::from).collect();
        return Ok(Some((dtype, bytes.into())));
    }
    let (data, width) = (array.to_data(), dtype.bits() / 8);
    let buffer =
        data.buffers().first().map(|buffer| buffer.slice_with_length(data.offset() * width, data.len() * width));
    Ok(Some((dtype, Bytes::from_owner(Owner(buffer.unwrap_or_default())))))
}

/// The items of all lists of `list`, without those outside of its slice.
pub(crate) fn flat(list: &FixedSizeListArray) -> ArrayRef {
    list.values().slice(list.value_offset_at(0), list.len() * list.value_length() as usize)
}

/// The shape of each row.
pub(crate) fn shapes_of(array: &ArrayRef) -> Option<Vec<Vec<usize>>> {
    let numbers = |cell: &ArrayRef| -> Option<Vec<usize>> {
        let cell = arrow::compute::cast(cell, &DataType::Int64).ok().filter(|cell| cell.null_count() == 0)?;
        cell.as_primitive_opt::<Int64Type>()?.values().iter().map(|dim| usize::try_from(*dim).ok()).collect()
    };
    match array.data_type() {
        DataType::FixedSizeList(..) => {
            let list = array.as_fixed_size_list();
            (0..list.len()).map(|row| numbers(&list.value(row))).collect()
        }
        DataType::List(_) => (0..array.len()).map(|row| numbers(&array.as_list::<i32>().value(row))).collect(),
        _ => None,
    }
}
