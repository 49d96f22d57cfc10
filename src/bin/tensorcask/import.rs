//! `tensorcask import`

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use safetensors::SafeTensors;
use serde_json::json;
use tensorcask::{Codec, Dtype, Key, Options, Store, TensorView};

use crate::npy::Array;
use crate::output::{Failure, Output};
use crate::store::WriteArguments;

/// Bytes that are read and put at a time.
const BATCH_LEN_BYTES: usize = 8 << 20;

/// How tensors are packed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum CodecName {
    None,
    Zstd,
    ShuffleZstd,
}

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store's folder; made if it is not there.
    store: PathBuf,
    /// A .safetensors or .npy file.
    file: PathBuf,
    /// A file with the key of each row, one a line; without it rows are numbered from 0.
    #[arg(long)]
    keys: Option<PathBuf>,
    /// The kind of the keys in that file: str, u64 or bytes (hexadecimal).
    #[arg(long, default_value = "str", value_parser = ["str", "u64", "bytes"])]
    key_kind: String,
    /// Of a .safetensors file, the tensor whose rows become values; without it each tensor becomes one value under
    /// its name.
    #[arg(long)]
    tensor: Option<String>,
    /// How tensors are packed.
    #[arg(long, value_enum, default_value_t = CodecName::None)]
    codec: CodecName,
    /// Down-casts wider floats to F16 or BF16.
    #[arg(long, value_parser = ["F16", "BF16"])]
    store_as: Option<String>,
    #[command(flatten)]
    write: WriteArguments,
}

/// Where rows come from.
enum Rows<'a> {
    Memory(&'a [u8]),
    File(Array),
}

/// Puts the tensors of a file.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let start = Instant::now();
    let codec = match arguments.codec {
        CodecName::None => Codec::None,
        CodecName::Zstd => Codec::Zstd { level: 3 },
        CodecName::ShuffleZstd => Codec::ShuffleZstd { level: 3 },
    };
    let store_as = arguments.store_as.as_deref().and_then(Dtype::from_name);
    let path = &arguments.file;
    let open =
        || crate::store::writer(&arguments.store, &arguments.write, Options::new().codec(codec).store_as(store_as));
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let (rows, bytes) = match extension {
        "npy" => {
            let array = Array::open(path)?;
            let (dtype, shape) = (array.dtype, array.shape.clone());
            import_rows(arguments, &open()?, Rows::File(array), dtype, &shape, output)?
        }
        "safetensors" => {
            let bytes = std::fs::read(path).map_err(|error| Failure::io(path, &error))?;
            let tensors = SafeTensors::deserialize(&bytes)
                .map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
            match &arguments.tensor {
                Some(name) => {
                    let theirs = tensors
                        .tensor(name)
                        .map_err(|error| Failure::input(format!("{} in {}: {error}", name, path.display())))?;
                    let view = TensorView::try_from(&theirs)?;
                    import_rows(arguments, &open()?, Rows::Memory(view.data()), view.dtype(), view.shape(), output)?
                }
                None => import_tensors(&open()?, &tensors, output)?,
            }
        }
        _ => return Err(Failure::input(format!("{}: expected a .safetensors or .npy file", path.display()))),
    };
    let seconds = start.elapsed().as_secs_f64();
    output.line(
        || format!("{rows} values, {} in {seconds:.2} s", crate::output::bytes(bytes as u64)),
        || json!({ "values": rows, "bytes": bytes, "seconds": seconds }),
    )
}

fn import_tensors(store: &Store, tensors: &SafeTensors<'_>, output: &Output) -> Result<(usize, usize), Failure> {
    let bar = output.progress(tensors.len() as u64);
    let mut bytes = 0;
    for (name, theirs) in tensors.iter() {
        let view = TensorView::try_from(&theirs)?;
        store.put(name, view)?;
        bytes += view.data().len();
        bar.inc(1);
    }
    store.close()?;
    bar.finish_and_clear();
    Ok((tensors.len(), bytes))
}

fn import_rows(
    arguments: &Arguments,
    store: &Store,
    mut rows: Rows<'_>,
    dtype: Dtype,
    shape: &[usize],
    output: &Output,
) -> Result<(usize, usize), Failure> {
    let path = &arguments.file;
    let Some((&count, row_shape)) = shape.split_first() else {
        return Err(Failure::input(format!("{}: a tensor of no dimensions has no rows", path.display())));
    };
    let width = dtype
        .tensor_len_bytes(row_shape)
        .ok_or_else(|| Failure::input(format!("{}: rows of shape {row_shape:?} are too large", path.display())))?;
    let mut keys = Keys::open(arguments, count)?;
    let bar = output.progress(count as u64);
    let batch = (BATCH_LEN_BYTES / width.max(1)).clamp(1, 65_536);
    let mut done = 0;
    while done < count {
        let now = batch.min(count - done);
        let names = keys.next(now)?;
        match &mut rows {
            Rows::Memory(bytes) => {
                let slice = bytes.get(done * width..(done + now) * width).unwrap_or(&[]);
                store.put_rows_bytes(&names, dtype, row_shape, slice)?;
            }
            Rows::File(array) => store.put_rows_bytes(&names, dtype, row_shape, &array.read(path, now * width)?)?,
        }
        done += now;
        bar.set_position(done as u64);
    }
    keys.finish()?;
    store.close()?;
    bar.finish_and_clear();
    Ok((count, count * width))
}

/// The keys of rows: lines of a file, or numbers.
struct Keys {
    lines: Option<(PathBuf, std::io::Lines<BufReader<std::fs::File>>)>,
    kind: tensorcask::KeyKind,
    given: usize,
    expected: usize,
}

impl Keys {
    fn open(arguments: &Arguments, expected: usize) -> Result<Self, Failure> {
        let kind = match arguments.key_kind.as_str() {
            "u64" => tensorcask::KeyKind::U64,
            "bytes" => tensorcask::KeyKind::Bytes,
            _ => tensorcask::KeyKind::Str,
        };
        let open = |path: &Path| std::fs::File::open(path).map_err(|error| Failure::io(path, &error));
        let lines = match &arguments.keys {
            Some(path) => Some((path.clone(), BufReader::new(open(path)?).lines())),
            None => None,
        };
        Ok(Self { lines, kind, given: 0, expected })
    }

    fn next(&mut self, count: usize) -> Result<Vec<Key>, Failure> {
        let first = self.given;
        self.given += count;
        let Some((path, lines)) = &mut self.lines else {
            return Ok((first as u64..(first + count) as u64).map(Key::U64).collect());
        };
        let mut keys = Vec::with_capacity(count);
        for line in lines.take(count) {
            let line = line.map_err(|error| Failure::io(path, &error))?;
            keys.push(crate::parse_key(line.trim_end_matches('\r'), Some(self.kind))?);
        }
        if keys.len() < count {
            let found = first + keys.len();
            return Err(Failure::input(format!("{}: expected {} keys, found {found}", path.display(), self.expected)));
        }
        Ok(keys)
    }

    fn finish(&mut self) -> Result<(), Failure> {
        let Some((path, lines)) = &mut self.lines else { return Ok(()) };
        if lines.next().is_none() {
            return Ok(());
        }
        Err(Failure::input(format!("{}: expected {} keys, found more", path.display(), self.expected)))
    }
}
