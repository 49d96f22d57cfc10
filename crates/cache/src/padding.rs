//! Padding of host tensors to one shape.

use tensorcask::{Dtype, Tensor};

use crate::error::{Result, invalid};

/// The elements of a tensor, in row-major order.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// All of them.
    pub bytes: &'a [u8],
    /// The shape.
    pub shape: &'a [usize],
}

/// The shape of a batch of `rows` that are padded at the end of each dimension. The rows have one rank.
#[must_use]
pub fn padded_shape(rows: &[Block<'_>]) -> Vec<usize> {
    let dims = rows.first().map_or(0, |row| row.shape.len());
    let longest = |dim: usize| rows.iter().filter_map(|row| row.shape.get(dim)).max().copied().unwrap_or(0);
    std::iter::once(rows.len()).chain((0..dims).map(longest)).collect()
}

/// Copies `rows` to `out`, a batch of the shape [`padded_shape`], and writes `value` to all other elements.
///
/// # Errors
/// [`crate::Error::Invalid`] if the dtype cannot hold the value, or `out` has another size.
pub fn fill_padded(rows: &[Block<'_>], dtype: Dtype, value: f64, out: &mut [u8]) -> Result<()> {
    let filler = filler(dtype, value)?;
    let shape = padded_shape(rows);
    let (row_shape, width) = (shape.get(1..).unwrap_or_default(), filler.len());
    let row_len = row_shape.iter().product::<usize>() * width;
    if out.len() != rows.len() * row_len {
        return Err(invalid(format!("{} bytes are to hold {} rows of {row_len} bytes", out.len(), rows.len())));
    }
    if row_len > 0 {
        rows.iter().zip(out.chunks_exact_mut(row_len)).for_each(|(row, to)| {
            copy(row.bytes, row.shape, to, row_shape, &filler);
        });
    }
    Ok(())
}

/// Copies a block to the start of each dimension of a larger block, and fills the rest.
fn copy(from: &[u8], from_shape: &[usize], to: &mut [u8], to_shape: &[usize], filler: &[u8]) {
    let part = |shape: &[usize]| shape.iter().product::<usize>() * filler.len();
    let (Some((&len, from_rest)), Some((_, to_rest))) = (from_shape.split_first(), to_shape.split_first()) else {
        if let Some(to) = to.get_mut(..from.len()) {
            to.copy_from_slice(from);
        }
        return;
    };
    // Whole dimensions are copied at once.
    let is_whole = from_rest == to_rest;
    let copied = if is_whole { from.len() } else { len * part(to_rest) };
    let Some((to, rest)) = to.split_at_mut_checked(copied) else { return };
    fill(rest, filler);
    if is_whole {
        to.copy_from_slice(from);
    } else if part(from_rest) == 0 {
        fill(to, filler);
    } else {
        let places = to.chunks_exact_mut(part(to_rest));
        from.chunks_exact(part(from_rest))
            .zip(places)
            .for_each(|(from, to)| copy(from, from_rest, to, to_rest, filler));
    }
}

/// Repeats `filler`.
fn fill(to: &mut [u8], filler: &[u8]) {
    if filler.iter().all(|byte| *byte == 0) {
        return to.fill(0);
    }
    to.chunks_exact_mut(filler.len()).for_each(|place| place.copy_from_slice(filler));
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
