//! Hits that are recomputed and compared.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use tch::{Kind, Tensor};
use tensorcask_torch::{CacheOptions, CachedModule, Ids, Inputs, Output, Verification};

use super::{ids, rows};

fn in_memory() -> CacheOptions {
    CacheOptions::in_memory().module_id("m")
}

/// A module whose output can be replaced, with every hit verified.
fn exchanged(first: Output) -> (CachedModule, Arc<Mutex<Output>>) {
    let output = Arc::new(Mutex::new(first));
    let inner = Arc::clone(&output);
    let options = in_memory().verify(Verification::rate(1.0));
    let module = options.wrap_fn(move |_: &Tensor| inner.lock().unwrap().shallow_clone()).unwrap();
    module.forward_with_ids(&rows(0, 2, 1), &ids(0, 2)).unwrap();
    (module, output)
}

fn verified(first: Output, second: Output) -> Result<(), String> {
    let (module, output) = exchanged(first);
    *output.lock().unwrap() = second;
    let again = module.forward_with_ids(&rows(0, 2, 1), &ids(0, 2));
    assert_eq!(module.counts().verified, 2);
    again.map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn verification_compares_maps_by_name() {
    let map = |names: [&str; 2], by: f64| {
        Output::map(names.map(|name| (name, if name == "a" { rows(0, 2, 1) } else { rows(5, 2, 1) + by })))
    };
    verified(map(["a", "b"], 0.0), map(["b", "a"], 0.0)).unwrap();
    let error = verified(map(["a", "b"], 0.0), map(["b", "a"], 1.0)).unwrap_err();
    assert!(error.contains("b: elements differ by up to 1e0"), "{error}");
    let error = verified(map(["a", "b"], 0.0), map(["a", "c"], 0.0)).unwrap_err();
    assert!(error.contains("names"), "{error}");
    let nested = |names| Output::list([map(names, 0.0)]);
    verified(nested(["a", "b"]), nested(["b", "a"])).unwrap();
}

#[test]
fn verification_compares_integers_exactly() {
    let large = |by: i64| Output::Tensor(Tensor::from_slice(&[(1_i64 << 60) + by, 1]).reshape([2, 1]));
    verified(large(0), large(0)).unwrap();
    let error = verified(large(0), large(1)).unwrap_err();
    assert!(error.contains("1152921504606846976 against 1152921504606846977"), "{error}");
    for kind in [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64, Kind::Bool] {
        let small = |by: i64| Output::Tensor(Tensor::from_slice(&[0_i64, by]).reshape([2, 1]).to_kind(kind));
        verified(small(1), small(1)).unwrap();
        assert!(verified(small(0), small(1)).is_err(), "{kind:?}");
    }
    // 100,000 and 100,001 are within the relative tolerance, but integers have to be equal.
    let counts = |n: i64| Output::Tensor(Tensor::from_slice(&[n, n]).reshape([2, 1]));
    assert!(verified(counts(100_000), counts(100_001)).is_err());
    // Plain values: integers have to be equal, floats within the tolerance.
    assert!(verified(((1_i64 << 60) + 1).into(), (1_i64 << 60).into()).is_err());
    verified(0.5.into(), (0.5 + 1e-7).into()).unwrap();
    verified(f64::NAN.into(), f64::NAN.into()).unwrap();
    verified(0.0.into(), (-0.0).into()).unwrap();
    assert!(verified(0.5.into(), 0.6.into()).is_err());
    assert!(verified("a".into(), "b".into()).is_err());
    assert!(verified(Output::Null, true.into()).is_err());
}

#[test]
fn batches_are_verified() {
    let factor = Arc::new(AtomicI64::new(2));
    let inner = Arc::clone(&factor);
    let options = in_memory().verify(Verification::rate(1.0));
    let module = options.wrap_fn(move |x: &Tensor| x * inner.load(Ordering::SeqCst)).unwrap();
    let load = |ids: &Ids| match ids {
        Ids::Int(ids) => {
            let rows: Vec<Tensor> = ids.iter().map(|id| rows(*id as i64, 1, 2)).collect();
            Ok(Inputs::from(&Tensor::cat(&rows, 0)))
        }
        _ => panic!("ids are integers"),
    };
    let epoch =
        || module.batches(&ids(0, 10), 4).load(load).start().unwrap().collect::<tensorcask_torch::Result<Vec<_>>>();
    epoch().unwrap();
    assert_eq!(module.counts().verified, 0);
    epoch().unwrap();
    assert_eq!((module.counts().verified, module.counts().misses), (10, 10));
    factor.store(3, Ordering::SeqCst);
    assert!(matches!(epoch().unwrap_err(), tensorcask_torch::Error::NotReproducible { .. }));
}
