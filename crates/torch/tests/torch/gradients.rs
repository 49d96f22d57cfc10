//! Layers before a cached module cannot learn through it, so their outputs are refused.

use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Tensor};
use tensorcask_torch::{Argument, CacheOptions, CachedModule, Inputs};

use super::{assert_same, doubling, ids, rows};

/// A layer that learns, and its output for some rows.
fn learning() -> (nn::Linear, nn::VarStore) {
    let variables = nn::VarStore::new(Device::Cpu);
    (nn::linear(variables.root(), 3, 3, Default::default()), variables)
}

fn refused(module: &CachedModule, result: tensorcask_torch::Result<tensorcask_torch::Output>, argument: &str) {
    let error = result.unwrap_err().to_string();
    let says = format!("{argument} requires a gradient, but no gradient goes through a cached module");
    assert!(error.contains(&says) && error.contains("allow_grad_inputs"), "{error}");
    assert_eq!((module.counts().misses, module.counts().hits), (0, 0));
}

#[test]
fn inputs_that_require_a_gradient_are_refused() {
    let (layer, _variables) = learning();
    let (module, seen) = doubling();
    let x = layer.forward(&rows(0, 2, 3));
    refused(&module, module.forward(&x), "argument 0");
    refused(&module, module.forward_with_ids(&x, &[0_u64, 1]), "argument 0");
    refused(&module, module.forward(Inputs::from(&rows(0, 2, 3)).with(&x)), "argument 1");
    refused(&module, module.forward(Inputs::from(&rows(0, 2, 3)).named("mask", &x)), "argument \"mask\"");
    let shared = Argument::Shared(layer.bs.as_ref().unwrap().shallow_clone());
    refused(&module, module.forward(Inputs::from(&rows(0, 2, 3)).with(shared)), "argument 1");
    let loaded = module.forward_lazy(&[0_u64, 1], Device::Cpu, |_| Ok(Inputs::from(&x)));
    refused(&module, loaded, "argument 0");
    let network = nn::seq().add(layer).add(module.clone());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| network.forward(&rows(0, 2, 3))));
    assert!(panicked.is_err());
    assert_eq!(seen.calls(), 0);
    // Inputs are accepted if no gradients are recorded: in evaluation, and detached.
    let evaluated = tch::no_grad(|| network.forward(&rows(0, 2, 3)));
    assert_same(&evaluated, &tch::no_grad(|| &x * 2 + 1));
    module.forward(&x.detach()).unwrap();
    assert_eq!((module.counts().misses, module.counts().hits), (2, 2));
}

#[test]
fn they_pass_by_name_and_past_the_cache() {
    let (layer, variables) = learning();
    let x = || layer.forward(&rows(0, 2, 3));
    let options = CacheOptions::in_memory().module_id("m").allow_grad_inputs(true);
    let module = options.wrap_fn(|x: &Tensor| x * 2).unwrap();
    for _ in 0..2 {
        let output = module.forward_with_ids(&x(), ids(0, 2).as_slice()).unwrap().into_tensor().unwrap();
        assert!(!output.requires_grad());
    }
    assert_eq!((module.counts().misses, module.counts().hits), (2, 2));
    // With the cache off, or in training mode, the layer learns through the module.
    let (module, _) = doubling();
    module.set_enabled(false);
    let mut optimizer = nn::Sgd::default().build(&variables, 0.1).unwrap();
    let before = layer.ws.copy();
    let loss = module.forward(&x()).unwrap().into_tensor().unwrap().sum(Kind::Float);
    optimizer.backward_step(&loss);
    assert!(!layer.ws.equal(&before));
}
