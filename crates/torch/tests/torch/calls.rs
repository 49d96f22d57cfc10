//! The parts of a call: the places of its arguments, ids, variants, lists, and counters.

use std::sync::atomic::{AtomicI64, Ordering};

use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};
use tensorcask_torch::OutputLike as _;
use tensorcask_torch::WrapModules as _;
use tensorcask_torch::{Argument, CacheOptions, CachedModule, Content, Ids, Inputs, Lists, Output, Variables, Weights};

use super::{Seen, assert_outputs, assert_same, doubling, doubling_with, ids, rows};

fn in_memory() -> CacheOptions {
    CacheOptions::in_memory().module_id("m")
}

fn tensor(output: tensorcask_torch::Result<Output>) -> Tensor {
    output.unwrap().into_tensor().unwrap()
}

/// Returns for each sample a number that encodes how the module was called.
fn telling() -> (CachedModule, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    let number = AtomicI64::new(0);
    let module = in_memory().wrap_inputs_fn(move |inputs: &Inputs| {
        let batch = inputs.batch_size()? as i64;
        noted.note(&rows(0, batch, 1));
        Ok(Tensor::full([batch, 1], number.fetch_add(1, Ordering::SeqCst), (Kind::Int64, Device::Cpu)))
    });
    (module.unwrap(), seen)
}

#[test]
fn the_place_of_every_argument_counts_with_ids() {
    let (x, mask) = (rows(0, 2, 2), rows(5, 2, 2));
    let x = || x.shallow_clone();
    let mask = || mask.shallow_clone();
    let shared = || Argument::Shared(mask());
    let calls = || {
        vec![
            Inputs::from(&x()),
            Inputs::new().with(x()).with(mask()),
            Inputs::new().with(x()).with(mask()).with(()),
            Inputs::new().with(x()).with(()).with(mask()),
            Inputs::new().with(()).with(x()).with(mask()),
            Inputs::new().with(5).with(x()),
            Inputs::new().with(x()).with(5),
            Inputs::new().with(x()).named("a", mask()),
            Inputs::new().with(x()).named("b", mask()),
            Inputs::new().named("a", x()),
            Inputs::new().named("b", x()),
            Inputs::new().with(x()).named("a", 5),
            Inputs::new().with(x()).with(shared()),
            Inputs::new().with(shared()).with(x()),
            Inputs::new().with(x()).with(1).with(mask()).with(2),
            Inputs::new().with(x()).with(1).with(2).with(mask()),
        ]
    };
    let (module, seen) = telling();
    let count = calls().len();
    for round in 0..2 {
        for (number, inputs) in calls().into_iter().enumerate() {
            let output = tensor(module.forward_with_ids(inputs, &["a", "b"]));
            assert_eq!(output.int64_value(&[0, 0]), number as i64, "call {number} met the output of another");
            if round == 0 {
                assert_eq!(seen.calls(), number + 1);
            }
        }
    }
    assert_eq!(seen.calls(), count);
    // Variants of each call are kept apart too.
    for inputs in calls() {
        module.call(inputs).ids(&["a", "b"]).variant(1).run().unwrap();
    }
    assert_eq!(seen.calls(), 2 * count);
    // With an id, the elements of a tensor do not count, as the id names the sample. The order of names does not count
    // either.
    let other = Inputs::new().with(x() + 1).with(mask() + 1);
    assert_eq!(tensor(module.forward_with_ids(other, &["a", "b"])).int64_value(&[0, 0]), 1);
    let named = |names: [&str; 2]| Inputs::new().with(x()).named(names[0], 1).named(names[1], 1);
    let first = tensor(module.forward_with_ids(named(["p", "q"]), &["a", "b"]));
    assert_same(&tensor(module.forward_with_ids(named(["q", "p"]), &["a", "b"])), &first);
}

