//! What the criterion benches share: how large, and where.

use std::path::Path;

/// Those of `sizes` that this run measures: up to `TENSORCASK_BENCH_ROWS`, or `default`; always the smallest.
pub(crate) fn sizes(sizes: &[u64], default: u64) -> Vec<u64> {
    let most = std::env::var("TENSORCASK_BENCH_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(default);
    let smallest = sizes.iter().min().copied().unwrap_or(0);
    sizes.iter().copied().filter(|size| *size <= most.max(smallest)).collect()
}

/// A folder in `TENSORCASK_BENCH_DIR`, by default on a file system in memory where there is one: a disk that is still
/// busy with what was loaded would be what is measured.
pub(crate) fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let parent = match std::env::var_os("TENSORCASK_BENCH_DIR") {
        Some(dir) => dir.into(),
        None if memory.is_dir() => memory.to_path_buf(),
        None => std::env::temp_dir(),
    };
    tempfile::tempdir_in(parent).expect("a temporary folder")
}
