//! `tensorcask get`

use std::path::PathBuf;

use serde_json::json;
use tensorcask::Value;

use crate::failure::Failure;
use crate::numbers::{self, Shown};
use crate::output::{Output, one_line};
use crate::store::ReadArguments;

/// The default number of elements that are shown of each tensor.
const HEAD: usize = 8;

/// Arguments of `get`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    read: ReadArguments,
    /// The key: text, a number, or hexadecimal bytes, depending on the store's kind of keys.
    key: String,
    /// Writes the tensor to this .npy file instead of showing it.
    #[arg(long)]
    npy: Option<PathBuf>,
    /// The number of elements to show of each tensor (default: 8).
    #[arg(long, conflicts_with = "npy")]
    head: Option<usize>,
}

/// Shows the value of a key, or writes its tensor to a file.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let reader = crate::store::reader(&arguments.read, output)?;
    let key = crate::key::parse_key(&arguments.key, reader.key_kind())?;
    let name = key.to_string();
    let name = one_line(&name);
    let Some(value) = reader.get(&key)? else {
        return Err(Failure::missing(format!("there is no key {name} in {}", arguments.read.store.display())));
    };
    if let Some(path) = &arguments.npy {
        crate::new_file::check_outside(path, &arguments.read.store)?;
        let Value::Tensor(tensor) = &value else {
            return Err(Failure::input(format!(
                "the value of {name} is not a single tensor, so it cannot be a .npy file"
            )));
        };
        return crate::npy_file::write_one(path, tensor);
    }
    let head = arguments.head.unwrap_or(HEAD);
    output.line(|| outline(&value, 0, head), || to_json(&value, head))
}

fn outline(value: &Value, depth: usize, head: usize) -> String {
    let indent = "  ".repeat(depth);
    let item = |name: String, item: &Value| match item {
        Value::Map(_) | Value::List(_) | Value::Tuple(_) => {
            format!("{indent}{name}:\n{}", outline(item, depth + 1, head))
        }
        _ => format!("{indent}{name}: {}", outline(item, 0, head)),
    };
    match value {
        Value::Map(items) => {
            items.iter().map(|(name, value)| item(one_line(name).into_owned(), value)).collect::<Vec<_>>().join("\n")
        }
        Value::List(items) | Value::Tuple(items) => {
            items.iter().enumerate().map(|(at, value)| item(at.to_string(), value)).collect::<Vec<_>>().join("\n")
        }
        Value::Tensor(tensor) => {
            let (shown, more) = numbers::first(tensor, head);
            let shown: Vec<String> = shown.into_iter().map(|element| element.human).collect();
            let rest = match (more, shown.is_empty()) {
                (false, _) => "",
                (true, false) => ", …",
                (true, true) => "…",
            };
            format!("{} {:?} [{}{rest}]", tensor.dtype(), tensor.shape(), shown.join(", "))
        }
        scalar => crate::ls::describe(scalar),
    }
}

fn to_json(value: &Value, head: usize) -> serde_json::Value {
    match value {
        Value::Tensor(tensor) => {
            let head: Vec<_> = numbers::first(tensor, head).0.into_iter().map(|element| element.json).collect();
            json!({ "dtype": tensor.dtype().name(), "shape": tensor.shape(), "head": head })
        }
        Value::Null => serde_json::Value::Null,
        Value::Bool(flag) => json!(flag),
        Value::Int(number) => json!(number),
        Value::Float(number) => Shown::f64(*number).json,
        Value::Str(text) => json!(text),
        Value::Bytes(bytes) => json!({ "bytes": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() }),
        Value::List(items) | Value::Tuple(items) => items.iter().map(|item| to_json(item, head)).collect(),
        Value::Map(items) => items.iter().map(|(name, item)| (name.clone(), to_json(item, head))).collect(),
    }
}
