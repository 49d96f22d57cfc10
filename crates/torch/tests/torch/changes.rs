//! Detection of weights that change while a module is wrapped, by every means of libtorch.

use std::sync::Barrier;
use std::time::Duration;

use tch::nn::{self, ModuleT};
use tch::{Device, Kind, Tensor};
use tensorcask_torch::WrapModules as _;
use tensorcask_torch::{CacheOptions, CachedModule, Inputs, Place};

use super::{assert_same, doubling_with, ids, rows};

fn tensor(output: tensorcask_torch::Result<tensorcask_torch::Output>) -> Tensor {
    output.unwrap().into_tensor().unwrap()
}

/// `x * w` for a frozen `w` of `len` elements, all equal to `value`.
fn scaling(options: CacheOptions, len: i64, value: f64) -> (CachedModule, Tensor, nn::VarStore) {
    let mut variables = nn::VarStore::new(Device::Cpu);
    let w = variables.root().var("w", &[len], nn::Init::Const(value));
    variables.freeze();
    let handle = w.shallow_clone();
    let options = options.version("1");
    let module = options.wrap_inputs_fn_with(&variables, move |inputs: &Inputs| Ok(inputs.tensor(0)? * w.get(0)));
    (module.unwrap(), handle, variables)
}

fn set(w: &Tensor, value: f64) {
    let _guard = tch::no_grad_guard();
    let _filled = w.shallow_clone().fill_(value);
}

#[test]
fn running_statistics_that_a_training_pass_moves() {
    let dir = tempfile::tempdir().unwrap();
    let wrap = |features: i64| {
        let mut variables = nn::VarStore::new(Device::Cpu);
        let config = nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), ..Default::default() };
        let norm = nn::batch_norm1d(variables.root(), features, config);
        variables.freeze();
        let options = CacheOptions::in_folder(dir.path(), format!("norm-{features}"));
        (options.wrap_module_t(norm, &variables).unwrap(), variables)
    };
    // With few features, all statistics are read at every call; with many, only some bytes of them.
    for features in [3, 10_000] {
        let x = rows(0, 4, features);
        let (module, variables) = wrap(features);
        let before = tensor(module.forward(&x));
        module.call(&x).training(true).run().unwrap();
        let after = tensor(module.forward(&x));
        assert!(!after.equal(&before), "old outputs were met after a training pass");
        let mut plain = nn::VarStore::new(Device::Cpu);
        let norm = nn::batch_norm1d(plain.root(), features, Default::default());
        plain.copy(&variables).unwrap();
        assert_same(&after, &norm.forward_t(&x, false).detach());
        module.close().unwrap();
        // The next process has the initial statistics.
        assert_same(&tensor(wrap(features).0.forward(&x)), &before);
    }
}

#[test]
fn running_statistics_that_move_behind_the_handle() {
    let mut variables = nn::VarStore::new(Device::Cpu);
    let sizes = [1, 2, 3, 7, 8, 9, 64, 2048, 4096, 10_000];
    for features in sizes {
        let path = variables.root() / features;
        let config = nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), ..Default::default() };
        let norm = std::sync::Arc::new(std::sync::Mutex::new(nn::batch_norm1d(path, features, config)));
        variables.freeze();
        let inner = std::sync::Arc::clone(&norm);
        let forward = move |inputs: &Inputs| Ok(inner.lock().unwrap().forward_t(inputs.tensor(0)?, false));
        let module = CacheOptions::in_memory().module_id("m").wrap_inputs_fn_with(&variables, forward).unwrap();
        let x = rows(0, 4, features);
        let before = tensor(module.forward(&x));
        assert_same(&tensor(module.forward(&x)), &before);
        assert_eq!(module.counts().hits, 4);
        let _trained = norm.lock().unwrap().forward_t(&x, true);
        let after = tensor(module.forward(&x));
        assert!(!after.equal(&before), "old outputs were met with {features} features");
    }
}

