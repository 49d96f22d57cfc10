//! Where outputs are kept, and how many are kept.

use tch::{Device, Tensor};
use tensorcask_torch::WrapModules as _;
use tensorcask_torch::{CacheOptions, OnStoreError, Place};

use super::{assert_same, doubling_with, ids, rows};

#[test]
fn a_store_goes_on_in_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = |count: i64| {
        let (module, seen) = doubling_with(CacheOptions::in_folder(dir.path(), "m"));
        let output = module.forward_with_ids(&rows(0, count, 2), &ids(0, count as u64)).unwrap();
        assert_same(&output.into_tensor().unwrap(), &(rows(0, count, 2) * 2 + 1));
        seen.samples()
        // Dropping a handle flushes it.
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
    // The rows are on disk: an independent reader of the files finds all of them.
    let reader = tensorcask::Reader::open(module.folder().unwrap(), "u64").unwrap();
    for at in 0..20_u64 {
        let row = tensorcask_torch::from_stored(reader.get(at).unwrap().unwrap().as_tensor().unwrap()).unwrap();
        assert_same(&row, &(rows(at as i64, 1, 100) * 2 + 1).get(0));
    }
    // Dropping the reader affects nothing.
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
            let (held, bytes) = (module.held().rows, module.held().bytes);
            assert_eq!(held, 50);
            assert!(bytes >= 50 * 400);
            // Partly held.
            let output = module.forward_with_ids(&rows(40, 20, 100), &ids(40, 20)).unwrap().into_tensor().unwrap();
            assert_same(&output, &(rows(40, 20, 100) * 2 + 1));
            assert_eq!((seen.samples(), module.held().rows), (60, 60));
        }
    }
    // At its limit a device keeps the rows that it holds.
    let options = CacheOptions::in_memory().module_id("m").memory_bytes(20 * 500).memory_device(Device::Cpu);
    let (module, _) = doubling_with(options);
    module.forward_with_ids(&rows(0, 50, 100), &ids(0, 50)).unwrap();
    let held = module.held().rows;
    assert!((5..=20).contains(&held), "{held}");
    module.forward_with_ids(&rows(0, 50, 100), &ids(0, 50)).unwrap();
    assert_eq!(module.held().rows, held);
}

#[test]
fn failures_of_the_disk_surface() {
    let dir = tempfile::tempdir().unwrap();
    let options = CacheOptions::in_folder(dir.path(), "m").on_store_error(OnStoreError::Fail);
    let (module, _) = doubling_with(options.engine(|engine| engine.segment_rows(4)));
    module.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
    module.flush().unwrap();
    // The files are removed while the writer is open, so that the active segment cannot be sealed.
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
    assert!(matches!(failed, Some(tensorcask_torch::Error::Store(tensorcask::Error::Poisoned { .. }))), "{failed:?}");
    // Every later call that has to keep an output fails as well. Kept outputs are served.
    let next = module.forward_with_ids(&rows(100, 1, 2), &ids(100, 1));
    assert!(matches!(next, Err(tensorcask_torch::Error::Store(tensorcask::Error::Poisoned { .. }))));
    assert!(module.flush().is_err());
    let known = module.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap().into_tensor().unwrap();
    assert_same(&known, &(rows(0, 3, 2) * 2 + 1));
    module.set_enabled(false);
    module.forward(&rows(100, 1, 2)).unwrap();
}

/// Bytes of all files below a folder.
fn files_len_bytes(folder: &std::path::Path) -> u64 {
    let len = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => files_len_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    std::fs::read_dir(folder).map_or(0, |list| list.flatten().map(len).sum())
}

