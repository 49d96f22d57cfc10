//! The machine and the software of a run.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::Fallible;

/// The machine, and the state of the project.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory in GiB.
    pub memory_gib: f64,
    /// The kernel's release.
    pub kernel: String,
    /// The type of the file system that stores were on.
    pub file_system: String,
    /// The day, in UTC.
    pub date: String,
    /// The commit, with `+` if files were changed.
    pub commit: String,
    /// The compiler.
    pub compiler: String,
    /// The load average over the minute before the run.
    pub load_before: String,
    /// The measured crates and their versions.
    pub versions: Vec<(String, String)>,
}

impl Machine {
    /// This machine, with stores in `dir`.
    ///
    /// # Errors
    /// If the kernel's files cannot be read.
    pub fn here(dir: &Path) -> Fallible<Self> {
        let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
        let cpu = cpu.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        let kilobytes: f64 = memory.split_whitespace().nth(1).ok_or("no number in /proc/meminfo")?.parse()?;
        let load = std::fs::read_to_string("/proc/loadavg")?;
        let changed = say("git", &["-C", env!("CARGO_MANIFEST_DIR"), "status", "--porcelain", "-uno"]);
        let commit = say("git", &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"]);
        Ok(Self {
            cpu: cpu.unwrap_or("unknown").into(),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: (kilobytes / 1024.0 / 102.4).round() / 10.0,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned() + memory_note(),
            file_system: file_system(dir)?,
            date: say("date", &["-u", "+%F"]),
            commit: if changed.is_empty() { commit } else { commit + "+" },
            compiler: say("rustc", &["--version"]),
            load_before: load.split_whitespace().next().unwrap_or("unknown").into(),
            versions: versions(),
        })
    }
}

/// The output of a program; empty if it fails, as a report without a commit is still useful.
fn say(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// Whether the guest of a hypervisor returns free memory to its host. Each first touch of a page then costs some
/// microseconds, in whatever is measured.
fn memory_note() -> &'static str {
    /// The kernel does not make blocks of more pages than 2 to this power.
    const LARGEST_ORDER: u32 = 10;
    let order = std::fs::read_to_string("/sys/module/page_reporting/parameters/page_reporting_order");
    match order.ok().and_then(|order| order.trim().parse::<u32>().ok()) {
        Some(order) if order <= LARGEST_ORDER => " (gives free memory back to its host)",
        Some(_) => " (gives no free memory back to its host)",
        None => "",
    }
}

/// The type of the file system that holds `dir`: that of the mount with the longest path above it.
fn file_system(dir: &Path) -> Fallible<String> {
    let dir = dir.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        dir.starts_with(path).then_some((path.len(), kind))
    });
    Ok(mounts.max().map_or("unknown", |(_, kind)| kind).into())
}

/// The versions in the lock file.
fn versions() -> Vec<(String, String)> {
    let named = [
        "fjall",
        "hashbrown",
        "heed",
        "lmdb-master-sys",
        "redb",
        "rocksdb",
        "librocksdb-sys",
        "rusqlite",
        "libsqlite3-sys",
    ];
    let mut versions: Vec<(String, String)> = Vec::new();
    let mut lines = include_str!("../Cargo.lock").lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("name = ").map(|name| name.trim_matches('"')) else { continue };
        let version = lines.next().and_then(|line| line.strip_prefix("version = "));
        if let (true, Some(version)) = (named.contains(&name), version) {
            // The lock file is sorted. Of several versions the newest is ours; the others belong to other crates.
            versions.retain(|(other, _)| other != name);
            versions.push((name.to_owned(), version.trim_matches('"').to_owned()));
        }
    }
    versions
}
