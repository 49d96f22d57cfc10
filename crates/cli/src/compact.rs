//! `tensorcask compact`

use std::path::PathBuf;
use std::time::Duration;

use tensorcask::{CompactReport, Compaction, Dtype, KeyKind, Order, Store};

use crate::failure::Failure;
use crate::import::arguments::CodecName;
use crate::import::keys::KeySource;
use crate::output::{Output, bytes};

/// Arguments of `compact`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store's folder.
    #[arg(value_hint = clap::ValueHint::DirPath)]
    store: PathBuf,
    /// Rewrites segments in which at most this share of the rows, from 0 to 1, is neither overwritten nor deleted.
    #[arg(long, value_name = "SHARE", default_value_t = 0.95)]
    live_share: f64,
    /// Leaves small segments as they are; without this option they are joined.
    #[arg(long)]
    no_join: bool,
    /// Compresses all rows in this way, or decompresses them; without this option they stay as they are.
    #[arg(long, value_enum)]
    codec: Option<CodecName>,
    /// Stores F32 and F64 as F16 or BF16 (lossy); without this option they stay as they are.
    #[arg(long, value_parser = ["F16", "BF16"])]
    store_as: Option<String>,
    /// Sorts the rows by key, so that reading them in this order reads files from front to back.
    #[arg(long)]
    sort: bool,
    /// Sorts the rows in the order of the keys in this file, and all other rows behind them by key: a text file with one
    /// key per line, or a .npy file.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with = "sort")]
    order: Option<PathBuf>,
    /// Writes at most this many bytes per second (default: no limit).
    #[arg(long, value_name = "N")]
    bytes_per_s: Option<u64>,
    /// Waits this many seconds for another process that compacts the store.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait_s: u64,
    /// Shows what would be rewritten and freed, and rewrites nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Rewrites segments without rows that were overwritten or deleted. Ends with exit code 2 if damaged segments were
/// left as they are.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    if !(0.0..=1.0).contains(&arguments.live_share) {
        return Err(Failure::input(format!("--live-share is {}: give a share from 0 to 1", arguments.live_share)));
    }
    let compaction = Compaction::new()
        .live_share(arguments.live_share)
        .join(!arguments.no_join)
        .codec(arguments.codec.map(CodecName::codec))
        .store_as(arguments.store_as.as_deref().and_then(Dtype::from_name))
        .bytes_per_s(arguments.bytes_per_s)
        .patience(Duration::from_secs(arguments.wait_s))
        .dry_run(arguments.dry_run);
    let store = crate::store::any_lane(&arguments.store)?;
    let compaction = compaction.sort(order(arguments, store.key_kind())?);
    let report = with_progress(&store, output, || store.compact(&compaction))?;
    store.close()?;
    for skipped in &report.skipped {
        output.warn(&format!("{} was left as it is: {}", skipped.path.display(), skipped.why));
    }
    output.result(|| summary(&report), &report)?;
    if report.skipped.is_empty() { Ok(()) } else { Err(Failure::damage()) }
}

/// The order that the arguments ask for, in a store with keys of `kind`.
fn order(arguments: &Arguments, kind: Option<KeyKind>) -> Result<Option<Order>, Failure> {
    let Some(path) = &arguments.order else { return Ok(arguments.sort.then_some(Order::Keys)) };
    let keys = KeySource::files(std::slice::from_ref(path), kind)?.reader().rest()?;
    Ok(Some(Order::Given(keys)))
}

/// Compacts, and shows how far it is meanwhile.
fn with_progress(
    store: &Store,
    output: &Output,
    compact: impl FnOnce() -> tensorcask::Result<CompactReport>,
) -> tensorcask::Result<CompactReport> {
    const EVERY: Duration = Duration::from_millis(100);
    let bar = output.progress_bytes(0);
    if bar.is_hidden() {
        return compact();
    }
    let (done, ended) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let shown = bar.clone();
        scope.spawn(move || {
            let mut step = None;
            while ended.recv_timeout(EVERY) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let progress = store.compaction_progress().filter(|progress| progress.total_bytes > 0);
                let Some(progress) = progress else { continue };
                // Each step has a rate of its own.
                if step.replace(progress.is_rewriting) != Some(progress.is_rewriting) {
                    shown.reset();
                    shown.set_message(if progress.is_rewriting { "rewriting " } else { "examining " });
                }
                shown.set_length(progress.total_bytes);
                shown.set_position(progress.done_bytes);
            }
        });
        let report = compact();
        drop(done);
        bar.finish_and_clear();
        report
    })
}

fn summary(report: &CompactReport) -> String {
    let would = if report.dry_run { "would be " } else { "" };
    let (rewritten, written) = (report.segments_rewritten, report.segments_written);
    let segments = format!("{rewritten} of {} segments {would}rewritten to {written}", report.segments);
    let recoded = match report.rows_recoded {
        0 => String::new(),
        rows => format!(", {rows} rows {would}stored as asked"),
    };
    let sorted = match report.rows_sorted {
        0 => String::new(),
        rows => format!(", {rows} rows {would}sorted"),
    };
    let rows = format!("{} rows {would}dropped{recoded}{sorted}", report.rows_dropped);
    let about = if report.dry_run { "about " } else { "" };
    let freed = format!("{about}{} of {} {would}freed", bytes(report.bytes_freed), bytes(report.bytes));
    format!("{segments}, {rows}, {freed}")
}
