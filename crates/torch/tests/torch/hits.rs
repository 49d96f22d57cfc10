//! Hits, misses, and batches with both.

use tch::{Device, Kind, Tensor};
use tensorcask_torch::{CacheOptions, Id, Ids, Inputs};

use super::{assert_same, doubling, doubling_with, ids, rows};

#[test]
fn only_misses_are_computed_and_order_is_kept() {
    let (module, seen) = doubling();
    module.forward_with_ids(&rows(0, 4, 3), &[0_u64, 1, 2, 3]).unwrap();
    assert_eq!((seen.calls(), seen.samples()), (1, 4));

    // Two kept and two new samples, interleaved.
    let mixed = Tensor::cat(&[rows(9, 1, 3), rows(2, 1, 3), rows(7, 1, 3), rows(0, 1, 3)], 0);
    let output = module.forward_with_ids(&mixed, &[9_u64, 2, 7, 0]).unwrap().into_tensor().unwrap();
    assert_same(&output, &(&mixed * 2 + 1));
    assert_eq!((seen.calls(), seen.samples()), (2, 6));

    // All samples are kept: the module is not called.
    let again = module.forward_with_ids(&mixed, &[9_u64, 2, 7, 0]).unwrap().into_tensor().unwrap();
    assert_same(&again, &output);
    assert_eq!(seen.calls(), 2);
    let counts = module.counts();
    assert_eq!((counts.hits, counts.misses, counts.duplicates), (6, 6, 0));
}

#[test]
fn duplicates_are_computed_once() {
    let (module, seen) = doubling();
    let x = rows(0, 3, 2).index_select(0, &Tensor::from_slice(&[0_i64, 1, 0, 2, 1, 0]));
    for round in 0..3 {
        let output = module.forward_with_ids(&x, &["a", "b", "a", "c", "b", "a"]).unwrap().into_tensor().unwrap();
        assert_same(&output, &(&x * 2 + 1));
        assert_eq!(seen.samples(), 3, "round {round}");
    }
    // Duplicates of hits that were read directly into the batch.
    let x = rows(0, 5, 2).index_select(0, &Tensor::from_slice(&[3_i64, 0, 3, 4, 1, 4]));
    let output = module.forward_with_ids(&x, &["d", "a", "d", "e", "b", "e"]).unwrap().into_tensor().unwrap();
    assert_same(&output, &(&x * 2 + 1));
    assert_eq!(seen.samples(), 5);
    assert_eq!(module.counts().duplicates, 5);
}

#[test]
fn batches_of_none_and_of_one() {
    let (module, seen) = doubling();
    let empty = module.forward_with_ids(&rows(0, 0, 3), &[] as &[u64]).unwrap().into_tensor().unwrap();
    assert_eq!(empty.size(), [0, 3]);
    for _ in 0..2 {
        let one = module.forward_with_ids(&rows(5, 1, 3), &[5_u64]).unwrap().into_tensor().unwrap();
        assert_same(&one, &(rows(5, 1, 3) * 2 + 1));
    }
    // By now the layout is known: rows have 3 elements.
    let calls = seen.calls();
    let empty = module.forward_with_ids(&rows(0, 0, 3), &[] as &[u64]).unwrap().into_tensor().unwrap();
    assert_eq!((empty.size(), empty.kind(), seen.calls()), (vec![0, 3], Kind::Float, calls));
    assert_eq!(module.forward(&rows(0, 0, 3)).unwrap().into_tensor().unwrap().size(), [0, 3]);
}

