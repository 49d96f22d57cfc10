//! The next call detects every change of a variable by libtorch, and no state of a variable may crash the detection.

use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use tch::nn::{self, ModuleT, OptimizerConfig};
use tch::{Device, Kind, Tensor};
use tensorcask_torch::WrapModules as _;
use tensorcask_torch::{CacheOptions, CachedModule, Inputs, Output};

use super::{assert_same, rows};

const F: (Kind, Device) = (Kind::Float, Device::Cpu);

pub fn tensor(output: tensorcask_torch::Result<Output>) -> Tensor {
    output.unwrap().into_tensor().unwrap()
}

/// A module with these variables, which returns its input.
pub fn watch(variables: Vec<(String, Tensor)>) -> CachedModule {
    let options = CacheOptions::in_memory().module_id("m").enforce_stateless(false);
    options.wrap_inputs_fn_with(variables, |inputs: &Inputs| Ok(inputs.tensor(0)?.shallow_clone())).unwrap()
}

pub fn noticed(module: &CachedModule) -> bool {
    let before = module.counts().misses;
    let _output = tensor(module.forward_with_ids(&rows(1, 1, 2), &[0_u64]));
    module.counts().misses > before
}

/// `w` among `pad` others.
pub fn among(w: &Tensor, pad: usize) -> CachedModule {
    let mut variables: Vec<_> = (0..pad).map(|at| (format!("p{at}"), Tensor::ones([4, 4], F))).collect();
    variables.push(("w".to_owned(), w.shallow_clone()));
    let module = watch(variables);
    assert!(noticed(&module));
    assert!(!noticed(&module));
    module
}

#[test]
fn optimizers_of_300() {
    for adam in [false, true] {
        let variables = nn::VarStore::new(Device::Cpu);
        let vars: Vec<_> =
            (0..300).map(|at| variables.root().var(&format!("v{at}"), &[4, 4], nn::Init::Const(1.0))).collect();
        let mut optimizer = if adam {
            nn::Adam::default().build(&variables, 0.1).unwrap()
        } else {
            nn::Sgd::default().build(&variables, 0.1).unwrap()
        };
        let list: Vec<_> = variables.variables().into_iter().collect();
        let module = watch(list);
        assert!(noticed(&module));
        for at in [0, 17, 150, 299] {
            assert!(!noticed(&module));
            optimizer.zero_grad();
            let loss = (&vars[at] * 2).sum(None);
            loss.backward();
            // The other variables have no gradients, or zeros.
            optimizer.step();
            assert!(noticed(&module), "adam {adam} {at}");
            assert!(!noticed(&module));
        }
    }
}

#[test]
fn var_store_whole() {
    let dir = tempfile::tempdir().unwrap();
    for few in [2, 100] {
        let mut variables = nn::VarStore::new(Device::Cpu);
        let others = nn::VarStore::new(Device::Cpu);
        for at in 0..few {
            let _var = variables.root().var(&format!("v{at}"), &[4, 4], nn::Init::Const(0.1));
            let _var = others.root().var(&format!("v{at}"), &[4, 4], nn::Init::Const(0.3));
        }
        let module = watch(variables.variables().into_iter().collect());
        assert!(noticed(&module));
        assert!(!noticed(&module));
        variables.copy(&others).unwrap();
        assert!(noticed(&module), "copy");
        assert!(!noticed(&module));
        for ending in ["ot", "safetensors"] {
            let path = dir.path().join(format!("{few}.{ending}"));
            let third = nn::VarStore::new(Device::Cpu);
            for at in 0..few {
                let _var = third.root().var(
                    &format!("v{at}"),
                    &[4, 4],
                    nn::Init::Const(if ending == "ot" { 0.4 } else { 0.6 }),
                );
            }
            third.save(&path).unwrap();
            variables.load(&path).unwrap();
            assert!(noticed(&module), "load {ending}");
            assert!(!noticed(&module));
        }
        variables.half();
        assert!(noticed(&module), "half");
        variables.double();
        assert!(noticed(&module), "double");
        variables.bfloat16();
        assert!(noticed(&module), "bf16");
        variables.float();
        assert!(noticed(&module), "float");
        variables.set_device(Device::Cpu);
        assert!(!noticed(&module));
        variables.freeze();
        assert!(!noticed(&module));
    }
}