/// Of so many variables, each call inspects only some.
#[test]
fn one_of_hundreds_of_variables() {
    let mut variables = nn::VarStore::new(Device::Cpu);
    let root = variables.root();
    let config = nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), ..Default::default() };
    let norms: Vec<_> = (0..100).map(|at| nn::batch_norm1d(&root / at, 8, config)).collect();
    let mut w = root.var("w", &[16, 16], nn::Init::Const(1.0));
    variables.freeze();
    let norms = std::sync::Arc::new(std::sync::Mutex::new(norms));
    let (inner, weight) = (std::sync::Arc::clone(&norms), w.shallow_clone());
    let forward = move |inputs: &Inputs| {
        let norms = inner.lock().unwrap();
        Ok(norms.iter().fold(inputs.tensor(0)?.shallow_clone(), |x, norm| norm.forward_t(&x, false)) * weight.sum(None))
    };
    let module = CacheOptions::in_memory().module_id("m").wrap_inputs_fn_with(&variables, forward).unwrap();
    let x = rows(0, 64, 8);
    let mut former = tensor(module.forward(&x));
    let mut differs = |after: &str| {
        let output = tensor(module.forward(&x));
        assert!(!output.equal(&former), "an old output was met after {after}");
        assert_same(&tensor(module.forward(&x)), &output);
        former = output;
    };
    for at in [0, 1, 50, 99] {
        let _trained = norms.lock().unwrap()[at].forward_t(&rows(3, 4, 8), true);
        differs(&format!("a training pass of layer {at} alone"));
        set(norms.lock().unwrap()[at].bs.as_ref().unwrap(), 0.25);
        differs(&format!("a write to layer {at} alone"));
    }
    w.set_data(&Tensor::full([16, 16], 2.0, (Kind::Float, Device::Cpu)));
    differs("an exchange of one variable");
    set(&w, 3.0);
    differs("a write to the one that was exchanged");
    variables.unfreeze();
    assert!(module.forward(&x).is_err(), "trainable variables were not refused");
}

#[test]
fn weights_that_change_during_a_call() {
    let dir = tempfile::tempdir().unwrap();
    let (module, w, _variables) = scaling(CacheOptions::in_folder(dir.path(), "m"), 1, 2.0);
    let mut calls = 0;
    let output = module.forward_lazy(&[0_u64, 1], Device::Cpu, |_| {
        calls += 1;
        if calls == 1 {
            set(&w, 3.0);
        }
        Ok(Inputs::from(&rows(1, 2, 2)))
    });
    assert_same(&tensor(output), &(rows(1, 2, 2) * 3));
    module.close().unwrap();
    // No output of the changed weights was kept for the initial ones.
    let (module, _, _variables) = scaling(CacheOptions::in_folder(dir.path(), "m"), 1, 2.0);
    assert_same(&tensor(module.forward_with_ids(&rows(1, 2, 2), &[0_u64, 1])), &(rows(1, 2, 2) * 2));
    // Weights that every attempt finds changed are an error.
    let (module, w, _variables) = scaling(CacheOptions::in_memory().module_id("m"), 1, 2.0);
    let mut value = 2.0;
    let error = module.forward_lazy(&[7_u64], Device::Cpu, |_| {
        value += 1.0;
        set(&w, value);
        Ok(Inputs::from(&rows(1, 1, 2)))
    });
    assert!(error.unwrap_err().to_string().contains("are changed by every call"));
}

#[test]
fn weights_that_other_threads_change() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<_> = [2.0, 3.0]
        .map(|value| {
            let path = dir.path().join(format!("{value}.ot"));
            scaling(CacheOptions::in_memory().module_id("m"), 1, value).2.save(&path).unwrap();
            path
        })
        .into();
    let (module, _, _variables) = scaling(CacheOptions::in_folder(dir.path(), "m"), 1, 2.0);
    let call = |x: &Tensor, ids: &[u64]| loop {
        match module.forward_with_ids(x, ids) {
            Ok(output) => return output.into_tensor().unwrap(),
            // The other thread changed the weights during every attempt, which the test causes itself.
            Err(error) => assert!(error.to_string().contains("are changed by every call"), "{error}"),
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let call = &call;
            scope.spawn(move || {
                for step in 0..40 {
                    let from = thread * 1000 + step * 4;
                    let x = rows(from as i64 + 1, 4, 2);
                    let y = call(&x, &ids(from, 4));
                    let all_of = |factor: f64| y.equal(&(&x * factor));
                    assert!(all_of(2.0) || all_of(3.0), "weights were mixed within a batch");
                }
            });
        }
        for _ in 0..10 {
            files.iter().for_each(|file| {
                module.load(file).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            });
        }
    });
    module.close().unwrap();
    for value in [2.0, 3.0] {
        let (module, _, _variables) = scaling(CacheOptions::in_folder(dir.path(), "m"), 1, value);
        for thread in 0..3 {
            let x = rows(thread * 1000 + 1, 160, 2);
            let y = tensor(module.forward_with_ids(&x, ids(thread as u64 * 1000, 160).as_slice()));
            assert_same(&y, &(x * value).to_kind(Kind::Float));
        }
    }
}

#[test]
fn kinds_and_views_that_change() {
    // Rounding through half precision changes values, but not kind, shape and count of writes.
    for len in [16, 256, 100_000] {
        let (module, w, mut variables) = scaling(CacheOptions::in_memory().module_id("m"), len, 0.1);
        let call = || tensor(module.forward_with_ids(&rows(1, 2, 2), &[0_u64, 1]));
        let before = call();
        variables.half();
        variables.float();
        let after = call();
        assert!(!after.equal(&before), "old outputs were met with {len} weights");
        assert_same(&after, &(rows(1, 2, 2) * w.get(0)));
    }
}