#[test]
fn lookups_say_variants_and_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let wrap = |version: &str| {
        let options = CacheOptions::in_folder(dir.path(), "m").version(version);
        options.wrap_inputs_fn(|inputs: &Inputs| Ok(inputs.tensor(0)? * inputs.tensor(1)? + 1)).unwrap()
    };
    let module = wrap("1");
    let (x, y) = (rows(0, 2, 2), rows(2, 2, 2));
    let inputs = || Inputs::from([&x, &y]).named("layer", 3);
    module.call(inputs()).ids(&["a", "b"]).variant(2).run().unwrap();
    let places = || Inputs::tensors(2).named("layer", 3);
    let contains = |inputs: Inputs, variant: u32| module.call(inputs).ids(&["a", "c"]).variant(variant).contains();
    assert_eq!(contains(places(), 2).unwrap(), [true, false]);
    assert_eq!(contains(places(), 1).unwrap(), [false, false]);
    assert_eq!(contains(Inputs::tensors(2), 2).unwrap(), [false, false]);
    assert_eq!(contains(Inputs::tensors(1).named("layer", 3), 2).unwrap(), [false, false]);
    assert_eq!(module.call(inputs()).ids(&["a", "c"]).variant(2).contains().unwrap(), [true, false]);
    assert_eq!(module.contains(&["a", "b"]).unwrap(), [false, false]);
    // By content.
    assert_eq!(module.call(inputs()).variant(7).contains().unwrap(), [false, false]);
    module.call(inputs()).variant(7).run().unwrap();
    assert_eq!(module.call(inputs()).variant(7).contains().unwrap(), [true, true]);
    assert_eq!(module.call(inputs()).contains().unwrap(), [false, false]);
    // Why.
    let second = wrap("2");
    let why = |inputs: Inputs, variant: u32| second.call(inputs).ids(&["a"]).variant(variant).why_miss().unwrap();
    assert_eq!(why(places(), 2).elsewhere.len(), 1);
    assert_eq!(why(places(), 3).elsewhere.len(), 0);
    assert!(module.call(places()).ids(&["a"]).variant(2).why_miss().unwrap().kept);
    // Batches.
    let read = |variant: u32| {
        let batches = module.batches(&["a", "b"], 2).variant(variant).arguments(places());
        batches.start().unwrap().next().unwrap().map(|batch| batch.output.into_tensor().unwrap())
    };
    assert_same(&read(2).unwrap(), &(&x * &y + 1));
    assert!(read(3).is_err());
    let load = |ids: &Ids| {
        let count = ids.len() as i64;
        Ok(Inputs::from([&rows(0, count, 2), &rows(2, count, 2)]))
    };
    let batches = module.batches(&["c", "d"], 2).variant(4).arguments(places()).load(load);
    let batch = batches.start().unwrap().next().unwrap().unwrap();
    assert_same(&batch.output.into_tensor().unwrap(), &(&x * &y + 1));
    assert_eq!(module.call(places()).ids(&["c", "d"]).variant(4).contains().unwrap(), [true, true]);
    // A loader has to return tensors for the places of the lookup.
    let error = module.batches(&["e", "f"], 2).load(load).start().unwrap().next().unwrap().unwrap_err();
    assert!(error.to_string().contains("Inputs::tensors(2)"), "{error}");
    assert!(module.call(Inputs::tensors(2)).run().is_err());
    assert!(module.call(Inputs::tensors(2)).contains().is_err());
}

