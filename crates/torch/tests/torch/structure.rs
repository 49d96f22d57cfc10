//! Modules with the same weights and the same id are told apart by their structure.

use std::collections::HashMap;

use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};
use tensorcask_torch::OutputLike as _;
use tensorcask_torch::WrapModules as _;
use tensorcask_torch::{CacheOptions, CachedModule, Compute, Inputs, Output, Settings, Torch, Variables, Weights};

use super::{assert_same, rows};

/// Calls with two images. Returns whether both were computed, not found, and checks the output.
fn computes(module: &CachedModule, expected: &Tensor) -> bool {
    let before = module.counts();
    let images = rows(0, 2, 16).reshape([2, 1, 4, 4]);
    let output = module.forward_with_ids(&images, &["a", "b"]).unwrap().into_tensor().unwrap();
    assert_same(&output, expected);
    let counts = module.counts().since(&before);
    assert_eq!(counts.misses + counts.hits, 2);
    counts.misses == 2
}

fn expected(module: &impl Module) -> Tensor {
    tch::no_grad(|| module.forward(&rows(0, 2, 16).reshape([2, 1, 4, 4])))
}

/// A frozen convolution. Only its configuration differs.
fn convolution(padding: i64) -> (nn::Conv2D, nn::VarStore) {
    let mut variables = nn::VarStore::new(Device::Cpu);
    let init = nn::Init::Const(0.5);
    let config = nn::ConvConfig { padding, ws_init: init, bs_init: init, ..Default::default() };
    let layer = nn::conv2d(variables.root(), 1, 2, 3, config);
    variables.freeze();
    (layer, variables)
}

#[test]
fn another_configuration_is_another_identity() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..2 {
        for padding in [0, 1, 2] {
            let (layer, variables) = convolution(padding);
            let expected = expected(&layer);
            let module = CacheOptions::in_folder(dir.path(), "m").wrap_module(layer, &variables).unwrap();
            assert_eq!(computes(&module, &expected), round == 0, "padding {padding}");
        }
    }
    let (layer, variables) = convolution(5);
    let module = CacheOptions::in_folder(dir.path(), "m").wrap_module(layer, &variables).unwrap();
    let why = module.why_miss(&["a"]).unwrap().to_string();
    assert!(why.contains("structure") && why.contains("padding: [5, 5]") && why.contains("padding: [1, 1]"), "{why}");
    // The structure is ignored on request.
    let unchecked = |padding| {
        let (layer, variables) = convolution(padding);
        CacheOptions::in_folder(dir.path(), "n").check_structure(false).wrap_module(layer, &variables).unwrap()
    };
    let first = expected(&convolution(1).0);
    assert!(computes(&unchecked(1), &first));
    assert!(!computes(&unchecked(2), &first));
}

