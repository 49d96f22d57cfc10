//! Invalid input is refused before anything is computed or written, and failures leave the store unchanged.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tch::{Kind, Tensor};
use tensorcask_torch::Error;
use tensorcask_torch::OutputLike as _;
use tensorcask_torch::WrapModules as _;
use tensorcask_torch::{Argument, CacheOptions, CachedModule, Id, Inputs, Output, Rank, Verification};

use super::{assert_same, doubling, doubling_with, ids, rows};

fn refused(module: &CachedModule, result: tensorcask_torch::Result<Output>, says: &str) {
    let error = result.unwrap_err();
    assert!(error.to_string().contains(says), "{error}");
    assert_eq!((module.counts().misses, module.len().unwrap()), (0, 0));
}

#[test]
fn unusable_calls() {
    let (module, seen) = doubling();
    let x = rows(0, 3, 2);
    refused(&module, module.forward_with_ids(&x, &[0_u64, 1]), "2 ids were given for 3 samples");
    refused(&module, module.forward_with_ids(&x, &[0_u64, 1, 2, 3]), "4 ids were given for 3 samples");
    refused(&module, module.forward_with_ids(&x, &[] as &[&str]), "0 ids were given for 3 samples");
    refused(&module, module.forward_with_ids(&x, &[0_i64, -1, 2]), "the id -1 is negative");
    let mixed = [Id::Int(0), Id::Str("1".into()), Id::Int(2)];
    let error = module.forward_with_ids(&x, &mixed).unwrap_err();
    assert!(matches!(error, Error::Store(tensorcask::Error::KeyKind { .. })), "{error}");
    refused(&module, module.forward_with_ids(&x, &x), "pass a one-dimensional Int64 tensor");
    refused(&module, module.forward(Inputs::new()), "no tensor was passed");
    refused(&module, module.forward(Inputs::new().with(3)), "no tensor was passed");
    refused(&module, module.forward([&x, &rows(0, 2, 2)]), "first dimensions differ (3 and 2)");
    refused(&module, module.forward(&x.sum(Kind::Float)), "has no dimensions");
    refused(&module, module.forward([&x, &x.sum(Kind::Float)]), "first dimensions differ (3 and none)");
    refused(&module, module.forward(Inputs::from(&x).named("a", 1).named("a", 2)), "\"a\" was passed twice");
    refused(&module, module.forward(&Tensor::new()), "");
    // A module of one tensor that is called with more: the adapter refuses it, and nothing is kept.
    refused(&module, module.forward([&x, &x]), "the wrapped module takes one tensor");
    refused(&module, module.forward(Inputs::from(&x).with(Argument::Shared(x.shallow_clone()))), "takes one tensor");
    assert_eq!(seen.calls(), 0);
    refused(
        &module,
        module.forward_lazy(&[1_u64], tch::Device::Cpu, |_| Ok(Inputs::from(&rows(0, 2, 2)))),
        "load one each",
    );
}

#[test]
fn outputs_that_are_no_rows() {
    let wrap = |f: fn(&Tensor) -> Output| CacheOptions::in_memory().module_id("m").wrap_fn(f).unwrap();
    let check = |f: fn(&Tensor) -> Output, says: &str| {
        let module = wrap(f);
        refused(&module, module.forward_with_ids(&rows(0, 3, 2), &[0_u64, 1, 2]), says);
    };
    check(|x| x.sum(Kind::Float).output(), "the output has first dimension none, but 3 samples");
    check(|x| x.narrow(0, 0, 2).output(), "the output has first dimension 2, but 3 samples");
    check(|x| Output::map([("a", Output::List(vec![x.transpose(0, 1).output()]))]), "a.0 has first dimension 2");
    check(|x| Output::each([x.get(0)]), "the output has 1 rows, but 3 samples");
    check(
        |x| Output::Each(vec![Output::Each(Vec::new()), x.get(0).output(), x.get(1).output()]),
        "cannot themselves be",
    );
    check(|x| x.quantize_per_tensor(0.1, 0, Kind::QInt8).output(), "QInt8");
    check(|x| Output::Map(vec![("a".into(), same(x)), ("a".into(), same(x))]), "");
}

fn same(x: &Tensor) -> Output {
    Output::Tensor(x.shallow_clone())
}

#[test]
fn plain_values_that_depend_on_the_batch() {
    let module = CacheOptions::in_memory()
        .module_id("m")
        .wrap_fn(|x: &Tensor| Output::map([("features", Output::Tensor(x + 1)), ("samples", x.size()[0].into())]));
    let module = module.unwrap();
    module.forward_with_ids(&rows(0, 2, 2), &[0_u64, 1]).unwrap();
    let error = module.forward_with_ids(&rows(0, 5, 2), &ids(0, 5)).unwrap_err();
    assert!(error.to_string().contains("what depends on the batch cannot be kept"), "{error}");
}