#[test]
fn ids_of_more_sorts() {
    let (module, seen) = doubling();
    let x = rows(0, 3, 2);
    let check = |output: tensorcask_torch::Result<Output>| assert_same(&tensor(output), &(rows(0, 3, 2) * 2 + 1));
    check(module.forward_with_ids(&x, vec![0_u64, 1, 2]));
    check(module.forward_with_ids(&x, &[0_i32, 1, 2]));
    check(module.forward_with_ids(&x, vec![0_i32, 1, 2]));
    check(module.forward_with_ids(&x, vec![0_i64, 1, 2]));
    check(module.forward_with_ids(&x, vec![0_usize, 1, 2]));
    for kind in [Kind::Uint8, Kind::Int8, Kind::Int16, Kind::Int, Kind::Int64] {
        check(module.forward_with_ids(&x, &Tensor::from_slice(&[0_i64, 1, 2]).to_kind(kind)));
    }
    assert_eq!(seen.calls(), 1);
    check(module.forward_with_ids(&x, vec!["0", "1", "2"]));
    check(module.forward_with_ids(&x, vec!["0".to_owned(), "1".to_owned(), "2".to_owned()]));
    assert_eq!(seen.calls(), 2);
    assert!(module.forward_with_ids(&x, &[0_i32, -1, 2]).is_err());
    assert!(module.forward_with_ids(&x, &Tensor::from_slice(&[0_i32, -1, 2])).is_err());
    assert!(module.forward_with_ids(&x, &Tensor::from_slice(&[0.0_f32, 1.0, 2.0])).is_err());
}

#[test]
fn empty_batches_look_as_the_module_says() {
    // A width that the caller passes, and shapes that differ between batches.
    let module = in_memory().wrap_inputs_fn(|inputs: &Inputs| {
        let x = inputs.tensor(0)?;
        let Some(Argument::Int(width)) = inputs.positional().nth(1) else { return Ok(x.to_kind(Kind::Int64)) };
        Ok(Tensor::zeros([x.size()[0], *width], (Kind::Double, Device::Cpu)))
    });
    let module = module.unwrap();
    let call = |rows_: i64, width: i64, dims: i64| {
        let inputs = Inputs::from(&rows(0, rows_, dims)).with(width);
        tensor(module.forward_with_ids(inputs, ids(0, rows_ as u64)))
    };
    let plain = |rows_: i64, dims: i64| tensor(module.forward(&rows(0, rows_, dims)));
    for _ in 0..3 {
        for width in [3, 5] {
            let _full = call(2, width, 2);
            assert_eq!((call(0, width, 2).size(), call(0, width, 2).kind()), (vec![0, width], Kind::Double));
        }
        for dims in [2, 4] {
            let _full = plain(2, dims);
            assert_eq!((plain(0, dims).size(), plain(0, dims).kind()), (vec![0, dims], Kind::Int64));
        }
    }
    // A tree without tensors.
    let dir = tempfile::tempdir().unwrap();
    let wrap = || {
        let options = CacheOptions::in_folder(dir.path(), "trees").version("1");
        options.wrap_fn(|x: &Tensor| Output::map([("a", Output::Tensor(x + 1)), ("n", 3_i64.into())])).unwrap()
    };
    let module = wrap();
    let expected = Output::map([("a", Output::Tensor(rows(0, 0, 2))), ("n", 3_i64.into())]);
    for _ in 0..2 {
        assert_outputs(&module.forward_with_ids(&rows(0, 0, 2), ids(0, 0)).unwrap(), &expected);
        module.forward_with_ids(&rows(0, 2, 2), ids(0, 2)).unwrap();
    }
    module.close().unwrap();
    // Without inputs, the kept rows determine the layout.
    let lazy = wrap().forward_lazy(ids(0, 0), Device::Cpu, |_| panic!("nothing is missing")).unwrap();
    assert_outputs(&lazy, &expected);
}

#[test]
fn ignored_weights_may_be_written_by_the_module() {
    let dir = tempfile::tempdir().unwrap();
    for options in [in_memory(), CacheOptions::in_folder(dir.path(), "m").version("1")] {
        let mut variables = nn::VarStore::new(Device::Cpu);
        let calls = variables.root().zeros_no_train("calls", &[1]);
        variables.freeze();
        let module = options.weights(Weights::Ignore).wrap_inputs_fn_with(&variables, move |inputs: &Inputs| {
            let _added = calls.shallow_clone().fill_(calls.double_value(&[0]) + 1.0);
            Ok(inputs.tensor(0)? * 2)
        });
        let module = module.unwrap();
        for at in 0..5 {
            assert_same(&tensor(module.forward_with_ids(&rows(at, 1, 2), &[at])), &(rows(at, 1, 2) * 2));
        }
        assert_eq!((module.counts().misses, module.len().unwrap()), (5, 5));
        for at in 0..5 {
            module.forward_with_ids(&rows(at, 1, 2), &[at]).unwrap();
        }
        assert_eq!(module.counts().misses, 5);
        assert!(module.warnings().len() <= 1, "{:?}", module.warnings());
    }
}

