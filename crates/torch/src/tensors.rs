//! Row selection, padding and comparison of `tch` tensors.

use tch::{Kind, Tensor};

use crate::convert::{empty, kind, shape_of};
use crate::error::{Result, invalid, torch};

/// The rows of `tensor` at `positions`.
pub(crate) fn select_rows(tensor: &Tensor, positions: &[usize]) -> Result<Tensor> {
    let index: Vec<i64> = positions.iter().map(|&at| i64::try_from(at).unwrap_or(i64::MAX)).collect();
    let index = Tensor::f_from_slice(&index).and_then(|index| index.f_to_device(tensor.device()));
    let select = |tensor: &Tensor| index.and_then(|index| tensor.f_index_select(0, &index));
    let selected = if tensor.is_mkldnn() {
        tensor.f_to_dense(None::<Kind>, false).and_then(|dense| select(&dense)?.f_to_mkldnn(None))
    } else {
        select(tensor)
    };
    selected.map_err(torch("select rows of a batch"))
}

/// A tensor with the one element `value`, if the kind can hold it.
fn filler(kind: Kind, value: f64) -> Result<Tensor> {
    let action = "make the value that outputs are padded with";
    let wide = Tensor::f_from_slice(&[value]).and_then(|wide| wide.f_reshape([]));
    let filler = wide.and_then(|wide| wide.f_to_kind(kind)).map_err(torch(action))?;
    let back = filler.f_to_kind(Kind::ComplexDouble).and_then(|back| back.f_view_as_real()).map_err(torch(action))?;
    let back = back.f_double_value(&[0]).map_err(torch(action))?;
    let integer = matches!(kind, Kind::Uint8 | Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64 | Kind::Bool);
    if integer && back != value {
        return Err(invalid(format!(
            "outputs of kind {kind:?} cannot be padded with {value}: choose a value it can hold"
        )));
    }
    Ok(filler)
}

/// Pads rows with `value` at the end of each dimension, and stacks them.
pub(crate) fn padded(rows: &[Tensor], value: f64) -> Result<Tensor> {
    let action = "pad outputs to one shape";
    let Some(first) = rows.first() else { return Err(invalid("no rows to pad")) };
    let kind = kind(first)?;
    let sizes: Vec<Vec<usize>> = rows.iter().map(shape_of).collect();
    let longest = |dim: usize| sizes.iter().filter_map(|size| size.get(dim)).max().copied().unwrap_or(0);
    let shape: Vec<usize> = std::iter::once(rows.len()).chain((0..first.dim()).map(longest)).collect();
    let mut tensor = empty(kind, &shape)?;
    tensor.f_copy_(&filler(kind, value)?).map_err(torch(action))?;
    for (number, row) in rows.iter().enumerate() {
        let mut place = tensor.f_select(0, i64::try_from(number).unwrap_or(i64::MAX)).map_err(torch(action))?;
        for (dim, len) in row.size().into_iter().enumerate() {
            place = place.f_narrow(i64::try_from(dim).unwrap_or(i64::MAX), 0, len).map_err(torch(action))?;
        }
        place.f_copy_(row).map_err(torch(action))?;
    }
    Ok(tensor)
}

/// Describes the first difference between two tensors: kinds, shapes, integers that are not equal, or floats that
/// differ by more than the tolerance. NaN equals NaN.
pub(crate) fn difference(a: &Tensor, b: &Tensor, relative: f64, absolute: f64) -> Result<Option<String>> {
    let action = "compare outputs";
    let kinds = (a.f_kind().map_err(torch(action))?, b.f_kind().map_err(torch(action))?);
    if kinds.0 != kinds.1 || a.size() != b.size() {
        return Ok(Some(format!("{:?} {:?} against {:?} {:?}", kinds.0, a.size(), kinds.1, b.size())));
    }
    let wide = match kinds.0 {
        Kind::Bool | Kind::Uint8 | Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64 => return unequal(a, b),
        Kind::ComplexFloat | Kind::ComplexDouble | Kind::ComplexHalf => Kind::ComplexDouble,
        _ => Kind::Double,
    };
    let (a, b) = (a.f_to_kind(wide).map_err(torch(action))?, b.f_to_kind(wide).map_err(torch(action))?);
    if a.f_allclose(&b, relative, absolute, true).map_err(torch(action))? {
        return Ok(None);
    }
    let largest = a.f_sub(&b).and_then(|d| d.f_abs()).and_then(|d| d.f_max()).map_err(torch(action))?;
    let largest = largest.f_double_value(&[]).map_err(torch(action))?;
    Ok(Some(format!("elements differ by up to {largest:e}")))
}

/// Compares integers exactly: an `f64` holds them only up to 2^53.
fn unequal(a: &Tensor, b: &Tensor) -> Result<Option<String>> {
    let action = "compare outputs";
    let flat = |t: &Tensor| t.f_reshape([-1]).and_then(|t| t.f_to_kind(Kind::Int64)).map_err(torch(action));
    let (a, b) = (flat(a)?, flat(b)?);
    let places =
        a.f_ne_tensor(&b).and_then(|ne| ne.f_nonzero()).and_then(|ne| ne.f_reshape([-1])).map_err(torch(action))?;
    if places.numel() == 0 {
        return Ok(None);
    }
    let first = places.f_int64_value(&[0]).map_err(torch(action))?;
    let value = |t: &Tensor| t.f_int64_value(&[first]).map_err(torch(action));
    Ok(Some(format!("{} integers differ, the first is {} against {}", places.numel(), value(&a)?, value(&b)?)))
}
