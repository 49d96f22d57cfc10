//! Conversion, comparison and padding of the elements of host tensors.

use tensorcask::{Dtype, Tensor};

use crate::error::{Result, invalid};
use crate::framework::is_close;

/// The elements of a tensor of integers or booleans; `None` for any other.
pub(super) fn integers(tensor: &Tensor) -> Option<Vec<i128>> {
    fn read<const N: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> i128) -> Vec<i128> {
        bytes.as_chunks::<N>().0.iter().map(|element| of(*element)).collect()
    }
    let bytes = tensor.data();
    Some(match tensor.dtype() {
        Dtype::Bool | Dtype::U8 => read(bytes, |b| u8::from_le_bytes(b).into()),
        Dtype::I8 => read(bytes, |b| i8::from_le_bytes(b).into()),
        Dtype::U16 => read(bytes, |b| u16::from_le_bytes(b).into()),
        Dtype::I16 => read(bytes, |b| i16::from_le_bytes(b).into()),
        Dtype::U32 => read(bytes, |b| u32::from_le_bytes(b).into()),
        Dtype::I32 => read(bytes, |b| i32::from_le_bytes(b).into()),
        Dtype::U64 => read(bytes, |b| u64::from_le_bytes(b).into()),
        Dtype::I64 => read(bytes, |b| i64::from_le_bytes(b).into()),
        _ => return None,
    })
}

/// The elements of a float tensor, and the real and imaginary parts of a complex one; `None` for any other.
fn floats(tensor: &Tensor) -> Result<Option<Vec<f64>>> {
    let parts = match tensor.dtype() {
        Dtype::F64 => tensor.clone(),
        Dtype::F16 | Dtype::BF16 | Dtype::F32 => tensor.cast(Dtype::F64)?,
        Dtype::C64 => {
            let shape: Vec<usize> = tensor.shape().iter().copied().chain([2]).collect();
            Tensor::new(Dtype::F32, &shape, tensor.data().clone())?.cast(Dtype::F64)?
        }
        _ => return Ok(None),
    };
    Ok(Some(parts.to_vec()?))
}

/// Describes the first difference between two tensors that exceeds the tolerance.
pub(super) fn difference(a: &Tensor, b: &Tensor, relative: f64, absolute: f64) -> Result<Option<String>> {
    if a.dtype() != b.dtype() || a.shape() != b.shape() {
        return Ok(Some(format!("{} {:?} against {} {:?}", a.dtype(), a.shape(), b.dtype(), b.shape())));
    }
    if let (Some(a), Some(b)) = (integers(a), integers(b)) {
        let mut pairs = a.iter().zip(&b).filter(|(a, b)| a != b);
        return Ok(pairs
            .next()
            .map(|(a, b)| format!("{} integers differ, the first is {a} against {b}", 1 + pairs.count())));
    }
    if let (Some(a), Some(b)) = (floats(a)?, floats(b)?) {
        if a.iter().zip(&b).all(|(a, b)| is_close(*a, *b, relative, absolute)) {
            return Ok(None);
        }
        let largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        return Ok(Some(format!("elements differ by up to {largest:e}")));
    }
    // Packed and small floats are compared bit by bit.
    let differ = a.data().iter().zip(b.data()).filter(|(a, b)| a != b).count();
    Ok((differ > 0).then(|| format!("{differ} bytes differ")))
}

/// The bytes of one element with this value.
fn filler(dtype: Dtype, value: f64) -> Result<Vec<u8>> {
    let refused =
        || invalid(format!("outputs of dtype {dtype} cannot be padded with {value}: choose a value it can hold"));
    macro_rules! integer {
        ($type:ty) => {{
            let number = value as $type;
            let back = number as f64;
            if back != value {
                return Err(refused());
            }
            number.to_le_bytes().to_vec()
        }};
    }
    Ok(match dtype {
        Dtype::Bool if value == 0.0 || value == 1.0 => vec![u8::from(value == 1.0)],
        Dtype::U8 => integer!(u8),
        Dtype::I8 => integer!(i8),
        Dtype::U16 => integer!(u16),
        Dtype::I16 => integer!(i16),
        Dtype::U32 => integer!(u32),
        Dtype::I32 => integer!(i32),
        Dtype::U64 => integer!(u64),
        Dtype::I64 => integer!(i64),
        Dtype::F64 => value.to_le_bytes().to_vec(),
        Dtype::F16 | Dtype::BF16 | Dtype::F32 => Tensor::from_slice(&[], &[value])?.cast(dtype)?.data().to_vec(),
        Dtype::C64 => {
            let real = Tensor::from_slice(&[], &[value])?.cast(Dtype::F32)?;
            [real.data().as_ref(), &0.0_f32.to_le_bytes()].concat()
        }
        _ => return Err(refused()),
    })
}

/// Pads tensors of one dtype and rank, and stacks them to a batch.
pub(super) fn pad(rows: &[Tensor], value: f64) -> Result<Tensor> {
    let Some(first) = rows.first() else { return Err(invalid("no rows to pad")) };
    let dims = first.shape().len();
    let longest = |dim: usize| rows.iter().filter_map(|row| row.shape().get(dim)).max().copied().unwrap_or(0);
    let shape: Vec<usize> = (0..dims).map(longest).collect();
    let filler = filler(first.dtype(), value)?;
    let elements = shape.iter().product::<usize>();
    let mut bytes = filler.repeat(rows.len() * elements);
    let places = bytes.chunks_exact_mut((elements * filler.len()).max(1));
    for (row, place) in rows.iter().zip(places) {
        copy(row.data(), row.shape(), place, &shape, filler.len());
    }
    let shape: Vec<usize> = std::iter::once(rows.len()).chain(shape).collect();
    Ok(Tensor::new(first.dtype(), &shape, bytes)?)
}

/// Copies a block to the start of each dimension of a larger block.
fn copy(from: &[u8], from_shape: &[usize], to: &mut [u8], to_shape: &[usize], width: usize) {
    let (Some((&len, from_rest)), Some((_, to_rest))) = (from_shape.split_first(), to_shape.split_first()) else {
        if let Some(to) = to.get_mut(..from.len()) {
            to.copy_from_slice(from);
        }
        return;
    };
    let part = |shape: &[usize]| shape.iter().product::<usize>() * width;
    if part(from_rest) == 0 || part(to_rest) == 0 {
        return;
    }
    let places = to.chunks_exact_mut(part(to_rest)).take(len);
    from.chunks_exact(part(from_rest)).zip(places).for_each(|(from, to)| copy(from, from_rest, to, to_rest, width));
}
