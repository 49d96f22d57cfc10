//! `tensorcask completions` and `tensorcask man`: files that packages install with the program.

use std::path::PathBuf;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::failure::Failure;
use crate::new_file::NewFile;
use crate::output::Output;

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArguments {
    /// The shell that reads the script.
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub(crate) struct ManArguments {
    /// Prints the page of this command instead of the page of the program.
    command: Option<String>,
    /// Writes the pages of the program and of every command to this folder instead.
    #[arg(long, value_name = "FOLDER", conflicts_with = "command", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

/// Prints the completion script of `program` for a shell.
pub(crate) fn completions(
    arguments: &CompletionsArguments,
    mut program: Command,
    output: &Output,
) -> Result<(), Failure> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut program, name, &mut script);
    output.raw(&script)
}

/// Prints a man page of `program`, or writes all of them to a folder.
pub(crate) fn man(arguments: &ManArguments, program: Command, output: &Output) -> Result<(), Failure> {
    // `help` repeats what each page says. After `build`, commands know their full names and the global options.
    let mut program = program.disable_help_subcommand(true);
    program.build();
    if let Some(folder) = &arguments.dir {
        for command in program.get_subcommands().chain([&program]) {
            let page = Man::new(command.clone());
            let mut file = NewFile::create(&folder.join(page.get_filename()))?;
            page.render(&mut file).map_err(|error| file.failure(&error))?;
            file.finish()?;
        }
        return Ok(());
    }
    let command = match &arguments.command {
        None => &program,
        Some(name) => program.find_subcommand(name).ok_or_else(|| {
            let names: Vec<&str> = program.get_subcommands().map(Command::get_name).collect();
            Failure::input(format!("there is no command {name:?}: give one of {}", names.join(", ")))
        })?,
    };
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page).map_err(|error| Failure::standard_output(&error))?;
    output.raw(&page)
}