fn scaling(options: CacheOptions, value: f64) -> (CachedModule, Tensor) {
    let w = Tensor::full([1], value, F);
    let handle = w.shallow_clone();
    let variables = vec![("w".to_owned(), w.shallow_clone())];
    let module =
        options.version("1").wrap_inputs_fn_with(variables, move |inputs: &Inputs| Ok(inputs.tensor(0)? * w.get(0)));
    (module.unwrap(), handle)
}

/// The weights are replaced during a call, and another call switches to their identity before the first one checks. The
/// first must not keep its output under the former weights.
#[test]
fn exchange_noticed_by_another_call_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (module, mut w) = scaling(CacheOptions::in_folder(dir.path(), "m"), 2.0);
    let x = rows(1, 2, 2);
    let mut calls = 0;
    let output = module.forward_lazy(&[0_u64, 1], Device::Cpu, |_| {
        calls += 1;
        if calls == 1 {
            w.set_data(&Tensor::full([1], 3.0, F));
            // Another call detects the change, and describes the variables again.
            let _other = module.forward_with_ids(&rows(5, 1, 2), &[77_u64]).unwrap();
        }
        Ok(Inputs::from(&rows(1, 2, 2)))
    });
    assert_same(&tensor(output), &(&x * 3));
    module.close().unwrap();
    // The next process has the initial weights.
    let (module, _) = scaling(CacheOptions::in_folder(dir.path(), "m"), 2.0);
    assert_same(&tensor(module.forward_with_ids(&x, &[0_u64, 1])), &(&x * 2));
}

/// The same with threads: one loads, the other calls.
#[test]
fn exchange_noticed_by_another_thread_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (module, mut w) = scaling(CacheOptions::in_folder(dir.path(), "m"), 2.0);
    let x = rows(1, 2, 2);
    let (go, went) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        let module = &module;
        let (go, went) = (&go, &went);
        scope.spawn(move || {
            go.wait();
            w.set_data(&Tensor::full([1], 3.0, F));
            let _other = module.forward_with_ids(&rows(5, 1, 2), &[77_u64]).unwrap();
            went.wait();
        });
        let mut calls = 0;
        let output = module.forward_lazy(&[0_u64, 1], Device::Cpu, |_| {
            calls += 1;
            if calls == 1 {
                go.wait();
                went.wait();
            }
            Ok(Inputs::from(&rows(1, 2, 2)))
        });
        output.unwrap();
    });
    module.close().unwrap();
    let (module, _) = scaling(CacheOptions::in_folder(dir.path(), "m"), 2.0);
    assert_same(&tensor(module.forward_with_ids(&x, &[0_u64, 1])), &(&x * 2));
}

/// Empty batches are remembered by the sign of the weights.
#[test]
fn empty_batches_after_an_exchange() {
    let mut w = Tensor::full([1], 2.0, F);
    let handle = w.shallow_clone();
    let variables = vec![("w".to_owned(), w.shallow_clone())];
    let options = CacheOptions::in_memory().module_id("m");
    let module = options
        .wrap_inputs_fn_with(variables, move |inputs: &Inputs| {
            let w = handle.view([1, -1]);
            Ok(inputs.tensor(0)?.to_kind(w.kind()).narrow(1, 0, 1) * w)
        })
        .unwrap();
    let empty = || tensor(module.forward(&rows(0, 0, 2)));
    assert_eq!((empty().kind(), empty().size()), (Kind::Float, vec![0, 1]));
    w.set_data(&Tensor::full([3], 3.0, (Kind::Double, Device::Cpu)));
    assert_eq!((empty().kind(), empty().size()), (Kind::Double, vec![0, 3]));
}

/// A batch that changes `running_mean`, but not `running_var`.
#[test]
fn batch_norm_whose_variance_stands_still() {
    let mut variables = nn::VarStore::new(Device::Cpu);
    let config = nn::BatchNormConfig { momentum: 1.0, ws_init: nn::Init::Const(1.0), ..Default::default() };
    let norms: Vec<_> = (0..8).map(|at| nn::batch_norm1d(variables.root() / at, 8, config)).collect();
    variables.freeze();
    let x = rows(0, 4, 8);
    let _done = norms[3].forward_t(&x, true);
    let module = watch(variables.variables().into_iter().collect());
    assert!(noticed(&module));
    assert!(!noticed(&module));
    let mean = norms[3].running_mean.copy();
    let _done = norms[3].forward_t(&(&x + 64), true);
    assert!(!mean.equal(&norms[3].running_mean));
    let first = noticed(&module);
    let later = (0..100).position(|_| noticed(&module));
    assert!(first, "later {later:?}");
}