#[test]
fn failures_keep_nothing() {
    let fails = Arc::new(AtomicBool::new(true));
    let failing = Arc::clone(&fails);
    let module = CacheOptions::in_memory().module_id("m").wrap_fn(move |x: &Tensor| {
        if failing.load(Ordering::SeqCst) {
            return Err(std::io::Error::other("the GPU fell off the bus"));
        }
        Ok(x + 1)
    });
    let module = module.unwrap();
    for _ in 0..2 {
        let result = module.forward_with_ids(&rows(0, 2, 2), &[0_u64, 1]);
        assert!(matches!(&result, Err(Error::Compute { .. })));
        refused(&module, result, "the GPU fell off the bus");
    }
    fails.store(false, Ordering::SeqCst);
    let output = module.forward_with_ids(&rows(0, 2, 2), &[0_u64, 1]).unwrap().into_tensor().unwrap();
    assert_same(&output, &(rows(0, 2, 2) + 1));
}

#[test]
fn panics_keep_nothing() {
    let fails = Arc::new(AtomicBool::new(true));
    let failing = Arc::clone(&fails);
    let module = CacheOptions::in_memory().module_id("m").wrap_fn(move |x: &Tensor| {
        assert!(!failing.load(Ordering::SeqCst), "a panic of the module");
        x + 1
    });
    let module = module.unwrap();
    let call = || module.forward_with_ids(&rows(0, 2, 2), &[0_u64, 1]);
    assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
    assert_eq!((module.counts().misses, module.len().unwrap()), (0, 0));
    // Recording of gradients is restored, and the claims on samples that were not computed are released.
    assert!((rows(0, 1, 1).set_requires_grad(true) * 2).requires_grad());
    fails.store(false, Ordering::SeqCst);
    call().unwrap();
    assert_eq!(module.len().unwrap(), 2);
}

#[test]
fn unusable_options() {
    let wrap = |options: CacheOptions| options.wrap_fn(|x: &Tensor| x + 1).map(|_| ()).unwrap_err().to_string();
    let options = || CacheOptions::in_memory().module_id("m");
    assert!(wrap(CacheOptions::in_memory()).contains("no module id was given"));
    assert!(wrap(CacheOptions::temporary().module_id("a/b")).contains("path separator"));
    assert!(wrap(options().verify(Verification::rate(1.5))).contains("the rate is between 0 and 1"));
    assert!(wrap(options().memory_device(tch::Device::Cpu)).contains("without memory_bytes"));
    assert!(wrap(options().rank(Rank::ALONE).writer_rank(1)).contains("rank 1 is to write, but there are 1 processes"));
    if !tch::Cuda::is_available() {
        assert!(wrap(options().pinned(true)).contains("need CUDA"));
    }
    assert!(Rank::new(4, 4).is_err());
    assert!(doubling().0.batches(&[0_u64], 0).start().is_err());
}

#[test]
fn an_augmentation_frozen_by_mistake_is_caught() {
    let noise = Arc::new(Mutex::new(0.0));
    let noisy = Arc::clone(&noise);
    let module = |verification| {
        let noisy = Arc::clone(&noisy);
        let options = CacheOptions::in_memory().module_id("m").verify(verification);
        options.wrap_fn(move |x: &Tensor| x + *noisy.lock().unwrap()).unwrap()
    };
    let call = |module: &CachedModule| module.forward_with_ids(&rows(0, 10, 2), &ids(0, 10));
    let strict = module(Verification::rate(0.2));
    for _ in 0..31 {
        call(&strict).unwrap();
    }
    assert!((30..=90).contains(&strict.counts().verified), "{} of 300 at a rate of 0.2", strict.counts().verified);
    *noise.lock().unwrap() = 1e-7;
    call(&strict).unwrap();
    *noise.lock().unwrap() = 0.5;
    let error = (0..100).find_map(|_| call(&strict).err()).unwrap();
    assert!(matches!(&error, Error::NotReproducible { .. }), "{error}");
    assert!(error.to_string().contains("differ by up to 5e-1"), "{error}");
    *noise.lock().unwrap() = 0.0;
    let lenient = module(Verification { fails: false, ..Verification::rate(1.0) });
    call(&lenient).unwrap();
    *noise.lock().unwrap() = 0.5;
    let kept = call(&lenient).unwrap().into_tensor().unwrap();
    assert_same(&kept, &rows(0, 10, 2));
    assert_eq!((lenient.warnings().len(), lenient.counts().verified), (1, 10));
}

