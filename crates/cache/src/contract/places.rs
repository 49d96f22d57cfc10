//! Where outputs are kept, and how many are kept.

use super::{doubled, doubling, elements, folder, ids, in_memory, one, refused, rows};
use tensorcask::Eviction;

use crate::DiskScope;
use crate::layer::{Adapter, CacheOptions, Cached};

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

/// With eviction, the newest outputs are kept under the cap: first unused identities go, then the oldest outputs.
pub fn a_full_cache_evicts<F: Adapter>() {
    const CAP: u64 = 2 << 20;
    let folder = folder();
    let options = |version: &str, scope| {
        let options = CacheOptions::<F>::in_folder(folder.path(), "module").version(version).disk_bytes(CAP);
        options.disk_scope(scope).eviction(Eviction::OldestFirst)
    };
    let fill = |module: &Cached<F>, batches: usize| {
        for from in 0..batches {
            let x = rows::<F>(from * 16, 16, 1024);
            let output = module.forward_with_ids(one::<F>(&x), &ids(from as u64 * 16, 16));
            assert_eq!(elements(output), doubled::<F>(from * 16, 16, 1024));
        }
        module.flush().unwrap();
    };
    let hits = |module: &Cached<F>, from: usize| {
        let before = module.counts().hits;
        module.forward_with_ids(one::<F>(&rows::<F>(from, 1, 1024)), &ids(from as u64, 1)).unwrap();
        module.counts().hits - before
    };
    let len_bytes = |folder: std::path::PathBuf| crate::identity::size::folder_len_bytes(&folder);
    let (old, _) = doubling(options("1", DiskScope::Module));
    fill(&old, 10);
    let old_folder = old.folder().unwrap();
    old.close().unwrap();
    // An identity whose cap is its own leaves others alone.
    let (own, _) = doubling(options("2", DiskScope::Identity));
    fill(&own, 80);
    assert!(len_bytes(own.folder().unwrap()) <= CAP && old_folder.is_dir());
    own.close().unwrap();
    let (new, _) = doubling(options("3", DiskScope::Module));
    fill(&new, 80);
    let module_folder = new.folder().unwrap().parent().unwrap().to_path_buf();
    assert!(len_bytes(module_folder.clone()) <= CAP + CAP / 16, "{}", len_bytes(module_folder));
    assert!(!old_folder.exists(), "the identity that was not used for longest");
    assert_eq!((hits(&new, 79 * 16), hits(&new, 0)), (1, 0));
    assert!(new.counts().not_kept == 0 && new.warnings().is_empty(), "{} {:?}", new.counts(), new.warnings());
    assert!(new.len().unwrap() > 100);
    refused(
        in_memory::<F>()
            .eviction(Eviction::OldestFirst)
            .wrap_fn(|x: &F::Tensor| crate::layer::Output::<F>::Tensor(F::share(x))),
        "in memory are not evicted",
    );
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
