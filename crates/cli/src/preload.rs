//! `tensorcask preload`

use crate::failure::Failure;
use crate::output::{Output, bytes};
use crate::store::ReadArguments;

/// Arguments of `preload`.
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
    let reader = crate::store::reader(&arguments.read, output)?;
    let (limit_bytes, stats) = (arguments.limit_bytes.unwrap_or(u64::MAX), reader.stats()?);
    let bar = output.progress_bytes(limit_bytes.min(stats.run_bytes + stats.segment_bytes));
    let preloaded = reader.preload_with(limit_bytes, &mut |done| bar.set_position(done))?;
    bar.finish_and_clear();
    let human = || {
        let left = if preloaded.left_bytes == 0 {
            String::new()
        } else {
            format!(", {} left out", bytes(preloaded.left_bytes))
        };
        format!(
            "in memory: {} of index, {} of segments ({} read from the disk{left})",
            bytes(preloaded.index_bytes),
            bytes(preloaded.segment_bytes),
            bytes(preloaded.read_bytes),
        )
    };
    output.result(human, &preloaded)
}
