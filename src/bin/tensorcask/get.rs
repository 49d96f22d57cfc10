//! `tensorcask get`

use std::path::PathBuf;

use serde_json::json;
use tensorcask::half::{bf16, f16};
use tensorcask::{Dtype, Tensor, Value};

use crate::output::{Failure, Output};

/// Arguments of `get`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store's folder.
    store: PathBuf,
    /// The key: text, a number, or hexadecimal bytes, as the store's keys are.
    key: String,
    /// Writes the tensor to this .npy file.
    #[arg(long)]
    npy: Option<PathBuf>,
    /// How many elements of each tensor are shown.
    #[arg(long, default_value_t = 8)]
    head: usize,
}

/// Shows the value of a key, or writes it to a file.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let reader = crate::reader(&arguments.store)?;
    let key = crate::parse_key(&arguments.key, reader.key_kind())?;
    let Some(value) = reader.get(&key)? else {
        return Err(Failure::missing(format!("there is no key {key} in {}", arguments.store.display())));
    };
    if let Some(path) = &arguments.npy {
        let Value::Tensor(tensor) = &value else {
            return Err(Failure::input(format!("the value of {key} is no single tensor, so it cannot be a .npy file")));
        };
        return crate::npy::write_one(path, tensor);
    }
    output.line(|| outline(&value, 0, arguments.head), || to_json(&value, arguments.head))
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
        Value::Map(items) => items.iter().map(|(name, value)| item(name.clone(), value)).collect::<Vec<_>>().join("\n"),
        Value::List(items) | Value::Tuple(items) => {
            items.iter().enumerate().map(|(at, value)| item(at.to_string(), value)).collect::<Vec<_>>().join("\n")
        }
        Value::Tensor(tensor) => {
            let shown = elements(tensor, head);
            let more = if shown.len() < tensor.shape().iter().product() { ", …" } else { "" };
            let shown: Vec<String> = shown.iter().map(ToString::to_string).collect();
            format!("{} {:?} [{}{more}]", tensor.dtype(), tensor.shape(), shown.join(", "))
        }
        scalar => crate::ls::describe(scalar),
    }
}

fn to_json(value: &Value, head: usize) -> serde_json::Value {
    match value {
        Value::Tensor(tensor) => {
            json!({ "dtype": tensor.dtype().name(), "shape": tensor.shape(), "head": elements(tensor, head) })
        }
        Value::Null => serde_json::Value::Null,
        Value::Bool(flag) => json!(flag),
        Value::Int(number) => json!(number),
        Value::Float(number) => json!(number),
        Value::Str(text) => json!(text),
        Value::Bytes(bytes) => json!({ "bytes": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() }),
        Value::List(items) | Value::Tuple(items) => items.iter().map(|item| to_json(item, head)).collect(),
        Value::Map(items) => items.iter().map(|(name, item)| (name.clone(), to_json(item, head))).collect(),
    }
}

/// The first elements, as numbers; those of types that Rust has no numbers for as their bytes.
fn elements(tensor: &Tensor, head: usize) -> Vec<serde_json::Value> {
    macro_rules! numbers {
        ($type:ty, $convert:expr) => {
            tensor.to_vec::<$type>().unwrap_or_default().into_iter().take(head).map($convert).collect()
        };
    }
    match tensor.dtype() {
        Dtype::F32 => numbers!(f32, |x| json!(x)),
        Dtype::F64 => numbers!(f64, |x| json!(x)),
        Dtype::F16 => numbers!(f16, |x| json!(x.to_f32())),
        Dtype::BF16 => numbers!(bf16, |x| json!(x.to_f32())),
        Dtype::C64 => numbers!([f32; 2], |x| json!(x)),
        Dtype::I8 => numbers!(i8, |x| json!(x)),
        Dtype::I16 => numbers!(i16, |x| json!(x)),
        Dtype::I32 => numbers!(i32, |x| json!(x)),
        Dtype::I64 => numbers!(i64, |x| json!(x)),
        Dtype::U16 => numbers!(u16, |x| json!(x)),
        Dtype::U32 => numbers!(u32, |x| json!(x)),
        Dtype::U64 => numbers!(u64, |x| json!(x)),
        _ => tensor.data().iter().take(head).map(|byte| json!(byte)).collect(),
    }
}
