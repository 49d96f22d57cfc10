//! Conversion, comparison and padding of the elements of host tensors.

use tensorcask::{Dtype, Tensor};

use crate::error::{Result, invalid};
use crate::framework::is_close;
use crate::padding::{Block, fill_padded, padded_shape};

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

/// Pads tensors of one dtype and rank, and stacks them to a batch.
pub(super) fn pad(rows: &[Tensor], value: f64) -> Result<Tensor> {
    let Some(first) = rows.first() else { return Err(invalid("no rows to pad")) };
    let blocks: Vec<Block<'_>> = rows.iter().map(|row| Block { bytes: row.data(), shape: row.shape() }).collect();
    let shape = padded_shape(&blocks);
    let len = first.dtype().tensor_len_bytes(&shape).ok_or_else(|| invalid("the size of the padded rows overflows"))?;
    let mut bytes = vec![0; len];
    fill_padded(&blocks, first.dtype(), value, &mut bytes)?;
    Ok(Tensor::new(first.dtype(), &shape, bytes)?)
}
