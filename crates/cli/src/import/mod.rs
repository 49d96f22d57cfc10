//! `tensorcask import`
//!
//! All files are checked before the store is opened: a refused import keeps nothing. Then rows are put in chunks that
//! are bounded by bytes, each written before the next is read.

mod array;
mod arrow_file;
mod census;
mod columns;
mod input;
mod key_array;
mod key_text;
mod keys;
mod literal;
mod npy;
mod npz;
mod open;
mod overflow;
mod packed;
mod parquet;
mod put;
mod safetensors;
mod segment;
mod source;
mod table;
mod tree;

use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use serde_json::json;
use tensorcask::{Codec, Dtype, Key, KeyKind, Options, Store};

use self::input::Inputs;
use self::keys::{KeySource, check_len, with_prefix};
use self::put::Done;
use self::source::Source;
use crate::failure::Failure;
use crate::output::{Output, path_json};
use crate::store::WriteArguments;

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
    #[arg(value_hint = clap::ValueHint::DirPath)]
    store: PathBuf,
    /// .npy, .npz, .safetensors, Arrow (.arrow, .ipc, .feather; files and streams) or .parquet files, or folders of
    /// them (in the order of their names). All are of one format.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// A file with the key of each row: text, one key a line, or a .npy file of integers or texts. Once for all rows,
    /// or once a file.
    #[arg(long)]
    keys: Vec<PathBuf>,
    /// The column of an Arrow or Parquet file, or the array of a .npz file, that has the keys (default: `key`, if there
    /// is one).
    #[arg(long, conflicts_with = "keys")]
    key_column: Option<String>,
    /// The kind of the keys: str, u64 or bytes (hexadecimal in text; default: str for text, or what a column or array
    /// holds).
    #[arg(long, value_parser = ["str", "u64", "bytes"])]
    key_kind: Option<String>,
    /// Without keys, rows are numbered from this one on (default: 0).
    #[arg(long, conflicts_with_all = ["keys", "key_column"])]
    first_key: Option<u64>,
    /// Is put before each key; row numbers become text then.
    #[arg(long)]
    key_prefix: Option<String>,
    /// Lets row numbers replace keys that the store has already; keys that are given do so in any case.
    #[arg(long)]
    overwrite: bool,
    /// The tensor of a .safetensors file or the array of a .npz file whose rows become values, or the column whose
    /// cells do. Without it each tensor becomes one value under its name, and a row of several arrays or columns a map
    /// of them.
    #[arg(long)]
    tensor: Option<String>,
    /// What elements of a .npy or .npz file are whose type numpy has no name for, or that were saved as integers of the
    /// same size: BF16, F8_E4M3, F8_E5M2, …
    #[arg(long, value_parser = parse_dtype)]
    dtype: Option<Dtype>,
    /// How tensors are packed.
    #[arg(long, value_enum, default_value_t = CodecName::None)]
    codec: CodecName,
    /// Down-casts wider floats to F16 or BF16.
    #[arg(long, value_parser = ["F16", "BF16"])]
    store_as: Option<String>,
    #[command(flatten)]
    write: WriteArguments,
}

