//! How a call computes its output, and which calls are refused.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{doubled, doubling, elements, ids, in_memory, map, one, refused, rows, tensor};
use crate::error::Error;
use crate::keys::ids::Ids;
use crate::layer::Adapter;
use crate::layer::options::Verification;
use crate::values::input::{Argument, Inputs};
use crate::values::output::Output;

/// A loader is called with the positions of the missing samples.
pub fn inputs_are_loaded_for_what_is_missing<F: Adapter>() {
    let (module, seen) = doubling(in_memory::<F>());
    module.forward_with_ids(one::<F>(&rows::<F>(1, 2, 2)), &ids(1, 2)).unwrap();
    let mut asked = Vec::new();
    let load = |positions: &[usize]| {
        asked.push(positions.to_vec());
        let all: Vec<f32> = positions.iter().flat_map(|&at| [2.0 * at as f32, 2.0 * at as f32 + 1.0]).collect();
        Ok(one::<F>(&tensor::<F>(&[positions.len(), 2], &all)))
    };
    let output = module.call(Inputs::tensors(1)).ids(&ids(0, 5)).run_lazy(F::HOST, load);
    assert_eq!(elements(output), doubled::<F>(0, 5, 2));
    assert_eq!((asked, seen.samples()), (vec![vec![0, 3, 4]], 5));
    let nothing = |_: &[usize]| panic!("everything is there");
    let output = module.call(Inputs::tensors(1)).ids(&ids(0, 5)).run_lazy(F::HOST, nothing);
    assert_eq!(elements(output), doubled::<F>(0, 5, 2));
    let few = |_: &[usize]| Ok(one::<F>(&rows::<F>(0, 1, 2)));
    refused(module.call(Inputs::tensors(1)).ids(&ids(8, 2)).run_lazy(F::HOST, few), "1 samples were loaded for 2");
}

/// Loaded tensors fill the places that the call named. Loading anything else is an error.
pub fn loaded_tensors_have_their_places<F: Adapter>() {
    let sum = in_memory::<F>().wrap_inputs_fn(|inputs: &Inputs<F>| {
        let y = super::floats::<F>(inputs.tensor_named("y")?);
        let at = AtomicUsize::new(0);
        Ok(Output::<F>::Tensor(map::<F>(inputs.tensor(0)?, |x| x + 100.0 * y[at.fetch_add(1, Ordering::Relaxed)])))
    });
    let sum = sum.unwrap();
    let call = || Inputs::tensors(1).named("y", Argument::<F>::Batched);
    let x = || Argument::<F>::Tensor(rows::<F>(0, 2, 1));
    let load = |_: &[usize]| Ok(Inputs::new().named("y", x()).with(x()));
    let output = elements(sum.as_ref().call(call()).ids(&ids(0, 2)).run_lazy(F::HOST, load));
    assert_eq!(output, [0.0, 101.0]);
    let other = |_: &[usize]| Ok(Inputs::new().with(x()).with(x()));
    refused(
        sum.as_ref().call(call()).ids(&ids(2, 2)).run_lazy(F::HOST, other),
        "were loaded, but the ids were looked up",
    );
    let plain = |_: &[usize]| Ok(Inputs::new().with(x()).named("y", x()).with(3));
    refused(
        sum.as_ref().call(call()).ids(&ids(2, 2)).run_lazy(F::HOST, plain),
        "plain or shared arguments were loaded",
    );
}

/// Ids can be derived from the inputs.
pub fn ids_are_derived<F: Adapter>() {
    let options = in_memory::<F>().ids_from(|inputs| {
        Ok(Ids::Str(super::floats::<F>(inputs.tensor(0)?).iter().map(ToString::to_string).collect()))
    });
    let (module, seen) = doubling(options);
    let x = tensor::<F>(&[3, 1], &[1.0, 2.0, 1.0]);
    assert_eq!(elements(module.forward(one::<F>(&x))), [3.0, 5.0, 3.0]);
    assert_eq!((seen.samples(), module.contains(&["1", "2", "3"]).unwrap()), (2, vec![true, true, false]));
}

/// Nothing is cached in training mode or while the cache is off.
pub fn nothing_is_cached_in_training_or_off<F: Adapter>() {
    let (module, seen) = doubling(in_memory::<F>());
    let x = rows::<F>(0, 2, 2);
    for _ in 0..2 {
        let output = module.call(one::<F>(&x)).ids(&ids(0, 2)).training(true).run();
        assert_eq!(elements(output), doubled::<F>(0, 2, 2));
    }
    module.set_enabled(false);
    assert!(!module.is_enabled());
    assert_eq!(elements(module.forward_with_ids(one::<F>(&x), &ids(0, 2))), doubled::<F>(0, 2, 2));
    assert_eq!((seen.calls(), module.counts().bypassed, module.len().unwrap()), (3, 3, 0));
    module.set_enabled(true);
    module.forward_with_ids(one::<F>(&x), &ids(0, 2)).unwrap();
    assert_eq!(module.len().unwrap(), 2);
}

/// A computation that fails keeps nothing, and the next call succeeds.
pub fn a_failed_computation_keeps_nothing<F: Adapter>() {
    let fails = Arc::new(AtomicBool::new(true));
    let failing = Arc::clone(&fails);
    let module = in_memory::<F>().wrap_fn(move |x: &F::Tensor| match failing.load(Ordering::SeqCst) {
        true => Err(std::io::Error::other("out of order")),
        false => Ok(Output::<F>::Tensor(map::<F>(x, |x| x + 1.0))),
    });
    let module = module.unwrap().as_ref().clone();
    let call = || module.forward_with_ids(one::<F>(&rows::<F>(0, 2, 1)), &ids(0, 2));
    let error = call().unwrap_err();
    assert!(matches!(&error, Error::Compute { .. }) && error.to_string().contains("out of order"), "{error}");
    assert_eq!(module.len().unwrap(), 0);
    fails.store(false, Ordering::SeqCst);
    assert_eq!(elements(call()), [1.0, 2.0]);
}

