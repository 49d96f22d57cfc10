//! Adapters find each other's outputs.

use std::path::Path;

use candle_core::{Device, Tensor};
use tensorcask::Tensor as Stored;
use tensorcask_candle::to_stored;

fn kept_by_host(folder: &Path, computes: bool, batch: &Stored) -> Vec<Stored> {
    let module = tensorcask_cache::CacheOptions::in_folder(folder, "shared").version("1").fingerprint("weights", b"w");
    let module = module.wrap_fn(move |batch: &Stored| {
        assert!(computes, "it is kept");
        batch.clone()
    });
    let module = module.unwrap();
    let outputs = [module.forward(batch), module.forward_with_ids(batch, &["a", "b"])];
    let outputs = outputs.map(|output| output.unwrap().into_tensor().unwrap()).to_vec();
    module.close().unwrap();
    outputs
}

fn kept_by_candle(folder: &Path, computes: bool, batch: &Tensor) -> Vec<Stored> {
    let module = tensorcask_candle::CacheOptions::in_folder(folder, "shared").version("1").fingerprint("weights", b"w");
    let module = module.wrap_fn(move |batch: &Tensor| {
        assert!(computes, "it is kept");
        batch.clone()
    });
    let module = module.unwrap();
    let outputs = [module.forward(batch), module.forward_with_ids(batch, &["a", "b"])];
    let outputs = outputs.map(|output| to_stored(&output.unwrap().into_tensor().unwrap()).unwrap()).to_vec();
    module.close().unwrap();
    outputs
}

#[test]
fn host_and_candle_find_what_the_other_kept() {
    let batch = Tensor::new(&[[1.0_f32, f32::NAN, -0.0], [2.0, 3.0, 4.0]], &Device::Cpu).unwrap();
    let stored = to_stored(&batch).unwrap();
    for host_is_first in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = if host_is_first {
            (kept_by_host(folder.path(), true, &stored), kept_by_candle(folder.path(), false, &batch))
        } else {
            (kept_by_candle(folder.path(), true, &batch), kept_by_host(folder.path(), false, &stored))
        };
        for output in first.iter().chain(&second) {
            // Compares bits, as NaN is not equal to itself.
            assert_eq!((output.shape(), output.data()), (stored.shape(), stored.data()));
        }
        let identities = std::fs::read_dir(folder.path().join("shared")).unwrap();
        assert_eq!(identities.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count(), 1);
    }
}

/// Candle has no booleans.
#[test]
fn what_candle_cannot_hold_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mask = |_: &Stored| Stored::from_bools(&[2, 1], &[true, false]);
    let module = tensorcask_cache::CacheOptions::in_folder(folder.path(), "mask").version("1").wrap_fn(mask).unwrap();
    let batch = super::rows(2, 2);
    module.forward(&to_stored(&batch).unwrap()).unwrap();
    module.close().unwrap();
    let module = tensorcask_candle::CacheOptions::in_folder(folder.path(), "mask").version("1");
    let module = module.wrap_fn(|batch: &Tensor| batch.clone()).unwrap();
    let said = module.forward(&batch).unwrap_err().to_string();
    assert!(said.contains("candle has no dtype for BOOL"), "{said}");
}