#[test]
fn a_disk_cap_is_kept_and_every_run_keeps_the_same_samples() {
    // Rows of 8 bytes, of a few hundred, and of 16 KiB; one by one, and in batches.
    for (dims, batch, cap) in [(2, 100, 200_000), (100, 1, 300_000), (100, 50, 1_000_000), (4096, 8, 8_000_000)] {
        let dir = tempfile::tempdir().unwrap();
        let count = (2 * cap / (4 * dims as u64 + 8)).min(4000) / batch * batch;
        let all = ids(0, count);
        let limit = cap + cap / 50 + batch * (4 * dims as u64 + 64);
        let mut kept = None;
        for run in 0..3 {
            let (module, _) = doubling_with(CacheOptions::in_folder(dir.path(), "m").disk_bytes(cap));
            for _ in 0..2 {
                for chunk in all.chunks(batch as usize) {
                    module.forward_with_ids(&rows(chunk[0] as i64, batch as i64, dims), chunk).unwrap();
                    if chunk[0] % 16 == 0 {
                        let found = files_len_bytes(dir.path());
                        assert!(found <= limit, "{found} bytes of {cap} with rows of {dims} in batches of {batch}");
                    }
                }
                module.flush().unwrap();
                let len = module.len().unwrap();
                assert_eq!(*kept.get_or_insert(len), len, "run {run}, rows of {dims} in batches of {batch}");
                assert!(len > 0 && len < count);
            }
            assert_eq!(module.warnings().len(), 1, "{:?}", module.warnings());
            module.close().unwrap();
            let found = files_len_bytes(dir.path());
            assert!(found <= limit, "{found} bytes of {cap} after closing, rows of {dims} in batches of {batch}");
        }
        // Another identity of the module has no more space; with a larger cap it has.
        let (other, _) = doubling_with(CacheOptions::in_folder(dir.path(), "m").version("2").disk_bytes(cap));
        other.forward_with_ids(&rows(0, 100, dims), ids(0, 100).as_slice()).unwrap();
        assert!(files_len_bytes(dir.path()) <= limit);
        let (larger, _) = doubling_with(CacheOptions::in_folder(dir.path(), "m").disk_bytes(2 * cap));
        let x = rows(count as i64 - 1, 1, dims);
        larger.forward_with_ids(&x, &[count - 1]).unwrap();
        assert_eq!(larger.counts().not_kept, 0);
    }
}

#[test]
fn memory_is_bounded() {
    for options in [CacheOptions::in_memory().memory_bytes(100_000), CacheOptions::in_memory().disk_bytes(100_000)] {
        let (module, _) = doubling_with(options.module_id("m"));
        let mut kept = Vec::new();
        for _ in 0..3 {
            for at in 0..40 {
                module.forward_with_ids(&rows(at * 10, 10, 100), ids(at as u64 * 10, 10).as_slice()).unwrap();
            }
            kept.push(module.len().unwrap());
        }
        assert!((150..=250).contains(&kept[0]) && kept.iter().all(|len| *len == kept[0]), "{kept:?}");
        assert_eq!(module.warnings().len(), 1);
    }
}

#[test]
fn temporary_folders_of_processes_that_are_gone_are_removed() {
    const PARENT: &str = "TENSORCASK_TORCH_TEMPORARY";
    let options = |parent: &std::path::Path| CacheOptions::new(Place::Temporary(Some(parent.into()))).module_id("m");
    if let Some(parent) = std::env::var_os(PARENT) {
        let (module, _) = doubling_with(options(parent.as_ref()));
        module.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
        std::process::exit(0);
    }
    let dir = tempfile::tempdir().unwrap();
    let there = || std::fs::read_dir(dir.path()).unwrap().count();
    // A folder with our name but no lock file, and a folder with another name.
    for name in ["tensorcask-0123456789abcdef0123456789abcdef", "tensorcask-other"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("lock"), "mine").unwrap();
    }
    let leave = || {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "places::temporary_folders_of_processes_that_are_gone_are_removed", "--nocapture"]);
        assert!(child.env(PARENT, dir.path()).output().unwrap().status.success());
    };
    leave();
    assert_eq!(there(), 3, "process::exit runs no destructors");
    // The next process removes the folder of the last one, and leaves its own behind.
    leave();
    assert_eq!(there(), 3);
    // A folder that is in use stays.
    let (module, _) = doubling_with(options(dir.path()));
    assert_eq!(there(), 3);
    leave();
    assert_eq!(there(), 4);
    module.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
    drop(module);
    assert_eq!(there(), 3);
}

