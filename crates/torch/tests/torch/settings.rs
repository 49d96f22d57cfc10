//! Packed and down-cast outputs.

use tch::{Device, Kind, Tensor};
use tensorcask::{Codec, Dtype};
use tensorcask_torch::OutputLike as _;
use tensorcask_torch::{CacheOptions, Output};

use super::{assert_outputs, assert_same, ids};

fn noise(count: i64) -> Tensor {
    Tensor::arange(count * 7, (Kind::Double, Device::Cpu)).sin().reshape([count, 7])
}

#[test]
fn packed_outputs_are_the_same() {
    for codec in [Codec::Zstd { level: 3 }, Codec::ShuffleZstd { level: 1 }] {
        let dir = tempfile::tempdir().unwrap();
        for run in 0..2 {
            let options = CacheOptions::in_folder(dir.path(), "m").version("1").codec(codec);
            let module = options.wrap_fn(|x: &Tensor| x.to_kind(Kind::Float) * 2).unwrap();
            for _ in 0..2 {
                let output = module.forward_with_ids(&noise(20), &ids(0, 20)).unwrap().into_tensor().unwrap();
                assert_same(&output, &(noise(20).to_kind(Kind::Float) * 2));
            }
            assert_eq!(module.counts().misses, if run == 0 { 20 } else { 0 });
        }
    }
}

#[test]
fn down_cast_outputs_are_the_same_on_a_miss_and_on_a_hit() {
    for (dtype, kind) in [(Dtype::F16, Kind::Half), (Dtype::BF16, Kind::BFloat16), (Dtype::F32, Kind::Float)] {
        for restore in [false, true] {
            for source in [Kind::Float, Kind::Double, Kind::Half, Kind::Int64] {
                let options = CacheOptions::temporary().module_id("m").cache_dtype(dtype).restore_dtype(restore);
                let module = options.wrap_fn(move |x: &Tensor| (x * 100).to_kind(source)).unwrap();
                let call = |from: i64, count: i64| {
                    let x = noise(20).narrow(0, from, count);
                    module.forward_with_ids(&x, &ids(from as u64, count as u64)).unwrap().into_tensor().unwrap()
                };
                let first = call(0, 10);
                let narrows = matches!(source, Kind::Float | Kind::Double)
                    && source.elt_size_in_bytes() > kind.elt_size_in_bytes();
                assert_eq!(first.kind(), if narrows && !restore { kind } else { source });
                if narrows {
                    let wide = |t: &Tensor| t.to_kind(Kind::Double);
                    let exact = wide(&(noise(20).narrow(0, 0, 10) * 100));
                    assert!(wide(&first).allclose(&exact, 1e-2, 1e-2, false));
                }
                assert_same(&call(0, 10), &first);
                // Half hits, half misses.
                let both = call(0, 20);
                assert_same(&both.narrow(0, 0, 10), &first);
                assert_same(&call(0, 20), &both);
            }
        }
    }
}

#[test]
fn down_cast_trees() {
    let options = CacheOptions::in_memory().module_id("m").cache_dtype(Dtype::F16);
    let module = options.wrap_fn(|x: &Tensor| {
        Output::map([("a", Output::Tensor(x * 3)), ("b", (x + 1, x.to_kind(Kind::Int64)).output())])
    });
    let module = module.unwrap();
    let first = module.forward_with_ids(&noise(4), &ids(0, 4)).unwrap();
    assert_eq!(first.get("a").unwrap().tensor().unwrap().kind(), Kind::Half);
    assert_outputs(&module.forward_with_ids(&noise(4), &ids(0, 4)).unwrap(), &first);
}
