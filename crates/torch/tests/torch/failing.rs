//! Full and broken disks: computed outputs are returned nevertheless, and the disk is used again later.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use tensorcask_torch::{CacheOptions, CachedModule, OnStoreError};

use super::{assert_same, doubling_with, ids, rows};

const DIR: &str = "TENSORCASK_TORCH_FULL_DIR";
const DIMS: i64 = 512;

/// Runs this test again in a process of its own, in which the length of files can be limited: this simulates a full
/// disk without privileges. Returns the folder in the child, and `None` in the parent.
fn in_a_child(test: &str) -> Option<std::path::PathBuf> {
    if let Some(dir) = std::env::var_os(DIR) {
        return Some(dir.into());
    }
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        // A process that ignores the signal gets an error instead.
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("failing::{test}"), "--nocapture", "--test-threads=1"])
        .env(DIR, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    None
}

fn bound_files(bytes: Option<u64>) {
    let limit = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, rustix::process::Rlimit { current: bytes, maximum: limit.maximum }).unwrap();
}

fn call(module: &CachedModule, from: u64) -> tensorcask_torch::Result<()> {
    let x = rows(from as i64, 16, DIMS);
    let output = module.forward_with_ids(&x, ids(from, 16).as_slice())?;
    assert_same(&output.into_tensor().unwrap(), &(x * 2 + 1));
    Ok(())
}

/// Calls with new samples until some are not kept; returns the next id.
fn fill(module: &CachedModule, mut from: u64) -> u64 {
    let started = Instant::now();
    while module.counts().not_kept == 0 {
        call(module, from).unwrap();
        from += 16;
        assert!(started.elapsed() < Duration::from_secs(60), "the disk is not full after {from} rows");
    }
    from
}

fn kept_on_disk(module: &CachedModule) -> u64 {
    tensorcask::Reader::open(module.folder().unwrap(), "u64").unwrap().len().unwrap()
}

fn segments(dir: &Path) -> CacheOptions {
    CacheOptions::in_folder(dir, "m")
}

#[test]
fn a_full_disk_does_not_stop_a_training() {
    let Some(dir) = in_a_child("a_full_disk_does_not_stop_a_training") else { return };
    // Two layers with the same outputs share a store.
    let ((module, _), (other, _)) = (doubling_with(segments(&dir)), doubling_with(segments(&dir)));
    call(&module, 0).unwrap();
    module.flush().unwrap();
    bound_files(Some(256 << 10));
    let mut next = fill(&module, 16);
    for _ in 0..5 {
        call(&module, next).unwrap();
        call(&other, next).unwrap();
        next += 16;
    }
    // Kept outputs are served, one warning reports the failure, and flushing fails.
    let hits = module.counts().hits;
    call(&module, 0).unwrap();
    assert_eq!(module.counts().hits, hits + 16);
    assert_eq!(module.warnings().len(), 1, "{:?}", module.warnings());
    assert!(module.warnings()[0].contains("computed and not kept"), "{:?}", module.warnings());
    assert!(matches!(module.flush(), Err(tensorcask_torch::Error::Store(tensorcask::Error::Poisoned { .. }))));

    // Space is freed. A module that is wrapped again keeps its outputs at once, although the other handles still exist.
    bound_files(None);
    let (again, _) = doubling_with(segments(&dir));
    let before = kept_on_disk(&again);
    call(&again, next).unwrap();
    assert_eq!(again.counts().not_kept, 0);
    again.flush().unwrap();
    assert!(kept_on_disk(&again) >= before + 16);
    // The other handles keep theirs as well.
    let not_kept = module.counts().not_kept;
    call(&module, next + 16).unwrap();
    assert_eq!((module.counts().not_kept, other.flush().is_ok()), (not_kept, true));
}

#[test]
fn a_handle_finds_room_by_itself() {
    let Some(dir) = in_a_child("a_handle_finds_room_by_itself") else { return };
    let (module, _) = doubling_with(segments(&dir));
    call(&module, 0).unwrap();
    bound_files(Some(256 << 10));
    let next = fill(&module, 16);
    bound_files(None);
    let started = Instant::now();
    loop {
        let not_kept = module.counts().not_kept;
        call(&module, 1_000_000 + next).unwrap();
        if module.counts().not_kept == not_kept {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "the store is never opened again");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Lost rows are reported once.
    assert!(module.flush().is_err());
    module.flush().unwrap();
    assert!(kept_on_disk(&module) >= 16);
}

#[test]
fn modules_are_wrapped_on_a_full_disk() {
    let Some(dir) = in_a_child("modules_are_wrapped_on_a_full_disk") else { return };
    bound_files(Some(0));
    let (module, _) = doubling_with(segments(&dir));
    call(&module, 0).unwrap();
    call(&module, 0).unwrap();
    assert_eq!((module.counts().misses, module.counts().not_kept, module.warnings().len()), (32, 32, 1));
    // With `OnStoreError::Fail` the call fails, and succeeds again as soon as there is space.
    let (strict, _) = doubling_with(CacheOptions::in_folder(&dir, "strict").on_store_error(OnStoreError::Fail));
    assert!(call(&strict, 0).is_err());
    bound_files(None);
    for (module, options) in [(module, segments(&dir)), (strict, CacheOptions::in_folder(&dir, "strict"))] {
        let (again, seen) = doubling_with(options);
        call(&again, 0).unwrap();
        call(&again, 0).unwrap();
        again.flush().unwrap();
        assert_eq!((seen.samples(), kept_on_disk(&again)), (16, 16));
        assert!(again.folder().unwrap().join("identity.json").exists());
        drop(module);
    }
}
