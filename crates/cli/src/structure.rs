//! The structure of a value without its contents.

use tensorcask::Value;

use crate::output::one_line;

/// A value's structure on one line: tensors as dtype and shape, scalars as their kind. Values of one structure have one
/// text, but lists of different lengths may share it.
pub(crate) fn structure(value: &Value) -> String {
    match value {
        Value::Tensor(tensor) => format!("{}{:?}", tensor.dtype(), tensor.shape()),
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Int(_) => "int".into(),
        Value::Float(_) => "float".into(),
        Value::Str(_) => "string".into(),
        Value::Bytes(_) => "bytes".into(),
        Value::List(items) => format!("[{}]", items_of(items)),
        Value::Tuple(items) => format!("({})", items_of(items)),
        Value::Map(items) => {
            let items: Vec<String> =
                items.iter().map(|(name, item)| format!("{}: {}", one_line(name), structure(item))).collect();
            format!("{{{}}}", items.join(", "))
        }
    }
}

/// Items; equal ones that follow each other once.
fn items_of(items: &[Value]) -> String {
    let mut all: Vec<String> = items.iter().map(structure).collect();
    let count = all.len();
    all.dedup();
    match all.as_slice() {
        [one] if count > 1 => format!("{one}, …"),
        all => all.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_do_not_count() {
        let of = |label: i64, ids: &[i64]| {
            structure(&Value::from([
                ("label", Value::Int(label)),
                ("ids", ids.iter().copied().collect()),
                ("pair", Value::Tuple(vec![Value::Null, Value::Str("x".into())])),
            ]))
        };
        assert_eq!(of(1, &[1, 2]), of(2, &[3, 4, 5]));
        assert_eq!(of(1, &[1, 2]), "{label: int, ids: [int, …], pair: (null, string)}");
    }
}
