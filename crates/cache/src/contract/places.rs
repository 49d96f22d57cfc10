//! Where outputs are kept, and how many are kept.

use super::{doubled, doubling, elements, folder, ids, in_memory, one, refused, rows};
use crate::layer::{Adapter, CacheOptions};

/// A new handle finds the outputs of former handles.
pub fn a_folder_outlives_its_handles<F: Adapter>() {
    let folder = folder();
    let options = || CacheOptions::<F>::in_folder(folder.path(), "module").version("1");
    for samples in [4, 0] {
        let (module, seen) = doubling(options());
        let output = elements(module.forward_with_ids(one::<F>(&rows::<F>(0, 4, 2)), &ids(0, 4)));
        assert_eq!((output, seen.samples()), (doubled::<F>(0, 4, 2), samples));
        module.close().unwrap();
    }
    // Handles of one process find each other's outputs before they are written.
    let (first, _) = doubling(options());
    let (second, seen) = doubling(options().codec(tensorcask::Codec::Zstd { level: 1 }));
    first.forward_with_ids(one::<F>(&rows::<F>(4, 2, 2)), &ids(4, 2)).unwrap();
    let output = elements(second.forward_with_ids(one::<F>(&rows::<F>(4, 2, 2)), &ids(4, 2)));
    assert_eq!((output, seen.samples()), (doubled::<F>(4, 2, 2), 0));
}

/// A read-only handle writes nothing.
pub fn a_folder_that_is_only_read<F: Adapter>() {
    let folder = folder();
    let options = || CacheOptions::<F>::in_folder(folder.path(), "module").version("1");
    let (module, _) = doubling(options());
    module.forward_with_ids(one::<F>(&rows::<F>(0, 2, 2)), &ids(0, 2)).unwrap();
    module.close().unwrap();
    let (module, seen) = doubling(options().read_only(true));
    for samples in [2, 4] {
        let output = elements(module.forward_with_ids(one::<F>(&rows::<F>(0, 4, 2)), &ids(0, 4)));
        assert_eq!((output, seen.samples()), (doubled::<F>(0, 4, 2), samples));
    }
    assert_eq!((module.counts().not_kept, module.len().unwrap()), (4, 2));
    // Nor does a rank that is not the writer.
    let rank = crate::Rank::new(1, 2).unwrap();
    let (module, _) = doubling(options().rank(rank).writer_rank(0));
    module.forward_with_ids(one::<F>(&rows::<F>(0, 4, 2)), &ids(0, 4)).unwrap();
    assert_eq!((module.counts().hits, module.counts().not_kept), (2, 2));
    refused(
        options().writer_rank(2).rank(rank).wrap_fn(|x: &F::Tensor| crate::layer::Output::<F>::Tensor(F::share(x))),
        "rank 2 is to write",
    );
}

/// At the cap no more outputs are kept, and the kept ones stay.
pub fn a_full_cache_computes<F: Adapter>() {
    let folder = folder();
    for options in [
        in_memory::<F>().memory_bytes(40_000),
        CacheOptions::in_folder(folder.path(), "module").version("1").disk_bytes(40_000),
    ] {
        let (module, _) = doubling(options);
        for from in 0..20 {
            let x = rows::<F>(from * 4, 4, 256);
            let output = module.forward_with_ids(one::<F>(&x), &ids(from as u64 * 4, 4));
            assert_eq!(elements(output), doubled::<F>(from * 4, 4, 256));
        }
        let kept = module.len().unwrap();
        let counts = module.counts();
        assert!((4..=40).contains(&kept) && counts.not_kept == 80 - kept, "{kept} {counts}");
        assert!(module.warnings()[0].contains("the cap of 40000 bytes is reached"), "{:?}", module.warnings());
        module.forward_with_ids(one::<F>(&rows::<F>(0, 4, 256)), &ids(0, 4)).unwrap();
        assert_eq!((module.counts().hits, module.len().unwrap()), (4, kept));
    }
}

/// A temporary folder is removed with its last handle.
pub fn a_temporary_folder_goes<F: Adapter>() {
    let parent = folder();
    let options =
        CacheOptions::<F>::new(crate::Place::Temporary(Some(parent.path().to_path_buf()))).module_id("module");
    let (module, seen) = doubling(options);
    for _ in 0..2 {
        module.forward_with_ids(one::<F>(&rows::<F>(0, 2, 2)), &ids(0, 2)).unwrap();
    }
    let kept = module.folder().unwrap();
    assert!(kept.starts_with(parent.path().canonicalize().unwrap()) && kept.is_dir() && seen.samples() == 2);
    let other = module.clone();
    drop(module);
    assert!(kept.is_dir());
    drop(other);
    assert!(!kept.exists());
}
