//! The `tensorcask` command line tool: looks into a store, checks it, and moves data in and out.
//!
//! Exit codes: 0 done; 1 a key is not there; 2 damage was found; 3 the input or its use is wrong; 4 the store or the
//! disk failed.

mod export;
mod get;
mod import;
mod key;
mod ls;
mod metadata;
mod npy;
mod output;
mod stats;
mod verify;
mod warm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tensorcask::{Options, Reader};

use crate::key::parse_key;
use crate::output::{Failure, Format, Output};

/// Looks into a store of tensors, checks it, and moves data in and out.
///
/// A store is the folder <cache dir>/<module id>.
///
/// Exit codes: 0 done; 1 a key is not there; 2 damage was found; 3 the input or its use is wrong; 4 the store or the
/// disk failed.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Arguments {
    /// For people, or JSON for programs.
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    format: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows sizes, the index, and what opening found.
    Stats(stats::Arguments),
    /// Lists keys.
    Ls(ls::Arguments),
    /// Shows the value of a key, or writes it to a file.
    Get(get::Arguments),
    /// Reads and checks every byte.
    Verify(verify::Arguments),
    /// Brings the index and the sealed rows into memory.
    Warm(warm::Arguments),
    /// Puts the rows or tensors of .npy, .npz, .safetensors, Arrow and Parquet files.
    Import(import::Arguments),
    /// Writes all values to an Arrow, .safetensors or .npy file.
    Export(export::Arguments),
}

/// Splits a store's folder into cache dir and module id.
fn split(store: &Path) -> Result<(PathBuf, String), Failure> {
    let module = store.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Failure::input(format!("{} does not name a store: give the folder <cache dir>/<module id>", store.display()))
    })?;
    let parent = store.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent.to_path_buf(), module.to_owned()))
}

/// Opens a store for reading.
fn reader(store: &Path) -> Result<Reader, Failure> {
    let (cache_dir, module) = split(store)?;
    Ok(Options::new().open_reader(cache_dir, &module)?)
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { 3 } else { 0 };
            // A closed terminal is no reason to say more.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let output = Output::new(arguments.format);
    let done = match &arguments.command {
        Command::Stats(arguments) => stats::run(arguments, &output),
        Command::Ls(arguments) => ls::run(arguments, &output),
        Command::Get(arguments) => get::run(arguments, &output),
        Command::Verify(arguments) => verify::run(arguments, &output),
        Command::Warm(arguments) => warm::run(arguments, &output),
        Command::Import(arguments) => import::run(arguments, &output),
        Command::Export(arguments) => export::run(arguments, &output),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.fail(&failure),
    }
}