/// Dead channels in the middle, whose variance decays to the smallest denormal.
#[test]
fn batch_norm_with_dead_channels() {
    for pad in [0, 30] {
        let mut variables = nn::VarStore::new(Device::Cpu);
        let config = nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), ..Default::default() };
        let norm = nn::batch_norm1d(variables.root() / "n", 64, config);
        for at in 0..pad {
            let _zeros = variables.root().zeros(&format!("p{at}"), &[4]);
        }
        variables.freeze();
        let alive = Tensor::ones([64], F);
        let _done = alive.narrow(0, 24, 16).fill_(0.0);
        let batch = || Tensor::randn([16, 64], F) * &alive;
        for _ in 0..1500 {
            let _done = norm.forward_t(&batch(), true);
        }
        let module = watch(variables.variables().into_iter().collect());
        assert!(noticed(&module));
        assert!(!noticed(&module));
        let _done = norm.forward_t(&batch(), true);
        let first = noticed(&module);
        let later = (0..100).position(|_| noticed(&module));
        assert!(first, "pad {pad}: later {later:?}");
    }
}

/// `data()` shares the storage but not the count of writes. Resizing it moves the elements.
#[test]
fn storage_that_moves_under_running_var() {
    for others in [0, 100] {
        let len = 1 << 22;
        let var = Tensor::ones([len], F);
        let mut variables = vec![("n.running_var".to_owned(), var.shallow_clone())];
        variables.extend((0..others).map(|at| (format!("p{at}"), Tensor::ones([4], F))));
        let module = watch(variables);
        assert!(noticed(&module));
        assert!(!noticed(&module));
        let _done = var.data().resize_([len * 4]);
        for _ in 0..3 {
            let _seen = noticed(&module);
        }
    }
}

/// The second variable shares memory by `set_data`, and has its own count of writes.
#[test]
fn tied_by_set_data_and_resized() {
    let len = 1 << 22;
    let var = Tensor::ones([len], F);
    let module = watch(vec![("n.running_var".to_owned(), var.shallow_clone())]);
    assert!(noticed(&module) && !noticed(&module));
    let mut tied = Tensor::zeros([1], F);
    tied.set_data(&var);
    let _done = tied.resize_([len * 4]);
    noticed(&module);
}

/// All bits of 32 bytes change from 0 to 1.
#[test]
fn all_ones_where_zeros_were() {
    let mut bad = Vec::new();
    for kind in [Kind::Int64, Kind::Int, Kind::Int8] {
        for value in [1, -1] {
            let w = Tensor::zeros([64], (kind, Device::Cpu));
            let module = among(&w, 0);
            let _done = w.data().fill_(value);
            if !noticed(&module) {
                bad.push((kind, value));
            }
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

/// A batch normalisation that changes during a call, detected by another call.
#[test]
fn batch_norm_noticed_by_another_call_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let wrap = || {
        let mut variables = nn::VarStore::new(Device::Cpu);
        let config = nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), ..Default::default() };
        let norm = Arc::new(Mutex::new(nn::batch_norm1d(variables.root(), 4, config)));
        variables.freeze();
        let inner = Arc::clone(&norm);
        let forward = move |inputs: &Inputs| Ok(inner.lock().unwrap().forward_t(inputs.tensor(0)?, false));
        let options = CacheOptions::in_folder(dir.path(), "m").version("1");
        (options.wrap_inputs_fn_with(&variables, forward).unwrap(), norm)
    };
    let x = rows(1, 2, 4);
    let expected = tensor(wrap().0.forward_with_ids(&x, &[5_u64, 6]));
    let (module, norm) = wrap();
    let mut calls = 0;
    let output = module.forward_lazy(&[0_u64, 1], Device::Cpu, |_| {
        calls += 1;
        if calls == 1 {
            let _done = norm.lock().unwrap().forward_t(&x, true);
            let _other = module.forward_with_ids(&rows(5, 1, 4), &[77_u64]).unwrap();
        }
        Ok(Inputs::from(&x))
    });
    output.unwrap();
    module.close().unwrap();
    assert_same(&tensor(wrap().0.forward_with_ids(&x, &[0_u64, 1])), &expected);
}