#[test]
fn a_module_whose_cache_is_off_is_trained() {
    let mut variables = nn::VarStore::new(Device::Cpu);
    let layer = nn::linear(variables.root(), 2, 1, Default::default());
    variables.freeze();
    let module = in_memory().wrap_module(layer, &variables).unwrap();
    let x = rows(1, 4, 2);
    let before = tensor(module.forward(&x));
    module.set_enabled(false);
    variables.unfreeze();
    let mut optimizer = nn::OptimizerConfig::build(nn::Sgd::default(), &variables, 1e-3).unwrap();
    for training in [false, true, true] {
        let loss = tensor(module.call(&x).training(training).run()).square().sum(Kind::Float);
        optimizer.backward_step(&loss);
    }
    // A checkpoint can be loaded nevertheless.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tuned.ot");
    module.save(&file).unwrap();
    module.load(&file).unwrap();
    // With the cache on again, the module is refused while it is trainable; afterwards the old outputs are not found.
    module.set_enabled(true);
    assert!(matches!(module.forward(&x).unwrap_err(), tensorcask_torch::Error::Trainable { .. }));
    assert!(matches!(module.load(&file).unwrap_err(), tensorcask_torch::Error::Trainable { .. }));
    variables.freeze();
    let after = tensor(module.forward(&x));
    assert!(!after.equal(&before));
    // A lazy call bypasses a disabled cache too.
    module.set_enabled(false);
    let lazy = tensor(module.forward_lazy(ids(0, 4), Device::Cpu, |_| Ok(Inputs::from(&x))));
    assert_same(&lazy, &after);
    assert_eq!(module.counts().bypassed, 4);
}

#[test]
fn shared_arguments_are_never_sampled() {
    let content = Content::Sampled { edge_bytes: 64, stride_bytes: 1024 };
    let module = in_memory()
        .content(content)
        .wrap_inputs_fn(|inputs: &Inputs| Ok(inputs.tensor(0)? + inputs.tensor(1)?.sum(Kind::Float)));
    let module = module.unwrap();
    let table = Tensor::zeros([10_000], (Kind::Float, Device::Cpu));
    let call = |table: &Tensor| {
        tensor(module.forward(Inputs::from(&rows(0, 1, 2)).with(Argument::Shared(table.shallow_clone()))))
    };
    for position in [0, 40, 300, 5_000, 9_999] {
        let changed = table.copy();
        let _filled = changed.narrow(0, position, 1).fill_(position as f64 + 1.0);
        assert_same(&call(&changed), &(rows(0, 1, 2) + (position as f64 + 1.0)));
    }
}

#[test]
fn handles_with_other_options_see_each_others_fresh_rows() {
    let dir = tempfile::tempdir().unwrap();
    let options = || CacheOptions::in_folder(dir.path(), "m").version("1");
    let (one, _) = doubling_with(options());
    let (two, seen) = doubling_with(options().codec(tensorcask::Codec::Zstd { level: 1 }));
    let (three, _) = doubling_with(options().memory_bytes(1 << 20));
    for from in [0, 10, 20] {
        let x = rows(from, 4, 2);
        one.forward_with_ids(&x, ids(from as u64, 4)).unwrap();
        assert_eq!(two.contains(ids(from as u64, 4)).unwrap(), [true; 4]);
        assert_same(&tensor(two.forward_with_ids(&x, ids(from as u64, 4))), &(&x * 2 + 1));
        assert_same(&tensor(three.forward_with_ids(&x, ids(from as u64, 4))), &(&x * 2 + 1));
        let by_content = rows(from + 100, 2, 2);
        one.forward(&by_content).unwrap();
        two.forward(&by_content).unwrap();
    }
    assert_eq!(seen.samples(), 0);
    assert_eq!(three.counts().misses, 0);
}

