//! `tensorcask merge`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;
use tensorcask::storage::MemoryStorage;
use tensorcask::{Merge, MergeReport, Options, Reader};

use crate::failure::Failure;
use crate::metadata::{self, Metadata};
use crate::output::{Output, bytes, one_line};
use crate::store::{ReadArguments, WriteArguments};

/// Arguments of `merge`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folders of the stores to merge. They are not changed.
    #[arg(value_name = "STORE", required = true, value_hint = clap::ValueHint::DirPath)]
    stores: Vec<PathBuf>,
    /// The store that gets their rows. It is created if it does not exist.
    #[arg(long, value_name = "STORE", value_hint = clap::ValueHint::DirPath)]
    into: PathBuf,
    /// Merges nothing if a key has different values in two stores; otherwise the newest value is kept.
    #[arg(long)]
    fail_on_conflict: bool,
    /// Merges stores that have lost rows, without the rows that cannot be read.
    #[arg(long)]
    damaged: bool,
    /// Shows what would be merged, and merges nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    write: WriteArguments,
}

/// Merges stores into one. Ends with exit code 2 if rows could not be read.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let into = &arguments.into;
    let sources: Vec<Reader> = arguments.stores.iter().map(|store| open(store, arguments)).collect::<Result<_, _>>()?;
    crate::store::check_place(into)?;
    arguments.stores.iter().try_for_each(|store| check_identity(store, into))?;
    let metadata = joined_metadata(arguments)?;
    check_key_kinds(&sources, arguments)?;
    if !arguments.damaged {
        sources.iter().zip(&arguments.stores).try_for_each(|(source, store)| check_whole(source, store))?;
    }
    if !into.exists() && (arguments.dry_run || arguments.fail_on_conflict) {
        // Nothing is made in a dry run, or if the merge is refused.
        let store = Options::new().open_on(Arc::new(MemoryStorage::new()))?;
        let report = merge(&store, &sources, true, arguments, output)?;
        if arguments.dry_run {
            return tell(&report, arguments, output);
        }
    }
    let store = crate::store::writer(into, &arguments.write, Options::new().compaction_live_share(0.0))?;
    let report = merge(&store, &sources, arguments.dry_run, arguments, output)?;
    store.close()?;
    if !arguments.dry_run && !metadata.is_empty() {
        metadata::save(into, &metadata)?;
    }
    tell(&report, arguments, output)
}

fn merge(
    store: &tensorcask::Store,
    sources: &[Reader],
    dry_run: bool,
    arguments: &Arguments,
    output: &Output,
) -> Result<MergeReport, Failure> {
    let options = Merge::new().dry_run(dry_run).fail_on_conflict(arguments.fail_on_conflict).damaged(arguments.damaged);
    let bar = output.progress(0);
    let merged = store.merge_from(sources, &options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    merged.map_err(|error| match error.is_corrupt() {
        true => Failure::from(error).and("; give --damaged to merge the rows that can be read"),
        false => Failure::from(error),
    })
}

fn open(store: &Path, arguments: &Arguments) -> Result<Reader, Failure> {
    crate::store::open(&ReadArguments::of(store, &arguments.write))
}

/// Refuses a store that has lost rows.
fn check_whole(source: &Reader, store: &Path) -> Result<(), Failure> {
    match crate::store::left_out(source) {
        0 => Ok(()),
        left_out => Err(Failure::damaged(format!(
            "{left_out} file(s) of {} are left out, so rows are missing (`tensorcask verify` lists them): give \
             --damaged to merge the rows that can be read",
            store.display()
        ))),
    }
}

/// Refuses stores of different kinds of keys before the target is created.
fn check_key_kinds(sources: &[Reader], arguments: &Arguments) -> Result<(), Failure> {
    let mut kinds =
        sources.iter().zip(&arguments.stores).filter_map(|(source, store)| Some((source.key_kind()?, store)));
    let Some((kind, first)) = kinds.next() else { return Ok(()) };
    match kinds.find(|(other, _)| *other != kind) {
        None => Ok(()),
        Some((other, store)) => Err(Failure::input(format!(
            "the keys of {} are {}, those of {} are {}: merge stores of one kind of keys",
            first.display(),
            kind.name(),
            store.display(),
            other.name()
        ))),
    }
}

/// Refuses stores of different cached modules. The caching layer keeps a store for each identity (weights, version,
/// arguments), in a folder with this file.
fn check_identity(store: &Path, into: &Path) -> Result<(), Failure> {
    let (one, other) = (identity_of(store)?, identity_of(into)?);
    match (&one, &other) {
        (Some(one), Some(other)) if one != other => Err(Failure::input(format!(
            "{} and {} hold outputs of different weights, versions or arguments (identity.json): their keys do not \
             mean the same",
            store.display(),
            into.display()
        ))),
        _ => Ok(()),
    }
}

fn identity_of(store: &Path) -> Result<Option<Json>, Failure> {
    let folder = store.canonicalize().unwrap_or_else(|_| store.to_path_buf());
    let Some(path) = folder.parent().map(|parent| parent.join("identity.json")) else { return Ok(None) };
    match std::fs::read(&path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io(&path, &error)),
    }
}

/// The metadata of all stores. Refuses a name with two texts.
fn joined_metadata(arguments: &Arguments) -> Result<Metadata, Failure> {
    let mut joined = metadata::load(&arguments.into)?;
    for store in &arguments.stores {
        for (name, text) in metadata::load(store)? {
            let known = joined.entry(name.clone()).or_insert_with(|| text.clone());
            if *known != text {
                return Err(Failure::input(format!(
                    "the metadata {name:?} of {} is {text:?}, another store has {known:?}: merge stores of the same \
                     data, or change metadata.json",
                    store.display()
                )));
            }
        }
    }
    Ok(joined)
}

fn tell(report: &MergeReport, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    if report.conflicts > 0 {
        let keys: Vec<String> =
            report.conflicting_keys.iter().take(3).map(|key| one_line(&key.to_string()).into()).collect();
        let more = if report.conflicts > keys.len() as u64 { ", …" } else { "" };
        output.warn(&format!(
            "{} keys have differing values, of which the newest is kept: {}{more}",
            report.conflicts,
            keys.join(", ")
        ));
    }
    if report.rows_damaged > 0 {
        output.warn(&format!("{} rows could not be read and are left out", report.rows_damaged));
    }
    output.result(|| summary(report, arguments), report)?;
    if report.rows_damaged == 0 { Ok(()) } else { Err(Failure::damage()) }
}

fn summary(report: &MergeReport, arguments: &Arguments) -> String {
    let would = if report.dry_run { "would be " } else { "" };
    let rows =
        format!("{} of {} rows {would}merged into {}", report.rows_merged, report.rows, arguments.into.display());
    let (replaced, kept, deleted) = (report.rows_replaced, report.rows_kept, report.tombstones_merged);
    let written = if report.dry_run { String::new() } else { format!(", {} written", bytes(report.bytes_written)) };
    format!("{rows}, {replaced} {would}replaced, {deleted} deletions, {kept} were as new already{written}")
}
