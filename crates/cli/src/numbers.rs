//! Numbers as text: the shortest decimal that parses to the same number of the same type.

use serde_json::{Value as Json, json};
use tensorcask::half::{bf16, f16};
use tensorcask::{Dtype, Element, Tensor};

/// An element as text and as JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shown {
    pub human: String,
    pub json: Json,
}

impl Shown {
    fn integer<N: ToString + Into<Json>>(number: N) -> Self {
        Self { human: number.to_string(), json: number.into() }
    }

    /// A 64-bit float.
    pub(crate) fn f64(number: f64) -> Self {
        Self::of_text(format!("{number:?}"), number, |found| found.to_bits() == number.to_bits())
    }

    fn f32(number: f32) -> Self {
        Self::of_text(format!("{number:?}"), number.into(), |found| (found as f32).to_bits() == number.to_bits())
    }

    fn half(number: f64, is_same: impl Fn(f64) -> bool) -> Self {
        let rounded = (0..17).map(|digits| format!("{number:.digits$e}"));
        let shortest = rounded.filter_map(|text| text.parse().ok()).find(|found: &f64| is_same(*found));
        Self::of_text(format!("{:?}", shortest.unwrap_or(number)), number, is_same)
    }

    /// JSON cannot express numbers that are not finite, so they become strings. Most programs parse JSON numbers as
    /// 64-bit floats: if the shortest text does not round to the element that way, the exact number is written.
    fn of_text(human: String, exact: f64, is_same: impl Fn(f64) -> bool) -> Self {
        let json = if exact.is_nan() {
            json!("NaN")
        } else if exact.is_infinite() {
            json!(if exact > 0.0 { "Infinity" } else { "-Infinity" })
        } else {
            json!(human.parse().ok().filter(|found| is_same(*found)).unwrap_or(exact))
        };
        Self { human, json }
    }

    fn complex([re, im]: [f32; 2]) -> Self {
        let (re, im) = (Self::f32(re), Self::f32(im));
        Self { human: format!("[{}, {}]", re.human, im.human), json: json!([re.json, im.json]) }
    }
}

/// The first `most` elements of a tensor, and whether there are more. Elements without a Rust type are shown as bytes.
pub(crate) fn first(tensor: &Tensor, most: usize) -> (Vec<Shown>, bool) {
    fn shown<T: Element>(tensor: &Tensor, most: usize, show: impl Fn(T) -> Shown) -> (Vec<Shown>, bool) {
        let (units, size) = (tensor.data().chunks_exact(size_of::<T>()), size_of::<T>().max(1));
        (
            units.take(most).map(|bytes| show(bytemuck::pod_read_unaligned(bytes))).collect(),
            tensor.data().len() / size > most,
        )
    }
    match tensor.dtype() {
        Dtype::F32 => shown(tensor, most, Shown::f32),
        Dtype::F64 => shown(tensor, most, Shown::f64),
        Dtype::F16 => shown(tensor, most, |x: f16| {
            Shown::half(x.to_f64(), |found| {
                f16::from_f64(found).to_bits() == x.to_bits() && f16::from_f32(found as f32).to_bits() == x.to_bits()
            })
        }),
        Dtype::BF16 => shown(tensor, most, |x: bf16| {
            Shown::half(x.to_f64(), |found| {
                bf16::from_f64(found).to_bits() == x.to_bits() && bf16::from_f32(found as f32).to_bits() == x.to_bits()
            })
        }),
        Dtype::C64 => shown(tensor, most, Shown::complex),
        Dtype::I8 => shown(tensor, most, Shown::integer::<i8>),
        Dtype::I16 => shown(tensor, most, Shown::integer::<i16>),
        Dtype::I32 => shown(tensor, most, Shown::integer::<i32>),
        Dtype::I64 => shown(tensor, most, Shown::integer::<i64>),
        Dtype::U16 => shown(tensor, most, Shown::integer::<u16>),
        Dtype::U32 => shown(tensor, most, Shown::integer::<u32>),
        Dtype::U64 => shown(tensor, most, Shown::integer::<u64>),
        _ => shown(tensor, most, Shown::integer::<u8>),
    }
}
