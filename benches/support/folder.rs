//! The folder of the stores of the criterion benches.

use std::path::Path;

/// A folder in `TENSORCASK_BENCH_DIR`, by default on a file system in memory if there is one: a disk that is still busy
/// with the load would distort the results.
pub(crate) fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let parent = match std::env::var_os("TENSORCASK_BENCH_DIR") {
        Some(dir) => dir.into(),
        None if memory.is_dir() => memory.to_path_buf(),
        None => std::env::temp_dir(),
    };
    tempfile::tempdir_in(parent).expect("a temporary folder")
}
