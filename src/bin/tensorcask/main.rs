//! The `tensorcask` command line tool: looks into a store, checks it, and moves data in and out.
//!
//! Exit codes: 0 done; 1 a key is not there; 2 damage was found; 3 the input or its use is wrong; 4 the store or the
//! disk failed.

mod export;
mod get;
mod identities;
mod import;
mod ls;
mod npy;
mod output;
mod stats;
mod verify;
mod warm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tensorcask::{Key, KeyKind, Options, Reader};

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
    /// Lists the weights and versions of a wrapped module whose outputs are kept.
    Identities(identities::Arguments),
    /// Puts the tensors of a .safetensors or .npy file.
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

/// Parses a key as the store's kind of keys has it: text, a number, or hexadecimal bytes.
fn parse_key(text: &str, kind: Option<KeyKind>) -> Result<Key, Failure> {
    match kind.unwrap_or(KeyKind::Str) {
        KeyKind::Str => Ok(Key::Str(text.to_owned())),
        KeyKind::U64 => text
            .parse()
            .map(Key::U64)
            .map_err(|_| Failure::input(format!("{text:?} is no key of this store: its keys are unsigned integers"))),
        KeyKind::Bytes => {
            let hex = text.strip_prefix("0x").unwrap_or(text);
            let digits: Option<Vec<u32>> = hex.chars().map(|c| c.to_digit(16)).collect();
            let bytes = digits.filter(|digits| digits.len().is_multiple_of(2)).map(|digits| {
                let pairs = digits.as_chunks::<2>().0.iter();
                pairs.map(|[high, low]| u8::try_from(high * 16 + low).unwrap_or_default()).collect()
            });
            bytes.map(Key::Bytes).ok_or_else(|| {
                Failure::input(format!("{text:?} is no key of this store: its keys are bytes, given in hexadecimal"))
            })
        }
    }
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
        Command::Identities(arguments) => identities::run(arguments, &output),
        Command::Import(arguments) => import::run(arguments, &output),
        Command::Export(arguments) => export::run(arguments, &output),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.fail(&failure),
    }
}
