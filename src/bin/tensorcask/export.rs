//! `tensorcask export`

mod arrow;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::json;
use tensorcask::{Dtype, Key, Reader, Tensor, Value};

use crate::output::{Failure, Output};

/// Keys that are read at a time.
const BATCH: usize = 1024;

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// One Arrow IPC file.
    Arrow,
    /// Tensors by key.
    Safetensors,
    /// One array of all rows; the keys go to a file beside it.
    Npy,
}

/// Arguments of `export`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store's folder.
    store: PathBuf,
    /// The file to write.
    file: PathBuf,
    /// What to write; by default what the file's extension says.
    #[arg(long, value_enum)]
    to: Option<Kind>,
    /// Only keys that start with this.
    #[arg(long)]
    prefix: Option<String>,
    /// Writes F16 and BF16 as F32: some readers (DuckDB) know no F16.
    #[arg(long)]
    f16_as_f32: bool,
    /// Where the keys of a .npy file go (default: the file's name and `.keys`).
    #[arg(long)]
    keys_out: Option<PathBuf>,
}

/// Keys and values, in batches.
pub(crate) struct Batches<'a> {
    reader: &'a Reader,
    keys: Box<dyn Iterator<Item = tensorcask::Result<Key>>>,
    f16_as_f32: bool,
}

impl Batches<'_> {
    /// The next keys and their values; empty at the end.
    pub(crate) fn next(&mut self) -> Result<Vec<(Key, Value)>, Failure> {
        let keys = self.keys.by_ref().take(BATCH).collect::<Result<Vec<_>, _>>()?;
        let values = self.reader.get_batch(&keys)?;
        let mut batch = Vec::with_capacity(keys.len());
        for (key, value) in keys.into_iter().zip(values) {
            // A key that was deleted since it was listed has no value.
            if let Some(value) = value? {
                batch.push((key, if self.f16_as_f32 { widened(value)? } else { value }));
            }
        }
        Ok(batch)
    }
}

/// The value with half-precision tensors as F32.
fn widened(value: Value) -> Result<Value, Failure> {
    use tensorcask::half::{bf16, f16};
    let all = |items: Vec<Value>| items.into_iter().map(widened).collect::<Result<Vec<_>, _>>();
    Ok(match value {
        Value::Tensor(tensor) => {
            let floats: Vec<f32> = match tensor.dtype() {
                Dtype::F16 => tensor.to_vec::<f16>()?.into_iter().map(f16::to_f32).collect(),
                Dtype::BF16 => tensor.to_vec::<bf16>()?.into_iter().map(bf16::to_f32).collect(),
                _ => return Ok(Value::Tensor(tensor)),
            };
            Value::Tensor(Tensor::from_slice(tensor.shape(), &floats)?)
        }
        Value::List(items) => Value::List(all(items)?),
        Value::Tuple(items) => Value::Tuple(all(items)?),
        Value::Map(items) => Value::Map(
            items.into_iter().map(|(name, item)| Ok((name, widened(item)?))).collect::<Result<Vec<_>, Failure>>()?,
        ),
        scalar => scalar,
    })
}

/// Writes all values to a file.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let path = &arguments.file;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let kind = match (arguments.to, extension) {
        (Some(kind), _) => kind,
        (None, "arrow" | "ipc" | "feather") => Kind::Arrow,
        (None, "safetensors") => Kind::Safetensors,
        (None, "npy") => Kind::Npy,
        _ => {
            return Err(Failure::input(format!(
                "{}: say what to write with --to arrow, safetensors or npy",
                path.display()
            )));
        }
    };
    let reader = crate::reader(&arguments.store)?;
    let keys = crate::ls::keys(&reader, arguments.prefix.as_deref())?;
    let bar = output.progress(reader.len()?);
    let mut batches = Batches { reader: &reader, keys, f16_as_f32: arguments.f16_as_f32 };
    let mut progress = |rows: u64| bar.inc(rows);
    let rows = match kind {
        Kind::Arrow => arrow::write(path, &mut batches, &mut progress)?,
        Kind::Safetensors => {
            let metadata = crate::metadata::load(&arguments.store)?;
            write_safetensors(path, &metadata, &mut batches, &mut progress)?
        }
        Kind::Npy => write_npy(path, arguments.keys_out.as_deref(), &mut batches, &mut progress)?,
    };
    bar.finish_and_clear();
    output.line(|| format!("{rows} values to {}", path.display()), || json!({ "values": rows, "path": path }))
}

