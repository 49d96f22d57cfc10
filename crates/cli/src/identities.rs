//! `tensorcask identities`

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tensorcask_cache::identities::{Pruned, Stays, StoredIdentity, interrupted, list, prune};

use crate::failure::Failure;
use crate::output::{Output, bytes, one_line};

/// Arguments of `identities`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("chosen").args(["prune", "prune_unused_s"]))]
pub(crate) struct Arguments {
    /// The folder of a wrapped module: <cache dir>/<module id>.
    #[arg(value_hint = clap::ValueHint::DirPath)]
    folder: PathBuf,
    /// Removes these identities. An identity is kept, and the command fails, if a writer has it open, or if its folder
    /// holds quarantined files or files that tensorcask did not create. No process may be reading them.
    #[arg(long, value_name = "ID", num_args = 1..)]
    prune: Vec<String>,
    /// Removes the identities that were neither opened for writing nor written to for this many seconds and that no
    /// writer has open. Reading does not count as use.
    #[arg(long, value_name = "SECONDS")]
    prune_unused_s: Option<u64>,
    /// Only lists what would be removed.
    #[arg(long, requires = "chosen")]
    dry_run: bool,
}

/// Lists the cached identities of a module, most recently used first, or removes some.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let folder = &arguments.folder;
    let (found, left) = listed(folder)?;
    if let Some(seconds) = arguments.prune_unused_s {
        return prune_unused(arguments, &found, Duration::from_secs(seconds), output);
    }
    if !arguments.prune.is_empty() {
        return prune_listed(folder, &arguments.prune, arguments.dry_run, found.iter().chain(&left), output);
    }
    found.iter().try_for_each(|identity| output.line(|| human(identity), || json(identity)))?;
    left.iter().try_for_each(|left| {
        let line = || format!("{}  {}, {INTERRUPTED}", left.id, bytes(left.bytes));
        output.line(line, || json!({ "id": left.id, "bytes": left.bytes, "interrupted": true }))
    })
}

/// The identities in a module's folder, and what interrupted removals left.
fn listed(folder: &Path) -> Result<(Vec<StoredIdentity>, Vec<StoredIdentity>), Failure> {
    std::fs::read_dir(folder).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::input(format!("{} does not exist", folder.display())),
        _ => Failure::io(folder, &error),
    })?;
    let (found, left) = (list(folder)?, interrupted(folder)?);
    if found.is_empty() && left.is_empty() {
        return Err(Failure::input(format!(
            "{} has no identities of a wrapped module: give the folder <cache dir>/<module id>",
            folder.display()
        )));
    }
    Ok((found, left))
}

/// Removes the identities `named` of the module's folder, or only lists them.
pub(crate) fn prune_named(folder: &Path, named: &[String], dry_run: bool, output: &Output) -> Result<(), Failure> {
    let (found, left) = listed(folder)?;
    prune_listed(folder, named, dry_run, found.iter().chain(&left), output)
}

const INTERRUPTED: &str = "left by an interrupted removal: the next removal finishes it";

fn prune_listed<'a>(
    folder: &Path,
    named: &[String],
    dry_run: bool,
    mut there: impl Iterator<Item = &'a StoredIdentity> + Clone,
    output: &Output,
) -> Result<(), Failure> {
    if let Some(unknown) = named.iter().find(|id| there.clone().all(|identity| identity.id != **id)) {
        let first = there.next().map(|identity| identity.id.clone()).unwrap_or_default();
        return Err(Failure::input(format!(
            "{} has no identity {unknown:?}, so nothing was removed: give ids as this command lists them, such \
             as {first}",
            folder.display()
        )));
    }
    let pruned = prune(folder, dry_run, |identity| named.contains(&identity.id))?;
    say(&pruned, dry_run, output)?;
    fail_if_kept(pruned.kept.iter())
}