#[test]
fn views_of_the_same_elements() {
    // Address, sizes and count of writes stay the same: only the strides change.
    for side in [3, 100] {
        let mut w = Tensor::arange(side * side, (Kind::Float, Device::Cpu)).view([side, side]);
        let handle = w.shallow_clone();
        let variables = vec![("w".to_owned(), w.shallow_clone())];
        let forward = move |inputs: &Inputs| Ok(inputs.tensor(0)? * handle.get(0).narrow(0, 0, 2));
        let options = CacheOptions::in_memory().module_id("m");
        let module = options.wrap_inputs_fn_with(variables, forward).unwrap();
        let call = || tensor(module.forward_with_ids(&rows(1, 2, 2), &[0_u64, 1]));
        let row = call();
        let transposed = w.tr();
        w.set_data(&transposed);
        let column = call();
        assert_same(&row, &(rows(1, 2, 2) * Tensor::from_slice(&[0.0_f32, 1.0])));
        assert_same(&column, &(rows(1, 2, 2) * Tensor::from_slice(&[0.0, side as f32])));
    }
}

#[test]
fn fleeting_places_keep_every_identity() {
    for place in [Place::Memory, Place::Temporary(None)] {
        let (module, w, _variables) = scaling(CacheOptions::new(place).module_id("m"), 1, 2.0);
        let call = |value: f64| {
            set(&w, value);
            assert_same(&tensor(module.forward_with_ids(&rows(1, 2, 2), &[0_u64, 1])), &(rows(1, 2, 2) * value));
            module.counts().misses
        };
        assert_eq!([call(2.0), call(3.0), call(2.0), call(3.0)], [2, 4, 4, 4]);
    }
}

#[test]
fn a_flush_covers_former_weights() {
    let dir = tempfile::tempdir().unwrap();
    let options = || CacheOptions::in_folder(dir.path(), "m");
    let (one, w, _variables) = scaling(options(), 1, 2.0);
    // Another handle keeps the store of the initial weights open.
    let (two, _, _others) = scaling(options(), 1, 2.0);
    one.forward_with_ids(&rows(1, 2, 2), &[0_u64, 1]).unwrap();
    let folder = two.folder().unwrap();
    set(&w, 3.0);
    one.forward_with_ids(&rows(1, 2, 2), &[0_u64, 1]).unwrap();
    one.flush().unwrap();
    assert_eq!(tensorcask::Reader::open(folder, "u64").unwrap().len().unwrap(), 2);
}

#[test]
fn no_identity_for_weights_that_are_not_looked_up() {
    let dir = tempfile::tempdir().unwrap();
    let (module, w, _variables) = scaling(CacheOptions::in_folder(dir.path(), "m"), 1, 2.0);
    module.set_enabled(false);
    for step in 0..5 {
        set(&w, f64::from(step));
        module.forward(&rows(1, 2, 2)).unwrap();
    }
    assert_eq!(std::fs::read_dir(dir.path().join("m")).unwrap().count(), 1);
}

#[test]
fn cache_dtypes_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let options = || CacheOptions::in_folder(dir.path(), "m");
    let (packed, _) = doubling_with(options().cache_dtype(tensorcask::Dtype::F16));
    packed.forward_with_ids(&rows(0, 2, 2), &ids(0, 2)).unwrap();
    let (plain, seen) = doubling_with(options());
    for _ in 0..2 {
        assert_same(&tensor(plain.forward_with_ids(&rows(0, 4, 2), &ids(0, 4))), &(rows(0, 4, 2) * 2 + 1));
    }
    assert_eq!(seen.samples(), 4);
    // Empty batches have the same dtype as full ones.
    let (fresh, _) = doubling_with(CacheOptions::in_memory().module_id("m").cache_dtype(tensorcask::Dtype::F16));
    let kind = || tensor(fresh.forward(&rows(0, 0, 2))).kind();
    let before = kind();
    fresh.forward(&rows(0, 2, 2)).unwrap();
    fresh.forward(&rows(0, 2, 2)).unwrap();
    assert_eq!((before, kind()), (Kind::Half, Kind::Half));
}

#[test]
fn a_buffer_that_is_used_again_is_copied_in_time() {
    let buffer = Tensor::zeros([2, 64], (Kind::Float, Device::Cpu));
    let module = CacheOptions::in_memory().module_id("m").wrap_fn(move |x: &Tensor| {
        buffer.shallow_clone().copy_(x);
        buffer.shallow_clone()
    });
    let module = module.unwrap();
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4_i64 {
            let (module, start) = (&module, &start);
            scope.spawn(move || {
                start.wait();
                for step in 0..50 {
                    let from = thread * 1000 + step * 2;
                    let x = rows(from, 2, 64);
                    assert_same(&tensor(module.forward_with_ids(&x, ids(from as u64, 2).as_slice())), &x);
                    assert_same(&tensor(module.forward_with_ids(&x, ids(from as u64, 2).as_slice())), &x);
                }
            });
        }
    });
}
