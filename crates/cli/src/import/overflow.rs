//! Counts elements that a conversion to a narrower float makes infinite.

use tensorcask::{Dtype, Value};

use super::source::Rows;

/// Numbers of this magnitude or more become infinite in `target`. It is half-way between the largest finite number and
/// the next power of two; ties round to even, which is up.
fn bound(target: Dtype) -> Option<f64> {
    match target {
        Dtype::F16 => Some(65_520.0),
        Dtype::BF16 => Some(2_f64.powi(128) - 2_f64.powi(119)),
        _ => None,
    }
}

/// The number of finite elements of `data` that become infinite in `target`.
pub(crate) fn count(dtype: Dtype, data: &[u8], target: Dtype) -> u64 {
    let Some(bound) = bound(target) else { return 0 };
    let too_large = |x: &f64| x.is_finite() && x.abs() >= bound;
    let count = match dtype {
        Dtype::F32 => {
            let numbers = data.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
            numbers.filter(too_large).count()
        }
        Dtype::F64 => data.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).filter(too_large).count(),
        _ => 0,
    };
    count as u64
}

/// The number of finite elements of `rows` that become infinite in `target`.
pub(crate) fn count_rows(rows: &Rows, target: Dtype) -> u64 {
    fn of_value(value: &Value, target: Dtype) -> u64 {
        match value {
            Value::Tensor(tensor) => count(tensor.dtype(), tensor.data(), target),
            Value::List(items) | Value::Tuple(items) => items.iter().map(|item| of_value(item, target)).sum(),
            Value::Map(items) => items.iter().map(|(_, item)| of_value(item, target)).sum(),
            _ => 0,
        }
    }
    match rows {
        Rows::Tensors { dtype, data, .. } => count(*dtype, data, target),
        Rows::Values(values) => values.iter().map(|value| of_value(value, target)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use tensorcask::half::{bf16, f16};

    use super::*;

    #[test]
    fn counts_what_the_cast_makes_infinite() {
        let below = |x: f32| f32::from_bits(x.to_bits() - 1);
        let edge = 2_f64.powi(128) - 2_f64.powi(119);
        let numbers = [
            0.0,
            65_504.0,
            65_519.99,
            65_520.0,
            -65_520.0,
            1e30,
            edge as f32,
            below(edge as f32),
            f32::MAX,
            f32::INFINITY,
            f32::NAN,
        ];
        for number in numbers {
            let expected = |infinite: bool| u64::from(number.is_finite() && infinite);
            let data = number.to_le_bytes();
            assert_eq!(count(Dtype::F32, &data, Dtype::F16), expected(f16::from_f32(number).is_infinite()), "{number}");
            assert_eq!(
                count(Dtype::F32, &data, Dtype::BF16),
                expected(bf16::from_f32(number).is_infinite()),
                "{number}"
            );
            let data = f64::from(number).to_le_bytes();
            assert_eq!(count(Dtype::F64, &data, Dtype::F16), expected(f16::from_f32(number).is_infinite()), "{number}");
        }
        assert_eq!(count(Dtype::F64, &1e300_f64.to_le_bytes(), Dtype::BF16), 1);
        assert_eq!(count(Dtype::I64, &i64::MAX.to_le_bytes(), Dtype::F16), 0);
    }
}
