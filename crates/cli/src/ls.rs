//! `tensorcask ls`

use std::ops::Bound;

use serde_json::json;
use tensorcask::{Key, Reader, Value};

use crate::failure::Failure;
use crate::numbers::Shown;
use crate::output::{Output, one_line};
use crate::store::ReadArguments;

/// Arguments of `ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    read: ReadArguments,
    /// Lists only keys that start with this prefix, in order.
    #[arg(long, conflicts_with_all = ["from", "to"])]
    prefix: Option<String>,
    /// Lists only keys from this one on (inclusive), in order.
    #[arg(long)]
    from: Option<String>,
    /// Lists only keys before this one (exclusive).
    #[arg(long)]
    to: Option<String>,
    /// Lists at most this many keys.
    #[arg(long)]
    limit: Option<usize>,
    /// Also shows dtypes and shapes.
    #[arg(long, short)]
    long: bool,
}

/// All keys of `reader`, or those that start with `prefix`.
pub(crate) fn keys(
    reader: &Reader,
    prefix: Option<&str>,
) -> Result<Box<dyn Iterator<Item = tensorcask::Result<Key>> + Send>, Failure> {
    match prefix {
        None => Ok(Box::new(reader.keys())),
        Some(prefix) => {
            let prefix = crate::key::parse_key(prefix, reader.key_kind())?;
            Ok(Box::new(reader.prefix(&prefix)))
        }
    }
}

/// Lists keys.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let reader = crate::store::reader(&arguments.read, output)?;
    let keys =
        match (&arguments.from, &arguments.to) {
            (None, None) => keys(&reader, arguments.prefix.as_deref())?,
            (from, to) => {
                let parse = |end: &String| crate::key::parse_key(end, reader.key_kind());
                let (from, to) = (from.as_ref().map(parse).transpose()?, to.as_ref().map(parse).transpose()?);
                Box::new(reader.range((
                    from.map_or(Bound::Unbounded, Bound::Included),
                    to.map_or(Bound::Unbounded, Bound::Excluded),
                )))
            }
        };
    for key in keys.take(arguments.limit.unwrap_or(usize::MAX)) {
        let key = key?;
        let structure = if arguments.long { reader.get(&key)?.map(|value| describe(&value)) } else { None };
        let name = key.to_string();
        let name = one_line(&name);
        output.line(
            || structure.as_ref().map_or_else(|| name.to_string(), |structure| format!("{name}\t{structure}")),
            || match &structure {
                Some(structure) => json!({ "key": key, "value": structure }),
                None => json!({ "key": key }),
            },
        )?;
    }
    Ok(())
}

/// A value on one line: tensors as dtype and shape.
pub(crate) fn describe(value: &Value) -> String {
    let all = |items: &[Value]| items.iter().map(describe).collect::<Vec<_>>().join(", ");
    match value {
        Value::Tensor(tensor) => format!("{}{:?}", tensor.dtype(), tensor.shape()),
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => Shown::f64(*number).human,
        Value::Str(text) => format!("{text:?}"),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Value::List(items) => format!("[{}]", all(items)),
        Value::Tuple(items) => format!("({})", all(items)),
        Value::Map(items) => {
            let items: Vec<String> =
                items.iter().map(|(name, item)| format!("{}: {}", one_line(name), describe(item))).collect();
            format!("{{{}}}", items.join(", "))
        }
    }
}
