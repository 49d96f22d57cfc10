//! The `tensorcask` command line tool as a library, for programs that have it as one of their commands: [`run`].

mod bench;
mod compact;
mod copy;
mod doctor;
mod export;
mod failure;
mod generated;
mod get;
mod identities;
mod import;
mod key;
mod ls;
mod merge;
mod metadata;
mod new_file;
mod npy_file;
mod numbers;
mod output;
mod preload;
mod prune;
mod quantity;
mod report;
mod rm;
mod schemas;
mod stats;
mod store;
mod structure;
mod verify;
mod why_miss;

use std::ffi::OsString;
use std::io::Write;

use clap::{CommandFactory, Parser, Subcommand};

pub use crate::export::Batches;
use crate::failure::Failure;
use crate::output::{Format, Output};

/// Inspects and verifies a store of tensors, imports into it and exports from it.
///
/// A store is the folder <cache dir>/<module id>.
///
/// Exit codes: 0 success; 1 the key does not exist; 2 damage was found; 3 the input or the arguments are wrong; 4 the
/// store or the disk failed.
#[derive(Debug, Parser)]
#[command(name = "tensorcask", version, about, max_term_width = 100)]
struct Arguments {
    /// Output as text for people, or as JSON for programs.
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    format: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows sizes, the state of the index, and damage found at opening.
    Stats(stats::Arguments),
    /// Lists keys.
    Ls(ls::Arguments),
    /// Lists the structures of values, with the numbers of their rows.
    Schemas(schemas::Arguments),
    /// Shows the value of a key, or writes its tensor to a file.
    Get(get::Arguments),
    /// Reads every byte and compares all checksums.
    Verify(verify::Arguments),
    /// Measures how fast reads are here and now, against a plain copy of the same rows.
    Bench(bench::Arguments),
    /// Writes a page with plots: sizes, segments, live share, keys, shapes, and a read test.
    Report(report::Arguments),
    /// Preloads the index and the sealed segments into the page cache.
    Preload(preload::Arguments),
    /// Deletes keys.
    Rm(rm::Arguments),
    /// Rewrites segments without rows that were overwritten or deleted, and joins small ones.
    Compact(compact::Arguments),
    /// Copies a store, which may be written to meanwhile. Copying a copy back restores a store.
    Copy(copy::Arguments),
    /// Merges stores into one. The newest row of each key wins.
    Merge(merge::Arguments),
    /// Checks the file system, the limits of the system and the files of a store, and says what to do.
    Doctor(doctor::Arguments),
    /// Removes old rows by whole segments, until a limit holds; all keys with a prefix; or whole identities.
    Prune(prune::Arguments),
    /// Lists or removes the cached identities (weights, versions, configurations) of a wrapped module.
    Identities(identities::Arguments),
    /// Explains why a key is not found: never put, deleted, damaged, or of another identity.
    WhyMiss(why_miss::Arguments),
    /// Imports rows or tensors from .npy, .npz, .safetensors, Arrow and Parquet files.
    Import(import::Arguments),
    /// Imports the segments of a cache of torchcachex, for `tensorcask.compat.torchcachex`.
    ImportTorchcachex(import::torchcachex::Arguments),
    /// Exports all values to an Arrow, .safetensors or .npy file.
    Export(export::Arguments),
    /// Prints the completion script for a shell.
    Completions(generated::CompletionsArguments),
    /// Prints the man page of the program or of a command.
    Man(generated::ManArguments),
}

/// Reports wrong arguments, in JSON if `--format json` is among them. Returns the exit code.
fn wrong_use(error: &clap::Error, arguments: &[OsString]) -> u8 {
    let two_words = arguments.windows(2).any(|pair| pair == ["--format", "json"]);
    let output = Output::new(if two_words || arguments.iter().any(|argument| argument == "--format=json") {
        Format::Json
    } else {
        Format::Human
    });
    if output.is_json() {
        return output.fail(&Failure::input(error.render().to_string().trim_end().to_owned()));
    }
    let _ = error.print();
    Failure::input(String::new()).code()
}

/// Runs the tool with `arguments`, of which the first is the name of the program, and returns the exit code.
///
/// Results go to the standard output of the process, and messages to its standard error. Exit codes: 0 success; 1 the
/// key does not exist; 2 damage was found; 3 the input or the arguments are wrong; 4 the store or the disk failed.
///
/// The caller must ignore or catch SIGPIPE and SIGXFSZ, so that the writes that raise them fail with an error. The
/// runtime of Rust ignores the first, and Python ignores both. File descriptors 0 to 2 must be open.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let given: Vec<OsString> = arguments.into_iter().collect();
    let arguments = match Arguments::try_parse_from(&given) {
        Ok(arguments) => arguments,
        Err(error) => {
            if error.use_stderr() {
                return wrong_use(&error, &given);
            }
            // Help and version. If the terminal is closed, there is nobody to report it to.
            let _ = error.print();
            let _ = std::io::stdout().flush();
            return 0;
        }
    };
    let output = Output::new(arguments.format);
    let done = match &arguments.command {
        Command::Stats(arguments) => stats::run(arguments, &output),
        Command::Ls(arguments) => ls::run(arguments, &output),
        Command::Schemas(arguments) => schemas::run(arguments, &output),
        Command::Get(arguments) => get::run(arguments, &output),
        Command::Verify(arguments) => verify::run(arguments, &output),
        Command::Bench(arguments) => bench::run(arguments, &output),
        Command::Report(arguments) => report::run(arguments, &output),
        Command::Preload(arguments) => preload::run(arguments, &output),
        Command::Rm(arguments) => rm::run(arguments, &output),
        Command::Compact(arguments) => compact::run(arguments, &output),
        Command::Copy(arguments) => copy::run(arguments, &output),
        Command::Merge(arguments) => merge::run(arguments, &output),
        Command::Doctor(arguments) => doctor::run(arguments, &output),
        Command::Prune(arguments) => prune::run(arguments, &output),
        Command::Identities(arguments) => identities::run(arguments, &output),
        Command::WhyMiss(arguments) => why_miss::run(arguments, &output),
        Command::Import(arguments) => import::run(arguments, &output),
        Command::ImportTorchcachex(arguments) => import::torchcachex::run(arguments, &output),
        Command::Export(arguments) => export::run(arguments, &output),
        Command::Completions(arguments) => generated::completions(arguments, Arguments::command(), &output),
        Command::Man(arguments) => generated::man(arguments, Arguments::command(), &output),
    };
    match done {
        Ok(()) => 0,
        Err(failure) => output.fail(&failure),
    }
}
