//! Puts the rows of a checked plan.

use tensorcask::{Dtype, Durability, Key, KeyKind, Store};

use super::arguments::Arguments;
use super::keys::KeySource;
use super::plan::Plan;
use super::source::{Chunk, Rows};
use super::{census, overflow};
use crate::failure::Failure;
use crate::metadata::{self, Metadata};
use crate::output::Output;

/// The result of an import.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Bytes of tensors.
    pub bytes: u64,
    /// The number of keys that the store did not have.
    pub new: u64,
    /// The number of finite elements that were stored as infinity.
    pub infinite: u64,
    /// Messages about metadata whose value was replaced.
    pub metadata_replaced: Vec<String>,
    rows: u64,
}

/// Opens the store and puts all rows.
pub(crate) fn run(arguments: &Arguments, plan: &Plan, output: &Output) -> Result<Done, Failure> {
    crate::store::check_place(&arguments.store)?;
    let has_metadata = plan.sources.iter().any(|(source, _)| !source.metadata().is_empty());
    let mut kept = match metadata::load(&arguments.store) {
        // Unreadable metadata is a failure only if the import adds to it.
        Err(failure) if !has_metadata && failure.is_of_disk() => Metadata::new(),
        loaded => loaded?,
    };
    let store = arguments.open_store()?;
    check_store(arguments, plan, &store)?;
    let mut done = Done::default();
    let bar = output.progress(plan.rows);
    let with_progress = |failure: Failure, done: &Done| {
        let total = plan.rows;
        failure.and(&match done.rows {
            0 => "; no row was stored".into(),
            rows => format!("; {rows} of {total} rows were stored before that and are kept"),
        })
    };
    put_all(plan, &store, arguments.store_as(), &mut done, &mut |rows| bar.set_position(rows))
        .map_err(|failure| with_progress(failure, &done))?;
    store.close().map_err(|error| with_progress(error.into(), &done))?;
    bar.finish_and_clear();
    if merge(plan, &mut kept, &mut done) {
        metadata::save(&arguments.store, &kept)
            .map_err(|failure| failure.and("; all rows are stored, but their metadata is not"))?;
    }
    Ok(done)
}

/// Checks the plan against the store, before the first put.
fn check_store(arguments: &Arguments, plan: &Plan, store: &Store) -> Result<(), Failure> {
    let Some(kind) = store.key_kind() else { return Ok(()) };
    if kind != plan.kind && plan.rows > 0 {
        let hint = match (kind, &plan.keys) {
            (KeyKind::Str, KeySource::Numbers { .. }) => {
                "give --keys or --key-column, or make text keys of row numbers with --key-prefix"
            }
            _ if arguments.key_prefix.is_some() => {
                "--key-prefix makes text keys: leave it out, or choose another store"
            }
            (_, KeySource::Numbers { .. }) => "give the keys with --keys or --key-column",
            _ => "give --key-kind, or choose another store",
        };
        return Err(Failure::input(format!(
            "the keys of {} are {}, but those of the input are {}: {hint}",
            arguments.store.display(),
            kind.name(),
            plan.kind.name()
        )));
    }
    if arguments.overwrite || !matches!(plan.keys, KeySource::Numbers { .. }) {
        return Ok(());
    }
    let (mut existing, mut first) = (0_u64, None);
    plan.each_key(&mut |keys| {
        let found = store.contains_batch(&keys)?;
        for (key, _) in keys.iter().zip(found).filter(|(_, found)| *found) {
            existing += 1;
            first.get_or_insert_with(|| key.clone());
        }
        Ok(())
    })?;
    match first {
        Some(first) => Err(Failure::input(format!(
            "the rows have no keys, and {existing} of their {} row numbers are already keys of {}, the first is \
             {first}: start from another number with --first-key, make other keys with --key-prefix or --keys, or \
             replace the existing values with --overwrite",
            plan.rows,
            arguments.store.display()
        ))),
        None => Ok(()),
    }
}

fn put_all(
    plan: &Plan,
    store: &Store,
    store_as: Option<Dtype>,
    done: &mut Done,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Failure> {
    // An empty store has nothing to replace, so the lookup of each key is skipped.
    let fresh = store.key_kind().is_none();
    let mut reader = plan.keys.reader();
    for (source, rows) in &plan.sources {
        let mut left = *rows;
        for chunk in source.chunks()? {
            let Chunk { keys, len, rows } = chunk?;
            let keys = match keys {
                Some(keys) => keys,
                None => reader.next(len)?,
            };
            let changed = || Failure::input(format!("{}: it changed during the import", source.path().display()));
            if keys.len() != len || len as u64 > left {
                return Err(changed());
            }
            let keys = plan.prefixed(keys)?;
            if !fresh {
                done.new += census::absent(store, &keys)?;
            }
            if let Some(target) = store_as {
                done.infinite += overflow::count_rows(&rows, target);
            }
            done.bytes += put(store, &keys, &rows)?;
            // Written before the next chunk is read, so that memory stays bounded.
            store.flush_with(Durability::Buffered)?;
            left -= len as u64;
            done.rows += len as u64;
            progress(done.rows);
        }
        if left > 0 {
            return Err(Failure::input(format!("{}: it became shorter during the import", source.path().display())));
        }
    }
    if fresh {
        done.new = plan.distinct;
    }
    Ok(())
}

/// Puts rows; returns the size of their tensors in bytes.
pub(super) fn put(store: &Store, keys: &[Key], rows: &Rows) -> Result<u64, Failure> {
    match rows {
        Rows::Tensors { dtype, shape, data } => {
            store.put_rows_bytes(keys, *dtype, shape, data)?;
            Ok(data.len() as u64)
        }
        Rows::Values(values) => {
            store.put_batch(keys, values)?;
            Ok(values.iter().map(super::source::tensor_len_bytes).sum::<usize>() as u64)
        }
    }
}

/// Merges the metadata of the files into that of the store; returns whether it changed.
fn merge(plan: &Plan, kept: &mut Metadata, done: &mut Done) -> bool {
    let mut changed = false;
    for (name, text) in plan.sources.iter().flat_map(|(source, _)| source.metadata()) {
        match kept.insert(name.clone(), text.clone()) {
            Some(before) if before == text => {}
            Some(before) => {
                done.metadata_replaced.push(format!("the metadata {name:?} is now {text:?}; it was {before:?}"));
                changed = true;
            }
            None => changed = true,
        }
    }
    changed
}
