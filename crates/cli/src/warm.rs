//! `tensorcask warm`

use crate::failure::Failure;
use crate::output::{Output, bytes};
use crate::store::ReadArguments;

/// Arguments of `warm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    read: ReadArguments,
    /// Preloads at most this many bytes (default: all).
    #[arg(long)]
    limit_bytes: Option<u64>,
}

/// Preloads the index and the sealed segments into the page cache, which all processes share.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let warmed = crate::store::reader(&arguments.read, output)?.warm(arguments.limit_bytes.unwrap_or(u64::MAX))?;
    let human = || {
        let left =
            if warmed.left_bytes == 0 { String::new() } else { format!(", {} left out", bytes(warmed.left_bytes)) };
        format!(
            "in memory: {} of index, {} of segments ({} read from the disk{left})",
            bytes(warmed.index_bytes),
            bytes(warmed.segment_bytes),
            bytes(warmed.read_bytes),
        )
    };
    output.line(human, || serde_json::to_value(warmed).unwrap_or_default())
}