#[test]
fn ids_of_all_sorts() {
    let (module, seen) = doubling();
    let x = rows(0, 3, 2);
    let expected = &x * 2 + 1;
    let strings = vec!["0".to_owned(), "1".to_owned(), "2".to_owned()];
    let check = |output: tensorcask_torch::Result<tensorcask_torch::Output>, calls: usize| {
        assert_same(&output.unwrap().into_tensor().unwrap(), &expected);
        assert_eq!(seen.calls(), calls);
    };
    check(module.forward_with_ids(&x, &[0_u64, 1, 2]), 1);
    check(module.forward_with_ids(&x, &[0_i64, 1, 2]), 1);
    check(module.forward_with_ids(&x, &[0_usize, 1, 2]), 1);
    check(module.forward_with_ids(&x, &[0_u32, 1, 2]), 1);
    check(module.forward_with_ids(&x, &Tensor::from_slice(&[0_i64, 1, 2])), 1);
    check(module.forward_with_ids(&x, &[Id::Int(0), Id::Int(1), Id::Int(2)]), 1);
    // The string "0" is not the integer 0.
    check(module.forward_with_ids(&x, &strings), 2);
    check(module.forward_with_ids(&x, &["0", "1", "2"]), 2);
    check(module.forward_with_ids(&x, Ids::Str(strings)), 2);
    assert_eq!(module.contains(&[0_u64, 7]).unwrap(), [true, false]);
    assert_eq!(module.contains(&["1", "7"]).unwrap(), [true, false]);
}

#[test]
fn ids_from_the_batch() {
    let options = CacheOptions::in_memory().module_id("m");
    let options = options.ids_from(|inputs: &Inputs| {
        // The first element of each sample is its id.
        let first = inputs.tensor(0)?.select(1, 0).to_kind(Kind::Int64);
        tensorcask_torch::IntoIds::into_ids(&first)
    });
    let (module, seen) = doubling_with(options);
    for _ in 0..2 {
        let output = module.forward(&rows(0, 4, 2)).unwrap().into_tensor().unwrap();
        assert_same(&output, &(rows(0, 4, 2) * 2 + 1));
    }
    assert_eq!(seen.calls(), 1);
    assert_eq!(module.contains(&[0_u64, 2, 4, 6, 1]).unwrap(), [true, true, true, true, false]);
}

#[test]
fn several_inputs_are_sliced_together() {
    let seen = super::Seen::default();
    let noted = seen.clone();
    let options = CacheOptions::in_memory().module_id("m");
    let module = options
        .wrap_inputs_fn(move |inputs: &Inputs| {
            let (a, b, mask) = (inputs.tensor(0)?, inputs.tensor(1)?, inputs.tensor_named("mask")?);
            assert!(a.size()[0] == b.size()[0] && a.size()[0] == mask.size()[0]);
            noted.note(a);
            Ok(a * 10 + b * mask)
        })
        .unwrap();
    let call = |from: i64, count: i64| {
        let mask = Tensor::from_slice(&[1.0_f32, 0.0]).repeat([count]).narrow(0, from % 2, count).reshape([count, 1]);
        let inputs = Inputs::new().with(rows(from, count, 2)).with(rows(from + 100, count, 2)).named("mask", &mask);
        let output = module.forward_with_ids(&inputs, &ids(from as u64, count as u64)).unwrap().into_tensor().unwrap();
        assert_same(&output, &(rows(from, count, 2) * 10 + rows(from + 100, count, 2) * mask));
    };
    call(0, 3);
    call(1, 4);
    assert_eq!((seen.calls(), seen.samples()), (2, 5));
}

#[test]
fn results_never_alias_what_is_kept() {
    // A module that returns the same buffer each time, as one with a preallocated output does.
    let buffer = std::sync::Mutex::new(Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)));
    let module = CacheOptions::in_memory().module_id("m").wrap_fn(move |x: &Tensor| {
        let mut buffer = buffer.lock().unwrap();
        buffer.copy_(&(x + 1));
        buffer.shallow_clone()
    });
    let module = module.unwrap();
    module.forward_with_ids(&rows(0, 2, 2), &[0_u64, 1]).unwrap();
    module.forward_with_ids(&rows(2, 2, 2), &[2_u64, 3]).unwrap();
    let mut kept = module.forward_with_ids(&rows(0, 2, 2), &[0_u64, 1]).unwrap().into_tensor().unwrap();
    assert_same(&kept, &(rows(0, 2, 2) + 1));
    // Writing to a result does not change the kept row.
    let _zeroed = kept.zero_();
    let again = module.forward_with_ids(&rows(0, 2, 2), &[0_u64, 1]).unwrap().into_tensor().unwrap();
    assert_same(&again, &(rows(0, 2, 2) + 1));
}