/// One step of each optimizer between two calls, on variables that are frozen again.
#[test]
fn optimizers() {
    let mut bad = Vec::new();
    for count in [1, 64, 65, 300] {
        for which in ["sgd", "sgd momentum", "adam", "adamw", "rmsprop"] {
            for case in ["all of 4x4", "one variable of 4x4", "one row of 1000x64"] {
                if count == 300 && case == "one row of 1000x64" {
                    continue;
                }
                let mut variables = nn::VarStore::new(Device::Cpu);
                let shape: &[i64] = if case == "one row of 1000x64" { &[1000, 64] } else { &[4, 4] };
                let vars: Vec<_> =
                    (0..count).map(|at| variables.root().var(&format!("v{at}"), shape, nn::Init::Const(1.0))).collect();
                let built = match which {
                    "sgd" => nn::Sgd::default().build(&variables, 0.1),
                    "sgd momentum" => nn::Sgd { momentum: 0.9, ..Default::default() }.build(&variables, 0.1),
                    "adam" => nn::Adam::default().build(&variables, 0.1),
                    "adamw" => nn::AdamW { wd: 0.0, ..Default::default() }.build(&variables, 0.1),
                    _ => nn::RmsProp::default().build(&variables, 0.1),
                };
                let mut optimizer = built.unwrap();
                variables.freeze();
                let options = CacheOptions::in_memory().module_id("m");
                let module = options
                    .wrap_inputs_fn_with(&variables, |inputs: &Inputs| Ok(inputs.tensor(0)?.shallow_clone()))
                    .unwrap();
                assert!(noticed(&module) && !noticed(&module));
                variables.unfreeze();
                optimizer.zero_grad();
                let last = vars.last().unwrap();
                let versions: i64 = vars.iter().map(Tensor::internal_version).sum();
                let loss = match case {
                    "all of 4x4" => vars.iter().map(|v| (v * 2).sum(None)).sum::<Tensor>(),
                    "one variable of 4x4" => (last * 2).sum(None),
                    _ => (last.get(3) * 2).sum(None),
                };
                loss.backward();
                let before = last.copy();
                optimizer.step();
                variables.freeze();
                assert!(!before.equal(last));
                let versions = vars.iter().map(Tensor::internal_version).sum::<i64>() - versions;
                if !noticed(&module) {
                    let later = (0..400).position(|_| noticed(&module));
                    bad.push(format!("{which}, {count} variables, {case}: later {later:?}; counted {versions}"));
                }
            }
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
}

/// Layouts that cannot be read are refused, with the name of the variable.
#[test]
fn variables_that_cannot_be_read() {
    let csr = Tensor::ones([8, 8], F).to_sparse_csr(None);
    let options = CacheOptions::in_memory().module_id("m");
    let variables = vec![("odd".to_owned(), csr)];
    let refused = options.wrap_inputs_fn_with(variables, |inputs: &Inputs| Ok(inputs.tensor(0)?.shallow_clone()));
    let said = refused.err().unwrap().to_string();
    assert!(said.contains("odd") && said.contains("layout"), "{said}");
}

/// A write while the module is wrapped is detected by the next call.
#[test]
fn a_write_while_wrapping() {
    let a = Tensor::full([1], 2.0, F);
    let (b, handle) = (Tensor::ones([32 << 20], F), a.shallow_clone());
    let variables = vec![("a".to_owned(), a.shallow_clone()), ("b".to_owned(), b)];
    let set = |value: f64, tensor: &Tensor| {
        let _guard = tch::no_grad_guard();
        let _filled = tensor.shallow_clone().fill_(value);
    };
    let module = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(8));
            set(3.0, &handle);
        });
        let a = a.shallow_clone();
        let options = CacheOptions::in_memory().module_id("m");
        options.wrap_inputs_fn_with(variables, move |inputs: &Inputs| Ok(inputs.tensor(0)? * &a)).unwrap()
    });
    let x = rows(1, 1, 2);
    let call = || tensor(module.forward_with_ids(&x, &[0_u64]));
    assert_same(&call(), &(&x * 3));
    set(2.0, &a);
    assert_same(&call(), &(&x * 2));
    assert_same(&call(), &(&x * 2));
}

/// Of two digests with the same name, one would replace the other.
#[test]
fn weights_have_names_of_their_own() {
    let variables = || vec![("w".to_owned(), Tensor::ones([2], F))];
    let forward = |inputs: &Inputs| Ok(inputs.tensor(0)?.shallow_clone());
    let options = |name: &str| CacheOptions::in_memory().module_id("m").fingerprint(name, b"1");
    options("tokenizer").wrap_inputs_fn_with(variables(), forward).unwrap();
    let said = options("w").wrap_inputs_fn_with(variables(), forward).err().unwrap().to_string();
    assert!(said.contains("\"w\"") && said.contains("another name"), "{said}");
}