#[test]
fn hits_are_counted_once_when_weights_change() {
    let mut variables = nn::VarStore::new(Device::Cpu);
    let w = variables.root().var("w", &[1], nn::Init::Const(2.0));
    variables.freeze();
    let handle = w.shallow_clone();
    let module = in_memory().wrap_inputs_fn_with(&variables, move |inputs: &Inputs| Ok(inputs.tensor(0)? * &w));
    let module = module.unwrap();
    module.forward_with_ids(&rows(0, 4, 2), ids(0, 4)).unwrap();
    assert_eq!(module.counts().hits, 0);
    let mut loads = 0;
    let output = module.forward_lazy(ids(0, 6), Device::Cpu, |positions| {
        loads += 1;
        if loads == 1 {
            let _guard = tch::no_grad_guard();
            let _filled = handle.shallow_clone().fill_(3.0);
        }
        let all: Vec<Tensor> = positions.iter().map(|at| rows(*at as i64, 1, 2)).collect();
        Ok(Inputs::from(&Tensor::cat(&all, 0)))
    });
    assert_same(&tensor(output), &(rows(0, 6, 2) * 3));
    let counts = module.counts();
    // No outputs of the new weights were kept.
    assert_eq!((counts.hits, counts.read_bytes, counts.misses), (0, 0, 10));
}

#[test]
fn lists_are_what_the_caller_says() {
    // The list has as many items as the batch has samples, so its length is ambiguous.
    let f = |x: &Tensor| -> Vec<Tensor> { (0..x.size()[0]).map(|at| x.get(at).expand([2, -1], false) + at).collect() };
    let items = |module: &CachedModule, from: i64, count: i64| {
        let output = module.forward_with_ids(&rows(from, count, 3), ids(from as u64, count as u64)).unwrap();
        assert!(matches!(output, Output::Each(_)), "{output:?}");
        output.items().iter().map(|item| item.tensor().unwrap().shallow_clone()).collect::<Vec<_>>()
    };
    let each = in_memory().lists(Lists::Each).wrap_fn(f).unwrap();
    let first = items(&each, 0, 2);
    let again = items(&each, 0, 2);
    for at in 0..2 {
        assert_same(&first[at], &(rows(at as i64, 1, 3).expand([2, -1], false) + at as i64));
        assert_same(&first[at], &again[at]);
    }
    // In another batch, each sample has its own item.
    let third = items(&each, 1, 2);
    assert_same(&third[0], &first[1]);
    let off = each.clone();
    off.set_enabled(false);
    items(&off, 0, 2);
    // By default a list holds outputs of the whole batch. Sizes that do not fit are an error, which says what to do.
    let batched = in_memory().wrap_fn(f).unwrap();
    let error = batched.forward_with_ids(&rows(0, 3, 3), ids(0, 3)).unwrap_err();
    assert!(error.to_string().contains("the option `lists` set to each"), "{error}");
    let each = in_memory().lists(Lists::Each).wrap_fn(|x: &Tensor| vec![x + 1, x + 2]).unwrap();
    assert!(each.forward_with_ids(&rows(0, 3, 3), ids(0, 3)).unwrap_err().to_string().contains("2 rows"));
    // Lists within maps and tuples as well.
    let nested = in_memory()
        .lists(Lists::Each)
        .wrap_fn(move |x: &Tensor| Output::map([("boxes", f(x).output()), ("all", Output::Tensor(x + 1))]));
    let nested = nested.unwrap().forward_with_ids(&rows(0, 2, 3), ids(0, 2)).unwrap();
    assert!(matches!(nested.get("boxes"), Some(Output::Each(_))));
}

