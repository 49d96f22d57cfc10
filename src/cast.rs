//! Down-casts for `store_as`, and the way back: pure functions over little-endian bytes.
//!
//! Every cast rounds once, to nearest, ties to even; NaN stays NaN, values out of range become infinite. Input and
//! output need not be aligned: values pass through small typed blocks on the stack, which stay in the L1 cache and let
//! `half` convert whole slices with SIMD.

use bytemuck::{cast_slice, cast_slice_mut};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// A floating-point type that rows can be cast from and to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scalar {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
}

impl Scalar {
    /// Bytes an element takes.
    pub(crate) const fn len_bytes(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

fn scalar(dtype: Dtype) -> Option<Scalar> {
    Some(match dtype {
        Dtype::F16 => Scalar::F16,
        Dtype::BF16 => Scalar::BF16,
        Dtype::F32 => Scalar::F32,
        Dtype::F64 => Scalar::F64,
        _ => return None,
    })
}

/// Converts the elements of a float tensor, appending to `out`.
///
/// # Errors
/// [`Error::Invalid`] unless both dtypes are floats of at least 16 bits.
pub(crate) fn cast_tensor(from: Dtype, to: Dtype, input: &[u8], out: &mut Vec<u8>) -> Result<()> {
    match (scalar(from), scalar(to)) {
        (Some(from), Some(to)) => cast(from, to, input, out).map_err(Error::invalid),
        _ => Err(Error::invalid(format!("cannot convert {from} to {to}: only F16, BF16, F32 and F64 convert"))),
    }
}

/// Elements a block holds.
const BLOCK: usize = 256;

/// Appends the elements of `input`, cast, to `out`. O(elements).
///
/// # Errors
/// A message if `input` is not a whole number of elements.
pub(crate) fn cast(from: Scalar, to: Scalar, input: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let start = out.len();
    out.resize(start + input.len() / from.len_bytes() * to.len_bytes(), 0);
    let result = cast_into(from, to, input, out.get_mut(start..).unwrap_or_default());
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// Casts the elements of `input` into `out`. O(elements).
///
/// # Errors
/// A message if `input` is not a whole number of elements, or `out` has another number of elements.
pub(crate) fn cast_into(from: Scalar, to: Scalar, input: &[u8], out: &mut [u8]) -> Result<(), String> {
    let elements = input.len() / from.len_bytes();
    if elements * from.len_bytes() != input.len() {
        return Err(format!(
            "expected whole {from:?} elements of {} bytes, found {} bytes",
            from.len_bytes(),
            input.len()
        ));
    }
    if elements.checked_mul(to.len_bytes()) != Some(out.len()) {
        return Err(format!("expected a buffer for {elements} {to:?} elements, found {} bytes", out.len()));
    }
    if from == to {
        out.copy_from_slice(input);
        return Ok(());
    }
    let mut block = [0.0; BLOCK];
    let inputs = input.chunks(BLOCK * from.len_bytes());
    for (input, out) in inputs.zip(out.chunks_mut(BLOCK * to.len_bytes())) {
        let values = block.get_mut(..input.len() / from.len_bytes()).unwrap_or_default();
        load(from, to, input, values);
        store(to, values, out);
    }
    Ok(())
}

/// Loads `input` as f32. Exact, except from f64: that is rounded to nearest if `to` is f32, else to odd, so that the
/// second rounding is right.
fn load(from: Scalar, to: Scalar, input: &[u8], values: &mut [f32]) {
    match from {
        Scalar::F16 => with_typed::<f16>(input, |input| input.convert_to_f32_slice(values)),
        Scalar::BF16 => with_typed::<bf16>(input, |input| input.convert_to_f32_slice(values)),
        Scalar::F32 => cast_slice_mut(values).copy_from_slice(input),
        Scalar::F64 if to == Scalar::F32 => with_typed::<f64>(input, |input| {
            values.iter_mut().zip(input).for_each(|(value, wide)| *value = *wide as f32);
        }),
        Scalar::F64 => with_typed::<f64>(input, |input| {
            values.iter_mut().zip(input).for_each(|(value, wide)| *value = round_to_odd(*wide));
        }),
    }
}

fn store(to: Scalar, values: &[f32], out: &mut [u8]) {
    match to {
        Scalar::F16 => {
            let mut block = [f16::ZERO; BLOCK];
            let block = block.get_mut(..values.len()).unwrap_or_default();
            block.convert_from_f32_slice(values);
            out.copy_from_slice(cast_slice(block));
        }
        Scalar::BF16 => {
            let mut block = [0_u16; BLOCK];
            let block = block.get_mut(..values.len()).unwrap_or_default();
            block.iter_mut().zip(values).for_each(|(narrow, value)| *narrow = bf16_bits(*value));
            out.copy_from_slice(cast_slice(block));
        }
        Scalar::F32 => out.copy_from_slice(cast_slice(values)),
        Scalar::F64 => {
            let mut block = [0_f64; BLOCK];
            let block = block.get_mut(..values.len()).unwrap_or_default();
            block.iter_mut().zip(values).for_each(|(wide, value)| *wide = f64::from(*value));
            out.copy_from_slice(cast_slice(block));
        }
    }
}

/// Calls `convert` with the elements of `input`, aligned; at most [`BLOCK`] of them.
fn with_typed<T: bytemuck::Pod>(input: &[u8], convert: impl FnOnce(&[T])) {
    let mut block = [T::zeroed(); BLOCK];
    let block = block.get_mut(..input.len() / size_of::<T>()).unwrap_or_default();
    cast_slice_mut(block).copy_from_slice(input);
    convert(block);
}

/// f64 to f32 rounding to odd: an inexact result has its last bit set. Rounding that to a type at least two bits
/// shorter gives what rounding the f64 directly would (Boldo and Melquiond, "Emulation of FMA and correctly rounded
/// sums", 2008). `half` 2.7 rounds f64 twice (x86) or drops the low 32 bits (portable code), both wrong near ties.
fn round_to_odd(wide: f64) -> f32 {
    let nearest = wide as f32;
    let back = f64::from(nearest);
    let away_from_zero = back.abs() > wide.abs();
    // For one sign, bits are ordered by magnitude; the bits of infinity less one are the largest finite number.
    let towards_zero = nearest.to_bits().wrapping_sub(u32::from(away_from_zero));
    // NaN is unequal to itself, so its last bit is set too, and it stays NaN.
    f32::from_bits(towards_zero | u32::from(back != wide))
}

/// As `bf16::from_f32`, without its branches, so that loops over it become SIMD.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1));
    // The quiet bit keeps a NaN from losing all its payload and becoming infinite.
    let quiet = bits | 0x0040_0000;
    ((if value.is_nan() { quiet } else { rounded }) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Scalar; 4] = [Scalar::F16, Scalar::BF16, Scalar::F32, Scalar::F64];

    fn run(from: Scalar, to: Scalar, input: &[u8]) -> Vec<u8> {
        let mut out = vec![1];
        cast(from, to, input, &mut out).unwrap();
        out.remove(0);
        // Unaligned in and out.
        let (mut shifted_in, mut shifted_out) = (vec![0], vec![0; out.len() + 1]);
        shifted_in.extend_from_slice(input);
        cast_into(from, to, &shifted_in[1..], &mut shifted_out[1..]).unwrap();
        assert_eq!(out, shifted_out[1..]);
        out
    }

    fn f64_to_bits16(to: Scalar, value: f64) -> u16 {
        u16::from_le_bytes(run(Scalar::F64, to, &value.to_le_bytes()).try_into().unwrap())
    }

    fn widen(scalar: Scalar, bits: u16) -> f64 {
        f64::from_le_bytes(run(scalar, Scalar::F64, &bits.to_le_bytes()).try_into().unwrap())
    }

    /// The 16-bit value nearest to `value`, ties to even, by comparing with both neighbours.
    fn nearest_16(to: Scalar, value: f64) -> u16 {
        let infinity = if to == Scalar::F16 { 0x7C00 } else { 0x7F80 };
        let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
        let value = value.abs();
        let (mut low, mut high) = (0_u16, infinity);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if widen(to, middle) <= value { low = middle } else { high = middle }
        }
        // When rounding, infinity stands for the number that would follow the largest finite one.
        let above = if high == infinity { 2.0 * widen(to, high - 1) - widen(to, high - 2) } else { widen(to, high) };
        let (below, above) = (value - widen(to, low), above - value);
        sign | if below < above || (below == above && low % 2 == 0) { low } else { high }
    }

    #[test]
    fn every_16_bit_value_survives_the_way_up_and_down() {
        let every: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for narrow in [Scalar::F16, Scalar::BF16] {
            for wide in [Scalar::F32, Scalar::F64] {
                let back = run(wide, narrow, &run(narrow, wide, &every));
                for (bits, back) in every.as_chunks::<2>().0.iter().zip(back.as_chunks::<2>().0) {
                    let (bits, back) = (u16::from_le_bytes(*bits), u16::from_le_bytes(*back));
                    let nan = widen(narrow, bits).is_nan();
                    assert!(bits == back || (nan && widen(narrow, back).is_nan()), "{narrow:?} {bits:x} {back:x}");
                }
            }
        }
    }

    #[test]
    fn f64_is_rounded_once() {
        // Slightly above a tie: rounding to f32 first would give the tie, which then rounds down to even.
        let above_tie = 1.0 + 2_f64.powi(-11) + 2_f64.powi(-40);
        assert_eq!(f64_to_bits16(Scalar::F16, above_tie), f16::ONE.to_bits() + 1);
        assert_eq!(f64_to_bits16(Scalar::F16, 1.0 + 2_f64.powi(-11)), f16::ONE.to_bits());
        let above_tie = 1.0 + 2_f64.powi(-8) + 2_f64.powi(-50);
        assert_eq!(f64_to_bits16(Scalar::BF16, above_tie), bf16::ONE.to_bits() + 1);
        let ends = [(65_519.999_999_999, 0x7BFF), (65_520.0, 0x7C00), (-1e300, 0xFC00), (-1e-300, 0x8000)];
        for (value, expected) in ends {
            assert_eq!(f64_to_bits16(Scalar::F16, value), expected, "{value}");
        }
    }

    #[test]
    fn nan_stays_nan() {
        let sneaky =
            [f64::NAN, -f64::NAN, f64::from_bits(0x7FF0_0000_0000_0001), f64::from_bits(0x7FF0_0000_2000_0000)];
        for value in sneaky {
            for to in ALL {
                let out = run(Scalar::F64, to, &value.to_le_bytes());
                let back = run(to, Scalar::F64, &out);
                assert!(f64::from_le_bytes(back.try_into().unwrap()).is_nan());
            }
        }
        assert!(bf16::from_bits(bf16_bits(f32::from_bits(0x7F80_0001))).is_nan());
    }

    #[test]
    fn lengths_are_checked() {
        let mut out = vec![5];
        assert!(cast(Scalar::F32, Scalar::F16, &[0; 7], &mut out).is_err());
        assert_eq!(out, [5]);
        assert!(cast_into(Scalar::F32, Scalar::F16, &[0; 8], &mut [0; 3]).is_err());
        assert!(cast_into(Scalar::F32, Scalar::F32, &[0; 8], &mut [0; 4]).is_err());
        cast(Scalar::F64, Scalar::BF16, &[], &mut out).unwrap();
    }

    #[test]
    fn blocks_join() {
        let input: Vec<u8> = (0..1000_u32).flat_map(|i| (i as f32).to_le_bytes()).collect();
        for to in ALL {
            let back = run(to, Scalar::F32, &run(Scalar::F32, to, &input));
            let expected = |i: u32| if to == Scalar::BF16 { bf16::from_f32(i as f32).to_f32() } else { i as f32 };
            assert!(back.as_chunks::<4>().0.iter().zip(0..).all(|(b, i)| f32::from_le_bytes(*b) == expected(i)));
        }
    }

    proptest! {
        #[test]
        fn f32_casts_as_half_does(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            let input = value.to_le_bytes();
            prop_assert_eq!(run(Scalar::F32, Scalar::F16, &input), f16::from_f32(value).to_le_bytes());
            prop_assert_eq!(run(Scalar::F32, Scalar::BF16, &input), bf16::from_f32(value).to_le_bytes());
        }

        #[test]
        fn f64_goes_to_the_nearest(
            mantissa in 1.0..2.0_f64,
            coarse in any::<bool>(),
            exponent in -160..140_i32,
            sign in any::<bool>(),
        ) {
            // Coarse mantissas are ties, or very close to one.
            let fine = if coarse { (mantissa * 4096.0).round() / 4096.0 + (mantissa - 1.5) * 1e-12 } else { mantissa };
            let value = fine * 2_f64.powi(exponent) * if sign { -1.0 } else { 1.0 };
            for to in [Scalar::F16, Scalar::BF16] {
                prop_assert_eq!(f64_to_bits16(to, value), nearest_16(to, value), "{} to {:?}", value, to);
            }
            let exact = value as f32;
            prop_assert_eq!(run(Scalar::F64, Scalar::F32, &value.to_le_bytes()), exact.to_le_bytes());
        }
    }
}