fn prune_unused(
    arguments: &Arguments,
    found: &[StoredIdentity],
    unused: Duration,
    output: &Output,
) -> Result<(), Failure> {
    let now = SystemTime::now();
    // A time in the future comes from another clock: treat it as now.
    let age = |identity: &StoredIdentity| identity.last_used.map(|used| now.duration_since(used).unwrap_or_default());
    let is_old = |identity: &StoredIdentity| age(identity).is_some_and(|age| age >= unused);
    let pruned = prune(&arguments.folder, arguments.dry_run, is_old)?;
    for identity in found.iter().filter(|identity| !is_old(identity)) {
        let why = age(identity).map_or("it is not known when it was used".to_owned(), |age| {
            format!("it was used {} s ago", age.as_secs())
        });
        say_kept(identity, &why, output)?;
    }
    say(&pruned, arguments.dry_run, output)?;
    // An open identity is in use, so keeping it is not a failure.
    fail_if_kept(pruned.kept.iter().filter(|(_, why)| !matches!(why, Stays::Open(_))))
}

/// Prints what was removed and what was kept.
fn say(pruned: &Pruned, dry_run: bool, output: &Output) -> Result<(), Failure> {
    for (identity, why) in &pruned.kept {
        say_kept(identity, &why.to_string(), output)?;
    }
    for identity in pruned.removed.iter().chain(&pruned.finished) {
        let line = || {
            let rows = identity.rows.map_or(String::new(), |rows| format!(", {rows} rows"));
            format!("{}  {}{rows}, {}", identity.id, verb(dry_run), bytes(identity.bytes))
        };
        let json = || json!({ "id": identity.id, "removed": !dry_run, "rows": identity.rows, "bytes": identity.bytes });
        output.line(line, json)?;
    }
    let (removed, freed) = (pruned.removed.len() + pruned.finished.len(), pruned.freed_bytes());
    let total =
        || format!("{removed} {}, {} {}", verb(dry_run), bytes(freed), if dry_run { "in all" } else { "freed" });
    output.line(total, || json!({ "dry_run": dry_run, "identities": removed, "freed_bytes": freed }))
}

fn verb(dry_run: bool) -> &'static str {
    if dry_run { "would be removed" } else { "removed" }
}

fn say_kept(identity: &StoredIdentity, why: &str, output: &Output) -> Result<(), Failure> {
    let line = || format!("{}  kept: {}", identity.id, one_line(why));
    output.line(line, || json!({ "id": identity.id, "removed": false, "why": why, "bytes": identity.bytes }))
}

fn fail_if_kept<'a>(kept: impl Iterator<Item = &'a (StoredIdentity, Stays)>) -> Result<(), Failure> {
    let kept: Vec<_> = kept.collect();
    let Some((identity, why)) = kept.first() else { return Ok(()) };
    let more = if kept.len() > 1 { format!(", and {} more", kept.len() - 1) } else { String::new() };
    let message = format!("{} was not removed: {}{more}", identity.id, one_line(&why.to_string()));
    // Foreign files are wrong input; otherwise a writer or the disk is the cause.
    let is_input = kept.iter().any(|(_, why)| matches!(why, Stays::Foreign(_)));
    Err(if is_input { Failure::input(message) } else { Failure::disk(message) })
}

fn human(identity: &StoredIdentity) -> String {
    let record = record(identity);
    let text = |name: &str| record.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let named = ["version", "instance", "cache_dtype", "structure"].into_iter();
    let parts = named.filter_map(|name| text(name).map(|text| format!(", {name} {text:?}"))).collect::<String>();
    let arguments = record.get("arguments").filter(|map| map.as_object().is_some_and(|map| !map.is_empty()));
    let arguments = arguments.map(|map| format!(", arguments {map}")).unwrap_or_default();
    let weights = record.get("weights").and_then(Value::as_object).map_or(0, serde_json::Map::len);
    let rows = identity.rows.map_or("rows unknown".to_owned(), |rows| format!("{rows} rows"));
    format!("{}  {rows}, {}{parts}{arguments}, {weights} weights", identity.id, bytes(identity.bytes))
}

fn json(identity: &StoredIdentity) -> Value {
    let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).ok();
    json!({
        "id": identity.id,
        "rows": identity.rows,
        "bytes": identity.bytes,
        "last_used_s": identity.last_used.and_then(since),
        "identity": record(identity),
    })
}

/// The record that the identity was computed from.
fn record(identity: &StoredIdentity) -> Value {
    identity.record.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null)
}