#[test]
fn sparse_inputs_are_refused_by_name() {
    let module = in_memory().wrap_inputs_fn(|inputs: &Inputs| Ok(inputs.tensor(0)? * 2)).unwrap();
    let dense = rows(0, 2, 2);
    let sparse = [dense.to_sparse(None, None::<&[i64]>, None), dense.to_sparse_csr(None)];
    for sparse in &sparse {
        let calls = [
            (Inputs::from(sparse), "argument 0 is a sparse tensor"),
            (Inputs::from([&dense, sparse]), "argument 1 is a sparse tensor"),
            (Inputs::from(&dense).named("mask", sparse), "argument \"mask\" is a sparse tensor"),
            (Inputs::from(&dense).with(Argument::Shared(sparse.shallow_clone())), "argument 1 is a sparse tensor"),
        ];
        for (inputs, says) in calls {
            for by_id in [false, true] {
                let call = module.call(&inputs);
                let error = if by_id { call.ids(ids(0, 2)).run() } else { call.run() }.unwrap_err();
                assert!(error.to_string().contains(says), "{error}");
            }
        }
    }
    let error = module.forward_lazy(ids(0, 2), Device::Cpu, |_| Ok(Inputs::from(&sparse[0]))).unwrap_err();
    assert!(error.to_string().contains("sparse"), "{error}");
    assert_eq!(module.len().unwrap(), 0);
}

#[test]
fn saved_variables_are_read_by_a_var_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut variables = nn::VarStore::new(Device::Cpu);
    let layer = nn::linear(variables.root(), 3, 2, Default::default());
    variables.freeze();
    let module = in_memory().wrap_module(layer, &variables).unwrap();
    for name in ["a.ot", "a.safetensors", "a", "a.weights"] {
        let path = dir.path().join(name);
        module.save(&path).unwrap();
        let mut read = nn::VarStore::new(Device::Cpu);
        let layer = nn::linear(read.root(), 3, 2, Default::default());
        read.load(&path).unwrap();
        assert_same(&layer.ws.detach(), &variables.variables()["weight"]);
        module.load(&path).unwrap();
    }
    for name in ["a.pt", "a.bin"] {
        let error = module.save(dir.path().join(name)).unwrap_err();
        assert!(error.to_string().contains(".safetensors or .ot"), "{error}");
        assert!(!dir.path().join(name).exists());
        // A file that a VarStore wrote under this name can be read as well.
        variables.save(dir.path().join(name)).unwrap();
        module.load(dir.path().join(name)).unwrap();
    }
}

#[test]
fn a_part_of_a_var_store_is_wrapped_in_one_line() {
    let variables = nn::VarStore::new(Device::Cpu);
    let backbone = nn::linear(variables.root() / "back" / "layer", 2, 3, Default::default());
    let head = nn::linear(variables.root() / "backhead", 3, 1, Default::default());
    let backbone = in_memory().wrap_module(backbone, Variables::under(&variables, "back").unwrap().freeze()).unwrap();
    let trainable: Vec<String> =
        variables.variables().into_iter().filter(|(_, t)| t.requires_grad()).map(|(name, _)| name).collect();
    assert!(trainable.len() == 2 && trainable.iter().all(|name| name.starts_with("backhead.")), "{trainable:?}");
    let mut optimizer = nn::OptimizerConfig::build(nn::Adam::default(), &variables, 1e-2).unwrap();
    for _ in 0..3 {
        let features = tensor(backbone.forward_with_ids(&rows(1, 4, 2), ids(0, 4)));
        optimizer.backward_step(&head.forward(&features).square().sum(Kind::Float));
    }
    assert_eq!((backbone.counts().misses, backbone.counts().hits), (4, 8));
    assert_eq!(Variables::under(&variables, "back.layer").unwrap().len(), 2);
    assert_eq!(Variables::under(&variables, "back.layer.bias").unwrap().len(), 1);
    assert_eq!(Variables::under(&variables, "").unwrap().len(), 4);
    let error = Variables::under(&variables, "bac").unwrap_err();
    assert!(error.to_string().contains("back, backhead"), "{error}");
}
