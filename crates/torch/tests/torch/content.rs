//! Keys by content: any change that affects the output changes the key.

use tch::{Device, Kind, Tensor};
use tensorcask_torch::{Argument, CacheOptions, CachedModule, Content, Inputs, Output};

use super::{Seen, assert_same, doubling, rows};

/// Wraps a function of any arguments, and counts its calls.
fn watched() -> (CachedModule, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    let module = CacheOptions::in_memory().module_id("m").wrap_inputs_fn(move |inputs: &Inputs| {
        noted.note(inputs.tensor(0)?);
        Ok(Output::Tensor(inputs.tensor(0)?.sum(Kind::Double).expand([inputs.batch_size()? as i64, 1], false)))
    });
    (module.unwrap(), seen)
}

/// Each of the calls misses at first, and hits afterwards.
fn all_different(calls: &[Inputs]) {
    let (module, seen) = watched();
    for (number, inputs) in calls.iter().enumerate() {
        module.forward(inputs).unwrap();
        assert_eq!(seen.calls(), number + 1, "call {number} met the output of another");
    }
    for inputs in calls {
        module.forward(inputs).unwrap();
    }
    assert_eq!(seen.calls(), calls.len());
}

#[test]
fn samples_are_found_wherever_they_stand() {
    let (module, seen) = doubling();
    module.forward(&rows(0, 4, 3)).unwrap();
    let output = module.forward(&rows(0, 4, 3).flip([0])).unwrap().into_tensor().unwrap();
    assert_same(&output, &(rows(0, 4, 3).flip([0]) * 2 + 1));
    assert_eq!(seen.calls(), 1);
    // A transposed view of the same elements is the same sample.
    let view = rows(0, 4, 3).transpose(0, 1).contiguous().transpose(0, 1);
    module.forward(&view).unwrap();
    assert_eq!(seen.calls(), 1);
    // The same sample occurs twice.
    let twice = Tensor::cat(&[rows(8, 1, 3), rows(8, 1, 3)], 0);
    module.forward(&twice).unwrap();
    assert_eq!(seen.samples(), 5);
}

#[test]
fn elements_count_by_value_and_place() {
    let base = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).reshape([1, 4]);
    let changed = |position: i64, value: f64| {
        let changed = base.copy();
        let _filled = changed.narrow(1, position, 1).fill_(value);
        Inputs::from(&changed)
    };
    let mut calls = vec![Inputs::from(&base), Inputs::from(&base.flip([1]))];
    calls.extend((1..4).map(|by| Inputs::from(&base.roll([by], [1]))));
    calls.extend((0..4).map(|at| changed(at, 0.0)));
    calls.push(changed(0, -1.0));
    calls.push(Inputs::from(&(&base + 1e-6)));
    // The same bytes in other shapes and kinds.
    calls.push(Inputs::from(&base.reshape([1, 2, 2])));
    calls.push(Inputs::from(&base.reshape([1, 4, 1])));
    calls.push(Inputs::from(&base.view_dtype(Kind::Int)));
    calls.push(Inputs::from(&base.to_kind(Kind::Double)));
    all_different(&calls);
}

#[test]
fn a_hundred_thousand_samples_have_as_many_keys() {
    // Rolled, sparse and nearly equal elements, which weighted sums of subsamples would confuse.
    let (module, _) = doubling();
    let one_hot = Tensor::eye(1000, (Kind::Float, Device::Cpu));
    for scale in 0..100 {
        module.forward(&(&one_hot * (f64::from(scale) + 1.0))).unwrap();
    }
    let counts = module.counts();
    assert_eq!((counts.misses, counts.hits, counts.duplicates), (100_000, 0, 0));
    assert_eq!(module.len().unwrap(), 100_000);
}

#[test]
fn arguments_count_by_place_name_and_type() {
    let (a, b) = (rows(0, 1, 2), rows(1, 1, 2));
    let x = || Inputs::new().with(&a);
    all_different(&[
        Inputs::from([&a, &b]),
        Inputs::from([&b, &a]),
        Inputs::from([&a, &b, &b]),
        x(),
        x().named("other", &b),
        x().named("another", &b),
        x().with(Argument::Shared(b.shallow_clone())),
        // Plain values, which must not cancel out or be confused.
        x().with(1),
        x().with(1.0),
        x().with(true),
        x().with("1"),
        x().with(()),
        x().with(2).with(3),
        x().with(3).with(2),
        x().with(5),
        x().with("23"),
        x().with("2").with("3"),
        x().with("").with("23"),
        x().with(-0.0),
        x().with(0.0),
        x().with(0),
        x().named("layer", 1),
        x().named("layer", 2),
        x().named("depth", 1),
        x().named("layer", 1).named("depth", 2),
        x().named("layer", 2).named("depth", 1),
    ]);
}

