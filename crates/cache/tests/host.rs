//! The contract of the caching layer, over host tensors: `cargo test -p tensorcask-cache --features contract`.

use tensorcask::{Dtype, Tensor};
use tensorcask_cache::CacheOptions;
use tensorcask_cache::host::Host;

tensorcask_cache::contract!(Host);

#[test]
fn the_format_has_the_test_vectors() {
    let format = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../FORMAT.md")).unwrap();
    let keys = tensorcask_cache::contract::keys::KEYS.map(|(_, key)| key);
    for vector in keys.into_iter().chain([tensorcask_cache::contract::keys::IDENTITY]) {
        assert!(format.contains(&format!("`{vector}`")), "{vector}");
    }
}

fn ones(batch: &Tensor) -> tensorcask::Result<Tensor> {
    let rows = batch.shape().first().copied().unwrap_or(1);
    Tensor::from_slice(&[rows, 1], &vec![1.0_f32; rows])
}

/// A sample of packed elements may end within a byte; such samples are refused.
#[test]
fn packed_samples_fill_whole_bytes() {
    let module = CacheOptions::in_memory().module_id("m").wrap_fn(ones).unwrap();
    for (shape, bytes) in [(&[2, 1][..], vec![0x21]), (&[2, 3], vec![1, 2, 3])] {
        let said = module.forward(Tensor::new(Dtype::F4, shape, bytes).unwrap()).unwrap_err().to_string();
        assert!(said.contains("whole bytes"), "{said}");
    }
    module.forward(Tensor::new(Dtype::F4, &[2, 2], vec![1, 2]).unwrap()).unwrap();
    module.forward(Tensor::new(Dtype::F4, &[2, 2], vec![1, 3]).unwrap()).unwrap();
    assert_eq!((module.counts().hits, module.counts().misses), (1, 3));
}

#[test]
fn a_mask_is_no_tensor_of_ids() {
    let module = CacheOptions::in_memory().module_id("m").wrap_fn(ones).unwrap();
    let mask = Tensor::from_bools(&[2], &[true, false]).unwrap();
    let x = Tensor::from_slice(&[2, 1], &[1.0_f32, 2.0]).unwrap();
    assert!(module.forward_with_ids(&x, &mask).is_err());
}
