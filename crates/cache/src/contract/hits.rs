//! Kept outputs are not computed again.

use tensorcask::Dtype;

use super::{doubled, doubling, elements, folder, ids, in_memory, one, rows, stored, tensor};
use crate::layer::{Adapter, CacheOptions};
use crate::values::input::{Argument, Inputs};

/// For samples found by id and by content, in memory and in a folder.
pub fn a_sample_is_computed_once<F: Adapter>() {
    let folder = folder();
    for options in [in_memory::<F>(), CacheOptions::in_folder(folder.path(), "module").version("1")] {
        let (module, seen) = doubling(options);
        let x = rows::<F>(0, 4, 3);
        for _ in 0..3 {
            let output = module.forward_with_ids(one::<F>(&x), &ids(0, 4)).unwrap().into_tensor().unwrap();
            let output = stored::<F>(&output);
            assert_eq!((output.dtype(), output.shape()), (Dtype::F32, [4, 3].as_slice()));
            assert_eq!(output.to_vec::<f32>().unwrap(), doubled::<F>(0, 4, 3));
        }
        assert_eq!((seen.calls(), seen.samples()), (1, 4));
        for _ in 0..3 {
            assert_eq!(elements(module.forward(one::<F>(&x))), doubled::<F>(0, 4, 3));
        }
        assert_eq!((seen.calls(), seen.samples()), (2, 8));
        assert_eq!(module.contains(&ids(2, 4)).unwrap(), [true, true, false, false]);
        assert_eq!(module.len().unwrap(), 8);
        assert!(!module.is_empty().unwrap());
    }
}

/// Results come in the order of the call, whichever of them were kept.
pub fn only_what_is_missing_is_computed<F: Adapter>() {
    let (module, seen) = doubling(in_memory::<F>());
    module.forward_with_ids(one::<F>(&rows::<F>(2, 3, 2)), &ids(2, 3)).unwrap();
    let output = elements(module.forward_with_ids(one::<F>(&rows::<F>(0, 8, 2)), &ids(0, 8)));
    assert_eq!(output, doubled::<F>(0, 8, 2));
    assert_eq!((seen.calls(), seen.samples()), (2, 8));
    // In another order.
    let x = tensor::<F>(&[3, 2], &[14.0, 15.0, 0.0, 1.0, 18.0, 19.0]);
    let output = elements(module.forward_with_ids(one::<F>(&x), &[7_u64, 0, 9]));
    assert_eq!(output, [29.0, 31.0, 1.0, 3.0, 37.0, 39.0]);
    assert_eq!(seen.samples(), 9);
    let counts = module.counts();
    assert_eq!((counts.hits, counts.misses), (5, 9));
}

/// A sample that occurs several times in a batch is computed once.
pub fn duplicates_are_computed_once<F: Adapter>() {
    let (module, seen) = doubling(in_memory::<F>());
    let x = tensor::<F>(&[5, 1], &[1.0, 1.0, 2.0, 1.0, 2.0]);
    for expected in [2, 2] {
        let output = elements(module.forward_with_ids(one::<F>(&x), &["a", "a", "b", "a", "b"]));
        assert_eq!((output, seen.samples()), (vec![3.0, 3.0, 5.0, 3.0, 5.0], expected));
    }
    assert_eq!(module.counts().duplicates, 3);
    assert_eq!(elements(module.forward(one::<F>(&x))), [3.0, 3.0, 5.0, 3.0, 5.0]);
    assert_eq!(seen.samples(), 4);
}

/// The output for an empty batch has the shape and the dtype of other outputs.
pub fn an_empty_batch_looks_like_the_others<F: Adapter>() {
    let (module, _) = doubling(in_memory::<F>());
    for _ in 0..2 {
        let output = module.forward_with_ids(one::<F>(&tensor::<F>(&[0, 3], &[])), &[0_u64; 0]).unwrap();
        let output = stored::<F>(&output.into_tensor().unwrap());
        assert_eq!((output.dtype(), output.shape()), (Dtype::F32, [0, 3].as_slice()));
    }
    module.forward_with_ids(one::<F>(&rows::<F>(0, 2, 3)), &ids(0, 2)).unwrap();
    let load = |_: &[usize]| Ok(Inputs::new().with(Argument::Null));
    let output = module.call(Inputs::tensors(1)).ids(&[0_u64; 0]).run_lazy(F::HOST, load).unwrap();
    assert_eq!(F::shape(&output.into_tensor().unwrap()), [0, 3]);
}

/// Rows can be held on a device, outside of the store.
pub fn rows_are_held_on_a_device<F: Adapter>() {
    let (module, seen) = doubling(in_memory::<F>().memory_bytes(1 << 20).memory_device(F::HOST));
    for _ in 0..3 {
        let output = elements(module.forward_with_ids(one::<F>(&rows::<F>(0, 4, 2)), &ids(0, 4)));
        assert_eq!(output, doubled::<F>(0, 4, 2));
    }
    let crate::HeldRows { rows: held, bytes: len_bytes } = module.held();
    assert!((held, seen.samples()) == (4, 4) && len_bytes >= 32, "{held} {len_bytes}");
    assert_eq!(elements(module.forward_with_ids(one::<F>(&rows::<F>(2, 4, 2)), &ids(2, 4))), doubled::<F>(2, 4, 2));
    assert_eq!((module.held().rows, seen.samples()), (6, 6));
    // At its limit a device keeps the rows that it holds.
    let (module, _) = doubling(in_memory::<F>().memory_bytes(500).memory_device(F::HOST));
    module.forward_with_ids(one::<F>(&rows::<F>(0, 50, 2)), &ids(0, 50)).unwrap();
    let held = module.held();
    assert!(held.rows < 50 && held.bytes <= 500, "{held:?}");
    module.forward_with_ids(one::<F>(&rows::<F>(0, 50, 2)), &ids(0, 50)).unwrap();
    assert_eq!(module.held(), held);
}

/// Counters since the module was wrapped, and since the last epoch.
pub fn what_was_counted_is_told<F: Adapter>() {
    let (module, _) = doubling(in_memory::<F>());
    let x = rows::<F>(0, 4, 2);
    module.forward_with_ids(one::<F>(&x), &ids(0, 4)).unwrap();
    let epoch = module.end_epoch();
    assert_eq!((epoch.hits, epoch.misses, epoch.put_bytes), (0, 4, 32));
    module.forward_with_ids(one::<F>(&x), &ids(0, 4)).unwrap();
    let epoch = module.end_epoch();
    assert_eq!((epoch.hits, epoch.misses, epoch.read_bytes), (4, 0, 32));
    assert!(epoch.to_string().starts_with("4 hits, 0 misses (100.0 % hits)"), "{epoch}");
    assert_eq!((module.counts().hits, module.counts().misses), (4, 4));
}
