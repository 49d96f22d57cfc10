//! `tensorcask export`

mod arrow;
mod columns;
mod lists;
mod npy;
mod rows;
mod safetensors;
mod stream;
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
pub use self::stream::Batches;

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// One Arrow IPC file.
    Arrow,
    /// One Arrow IPC stream.
    Arrows,
    /// Tensors by key.
    Safetensors,
    /// One array of all rows; the keys are written to a second file.
    Npy,
}

/// Arguments of `export`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    read: ReadArguments,
    /// The file to write: .arrow, .ipc, .feather, .arrows (a stream), .safetensors or .npy. An existing file is
    /// replaced once the new one is complete.
    file: PathBuf,
    /// The format (default: from the file's extension).
    #[arg(long, value_enum)]
    to: Option<Kind>,
    /// Exports only keys that start with this prefix.
    #[arg(long)]
    prefix: Option<String>,
    /// Writes F16 and BF16 as F32: some readers (DuckDB) do not support F16, and most do not support BF16.
    #[arg(long)]
    f16_as_f32: bool,
    /// Arrow: writes tensors as nested lists without extension types, for readers that do not support these (Hugging
    /// Face datasets).
    #[arg(long)]
    plain: bool,
    /// Arrow: writes an IPC stream instead of a file, regardless of the extension.
    #[arg(long)]
    stream: bool,
    /// The file for the keys of a .npy export (default: the file's name with `.keys` appended).
    #[arg(long)]
    keys_out: Option<PathBuf>,
}

/// The kind of file to write. Refuses options that do not apply to it.
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
                "{}: the extension does not name a format: give --to arrow, arrows, safetensors or npy",
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
        Ok::<_, Failure>(Rows::new(reader.clone(), keys, arguments.f16_as_f32))
    };
    let (keys, left_out) = (reader.len()?, crate::store::left_out(&reader));
    if keys == 0 && left_out > 0 {
        return Err(Failure::damaged("there is nothing to export: none of the store's rows can be read".into()));
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
    if written.shapes_lost > 0 {
        output.warn(&format!(
            "{} tensors have no elements, and lists do not tell their whole shape: [0, 2] is read back as [0, 0]; \
             export to .safetensors to keep it",
            written.shapes_lost
        ));
    }
    let replaced = if written.replaced { ", replacing an existing file" } else { "" };
    output.written(
        path,
        || format!("{} values to {}{replaced}", written.rows, path.display()),
        || {
            let path = path_json(path);
            json!({
                "values": written.rows, "path": path, "replaced": written.replaced, "left_out_files": left_out,
                "shapes_lost": written.shapes_lost,
            })
        },
    )?;
    // The file has every readable row, but not the whole store.
    if left_out == 0 { Ok(()) } else { Err(Failure::damage()) }
}
