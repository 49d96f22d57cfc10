//! `tensorcask schemas`

use crate::failure::Failure;
use crate::output::Output;
use crate::store::ReadArguments;

/// Arguments of `schemas`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    read: ReadArguments,
}

/// Lists the structures of values, most rows first. Rows that were overwritten or deleted are counted until they are
/// compacted.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let reader = crate::store::reader(&arguments.read, output)?;
    for used in reader.schemas()? {
        output.result(|| format!("{} rows in {} segments: {}", used.rows, used.segments, used.schema), &used)?;
    }
    Ok(())
}