fn parse_dtype(name: &str) -> Result<Dtype, String> {
    Dtype::from_name(&name.to_ascii_uppercase()).ok_or_else(|| {
        let names: Vec<&str> = Dtype::ALL.iter().map(|dtype| dtype.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

impl Arguments {
    fn key_kind(&self) -> Option<KeyKind> {
        self.key_kind.as_deref().map(|name| match name {
            "u64" => KeyKind::U64,
            "bytes" => KeyKind::Bytes,
            _ => KeyKind::Str,
        })
    }

    fn store_as(&self) -> Option<Dtype> {
        self.store_as.as_deref().and_then(Dtype::from_name)
    }

    /// Opens the store with little memory for what waits to be written: chunks are flushed one by one.
    fn open_store(&self) -> Result<Store, Failure> {
        let codec = match self.codec {
            CodecName::None => Codec::None,
            CodecName::Zstd => Codec::Zstd { level: 3 },
            CodecName::ShuffleZstd => Codec::ShuffleZstd { level: 3 },
        };
        let options = Options::new().codec(codec).store_as(self.store_as());
        let options = options.buffer_bytes(16 << 20).flush_every(8192, 8 << 20).delta_keys(1 << 18);
        crate::store::writer(&self.store, &self.write, options)
    }
}

/// What is to be put, all of it checked.
struct Plan {
    sources: Vec<(Box<dyn Source>, u64)>,
    keys: KeySource,
    prefix: Option<String>,
    kind: KeyKind,
    rows: u64,
    distinct: u64,
}

impl Plan {
    /// Opens and checks all files.
    fn new(arguments: &Arguments, inputs: &Inputs) -> Result<Self, Failure> {
        let mut sources = open::sources(arguments, inputs)?;
        let mut counted = Vec::with_capacity(sources.len());
        for source in &mut sources {
            counted.push((source.path().to_path_buf(), source.check(arguments.write.most_value_bytes())?));
        }
        check_alike(&sources)?;
        let own = sources.first().and_then(|source| source.key_kind());
        let keys = match own {
            Some(_) => KeySource::Own,
            None if arguments.keys.is_empty() => KeySource::Numbers { first: arguments.first_key.unwrap_or(0) },
            None => KeySource::files(&arguments.keys, arguments.key_kind())?,
        };
        open::check_options(arguments, inputs.format, &keys, &sources)?;
        let rows = counted.iter().map(|(_, rows)| rows).sum();
        keys.check(rows, &counted)?;
        let kind = match (&arguments.key_prefix, own.or(keys.kind()).unwrap_or(KeyKind::U64)) {
            (None, kind) => kind,
            (Some(_), KeyKind::Str | KeyKind::U64) => KeyKind::Str,
            (Some(_), KeyKind::Bytes) => {
                return Err(Failure::input("--key-prefix is text, and does not apply to keys that are bytes".into()));
            }
        };
        let sources = sources.into_iter().zip(counted).map(|(source, (_, rows))| (source, rows)).collect();
        let mut plan = Self { sources, keys, prefix: arguments.key_prefix.clone(), kind, rows, distinct: rows };
        if !matches!(plan.keys, KeySource::Numbers { .. }) {
            plan.distinct = census::distinct(rows, &|each| plan.each_key(each))?;
        } else if let Some(prefix) = &plan.prefix {
            check_len(&Key::Str(format!("{prefix}{}", u64::MAX)))
                .map_err(|why| Failure::input(format!("--key-prefix: {why}")))?;
        }
        Ok(plan)
    }

    /// Calls `each` with all keys as they will be put, some at a time.
    fn each_key(&self, each: &mut dyn FnMut(Vec<Key>) -> Result<(), Failure>) -> Result<(), Failure> {
        if matches!(self.keys, KeySource::Own) {
            return self.sources.iter().try_for_each(|(source, _)| source.keys(&mut |keys| each(self.prefixed(keys)?)));
        }
        let (mut reader, mut left) = (self.keys.reader(), self.rows);
        while left > 0 {
            let keys = reader.next(left.min(4096) as usize)?;
            if keys.is_empty() {
                return Err(Failure::input("a file of --keys became shorter while it was read".into()));
            }
            left -= keys.len() as u64;
            each(self.prefixed(keys)?)?;
        }
        Ok(())
    }

    /// The keys with the prefix.
    fn prefixed(&self, keys: Vec<Key>) -> Result<Vec<Key>, Failure> {
        let Some(prefix) = &self.prefix else { return Ok(keys) };
        let key = |key| {
            let key = with_prefix(prefix, key)?;
            check_len(&key).map(|()| key)
        };
        keys.into_iter().map(|found| key(found).map_err(|why| Failure::input(format!("--key-prefix: {why}")))).collect()
    }
}

/// Files whose rows are put one behind another have to be alike.
fn check_alike(sources: &[Box<dyn Source>]) -> Result<(), Failure> {
    let Some((first, others)) = sources.split_first() else { return Ok(()) };
    for other in others {
        let (expected, found) = (first.structure(), other.structure());
        if expected != found {
            return Err(Failure::input(format!(
                "{}: it has rows of {}, but {} has rows of {}: import them one by one",
                other.path().display(),
                found.unwrap_or_default(),
                first.path().display(),
                expected.unwrap_or_default()
            )));
        }
        if first.key_kind() != other.key_kind() {
            let kind = |source: &dyn Source| source.key_kind().map_or("no", KeyKind::name);
            return Err(Failure::input(format!(
                "{}: it has {} keys of its own, but {} has {} keys: import them one by one",
                other.path().display(),
                kind(other.as_ref()),
                first.path().display(),
                kind(first.as_ref())
            )));
        }
    }
    Ok(())
}

/// Puts the rows or tensors of files.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let start = Instant::now();
    crate::store::check_name(&arguments.store)?;
    let inputs = Inputs::list(&arguments.files)?;
    let plan = Plan::new(arguments, &inputs)?;
    let done = put::run(arguments, &plan, output)?;
    report(arguments, &inputs, &plan, &done, start.elapsed().as_secs_f64(), output)
}

fn report(
    arguments: &Arguments,
    inputs: &Inputs,
    plan: &Plan,
    done: &Done,
    seconds: f64,
    output: &Output,
) -> Result<(), Failure> {
    let duplicates = plan.rows - plan.distinct;
    let replaced = plan.distinct.saturating_sub(done.new);
    let mut warnings = Vec::new();
    if let (Some(dtype), true) = (arguments.store_as(), done.infinite > 0) {
        warnings.push(format!("{} finite values are too large for {dtype} and were stored as infinity", done.infinite));
    }
    if duplicates > 0 {
        warnings
            .push(format!("{duplicates} rows have a key that a later row has too: the last row of each key counts"));
    }
    warnings.extend(done.metadata_replaced.iter().cloned());
    if !inputs.left_out.is_empty() {
        let names: Vec<String> = inputs.left_out.iter().take(8).map(|path| path.display().to_string()).collect();
        let more = if inputs.left_out.len() > names.len() { ", …" } else { "" };
        warnings.push(format!(
            "{} names in the folders were left out: {}{more}",
            inputs.left_out.len(),
            names.join(", ")
        ));
    }
    warnings.iter().for_each(|warning| output.warn(warning));
    let rows = plan.rows;
    let left_out: Vec<_> = inputs.left_out.iter().map(|path| path_json(path)).collect();
    output.line(
        || {
            format!(
                "{rows} values, {} in {seconds:.2} s\n{} distinct keys, {duplicates} duplicates: {} new, {replaced} \
                 replaced",
                crate::output::bytes(done.bytes),
                plan.distinct,
                done.new
            )
        },
        || {
            json!({
                "values": rows, "bytes": done.bytes, "seconds": seconds, "files": inputs.files.len(),
                "distinct_keys": plan.distinct, "duplicates": duplicates, "new": done.new, "replaced": replaced,
                "infinite": done.infinite, "left_out": left_out, "warnings": warnings,
            })
        },
    )
}