#[test]
fn writing_into_a_fresh_result_changes_nothing() {
    for options in [
        CacheOptions::in_memory().module_id("m"),
        CacheOptions::in_memory().module_id("m").memory_bytes(1 << 20),
        CacheOptions::in_memory().module_id("m").memory_bytes(1 << 20).memory_device(Device::Cpu),
    ] {
        let (module, _) = doubling_with(options);
        let expected = rows(0, 2, 2) * 2 + 1;
        for _ in 0..4 {
            let mut result = module.forward_with_ids(&rows(0, 2, 2), &[0_u64, 1]).unwrap().into_tensor().unwrap();
            assert_same(&result, &expected);
            let _zeroed = result.zero_();
        }
    }
}

#[test]
fn results_carry_no_gradient() {
    let x = rows(0, 2, 2).set_requires_grad(true);
    let (module, _) = doubling_with(CacheOptions::in_memory().module_id("m").allow_grad_inputs(true));
    for _ in 0..2 {
        let output = module.forward_with_ids(&x, &[0_u64, 1]).unwrap().into_tensor().unwrap();
        assert!(!output.requires_grad());
    }
    // With the cache off, the module behaves as without it.
    module.set_enabled(false);
    assert!(module.forward(&x).unwrap().into_tensor().unwrap().requires_grad());
    assert_eq!(module.counts().bypassed, 1);
    module.set_enabled(true);
    assert!(module.is_enabled());
}

#[test]
fn inputs_are_loaded_only_for_what_is_missing() {
    let (module, seen) = doubling();
    let all = ids(0, 6);
    module.forward_with_ids(&rows(0, 2, 2), &all[..2]).unwrap();
    let mut asked = Vec::new();
    let output = module.forward_lazy(&all, Device::Cpu, |positions| {
        asked = positions.to_vec();
        Ok(Inputs::from(&rows(2, 4, 2)))
    });
    assert_same(&output.unwrap().into_tensor().unwrap(), &(rows(0, 6, 2) * 2 + 1));
    assert_eq!((asked, seen.samples()), (vec![2, 3, 4, 5], 6));
    let output = module.forward_lazy(&all, Device::Cpu, |_| panic!("everything is there"));
    assert_same(&output.unwrap().into_tensor().unwrap(), &(rows(0, 6, 2) * 2 + 1));
}

#[test]
fn variants_are_kept_apart() {
    let (module, seen) = doubling();
    for epoch in 0..4 {
        for variant in 0..3_u32 {
            let augmented = rows(0, 2, 2) + f64::from(variant);
            let output = module.call(&augmented).ids(&["a", "b"]).variant(variant).run().unwrap();
            assert_same(&output.into_tensor().unwrap(), &(augmented * 2 + 1));
        }
        assert_eq!(seen.calls(), 3, "epoch {epoch}");
    }
}

#[test]
fn batches_are_read_ahead() {
    let (module, seen) = doubling();
    let all = ids(0, 50);
    let load = |ids: &Ids| match ids {
        Ids::Int(ids) => {
            let parts: Vec<Tensor> = ids.iter().map(|&id| rows(id as i64, 1, 3)).collect();
            Ok(Inputs::from(&Tensor::cat(&parts, 0)))
        }
        _ => panic!("ids are integers"),
    };
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let mut order = Vec::new();
        for batch in module.batches(&all, 8).shuffle(epoch).ahead(3).load(load).start().unwrap() {
            let batch = batch.unwrap();
            let Ids::Int(ids) = &batch.ids else { panic!("ids are integers") };
            for (at, &id) in ids.iter().enumerate() {
                assert_same(&batch.output.tensor().unwrap().get(at as i64), &(rows(id as i64, 1, 3) * 2 + 1).get(0));
            }
            order.extend(ids.iter().copied());
        }
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, all);
        orders.push(order);
    }
    assert_eq!(seen.samples(), 50);
    assert_ne!(orders[0], orders[1]);
    assert_eq!(module.batches(&all, 8).drop_last(true).start().unwrap().count(), 6);
    // An iterator that is dropped early, and one without a loader for missing outputs.
    drop(module.batches(&all, 8).start().unwrap().next());
    let mut some = module.batches(&ids(48, 4), 4).start().unwrap();
    assert!(some.next().unwrap().unwrap_err().to_string().contains("2 of 4 outputs"));
    assert!(some.next().is_none());
}