/// A panic is propagated to the caller, and its claims are released.
pub fn a_panic_keeps_nothing<F: Adapter>() {
    let first = Arc::new(AtomicBool::new(true));
    let module = in_memory::<F>().wrap_fn(move |x: &F::Tensor| {
        assert!(!first.swap(false, Ordering::SeqCst), "a panic of the module");
        Output::<F>::Tensor(map::<F>(x, |x| x + 1.0))
    });
    let module = module.unwrap().as_ref().clone();
    let other = module.clone();
    let panicked =
        std::thread::spawn(move || other.forward_with_ids(one::<F>(&rows::<F>(0, 2, 1)), &ids(0, 2)).is_ok());
    assert!(panicked.join().is_err());
    assert_eq!(elements(module.forward_with_ids(one::<F>(&rows::<F>(0, 2, 1)), &ids(0, 2))), [1.0, 2.0]);
}

/// Arguments that do not form a batch are refused.
pub fn unusable_batches_are_refused<F: Adapter>() {
    let (module, seen) = doubling(in_memory::<F>());
    let x = rows::<F>(0, 2, 2);
    refused(module.forward_with_ids(one::<F>(&x), &ids(0, 3)), "3 ids were given for 2 samples");
    refused(module.forward(Inputs::new()), "no tensor was passed");
    refused(module.forward(one::<F>(&tensor::<F>(&[], &[1.0]))), "has no dimensions");
    let differ = one::<F>(&x).with(Argument::Tensor(rows::<F>(0, 3, 2)));
    refused(module.forward(differ), "first dimensions differ (2 and 3)");
    refused(module.forward(one::<F>(&x).named("a", 1).named("a", 2)), "\"a\" was passed twice");
    refused(module.call(Inputs::tensors(1)).ids(&ids(0, 2)).run(), "the place of a tensor was passed");
    refused(module.forward(one::<F>(&x).with(1)), "takes one tensor");
    assert_eq!(seen.calls(), 0);
}

/// Verification recomputes hits and reports outputs that differ.
pub fn verification_finds_what_is_not_reproducible<F: Adapter>() {
    let wrapped = |verification: Verification, step: f32| {
        let calls = Mutex::new(0.0);
        let module = in_memory::<F>().verify(verification).wrap_fn(move |x: &F::Tensor| {
            let mut calls = calls.lock().unwrap();
            *calls += 1.0;
            Output::<F>::Tensor(map::<F>(x, |x| x + 1.0 + step * *calls))
        });
        module.unwrap().as_ref().clone()
    };
    let call = |module: &crate::layer::Cached<F>| module.forward_with_ids(one::<F>(&rows::<F>(0, 4, 2)), &ids(0, 4));
    // Equal outputs, and outputs within the tolerance.
    for step in [0.0, 1e-6] {
        let module = wrapped(Verification::rate(1.0), step);
        call(&module).unwrap();
        call(&module).unwrap();
        assert_eq!(module.counts().verified, 4);
    }
    let module = wrapped(Verification::rate(1.0), 1.0);
    call(&module).unwrap();
    assert!(matches!(call(&module).unwrap_err(), Error::NotReproducible { samples: 4, .. }));
    let module = wrapped(Verification { fails: false, ..Verification::rate(1.0) }, 1.0);
    call(&module).unwrap();
    call(&module).unwrap();
    assert!(module.warnings()[0].contains("4 cached outputs computed again"), "{:?}", module.warnings());
    // Only a share of the hits is verified.
    let module = wrapped(Verification::rate(0.3), 0.0);
    call(&module).unwrap();
    (0..50).for_each(|_| drop(call(&module).unwrap()));
    let verified = module.counts().verified;
    assert!((20..100).contains(&verified), "{verified}");
}

/// An iterator returns batches of kept outputs, and reads ahead.
pub fn batches_are_read_ahead<F: Adapter>() {
    let (module, seen) = doubling(in_memory::<F>());
    let load = |ids: &Ids| match ids {
        Ids::Int(ids) => {
            let numbers: Vec<f32> = ids.iter().map(|&id| id as f32).collect();
            Ok(one::<F>(&tensor::<F>(&[ids.len(), 1], &numbers)))
        }
        Ids::Str(_) => panic!("these are integers"),
    };
    for epoch in 0..2 {
        let mut all = Vec::new();
        for batch in module.batches(&ids(0, 10), 4).shuffle(epoch).load(load).start().unwrap() {
            let batch = batch.unwrap();
            let Ids::Int(ids) = &batch.ids else { panic!("these are integers") };
            let expected: Vec<f32> = ids.iter().map(|&id| 2.0 * id as f32 + 1.0).collect();
            assert_eq!(elements::<F>(Ok(batch.output)), expected);
            all.extend_from_slice(ids);
        }
        all.sort_unstable();
        assert_eq!(all, ids(0, 10));
    }
    assert_eq!(seen.samples(), 10);
    assert_eq!(module.batches(&ids(0, 10), 4).drop_last(true).start().unwrap().count(), 2);
    let missing = module.batches(&ids(8, 4), 4).start().unwrap().next().unwrap();
    refused(missing, "2 of 4 outputs of a batch are missing");
    refused(module.batches(&ids(0, 10), 0).start(), "a batch size of 0");
}