#[test]
fn folders_that_cannot_be_written_are_read() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let options = || CacheOptions::in_folder(dir.path().join("cache"), "m");
    let read_only = |module: &tensorcask_torch::CachedModule, hits: u64| {
        let output = module.forward_with_ids(&rows(0, 5, 2), &ids(0, 5)).unwrap().into_tensor().unwrap();
        assert_same(&output, &(rows(0, 5, 2) * 2 + 1));
        let counts = module.counts();
        assert_eq!((counts.hits, counts.misses, counts.not_kept), (hits, 5 - hits, 5 - hits));
        module.flush().unwrap();
    };
    // Read only by option: nothing is created.
    read_only(&doubling_with(options().read_only(true)).0, 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let (module, _) = doubling_with(options());
    module.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
    let folder = module.folder().unwrap();
    module.close().unwrap();
    let (module, _) = doubling_with(options().read_only(true));
    read_only(&module, 3);
    assert!(module.warnings().is_empty());

    // Read only by permissions. As root, the test runs as a user who may not write.
    let mode = |mode| {
        let permissions = || std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&folder, permissions()).unwrap();
        std::fs::set_permissions(folder.parent().unwrap(), permissions()).unwrap();
    };
    mode(0o555);
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            let nobody = rustix::process::Uid::from_raw(65534);
            if rustix::process::geteuid().is_root() {
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            let (module, _) = doubling_with(options());
            read_only(&module, 3);
            let warnings = module.warnings();
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(
                warnings[0].contains("CacheOptions::read_only(true)") && !warnings[0].contains("rank"),
                "{warnings:?}"
            );
            // The folder of another identity cannot be created.
            read_only(&doubling_with(options().version("2")).0, 0);
            let strict = options().version("1").on_store_error(OnStoreError::Fail).wrap_fn(|x: &Tensor| x + 1);
            assert!(
                matches!(strict, Err(tensorcask_torch::Error::Store(tensorcask::Error::ReadOnly { .. }))),
                "{strict:?}"
            );
        });
        reads.join().unwrap();
    });
    mode(0o755);
}

/// A module with one weight, which is its factor.
fn scaling(options: CacheOptions) -> (tensorcask_torch::CachedModule, Tensor) {
    let mut variables = tch::nn::VarStore::new(Device::Cpu);
    let w = variables.root().var("w", &[1], tch::nn::Init::Const(1.0));
    variables.freeze();
    let factor = w.shallow_clone();
    let scale = move |inputs: &tensorcask_torch::Inputs| Ok(inputs.tensor(0)? * &factor);
    (options.version("1").wrap_inputs_fn_with(&variables, scale).unwrap(), w)
}