#[test]
fn verification_compares_trees() {
    let off = Arc::new(AtomicBool::new(false));
    let switched = Arc::clone(&off);
    let options = CacheOptions::in_memory().module_id("m").verify(Verification::rate(1.0));
    let module = options.wrap_fn(move |x: &Tensor| {
        let second = if switched.load(Ordering::SeqCst) { x * 3 } else { x * 2 };
        Output::map([
            ("first", Output::Tensor(x + 1)),
            ("second", Output::List(vec![second.output(), Output::Float(f64::NAN)])),
        ])
    });
    let module = module.unwrap();
    for _ in 0..3 {
        module.forward_with_ids(&rows(0, 4, 2), &ids(0, 4)).unwrap();
    }
    off.store(true, Ordering::SeqCst);
    let error = module.forward_with_ids(&rows(0, 4, 2), &ids(0, 4)).unwrap_err();
    assert!(error.to_string().contains("second: elements differ by up to 7e0"), "{error}");
}

#[test]
fn damaged_rows_are_computed_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = || CacheOptions::in_folder(dir.path(), "m");
    let (module, _) = doubling_with(options());
    module.forward_with_ids(&rows(0, 100, 64), &ids(0, 100)).unwrap();
    let folder = module.folder().unwrap();
    module.close().unwrap();
    // Damages a byte of a row's value, in the middle of the sealed segment.
    let segments: Vec<_> = std::fs::read_dir(folder.join("u64/segments")).unwrap().map(|e| e.unwrap().path()).collect();
    let [segment] = segments.as_slice() else { panic!("{segments:?}") };
    let mut bytes = std::fs::read(segment).unwrap();
    let needle: Vec<u8> = (50 * 64..50 * 64 + 8).flat_map(|n| (n as f32 * 2.0 + 1.0).to_le_bytes()).collect();
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at] ^= 0x40;
    std::fs::write(segment, bytes).unwrap();

    let call = |module: &CachedModule| module.forward_with_ids(&rows(0, 100, 64), &ids(0, 100));
    let (strict, _) = doubling_with(options().recompute_damaged(false));
    assert!(call(&strict).unwrap_err().is_corrupt());
    drop(strict);
    let (module, seen) = doubling_with(options());
    for _ in 0..2 {
        assert_same(&call(&module).unwrap().into_tensor().unwrap(), &(rows(0, 100, 64) * 2 + 1));
        assert_eq!(seen.samples(), 1);
    }
    assert_eq!(module.counts().damaged, 1);
    module.close().unwrap();
    let (module, seen) = doubling_with(options());
    call(&module).unwrap();
    assert_eq!((seen.samples(), module.counts().damaged), (0, 0));
}

/// Bytes of all files below `folder`.
fn len_bytes(folder: &std::path::Path) -> u64 {
    let list = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    list.map(|entry| if entry.path().is_dir() { len_bytes(&entry.path()) } else { entry.metadata().unwrap().len() })
        .sum()
}

#[test]
fn a_damaged_batch_is_computed_again_in_one_epoch_only() {
    for damaged_key in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let options = || CacheOptions::in_folder(dir.path(), "m").version("1");
        let names: Vec<String> = (0..2_000).map(|at| format!("sample-{at:06}")).collect();
        let epoch = |module: &CachedModule| {
            for from in (0..2_000).step_by(500) {
                let x = rows(from, 500, 256);
                let output = module.forward_with_ids(&x, &names[from as usize..from as usize + 500]).unwrap();
                assert_same(&output.into_tensor().unwrap(), &(x * 2 + 1));
            }
        };
        let (module, _) = doubling_with(options());
        epoch(&module);
        let folder = module.folder().unwrap();
        module.close().unwrap();
        let segments = std::fs::read_dir(folder.join("str/segments")).unwrap().map(|e| e.unwrap().path());
        let segments: Vec<_> = segments.collect();
        let needle = if damaged_key {
            b"sample-000700".to_vec()
        } else {
            (700.0_f32 * 256.0 * 2.0 + 1.0).to_le_bytes().to_vec()
        };
        let damage = |segment: &std::path::PathBuf| {
            let mut bytes = std::fs::read(segment).unwrap();
            let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) else { return false };
            bytes[at + 2] ^= 1;
            std::fs::write(segment, bytes).unwrap();
            true
        };
        assert!(segments.iter().any(damage));
        let mut misses = Vec::new();
        let mut sizes = Vec::new();
        for _ in 0..4 {
            let (module, _) = doubling_with(options());
            epoch(&module);
            epoch(&module);
            assert_eq!(module.len().unwrap(), 2_000);
            misses.push(module.counts().misses);
            module.close().unwrap();
            sizes.push(len_bytes(&folder));
        }
        assert!((1..=500).contains(&misses[0]) && misses[1..] == [0, 0, 0], "{misses:?}");
        assert!(sizes[3] <= sizes[0] + 4_096, "{sizes:?}");
    }
}
