//! Limits of the system.

use std::path::Path;

use super::Finding;

/// A handle keeps descriptors for active segments and locks only.
const FEW_DESCRIPTORS: u64 = 256;

/// Compares the limits of this process with what the store in `folder` needs.
pub(super) fn check(folder: &Path) -> Vec<Finding> {
    vec![descriptors(), maps(folder)]
}

fn descriptors() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(limit) if limit < FEW_DESCRIPTORS => {
            Finding::warn("descriptors", format!("{limit} at most"), "raise the limit (ulimit -n)")
        }
        Some(limit) => Finding::ok("descriptors", format!("{limit} at most")),
        None => Finding::ok("descriptors", "no limit"),
    }
}

/// From an eighth of the maps on, segments are mapped when they are first read; from half on, they are copied.
fn maps(folder: &Path) -> Finding {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let Some(limit) = limit.and_then(|text| text.trim().parse::<u64>().ok()) else {
        return Finding::ok("map count", "the system does not tell its limit");
    };
    let segments = std::fs::read_dir(folder.join("segments")).map_or(0, |entries| entries.count() as u64);
    let said = format!("{segments} segments, {limit} maps at most");
    if segments > limit / 2 {
        let advice =
            "rows of further segments are copied into memory: run `tensorcask compact`, or raise vm.max_map_count";
        return Finding::warn("map count", said, advice);
    }
    Finding::ok("map count", said)
}