#[test]
fn a_cap_counts_the_identities_of_temporary_stores_together() {
    let dir = tempfile::tempdir().unwrap();
    let cap = 200_000;
    let options = CacheOptions::new(Place::Temporary(Some(dir.path().into()))).module_id("m").disk_bytes(cap);
    let (module, mut w) = scaling(options);
    let mut kept = 0;
    for factor in 2..7_i64 {
        tch::no_grad(|| {
            let _filled = w.fill_(factor);
        });
        for at in 0..40 {
            module.forward_with_ids(&rows(at * 10, 10, 250), ids(at as u64 * 10, 10).as_slice()).unwrap();
        }
        module.flush().unwrap();
        kept += module.len().unwrap();
    }
    assert!((100..=200).contains(&kept), "{kept}");
    let found = files_len_bytes(dir.path());
    assert!(found <= cap + cap / 50 + 10_000, "{found}");
    drop(module);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_cap_counts_all_handles_of_a_module_together() {
    let dir = tempfile::tempdir().unwrap();
    let cap = 2_000_000;
    let options = |version: usize| CacheOptions::in_folder(dir.path(), "m").version(version.to_string());
    // One handle has no cap, and its rows count for the caps of the others.
    let caps = [Some(cap), Some(cap), None, Some(cap), Some(cap)];
    let handles: Vec<_> =
        caps.iter().enumerate().map(|(at, cap)| doubling_with(options(at).disk_bytes(*cap)).0).collect();
    for at in 0..300 {
        for (handle, cap) in handles.iter().zip(caps) {
            if cap.is_some() || at < 100 {
                handle.forward_with_ids(&rows(at * 10, 10, 100), ids(at as u64 * 10, 10).as_slice()).unwrap();
            }
        }
    }
    let within = |when: &str| {
        let found = files_len_bytes(dir.path());
        assert!(found <= cap + cap / 50 + 5000 && found >= cap * 8 / 10, "{found} bytes {when}");
    };
    handles.iter().for_each(|handle| handle.flush().unwrap());
    within("after a flush");
    drop(handles);
    within("after closing");
}

#[test]
fn a_handle_finds_the_room_that_it_made() {
    let dir = tempfile::tempdir().unwrap();
    let options = |version| CacheOptions::in_folder(dir.path(), "m").version(version).disk_bytes(200_000);
    let fill = |module: &tensorcask_torch::CachedModule| {
        for at in 0..60 {
            module.forward_with_ids(&rows(at * 10, 10, 100), ids(at as u64 * 10, 10).as_slice()).unwrap();
        }
        module.flush().unwrap();
        module.len().unwrap()
    };
    let (old, _) = doubling_with(options("old"));
    assert!(fill(&old) > 300);
    old.close().unwrap();
    let (new, _) = doubling_with(options("new"));
    assert!(fill(&new) < 50);
    assert_eq!(new.prune_identities(|identity| !identity.differences.is_empty()).unwrap().removed.len(), 1);
    assert!(fill(&new) > 300);
    assert!(files_len_bytes(dir.path()) < 204_000 + 5000);
}

#[test]
fn a_folder_is_the_same_whichever_way_leads_to_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
    for (at, way) in ["link", "real/../real", "link/../real/."].into_iter().enumerate() {
        let options = || CacheOptions::in_folder(dir.path().join(way).join(at.to_string()), "m");
        // The reader is opened before there is a store.
        let (reader, seen) = doubling_with(options().read_only(true));
        let (writer, _) = doubling_with(options());
        writer.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
        reader.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
        assert_eq!(seen.samples(), 0, "{way}");
    }
}

#[test]
fn stores_that_cannot_be_written_are_read() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let options = || CacheOptions::in_folder(dir.path().join("cache"), "m");
    let (module, _) = doubling_with(options());
    module.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
    let folder = module.folder().unwrap();
    module.close().unwrap();
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // All users may write to the folders of the module, but the files of one store belong to another user.
    folder.ancestors().take(4).for_each(|folder| mode(folder, 0o777));
    for part in ["", "lanes", "segments"] {
        mode(&folder.join("u64").join(part), 0o555);
    }
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            let nobody = rustix::process::Uid::from_raw(65534);
            if rustix::process::geteuid().is_root() {
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            let (module, seen) = doubling_with(options());
            let output = module.forward_with_ids(&rows(0, 5, 2), &ids(0, 5)).unwrap().into_tensor().unwrap();
            assert_same(&output, &(rows(0, 5, 2) * 2 + 1));
            assert_eq!((seen.samples(), module.counts().hits, module.counts().not_kept), (2, 3, 2));
            let warnings = module.warnings();
            assert!(warnings.len() == 1 && !warnings[0].contains("Reader::open"), "{warnings:?}");
            module.close().unwrap();
        });
        reads.join().unwrap();
    });
    for part in ["", "lanes", "segments"] {
        mode(&folder.join("u64").join(part), 0o755);
    }
}

#[test]
fn pruning_that_was_interrupted_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let options = |version: &str| CacheOptions::in_folder(dir.path(), "m").version(version);
    let keep = |version: &str| {
        let (module, _) = doubling_with(options(version));
        module.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
        module.folder().unwrap()
    };
    // A removal that was interrupted after the rename; meanwhile the identity was created again.
    let folder = keep("1");
    std::fs::rename(&folder, folder.with_extension("pruned")).unwrap();
    keep("1");
    std::fs::create_dir(dir.path().join("m/mine.pruned")).unwrap();
    assert_eq!(options("1").prune_identities(|_| true).unwrap().removed.len(), 1);
    let left: Vec<_> =
        std::fs::read_dir(dir.path().join("m")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["mine.pruned"]);
}