#[test]
fn the_order_of_names_does_not_count() {
    let (module, seen) = watched();
    let x = || Inputs::new().with(rows(0, 1, 2));
    module.forward(x().named("layer", 1).named("depth", 2)).unwrap();
    module.forward(x().named("depth", 2).named("layer", 1)).unwrap();
    assert_eq!(seen.calls(), 1);
}

#[test]
fn plain_arguments_count_with_ids_too() {
    let module = CacheOptions::in_memory().module_id("m").wrap_inputs_fn(|inputs: &Inputs| {
        let Some(Argument::Int(factor)) = inputs.get("factor") else { panic!("a factor was passed") };
        Ok(inputs.tensor(0)? * *factor)
    });
    let module = module.unwrap();
    for _ in 0..2 {
        for factor in 1..4_i64 {
            let inputs = Inputs::from(&rows(0, 2, 2)).named("factor", factor);
            let output = module.forward_with_ids(&inputs, &["a", "b"]).unwrap().into_tensor().unwrap();
            assert_same(&output, &(rows(0, 2, 2) * factor));
        }
    }
    assert_eq!((module.counts().misses, module.counts().hits), (6, 6));
}

#[test]
fn subsampling_is_a_choice_that_still_looks_everywhere() {
    let content = Content::Sampled { edge_bytes: 256, stride_bytes: 1024 };
    let options = CacheOptions::in_memory().module_id("m").content(content);
    let (module, seen) = super::doubling_with(options);
    let base = Tensor::zeros([1, 10_000], (Kind::Uint8, Device::Cpu));
    let changed = |position: i64| {
        let changed = base.copy();
        let _filled = changed.narrow(1, position, 1).fill_(1);
        changed
    };
    module.forward(&base).unwrap();
    // Both ends and the sampled 64 bytes of each stride count.
    for (number, position) in [0, 255, 256, 300, 1280, 2304, 9744, 9999].into_iter().enumerate() {
        module.forward(&changed(position)).unwrap();
        assert_eq!(seen.calls(), number + 2, "a change at {position} was not seen");
    }
    // The bytes in between do not count, as chosen.
    let calls = seen.calls();
    module.forward(&changed(256 + 64)).unwrap();
    assert_eq!(seen.calls(), calls);
    // Short samples are covered completely, and other settings give other keys.
    module.forward(&changed(0).narrow(1, 0, 400)).unwrap();
    module.forward(&base.narrow(1, 0, 400)).unwrap();
    assert_eq!(seen.calls(), calls + 2);
}

#[test]
fn the_layout_in_memory_does_not_count() {
    let kinds = [Kind::Float, Kind::Half, Kind::Uint8, Kind::Int64, Kind::Double, Kind::ComplexDouble];
    for kind in kinds {
        let images = rows(0, 6, 3 * 20 * 31).remainder(251.0).reshape([6, 3, 20, 31]).to_kind(kind);
        let (module, seen) = doubling();
        let call = |x: &Tensor| module.forward(x).unwrap().into_tensor().unwrap();
        let expected = call(&images);
        let last = images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        let turned = images.transpose(2, 3).contiguous().transpose(2, 3);
        let outermost = images.permute([1, 2, 3, 0]).contiguous().permute([3, 0, 1, 2]);
        let wide = Tensor::cat(&[&images, &images], 3).narrow(3, 31, 31);
        for x in [&last, &turned, &outermost, &wide] {
            assert!(!x.is_contiguous());
            assert_same(&call(x), &expected);
        }
        assert_eq!(seen.samples(), 6, "{kind:?}");
        // Other elements in the same memory layout.
        drop(call(&last.flip([1])));
        drop(call(&images.flip([3]).permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])));
        assert_eq!(seen.samples(), 18, "{kind:?}");
        // Expanded tensors: one channel repeated three times, and one sample repeated six times.
        let gray = images.narrow(1, 0, 1).expand([6, 3, 20, 31], false);
        drop(call(&gray));
        drop(call(&gray.contiguous()));
        assert_eq!(seen.samples(), 24, "{kind:?}");
        let one = images.narrow(0, 2, 1).expand([6, 3, 20, 31], false);
        assert_same(&call(&one).get(5), &expected.get(2));
        assert_eq!(seen.samples(), 24, "{kind:?}");
    }
}
