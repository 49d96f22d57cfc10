//! Tensors as Arrow arrays of elements, and as nested lists of them, one level per dimension.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, ListArray, make_array};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field};
use tensorcask::{Dtype, Tensor};

use crate::failure::Failure;

/// The most lists of a row without elements, whose shape alone would allow any number of lists.
const MOST_EMPTY_LISTS: usize = 1 << 20;

/// The Arrow type of the elements, and its size in bytes.
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

/// The elements of all tensors, concatenated, and the size of one in bytes. Booleans become Arrow booleans if `plain`,
/// else bytes.
pub(crate) fn elements(
    name: &str,
    dtype: Dtype,
    tensors: &[&Tensor],
    plain: bool,
) -> Result<(ArrayRef, usize), Failure> {
    let (element, unit) = element(dtype);
    let len: usize = tensors.iter().map(|tensor| tensor.data().len()).sum();
    if plain && dtype == Dtype::Bool {
        let flags: Vec<bool> = tensors.iter().flat_map(|tensor| tensor.data().iter().map(|byte| *byte != 0)).collect();
        return Ok((Arc::new(BooleanArray::from(flags)), unit));
    }
    let buffer = match tensors {
        // A large row is a batch of its own: its bytes are not copied.
        [tensor] => Buffer::from(tensor.data().clone()),
        tensors => {
            let mut data = Vec::with_capacity(len);
            tensors.iter().for_each(|tensor| data.extend_from_slice(tensor.data()));
            Buffer::from_vec(data)
        }
    };
    let array =
        arrow::array::ArrayData::builder(element).len(len / unit).add_buffer(buffer).align_buffers(true).build();
    Ok((make_array(array.map_err(|error| Failure::input(format!("{name}: {error}")))?), unit))
}

/// Tensors of `rank` dimensions as nested lists.
pub(crate) fn nested(
    name: &str,
    dtype: Dtype,
    rank: usize,
    tensors: &[&Tensor],
    plain: bool,
) -> Result<ArrayRef, Failure> {
    let large = || Failure::input(format!("{name}: rows are too large for Arrow lists"));
    let (mut array, _) = elements(name, dtype, tensors, plain)?;
    let complex = usize::from(dtype == Dtype::C64);
    // From the innermost dimension out.
    for depth in (0..rank + complex).rev() {
        let mut offsets = vec![0_i32];
        let mut end = 0_usize;
        for tensor in tensors {
            let dim = tensor.shape().get(depth).copied().unwrap_or(2);
            let outer = tensor.shape().iter().take(depth);
            let lists = outer.clone().try_fold(1_usize, |lists, dim| lists.checked_mul(*dim)).or_else(|| {
                // The product overflows, but a zero among its factors makes it zero.
                outer.clone().any(|dim| *dim == 0).then_some(0)
            });
            let lists = lists.filter(|lists| *lists <= tensor.data().len().max(MOST_EMPTY_LISTS)).ok_or_else(large)?;
            for _ in 0..lists {
                end = end.checked_add(dim).ok_or_else(large)?;
                offsets.push(i32::try_from(end).map_err(|_| large())?);
            }
        }
        let item = Arc::new(Field::new("item", array.data_type().clone(), false));
        let list = ListArray::try_new(item, OffsetBuffer::new(ScalarBuffer::from(offsets)), array, None);
        array = Arc::new(list.map_err(|error| Failure::input(format!("{name}: {error}")))?);
    }
    Ok(array)
}