#[test]
fn another_type_is_another_identity() {
    #[derive(Debug)]
    struct Twice;
    #[derive(Debug)]
    struct Thrice;
    impl Module for Twice {
        fn forward(&self, x: &Tensor) -> Tensor {
            x * 2
        }
    }
    impl Module for Thrice {
        fn forward(&self, x: &Tensor) -> Tensor {
            x * 3
        }
    }
    impl Compute<Torch> for Twice {
        fn compute(&self, inputs: &Inputs) -> tensorcask_torch::Result<Output> {
            Ok((inputs.tensor(0)? * 2).output())
        }
    }
    impl Compute<Torch> for Thrice {
        fn compute(&self, inputs: &Inputs) -> tensorcask_torch::Result<Output> {
            Ok((inputs.tensor(0)? * 3).output())
        }
        fn settings(&self) -> Settings {
            Settings::default()
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let options = |id: &str| CacheOptions::in_folder(dir.path(), id);
    let images = rows(0, 2, 16).reshape([2, 1, 4, 4]);
    for round in 0..2 {
        let modules = [
            (options("module").wrap_module(Twice, Variables::none()), 2),
            (options("module").wrap_module(Thrice, Variables::none()), 3),
            (options("module t").wrap_module_t(Twice, Variables::none()), 2),
            (options("module t").wrap_module_t(Thrice, Variables::none()), 3),
            (options("compute").wrap(Twice), 2),
            (options("compute").wrap(Thrice), 3),
        ];
        for (module, factor) in modules {
            assert_eq!(computes(&module.unwrap(), &(&images * factor)), round == 0);
        }
    }
}

#[test]
fn what_is_only_of_this_process_does_not_count() {
    /// Its `Debug` output shows a map in random order, an address, and values that are fingerprinted separately.
    #[derive(Debug)]
    struct Net {
        scales: HashMap<String, i64>,
        offset: Tensor,
    }
    impl Module for Net {
        fn forward(&self, x: &Tensor) -> Tensor {
            x * self.scales.values().sum::<i64>() + &self.offset
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let wrap = |last: i64, offset: f64, loaded: Option<f64>| {
        let mut variables = nn::VarStore::new(Device::Cpu);
        let offset = variables.root().var("offset", &[4], nn::Init::Const(offset));
        variables.freeze();
        let scales = (0..40).map(|n| (n.to_string(), if n == 39 { last } else { 1 })).collect();
        let net = Net { scales, offset: offset.shallow_clone() };
        let module = CacheOptions::in_folder(dir.path(), "m").wrap_module(net, &variables).unwrap();
        if let Some(value) = loaded {
            let _guard = tch::no_grad_guard();
            let _filled = offset.shallow_clone().fill_(value);
        }
        (module, variables)
    };
    let images = rows(0, 2, 16).reshape([2, 1, 4, 4]);
    for round in 0..8 {
        assert_eq!(computes(&wrap(1, 0.5, None).0, &(&images * 40 + 0.5)), round == 0);
    }
    assert!(computes(&wrap(2, 0.5, None).0, &(&images * 41 + 0.5)));
    assert!(computes(&wrap(1, 0.25, None).0, &(&images * 40 + 0.25)));
    // Weights that were added after wrapping.
    assert!(!computes(&wrap(1, 0.75, Some(0.5)).0, &(&images * 40 + 0.5)));
}

#[test]
fn functions_ask_for_a_version() {
    let dir = tempfile::tempdir().unwrap();
    let options = || CacheOptions::in_folder(dir.path(), "m");
    #[derive(Debug)]
    struct Activated(fn(&Tensor) -> Tensor);
    impl Module for Activated {
        fn forward(&self, x: &Tensor) -> Tensor {
            (self.0)(x)
        }
    }
    let network = |activation: fn(&Tensor) -> Tensor| nn::seq().add_fn(activation);
    let refused = [
        options().wrap_fn(|x: &Tensor| x.relu()),
        options().version("").wrap_fn(|x: &Tensor| x.relu()),
        options().wrap_inputs_fn(|x: &Inputs| Ok(x.tensor(0)?.relu())),
        options().wrap_inputs_fn_with(Variables::none(), |x: &Inputs| Ok(x.tensor(0)?.relu())),
        options().wrap_module(network(Tensor::relu), Variables::none()),
        options().wrap_module_t(nn::seq_t().add_fn(Tensor::relu), Variables::none()),
        options().wrap_module(Activated(Tensor::relu), Variables::none()),
    ];
    for refused in refused {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("no version was given") && error.contains("look the same from outside"), "{error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let images = rows(-1, 2, 16).reshape([2, 1, 4, 4]);
    for round in 0..2 {
        for (version, activation) in [("relu", Tensor::relu as fn(&Tensor) -> Tensor), ("sigmoid", Tensor::sigmoid)] {
            let expected = activation(&rows(0, 2, 16).reshape([2, 1, 4, 4]));
            for module in [
                options().version(version).wrap_module(network(activation), Variables::none()).unwrap(),
                options().version(version).wrap_module(Activated(activation), Variables::none()).unwrap(),
            ] {
                assert_eq!(computes(&module, &expected), round == 0);
            }
        }
    }
    // Without a folder, outputs do not outlive the handle, so no version is required.
    for options in [CacheOptions::in_memory(), CacheOptions::temporary()] {
        options.module_id("m").wrap_fn(|x: &Tensor| x.relu().to_kind(Kind::Float)).unwrap().forward(&images).unwrap();
    }
}

#[test]
fn a_configuration_that_reads_like_a_variable_counts() {
    #[derive(Debug)]
    struct Net {
        factors: Vec<f64>,
        first: Tensor,
        second: Tensor,
    }
    impl Module for Net {
        fn forward(&self, x: &Tensor) -> Tensor {
            x * self.factors[0] + &self.first - &self.second
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let wrap = |factor: f64, value: f64, weights: Weights| {
        let mut variables = nn::VarStore::new(Device::Cpu);
        let first = variables.root().var("first", &[1], nn::Init::Const(value));
        let second = variables.root().var("second", &[1], nn::Init::Const(value + 1.0));
        variables.freeze();
        let net = Net { factors: vec![factor], first, second };
        CacheOptions::in_folder(dir.path(), "m").weights(weights).wrap_module(net, &variables).unwrap()
    };
    let images = rows(0, 2, 16).reshape([2, 1, 4, 4]);
    for round in 0..2 {
        for factor in [1.0, 2.0, 3.0] {
            assert_eq!(computes(&wrap(factor, 1.0, Weights::Check), &(&images * factor - 1.0)), round == 0);
        }
    }
    // With ignored weights, their values do not count in the structure either.
    assert!(computes(&wrap(9.0, 1.0, Weights::Ignore), &(&images * 9.0 - 1.0)));
    assert!(!computes(&wrap(9.0, 5.0, Weights::Ignore), &(&images * 9.0 - 1.0)));
}
