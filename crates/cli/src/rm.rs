//! `tensorcask rm`

use serde_json::json;
use tensorcask::{Key, Store};

use crate::failure::Failure;
use crate::output::{Output, one_line};
use crate::store::ReadArguments;

/// Arguments of `rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    read: ReadArguments,
    /// The keys: text, numbers, or hexadecimal bytes, depending on the store's kind of keys.
    #[arg(value_name = "KEY", required_unless_present = "prefix")]
    keys: Vec<String>,
    /// Deletes all keys that start with this.
    #[arg(long, conflicts_with = "keys")]
    prefix: Option<String>,
    /// Shows how many keys would be deleted, and deletes nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Deletes keys. Ends with exit code 1 if a key does not exist; the others are deleted.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let (deleted, absent) = if arguments.dry_run { look(arguments, output)? } else { delete(arguments, output)? };
    let would = if arguments.dry_run { "would be " } else { "" };
    output.line(
        || format!("{deleted} keys {would}deleted"),
        || json!({ "deleted": deleted, "dry_run": arguments.dry_run, "absent": absent }),
    )?;
    match absent.first() {
        None => Ok(()),
        Some(key) => {
            let (key, others) = (key.to_string(), absent.len() - 1);
            let others = if others == 0 { String::new() } else { format!(" (nor {others} others)") };
            let store = arguments.read.store.display();
            Err(Failure::missing(format!("there is no key {} in {store}{others}", one_line(&key))))
        }
    }
}

/// How many of the keys exist, and those that do not.
fn look(arguments: &Arguments, output: &Output) -> Result<(u64, Vec<Key>), Failure> {
    let reader = crate::store::reader(&arguments.read, output)?;
    if let Some(prefix) = &arguments.prefix {
        return Ok((reader.count_prefix(&crate::key::parse_key(prefix, reader.key_kind())?)?, Vec::new()));
    }
    let keys = parse(arguments, reader.key_kind())?;
    let there = reader.contains_batch(&keys)?;
    Ok((there.iter().filter(|there| **there).count() as u64, absent(keys, &there)))
}

/// Deletes the keys. Returns how many existed, and those that did not.
fn delete(arguments: &Arguments, output: &Output) -> Result<(u64, Vec<Key>), Failure> {
    let store = crate::store::any_lane(&arguments.read.store)?;
    let kind = store.key_kind();
    let done = match &arguments.prefix {
        Some(prefix) => (delete_prefix(&store, &crate::key::parse_key(prefix, kind)?, output)?, Vec::new()),
        None => {
            let keys = parse(arguments, kind)?;
            let there = store.contains_batch(&keys)?;
            (store.delete_batch(&keys)? as u64, absent(keys, &there))
        }
    };
    store.close()?;
    Ok(done)
}

/// Deletes all keys that start with `prefix`, in batches. Returns how many.
fn delete_prefix(store: &Store, prefix: &Key, output: &Output) -> Result<u64, Failure> {
    const KEYS: usize = 8192;
    let bar = output.progress(0);
    if bar.is_hidden() {
        return Ok(store.delete_prefix(prefix)?);
    }
    store.refresh()?;
    bar.set_length(store.count_prefix(prefix)?);
    let (mut keys, mut deleted) = (store.prefix(prefix), 0);
    loop {
        let batch: Vec<Key> = keys.by_ref().take(KEYS).collect::<tensorcask::Result<_>>()?;
        if batch.is_empty() {
            bar.finish_and_clear();
            return Ok(deleted);
        }
        deleted += store.delete_batch(&batch)? as u64;
        bar.inc(batch.len() as u64);
    }
}

fn parse(arguments: &Arguments, kind: Option<tensorcask::KeyKind>) -> Result<Vec<Key>, Failure> {
    let mut keys: Vec<Key> =
        arguments.keys.iter().map(|key| crate::key::parse_key(key, kind)).collect::<Result<_, _>>()?;
    keys.sort();
    keys.dedup();
    Ok(keys)
}

fn absent(keys: Vec<Key>, there: &[bool]) -> Vec<Key> {
    keys.into_iter().zip(there).filter(|(_, there)| !**there).map(|(key, _)| key).collect()
}
