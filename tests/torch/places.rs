//! Where outputs are kept, and how much of them.

use tch::{Device, Tensor};
use tensorcask::torch::{CacheOptions, OnStoreError, Place};

use super::{assert_same, doubling_with, ids, rows};

#[test]
fn a_store_goes_on_in_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = |count: i64| {
        let (module, seen) = doubling_with(CacheOptions::in_folder(dir.path(), "m"));
        let output = module.forward_with_ids(&rows(0, count, 2), &ids(0, count as u64)).unwrap();
        assert_same(&output.into_tensor().unwrap(), &(rows(0, count, 2) * 2 + 1));
        seen.samples()
        // Dropped without a word: that flushes.
    };
    assert_eq!((run(10), run(20), run(20), run(5)), (10, 10, 0, 0));
}

#[test]
fn temporary_stores_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let there = || std::fs::read_dir(dir.path()).unwrap().count();
    let (module, seen) = doubling_with(CacheOptions::new(Place::Temporary(Some(dir.path().into()))).module_id("m"));
    let other = module.clone();
    for _ in 0..2 {
        module.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
    }
    module.close().unwrap();
    assert_eq!((seen.calls(), there()), (1, 1));
    drop(other);
    assert_eq!(there(), 0);
    // Two temporary stores share nothing.
    let ((one, _), (two, seen)) = (
        doubling_with(CacheOptions::temporary().module_id("m")),
        doubling_with(CacheOptions::temporary().module_id("m")),
    );
    one.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
    two.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
    assert_eq!(seen.samples(), 3);
}

#[test]
fn a_flush_is_a_barrier() {
    let dir = tempfile::tempdir().unwrap();
    let (module, _) = doubling_with(CacheOptions::in_folder(dir.path(), "m"));
    for at in 0..20 {
        module.forward_with_ids(&rows(at, 1, 100), &[at]).unwrap();
    }
    module.flush().unwrap();
    // What was put before is on disk: another reader, of the files alone, has all of it.
    let reader = tensorcask::Reader::open(module.folder().unwrap(), "u64").unwrap();
    for at in 0..20_u64 {
        let row = Tensor::try_from(reader.get(at).unwrap().unwrap().as_tensor().unwrap()).unwrap();
        assert_same(&row, &(rows(at as i64, 1, 100) * 2 + 1).get(0));
    }
    // A reader's end harms nothing.
    drop(reader);
    module.forward_with_ids(&rows(20, 1, 100), &[20_u64]).unwrap();
    module.flush().unwrap();
    assert_eq!(module.len().unwrap(), 21);
}

#[test]
fn a_full_disk_cap_keeps_what_it_has() {
    for options in [CacheOptions::in_memory().module_id("m"), CacheOptions::temporary().module_id("m")] {
        let (module, seen) = doubling_with(options.disk_bytes(200_000));
        let all = ids(0, 400);
        let epoch = || {
            for chunk in all.chunks(20) {
                let x = rows(chunk[0] as i64, 20, 250);
                let output = module.forward_with_ids(&x, chunk).unwrap().into_tensor().unwrap();
                assert_same(&output, &(x * 2 + 1));
            }
            module.end_epoch()
        };
        let first = epoch();
        assert_eq!(first.misses, 400);
        assert!((200..=400 - 100).contains(&first.not_kept), "{first}");
        let kept = 400 - first.not_kept;
        let second = epoch();
        assert_eq!((second.hits, second.misses, second.not_kept), (kept, 400 - kept, 400 - kept));
        assert_eq!(seen.samples() as u64, 800 - kept);
    }
}

#[test]
fn memory_tiers_hold_what_they_may() {
    for device in [None, Some(Device::Cpu)] {
        let options = CacheOptions::temporary().module_id("m").memory_bytes(64 << 20).memory_device(device);
        let (module, seen) = doubling_with(options);
        for _ in 0..3 {
            let output = module.forward_with_ids(&rows(0, 50, 100), &ids(0, 50)).unwrap().into_tensor().unwrap();
            assert_same(&output, &(rows(0, 50, 100) * 2 + 1));
        }
        assert_eq!(seen.samples(), 50);
        if device.is_some() {
            let (held, bytes) = module.held();
            assert_eq!(held, 50);
            assert!(bytes >= 50 * 400);
            // Partly held.
            let output = module.forward_with_ids(&rows(40, 20, 100), &ids(40, 20)).unwrap().into_tensor().unwrap();
            assert_same(&output, &(rows(40, 20, 100) * 2 + 1));
            assert_eq!((seen.samples(), module.held().0), (60, 60));
        }
    }
    // A tier that is full holds what it has.
    let options = CacheOptions::in_memory().module_id("m").memory_bytes(20 * 500).memory_device(Device::Cpu);
    let (module, _) = doubling_with(options);
    module.forward_with_ids(&rows(0, 50, 100), &ids(0, 50)).unwrap();
    let held = module.held().0;
    assert!((5..=20).contains(&held), "{held}");
    module.forward_with_ids(&rows(0, 50, 100), &ids(0, 50)).unwrap();
    assert_eq!(module.held().0, held);
}

#[test]
fn failures_of_the_disk_surface() {
    let dir = tempfile::tempdir().unwrap();
    let options = CacheOptions::in_folder(dir.path(), "m").on_store_error(OnStoreError::Fail);
    let (module, _) = doubling_with(options.engine(|engine| engine.segment_rows(4)));
    module.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
    module.flush().unwrap();
    // Somebody takes the files away under the writer: the active segment cannot be sealed any more.
    let segments = module.folder().unwrap().join("u64/segments");
    std::fs::remove_dir_all(&segments).unwrap();
    std::fs::create_dir(&segments).unwrap();
    let mut failed = None;
    for at in 1..20_u64 {
        let call = module.forward_with_ids(&rows(4 * at as i64, 4, 2), &ids(4 * at, 4));
        failed = call.err().or_else(|| module.flush().err());
        if failed.is_some() {
            break;
        }
    }
    assert!(matches!(failed, Some(tensorcask::Error::Poisoned { .. })), "{failed:?}");
    // And at every call that wants to keep something from then on; what is known is served.
    let next = module.forward_with_ids(&rows(100, 1, 2), &ids(100, 1));
    assert!(matches!(next, Err(tensorcask::Error::Poisoned { .. })));
    assert!(module.flush().is_err());
    let known = module.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap().into_tensor().unwrap();
    assert_same(&known, &(rows(0, 3, 2) * 2 + 1));
    module.set_enabled(false);
    module.forward(&rows(100, 1, 2)).unwrap();
}