/// All tensors by key, those in trees by key and path. The format has its header first, so all are held in memory
/// (unpacked ones as maps of the segments).
fn write_safetensors(
    path: &Path,
    metadata: &crate::metadata::Metadata,
    batches: &mut Batches<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, Failure> {
    fn collect(name: String, value: Value, tensors: &mut BTreeMap<String, Tensor>) -> Result<(), Failure> {
        match value {
            Value::Tensor(tensor) => drop(tensors.insert(name, tensor)),
            Value::Map(items) => {
                items.into_iter().try_for_each(|(part, item)| collect(format!("{name}/{part}"), item, tensors))?;
            }
            Value::List(items) | Value::Tuple(items) => {
                let mut items = items.into_iter().enumerate();
                items.try_for_each(|(at, item)| collect(format!("{name}/{at}"), item, tensors))?;
            }
            _ => {
                return Err(Failure::input(format!(
                    "{name} is no tensor, and safetensors holds nothing else: export to Arrow"
                )));
            }
        }
        Ok(())
    }
    let mut tensors = BTreeMap::new();
    let mut rows = 0;
    loop {
        let batch = batches.next()?;
        if batch.is_empty() {
            break;
        }
        rows += batch.len() as u64;
        progress(batch.len() as u64);
        batch.into_iter().try_for_each(|(key, value)| collect(key.to_string(), value, &mut tensors))?;
    }
    let views = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.as_str(), safetensors::tensor::TensorView::try_from(tensor)?)))
        .collect::<Result<Vec<_>, tensorcask::Error>>()?;
    let metadata = metadata.iter().map(|(name, text)| (name.clone(), text.clone())).collect();
    safetensors::serialize_to_file(views, Some(metadata).filter(|all: &HashMap<_, _>| !all.is_empty()), path)
        .map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
    Ok(rows)
}

/// All rows as one array. Its length is known at the end only, so the header is written again then.
fn write_npy(
    path: &Path,
    keys_out: Option<&Path>,
    batches: &mut Batches<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, Failure> {
    let io = |error: std::io::Error| Failure::io(path, &error);
    let keys_path = keys_out.map_or_else(|| PathBuf::from(format!("{}.keys", path.display())), Path::to_path_buf);
    let keys_io = |error: std::io::Error| Failure::io(&keys_path, &error);
    let mut out = BufWriter::new(File::create(path).map_err(io)?);
    let mut keys = BufWriter::new(File::create(&keys_path).map_err(keys_io)?);
    let mut first: Option<(Dtype, Vec<usize>)> = None;
    let mut rows = 0_u64;
    loop {
        let batch = batches.next()?;
        if batch.is_empty() {
            break;
        }
        for (key, value) in &batch {
            let found = value.as_tensor().map(|tensor| (tensor.dtype(), tensor.shape()));
            let Some((tensor, (dtype, shape))) = value.as_tensor().zip(found) else {
                return Err(Failure::input(format!("{key} is no single tensor: export to Arrow")));
            };
            match &first {
                None => {
                    write_npy_header(path, &mut out, dtype, usize::MAX, shape)?;
                    first = Some((dtype, shape.to_vec()));
                }
                Some((expected, dims)) if *expected != dtype || dims != shape => {
                    return Err(Failure::input(format!(
                        "{key} is {dtype}{shape:?}, but others are {expected}{dims:?}: export to Arrow"
                    )));
                }
                Some(_) => {}
            }
            out.write_all(tensor.data()).map_err(io)?;
            writeln!(keys, "{key}").map_err(keys_io)?;
        }
        rows += batch.len() as u64;
        progress(batch.len() as u64);
    }
    keys.flush().map_err(keys_io)?;
    let (dtype, shape) = first.unwrap_or((Dtype::F32, Vec::new()));
    out.seek(SeekFrom::Start(0)).map_err(io)?;
    write_npy_header(path, &mut out, dtype, rows as usize, &shape)?;
    out.flush().map_err(io)?;
    Ok(rows)
}

/// The header for `rows` rows, as long as for any other number of them.
fn write_npy_header(
    path: &Path,
    out: &mut impl Write,
    dtype: Dtype,
    rows: usize,
    shape: &[usize],
) -> Result<(), Failure> {
    let dims: Vec<usize> = std::iter::once(rows).chain(shape.iter().copied()).collect();
    crate::npy::write_header(path, out, dtype, &dims)
}
