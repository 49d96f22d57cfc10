//! Modules and functions, and the handle as a module.

use candle_core::{Device, Tensor};
use candle_nn::{Activation, Dropout, Linear, Module};
use tensorcask_candle::{CacheOptions, Error, Inputs, Variables, WrapModules as _};

use super::{assert_same, in_memory, rows};

fn linear() -> (Linear, Variables) {
    let (weight, bias) = (rows(3, 4), rows(1, 3).squeeze(0).unwrap());
    let named = vec![("weight".to_owned(), weight.clone()), ("bias".to_owned(), bias.clone())];
    (Linear::new(weight, Some(bias)), named.into())
}

#[test]
fn a_module_asks_for_a_version_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let options = || CacheOptions::in_folder(folder.path(), "linear");
    let (layer, variables) = linear();
    let said = options().wrap_module(layer, variables).unwrap_err().to_string();
    assert!(said.contains("no version was given"), "{said}");
    for misses in [2, 0] {
        let (layer, variables) = linear();
        let module = options().version("1").wrap_module(layer.clone(), variables).unwrap();
        let output = module.forward(&rows(2, 4)).unwrap().into_tensor().unwrap();
        assert_same(&output, &layer.forward(&rows(2, 4)).unwrap());
        assert_eq!(module.counts().misses, misses);
        module.close().unwrap();
    }
    // Another type of module with the same weights is another identity.
    let (layer, variables) = linear();
    let module = options().version("1").wrap_module(move |x: &Tensor| layer.forward(x)?.neg(), variables).unwrap();
    module.forward(&rows(2, 4)).unwrap();
    assert_eq!(module.counts().misses, 2);
}

#[test]
fn the_handle_is_a_layer() {
    let (layer, variables) = linear();
    let backbone = in_memory().wrap_module(layer.clone(), variables).unwrap();
    let network = candle_nn::seq().add(backbone.clone()).add(Activation::Relu);
    for _ in 0..2 {
        let expected = layer.forward(&rows(2, 4)).unwrap().relu().unwrap();
        assert_same(&network.forward(&rows(2, 4)).unwrap(), &expected);
    }
    assert_eq!((backbone.counts().misses, backbone.counts().hits), (2, 2));
    // A refusal becomes an error of candle, and an error of the function becomes an error of the layer.
    let said = network.forward(&rows(2, 5)).unwrap_err().to_string();
    assert!(said.contains("the wrapped computation failed") && said.contains("shape mismatch"), "{said}");
    assert!(matches!(backbone.forward(&rows(2, 5)), Err(Error::Compute { .. })));
}

#[test]
fn training_goes_past_the_cache() {
    let dropout = in_memory().wrap_module(Dropout::new(0.5), Variables::none()).unwrap();
    let input = rows(4, 64).affine(1.0, 1.0).unwrap();
    let zeros = |output: Tensor| {
        let rows: Vec<Vec<f32>> = output.to_vec2().unwrap();
        rows.concat().into_iter().filter(|x| *x == 0.0).count()
    };
    let trained = dropout.call(&input).training(true).run().unwrap().into_tensor().unwrap();
    assert!(zeros(trained) > 0);
    assert_same(&dropout.forward(&input).unwrap().into_tensor().unwrap(), &input);
    assert_eq!((dropout.counts().bypassed, dropout.counts().misses), (1, 4));
}

#[test]
fn inputs_are_loaded_for_what_is_missing() {
    let sum =
        in_memory().wrap_inputs_fn(|inputs: &Inputs| (inputs.tensor(0)? + inputs.tensor(1)?).map_err(Error::compute));
    let sum = sum.unwrap();
    let pair = [&rows(2, 3), &rows(2, 3)];
    assert_same(&sum.forward(pair).unwrap().into_tensor().unwrap(), &rows(2, 3).affine(2.0, 0.0).unwrap());
    let double = in_memory().wrap_fn(|x: &Tensor| x * 2.0).unwrap();
    double.forward_with_ids(&rows(1, 3), &["a"]).unwrap();
    let load = |missing: &[usize]| {
        assert_eq!(missing, [1]);
        Ok(Inputs::from(rows(1, 3)))
    };
    let output = double.forward_lazy(&["a", "b"], &Device::Cpu, load).unwrap().into_tensor().unwrap();
    assert_same(&output.narrow(0, 0, 1).unwrap(), &output.narrow(0, 1, 1).unwrap());
}
