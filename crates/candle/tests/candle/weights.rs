//! Weights that are fingerprinted, frozen, and changed outside of the handle.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Module, Optimizer, SGD, VarBuilder, VarMap};
use tensorcask_candle::{CacheOptions, CachedModule, Error, Variables, WrapModules as _};

use super::{assert_same, in_memory, rows};

/// A linear layer, and the map of its variables.
fn linear() -> (candle_nn::Linear, VarMap) {
    let map = VarMap::new();
    let builder = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    (candle_nn::linear(4, 3, builder.pp("backbone")).unwrap(), map)
}

fn variables(map: &VarMap) -> Variables {
    Variables::from(&*map.data().lock().unwrap())
}

fn call(module: &CachedModule) -> (Tensor, u64) {
    let output = module.forward(&rows(2, 4)).unwrap().into_tensor().unwrap();
    (output, module.counts().misses)
}

#[test]
fn variables_are_to_be_frozen() {
    let (layer, map) = linear();
    match in_memory().wrap_module(layer.clone(), variables(&map)) {
        Err(Error::Trainable { first, count: 2 }) => assert_eq!(first, "backbone.bias"),
        other => panic!("{other:?}"),
    }
    assert!(in_memory().wrap_module(layer.clone(), variables(&map).freeze()).is_ok());
    assert!(in_memory().enforce_stateless(false).wrap_module(layer, variables(&map)).is_ok());
}

#[test]
fn a_variable_that_is_set_is_noticed() {
    let (layer, map) = linear();
    let module = in_memory().wrap_module(layer.clone(), variables(&map).freeze()).unwrap();
    let (before, misses) = call(&module);
    assert_eq!((misses, before.track_op()), (2, false));
    assert_eq!(call(&module).1, 2);

    let bias = map.data().lock().unwrap()["backbone.bias"].clone();
    let former = bias.copy().unwrap();
    bias.set(&Tensor::new(&[1.0_f32, 2.0, 3.0], &Device::Cpu).unwrap()).unwrap();
    let (after, misses) = call(&module);
    assert_eq!(misses, 4);
    assert_same(&after, &layer.forward(&rows(2, 4)).unwrap().detach());

    // With the former weights, the outputs that were kept for them are found again.
    bias.set(&former).unwrap();
    let (again, misses) = call(&module);
    assert_eq!(misses, 4);
    assert_same(&again, &before);
}

#[test]
fn a_step_of_an_optimizer_is_noticed() {
    let (layer, map) = linear();
    let module = in_memory().wrap_module(layer.clone(), variables(&map).freeze()).unwrap();
    call(&module);
    let mut optimizer = SGD::new(map.all_vars(), 0.1).unwrap();
    optimizer.backward_step(&layer.forward(&rows(2, 4)).unwrap().sum_all().unwrap()).unwrap();
    let (output, misses) = call(&module);
    assert_eq!(misses, 4);
    assert_same(&output, &layer.forward(&rows(2, 4)).unwrap().detach());
}

/// Each call inspects some of many variables.
#[test]
fn one_of_many_variables_is_noticed_in_turn() {
    let many: HashMap<String, Var> =
        (0..300).map(|at| (format!("{at:03}"), Var::from_tensor(&rows(16, 64)).unwrap())).collect();
    let module = in_memory().wrap_inputs_fn_with(Variables::from(&many).freeze(), |inputs| inputs.tensor(0).cloned());
    let module = module.unwrap();
    for changed in ["000", "150", "299"] {
        let before = call(&module).1;
        many[changed].set(&rows(16, 64).affine(0.5, 1.0).unwrap()).unwrap();
        let noticed = (0..300_usize.div_ceil(64)).any(|_| call(&module).1 > before);
        assert!(noticed, "{changed}");
        many[changed].set(&rows(16, 64)).unwrap();
        (0..300_usize.div_ceil(64)).for_each(|_| drop(call(&module)));
    }
}

/// The caller reports a write that is not detected.
#[test]
fn a_small_write_is_told() {
    let (weight, bias) = (rows(64, 64), Tensor::zeros(64, DType::F32, &Device::Cpu).unwrap());
    let layer = candle_nn::Linear::new(weight.clone(), Some(bias.clone()));
    let named = vec![("weight".to_owned(), weight.clone()), ("bias".to_owned(), bias)];
    let module = in_memory().wrap_module(layer, named).unwrap();
    let misses = |module: &CachedModule| {
        module.forward(&rows(2, 64)).unwrap();
        module.counts().misses
    };
    assert_eq!(misses(&module), 2);
    weight.slice_set(&rows(1, 64), 0, 7).unwrap();
    assert_eq!(misses(&module), 2);
    module.weights_changed();
    assert_eq!(misses(&module), 4);
}

#[test]
fn weights_are_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    let (layer, map) = linear();
    let options = || CacheOptions::in_folder(folder.path(), "linear").version("1");
    let module = options().wrap_module(layer, variables(&map).freeze()).unwrap();
    let (output, _) = call(&module);
    module.save(&file).unwrap();
    module.close().unwrap();

    // Another process has other weights until the saved ones are loaded. candle can read the file as well.
    let (layer, map) = linear();
    let module = options().wrap_module(layer, variables(&map).freeze()).unwrap();
    assert_eq!(call(&module).1, 2);
    module.load(&file).unwrap();
    let (same, misses) = call(&module);
    assert_eq!(misses, 2);
    assert_same(&same, &output);
    let weights = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    assert_same(&weights["backbone.weight"], &map.data().lock().unwrap()["backbone.weight"].detach());

    let other = vec![("other".to_owned(), rows(1, 1))];
    let module = in_memory().wrap_inputs_fn_with(other, |inputs| inputs.tensor(0).cloned()).unwrap();
    let said = module.load(&file).unwrap_err().to_string();
    assert!(said.contains("expected a contiguous other of shape [1, 1], found no such variable"), "{said}");
}

#[test]
fn a_part_of_a_map_is_taken_by_its_prefix() {
    let (_, map) = linear();
    let _head = candle_nn::linear(3, 2, VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu).pp("backbones"));
    let part = variables(&map).under("backbone").unwrap();
    assert_eq!(part.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["backbone.bias", "backbone.weight"]);
    assert!(variables(&map).under("head").is_err());
}
