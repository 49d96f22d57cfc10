//! A folder that is shared by programs with and without libtorch.

use tensorcask_torch::{CacheOptions, to_stored};

use super::{assert_same, doubling_with, ids, rows};

#[test]
fn what_a_plain_function_computed_is_met() {
    let dir = tempfile::tempdir().unwrap();
    let double = |x: &tensorcask::Tensor| {
        let doubles: Vec<f32> = x.to_vec::<f32>()?.iter().map(|x| x * 2.0 + 1.0).collect();
        tensorcask::Tensor::from_slice(x.shape(), &doubles)
    };
    let options = tensorcask_cache::CacheOptions::in_folder(dir.path(), "doubling").version("1");
    let plain = options.wrap_fn(double).unwrap();
    let x = rows(0, 4, 3);
    plain.forward(&to_stored(&x).unwrap()).unwrap();
    plain.forward_with_ids(&to_stored(&x).unwrap(), &ids(0, 4)).unwrap();
    plain.close().unwrap();

    let (module, seen) = doubling_with(CacheOptions::in_folder(dir.path(), "doubling").version("1"));
    let expected = &x * 2 + 1;
    assert_same(&module.forward(&x).unwrap().into_tensor().unwrap(), &expected);
    // In any layout.
    let transposed = x.transpose(0, 1).contiguous().transpose(0, 1);
    assert_same(&module.forward(&transposed).unwrap().into_tensor().unwrap(), &expected);
    assert_same(&module.forward_with_ids(&x, &ids(0, 4)).unwrap().into_tensor().unwrap(), &expected);
    assert_eq!(seen.calls(), 0);
    // And in the other direction.
    let more = rows(4, 2, 3);
    module.forward(&more).unwrap();
    module.close().unwrap();
    let options = tensorcask_cache::CacheOptions::in_folder(dir.path(), "doubling").version("1");
    let plain = options.wrap_fn(double).unwrap();
    plain.forward(&to_stored(&more).unwrap()).unwrap();
    assert_eq!((plain.counts().hits, plain.counts().misses), (2, 0));
}
