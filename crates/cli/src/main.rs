//! The `tensorcask` command line tool: looks into a store, checks it, and moves data in and out.
//!
//! Exit codes: 0 done; 1 a key is not there; 2 damage was found; 3 the input or its use is wrong; 4 the store or the
//! disk failed.

mod export;
mod failure;
mod generated;
mod get;
mod identities;
mod import;
mod key;
mod ls;
mod metadata;
mod new_file;
mod npy_file;
mod numbers;
mod output;
mod stats;
mod store;
mod verify;
mod warm;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::failure::Failure;
use crate::output::{Format, Output};

/// Looks into a store of tensors, checks it, and moves data in and out.
///
/// A store is the folder <cache dir>/<module id>.
///
/// Exit codes: 0 done; 1 a key is not there; 2 damage was found; 3 the input or its use is wrong; 4 the store or the
/// disk failed.
#[derive(Debug, Parser)]
#[command(name = "tensorcask", version, about, max_term_width = 100)]
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
    /// Lists the weights and versions of a wrapped module whose outputs are kept, or removes some.
    Identities(identities::Arguments),
    /// Puts the rows or tensors of .npy, .npz, .safetensors, Arrow and Parquet files.
    Import(import::Arguments),
    /// Writes all values to an Arrow, .safetensors or .npy file.
    Export(export::Arguments),
    /// Prints the completion script for a shell.
    Completions(generated::CompletionsArguments),
    /// Prints the man page of the program or of a command.
    Man(generated::ManArguments),
}

/// Says what is wrong with the arguments, in the format that they ask for as far as they can be read.
fn wrong_use(error: &clap::Error) -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
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
    ExitCode::from(Failure::input(String::new()).code())
}

/// A file that would exceed the limit of the process (`ulimit -f`) is an error of the write, which is told and cleaned up
/// after, and no sudden death.
fn catch_file_size_limit() {
    use std::sync::{Arc, atomic::AtomicBool};
    // Where that cannot be done, the process dies as before.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

fn main() -> ExitCode {
    catch_file_size_limit();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            if error.use_stderr() {
                return wrong_use(&error);
            }
            // Help and version. A closed terminal is no reason to say more.
            let _ = error.print();
            return ExitCode::SUCCESS;
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
        Command::Completions(arguments) => generated::completions(arguments, Arguments::command(), &output),
        Command::Man(arguments) => generated::man(arguments, Arguments::command(), &output),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.fail(&failure),
    }
}
