//! `tensorcask export`

mod arrow;
mod columns;
mod lists;
mod npy;
mod rows;
mod safetensors;
mod structure;
mod written;

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::json;

use crate::failure::Failure;
use crate::new_file::check_outside;
use crate::output::{Output, path_json};
use crate::store::ReadArguments;

use self::arrow::Layout;
use self::rows::Rows;

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// One Arrow IPC file.
    Arrow,
    /// One Arrow IPC stream.
    Arrows,
    /// Tensors by key.
    Safetensors,
    /// One array of all rows; the keys go to a file beside it.
    Npy,
}

/// Arguments of `export`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    read: ReadArguments,
    /// The file to write: .arrow, .ipc, .feather, .arrows (a stream), .safetensors or .npy. An earlier one is replaced when
    /// the new one is whole.
    file: PathBuf,
    /// What to write; by default what the file's extension says.
    #[arg(long, value_enum)]
    to: Option<Kind>,
    /// Only keys that start with this.
    #[arg(long)]
    prefix: Option<String>,
    /// Writes F16 and BF16 as F32: some readers (DuckDB) know no F16, and most no BF16.
    #[arg(long)]
    f16_as_f32: bool,
    /// Arrow: tensors as lists of lists and no extension types, for programs that know none (Hugging Face datasets).
    #[arg(long)]
    plain: bool,
    /// Arrow: an IPC stream and no file, whatever the extension is.
    #[arg(long)]
    stream: bool,
    /// Where the keys of a .npy file go (default: the file's name and `.keys`).
    #[arg(long)]
    keys_out: Option<PathBuf>,
}

/// The kind of file to write, if all options apply to it.
fn kind_of(arguments: &Arguments) -> Result<Kind, Failure> {
    let path = &arguments.file;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
    let kind = match (arguments.to, extension.as_str()) {
        (Some(kind), _) => kind,
        (None, "arrow" | "ipc" | "feather") => Kind::Arrow,
        (None, "arrows") => Kind::Arrows,
        (None, "safetensors") => Kind::Safetensors,
        (None, "npy") => Kind::Npy,
        _ => {
            return Err(Failure::input(format!(
                "{}: say what to write with --to arrow, arrows, safetensors or npy",
                path.display()
            )));
        }
    };
    let is_arrow = matches!(kind, Kind::Arrow | Kind::Arrows);
    let misplaced = [
        ("--plain", arguments.plain && !is_arrow, "Arrow"),
        ("--stream", arguments.stream && !is_arrow, "Arrow"),
        ("--keys-out", arguments.keys_out.is_some() && kind != Kind::Npy, ".npy"),
    ];
    match misplaced.iter().find(|(_, misplaced, _)| *misplaced) {
        Some((option, _, whose)) => Err(Failure::input(format!("{option} is for {whose} files: leave it out"))),
        None if kind == Kind::Arrow && arguments.stream => Ok(Kind::Arrows),
        None => Ok(kind),
    }
}

/// Writes all values to a file.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let (kind, path) = (kind_of(arguments)?, &arguments.file);
    let reader = crate::store::reader(&arguments.read, output)?;
    for target in [Some(path), arguments.keys_out.as_ref()].into_iter().flatten() {
        check_outside(target, &arguments.read.store)?;
    }
    let rows = || {
        let keys = crate::ls::keys(&reader, arguments.prefix.as_deref())?;
        Ok::<_, Failure>(Rows::new(&reader, keys, arguments.f16_as_f32))
    };
    let (keys, left_out) = (reader.len()?, crate::store::left_out(&reader));
    if keys == 0 && left_out > 0 {
        return Err(Failure::damaged("there is nothing to export: no row of the store can be read".into()));
    }
    let bar = output.progress(keys);
    let mut progress = |rows: u64| bar.inc(rows);
    let written = match kind {
        Kind::Arrow | Kind::Arrows => {
            let layout = Layout { plain: arguments.plain, stream: kind == Kind::Arrows };
            arrow::write(path, layout, &rows, &bar)?
        }
        Kind::Safetensors => {
            let metadata = crate::metadata::load(&arguments.read.store)?;
            safetensors::write(path, &reader, &metadata, arguments.f16_as_f32, rows()?, &mut progress)?
        }
        Kind::Npy => npy::write(path, arguments.keys_out.as_deref(), &mut rows()?, &mut progress)?,
    };
    bar.finish_and_clear();
    let replaced = if written.replaced { ", in place of an earlier file" } else { "" };
    output.written(
        path,
        || format!("{} values to {}{replaced}", written.rows, path.display()),
        || {
            let path = path_json(path);
            json!({ "values": written.rows, "path": path, "replaced": written.replaced, "left_out_files": left_out })
        },
    )?;
    // What could be read is written, but it is not the whole store.
    if left_out == 0 { Ok(()) } else { Err(Failure::damage()) }
}
