//! The state of a store.

use std::path::Path;

use tensorcask::folder::{FOLDERS, QUARANTINE, is_file_of_store};
use tensorcask::storage::{DiskStorage, Storage};
use tensorcask::{Options, Reader, Stats};

use super::Finding;

/// A clock that is further behind gives rows times after those of the store, and is probably wrong.
const MOST_CLOCK_SKEW_S: f64 = 60.0;
/// Names that a finding lists.
const MOST_NAMES: usize = 5;

/// All checks of the store in `folder`.
pub(super) fn check(folder: &Path) -> Vec<Finding> {
    let mut findings = match open(folder) {
        Ok(reader) => opened(&reader),
        Err(error) => vec![Finding::bad("store", error.to_string(), "see the error").damage()],
    };
    findings.push(strays(folder));
    findings.push(writers(folder));
    findings.extend(unfinished_copy(folder));
    findings
}

fn open(folder: &Path) -> tensorcask::Result<Reader> {
    Options::new().open_reader_on(std::sync::Arc::new(DiskStorage::new(folder)))
}

fn opened(reader: &Reader) -> Vec<Finding> {
    let report = reader.open_report();
    let stats = match reader.stats() {
        Ok(stats) => stats,
        Err(error) => return vec![Finding::bad("store", error.to_string(), "see the error").damage()],
    };
    let said = format!("{} rows in {} segments and {} runs", report.rows, report.segments, report.runs);
    let mut findings = vec![Finding::ok("store", said)];
    for file in &report.quarantined {
        let advice = "put its rows again, then `tensorcask verify --forget`";
        findings.push(Finding::bad("damage", format!("{}: {}", file.path.display(), file.why), advice).damage());
    }
    for missing in &report.missing {
        findings.push(Finding::bad("damage", missing.to_string(), "").damage());
    }
    if report.quarantined.is_empty() && report.missing.is_empty() {
        findings.push(quarantine(&stats));
    }
    findings.push(clock(&stats));
    findings
}

fn quarantine(stats: &Stats) -> Finding {
    match stats.quarantined {
        0 => Finding::ok("damage", "none is known; `tensorcask verify` reads everything"),
        files => Finding::warn(
            "damage",
            format!("{files} damaged file(s), all acknowledged, take space in {QUARANTINE}/"),
            "remove them when they are no longer needed",
        ),
    }
}

fn clock(stats: &Stats) -> Finding {
    let behind_s = stats.clock_behind_s;
    if behind_s > MOST_CLOCK_SKEW_S {
        let advice = "set this machine's clock right; until then, rows get times after those of the store";
        return Finding::bad("clock", format!("{behind_s:.0} s behind the newest row of the store"), advice);
    }
    Finding::ok("clock", "not behind the newest row of the store")
}

/// Names in the folder that no writer makes.
fn strays(folder: &Path) -> Finding {
    let mut strays: Vec<String> = Vec::new();
    for part in std::iter::once("").chain(FOLDERS).filter(|part| *part != QUARANTINE) {
        let Ok(entries) = std::fs::read_dir(folder.join(part)) else { continue };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
        let is_own = |name: &str| is_file_of_store(part, name) || part.is_empty() && FOLDERS.contains(&name);
        let names = names.filter(|name| !is_own(name));
        strays.extend(names.map(|name| Path::new(part).join(name).display().to_string()));
    }
    strays.sort();
    if strays.is_empty() {
        return Finding::ok("other files", "none");
    }
    let more = if strays.len() > MOST_NAMES { ", …" } else { "" };
    let names = strays.iter().take(MOST_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    let found = format!("{} that the store did not make: {names}{more}", strays.len());
    Finding::warn("other files", found, "move them away, if nobody needs them there")
}

/// The lanes that have a writer now. Takes each lock for a moment.
fn writers(folder: &Path) -> Finding {
    let storage = DiskStorage::new(folder);
    let Ok(entries) = storage.list(Path::new("lanes")) else { return Finding::ok("writers", "none was ever here") };
    let (mut held, mut unknown) = (Vec::new(), 0);
    for entry in entries {
        let Some(lane) = entry.name.strip_suffix(".lock").filter(|_| entry.kind.is_file()) else { continue };
        match storage.try_lock(&Path::new("lanes").join(&entry.name)) {
            Ok(Some(_free)) => {}
            Ok(None) => held.push(lane.to_owned()),
            Err(_) => unknown += 1,
        }
    }
    let held = if held.is_empty() { "none".to_owned() } else { format!("locks are held: {}", held.join(", ")) };
    if unknown == 0 {
        return Finding::ok("writers", held);
    }
    let advice = "these may have a writer: run this as a user who may read the lock files";
    Finding::warn("writers", format!("{held}; {unknown} locks cannot be read"), advice)
}

/// A copy that was killed leaves its folder.
fn unfinished_copy(folder: &Path) -> Option<Finding> {
    let folder = folder.canonicalize().ok()?;
    let left = folder.with_file_name(format!(".{}.copying", folder.file_name()?.to_str()?));
    left.exists().then(|| {
        let advice = "it is being made, or was left by a killed `tensorcask copy`: copying again removes it";
        Finding::warn("copies", format!("{} is unfinished", left.display()), advice)
    })
}
