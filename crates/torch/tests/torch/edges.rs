//! Regression tests for corner cases.

use tch::{Device, Kind, Tensor};
use tensorcask_torch::OutputLike as _;
use tensorcask_torch::WrapModules as _;
use tensorcask_torch::{CacheOptions, CachedModule, Inputs, Output, Ragged, Variables, Verification};

use super::{assert_outputs, assert_same, doubling, doubling_with, ids, rows};

fn in_memory() -> CacheOptions {
    CacheOptions::in_memory().module_id("m")
}

fn wrapped(f: impl Fn(&Tensor) -> Output + Send + 'static) -> CachedModule {
    in_memory().wrap_fn(f).unwrap()
}

#[test]
fn loaded_plain_arguments_are_refused() {
    let (module, _) = doubling();
    let load = |_: &[usize]| Ok(Inputs::from(&rows(0, 1, 2)).named("layer", 2));
    let error = module.forward_lazy(&[1_u64], Device::Cpu, load).unwrap_err();
    assert!(error.to_string().contains("plain or shared arguments were loaded"), "{error}");
}

#[test]
fn held_rows_of_unlike_keys_are_apart() {
    let (module, _) = doubling_with(in_memory().memory_bytes(1 << 20).memory_device(Device::Cpu));
    let number = u64::from_le_bytes(*b"img_0001");
    for _ in 0..2 {
        let by_string = module.forward_with_ids(&rows(0, 1, 2), &["img_0001"]).unwrap().into_tensor().unwrap();
        let by_number = module.forward_with_ids(&rows(5, 1, 2), &[number]).unwrap().into_tensor().unwrap();
        assert_same(&by_string, &(rows(0, 1, 2) * 2 + 1));
        assert_same(&by_number, &(rows(5, 1, 2) * 2 + 1));
    }
}

#[test]
fn held_rows_keep_their_shape_and_kind() {
    let longer = |x: &Tensor| {
        Output::each(
            (0..x.size()[0]).map(|at| Tensor::ones([x.double_value(&[at, 0]) as i64 + 1], (Kind::Float, Device::Cpu))),
        )
    };
    let options = in_memory().memory_bytes(1 << 20).memory_device(Device::Cpu).ragged(Ragged::Pad(0.0));
    let module = options.wrap_fn(longer).unwrap();
    module.forward_with_ids(&rows(0, 4, 1), &ids(0, 4)).unwrap();
    for _ in 0..2 {
        assert_eq!(module.forward_with_ids(&rows(0, 1, 1), &ids(0, 1)).unwrap().into_tensor().unwrap().size(), [1, 1]);
    }
    let kinds = |x: &Tensor| {
        let kind = if x.double_value(&[0, 0]) > 0.0 { Kind::Double } else { Kind::Float };
        Output::Tensor(x.to_kind(kind))
    };
    let module = in_memory().memory_bytes(1 << 20).memory_device(Device::Cpu).wrap_fn(kinds).unwrap();
    for at in 0..2 {
        module.forward_with_ids(&rows(at, 1, 1), &[at]).unwrap();
        module.forward_with_ids(&rows(at, 1, 1), &[at]).unwrap();
    }
    let both = module.forward_with_ids(&rows(0, 2, 1), &ids(0, 2)).unwrap();
    let kinds: Vec<Kind> = both.items().iter().map(|row| row.tensor().unwrap().kind()).collect();
    assert_eq!(kinds, [Kind::Float, Kind::Double]);
}

#[test]
fn quantized_inputs_are_refused() {
    let (module, _) = doubling();
    let quantized = rows(0, 2, 2).quantize_per_tensor(0.5, 0, Kind::QInt8);
    let error = module.forward(&quantized).unwrap_err();
    assert!(error.to_string().contains("pass tensor.dequantize()"), "{error}");
}

#[test]
fn rows_that_are_unlike_come_back_each_as_it_was() {
    let complex = |len: i64| Tensor::ones([1, len], (Kind::Double, Device::Cpu)).to_kind(Kind::ComplexDouble);
    let shapes: [fn(&Tensor) -> Tensor; 2] = [|t| t.shallow_clone(), |t| t.unsqueeze(1)];
    let module = wrapped(move |x| {
        let shape = shapes[x.double_value(&[0, 0]) as usize];
        Output::Tensor(shape(&complex(2)))
    });
    let null = wrapped(|x| if x.double_value(&[0, 0]) > 0.0 { Output::Null } else { Output::Tensor(x * 2) });
    for at in 0..2 {
        module.forward_with_ids(&rows(at, 1, 1), &[at]).unwrap();
        null.forward_with_ids(&rows(at, 1, 1), &[at]).unwrap();
    }
    let both = module.forward_with_ids(&rows(0, 2, 1), &ids(0, 2)).unwrap();
    let expected = Output::Each(vec![complex(2).get(0).output(), complex(2).output()]);
    assert_outputs(&both, &expected);
    for order in [[0_u64, 1], [1, 0]] {
        let both = null.forward_with_ids(&rows(0, 2, 1), &order).unwrap();
        assert!(matches!(&both, Output::Each(rows) if rows.len() == 2), "{both:?}");
    }
}

#[test]
fn maps_join_in_any_order_of_names() {
    let module = wrapped(|x| {
        let (a, b) = (("a", Output::Tensor(x + 1)), ("b", Output::Tensor(x + 2)));
        Output::map(if x.double_value(&[0, 0]) > 0.0 { [a, b] } else { [b, a] })
    });
    for at in 0..2 {
        module.forward_with_ids(&rows(at, 1, 1), &[at]).unwrap();
    }
    let both = module.forward_with_ids(&rows(0, 2, 1), &ids(0, 2)).unwrap();
    assert_same(both.get("a").unwrap().tensor().unwrap(), &(rows(0, 2, 1) + 1));
    assert_same(both.get("b").unwrap().tensor().unwrap(), &(rows(0, 2, 1) + 2));
}

#[test]
fn layouts_are_the_same_on_a_miss_and_on_a_hit() {
    let module = wrapped(|x| Output::Tensor(x.to_sparse(None, None::<&[i64]>, None)));
    for _ in 0..2 {
        let output = module.forward_with_ids(&rows(0, 2, 2), &ids(0, 2)).unwrap().into_tensor().unwrap();
        assert!(!output.is_sparse());
        assert_same(&output, &rows(0, 2, 2));
    }
    // A module that returns its input: writing to the result does not change the input.
    let identity = wrapped(|x| Output::Tensor(x.shallow_clone()));
    let x = rows(1, 2, 2);
    let _zeroed = identity.forward(&x).unwrap().into_tensor().unwrap().zero_();
    assert_same(&x, &rows(1, 2, 2));
}

#[test]
fn complex_outputs_with_half_precision_and_padding() {
    let complex = |x: &Tensor| Output::Tensor(x.to_kind(Kind::ComplexDouble));
    let module = in_memory().cache_dtype(tensorcask::Dtype::BF16).wrap_fn(complex).unwrap();
    let first = module.forward_with_ids(&rows(0, 2, 2), &ids(0, 2)).unwrap().into_tensor().unwrap();
    let second = module.forward_with_ids(&rows(0, 2, 2), &ids(0, 2)).unwrap().into_tensor().unwrap();
    assert_eq!(first.kind(), Kind::ComplexFloat);
    assert_same(&first, &second);
    for kind in [Kind::ComplexFloat, Kind::ComplexDouble] {
        let f = move |x: &Tensor| {
            Output::each((0..x.size()[0]).map(|at| Tensor::ones([at + 1], (Kind::Double, Device::Cpu)).to_kind(kind)))
        };
        let padded = in_memory().ragged(Ragged::Pad(7.0)).wrap_fn(f).unwrap();
        let output = padded.forward_with_ids(&rows(0, 2, 1), &ids(0, 2)).unwrap().into_tensor().unwrap();
        let real = output.view_as_real();
        assert_eq!((real.double_value(&[0, 1, 0]), real.double_value(&[0, 1, 1])), (7.0, 0.0), "{kind:?}");
    }
}

#[test]
fn values_that_cannot_pad_are_an_error() {
    let f = |x: &Tensor| Output::each((0..x.size()[0]).map(|at| Tensor::ones([at + 1], (Kind::Uint8, Device::Cpu))));
    let module = in_memory().ragged(Ragged::Pad(-1.0)).wrap_fn(f).unwrap();
    for _ in 0..2 {
        let error = module.forward_with_ids(&rows(0, 2, 1), &ids(0, 2)).unwrap_err();
        assert!(error.to_string().contains("cannot be padded with -1"), "{error}");
    }
}

#[test]
fn variables_of_all_layouts() {
    let wrap = |variables: Vec<(String, Tensor)>| {
        in_memory().wrap_inputs_fn_with(Variables::from(variables), |inputs: &Inputs| Ok(inputs.tensor(0)? + 1))
    };
    let sparse = rows(0, 3, 3).to_sparse(None, None::<&[i64]>, None);
    let quantized = rows(0, 3, 3).quantize_per_tensor(0.5, 0, Kind::QInt8);
    let module = wrap(vec![("sparse".into(), sparse), ("quantized".into(), quantized)]).unwrap();
    module.forward(&rows(0, 1, 1)).unwrap();
    let error = wrap(vec![("nothing".into(), Tensor::new())]).unwrap_err();
    assert!(error.to_string().contains("\"nothing\" is undefined"), "{error}");
}

#[test]
fn a_call_that_waits_for_itself_is_an_error() {
    let (module, _) = doubling();
    let inner = module.clone();
    let error = module.forward_lazy(&[1_u64], Device::Cpu, |_| {
        inner.forward_with_ids(&rows(0, 1, 2), &[1_u64])?;
        Ok(Inputs::from(&rows(0, 1, 2)))
    });
    assert!(error.unwrap_err().to_string().contains("asked for the very sample"));
    // Another sample may be requested, even by the module itself.
    let output = module.forward_lazy(&[1_u64], Device::Cpu, |_| {
        inner.forward_with_ids(&rows(0, 1, 2), &[2_u64])?;
        Ok(Inputs::from(&rows(0, 1, 2)))
    });
    assert_same(&output.unwrap().into_tensor().unwrap(), &(rows(0, 1, 2) * 2 + 1));
}

#[test]
fn batches_without_a_loader_are_not_verified_and_lazy_calls_may_be_empty() {
    let (module, seen) = doubling_with(in_memory().verify(Verification::rate(1.0)));
    module.forward_with_ids(&rows(0, 4, 2), &ids(0, 4)).unwrap();
    let batches = module.batches(&ids(0, 4), 2).ahead(usize::MAX).start().unwrap();
    assert_eq!(batches.collect::<tensorcask_torch::Result<Vec<_>>>().unwrap().len(), 2);
    assert_eq!((seen.calls(), module.counts().verified), (1, 0));
    let none = module.forward_lazy(&[] as &[&str], Device::Cpu, |_| panic!("nothing is missing")).unwrap();
    assert!(none.items().is_empty());
}

#[test]
fn held_rows_are_verified_too() {
    let (module, _) =
        doubling_with(in_memory().memory_bytes(1 << 20).memory_device(Device::Cpu).verify(Verification::rate(1.0)));
    for _ in 0..3 {
        module.forward_with_ids(&rows(0, 4, 2), &ids(0, 4)).unwrap();
    }
    assert_eq!(module.counts().verified, 8);
}

#[test]
fn asking_why_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let wrap = |version: &str| doubling_with(CacheOptions::in_folder(dir.path(), "m").version(version)).0;
    let (one, two) = (wrap("1"), wrap("2"));
    std::fs::write(dir.path().join("m/notes.txt"), "not ours").unwrap();
    one.forward_with_ids(&rows(0, 1, 2), &["a"]).unwrap();
    assert_eq!(two.why_miss(&["a"]).unwrap().elsewhere.len(), 1);
    assert!(two.why_miss(&[1_u64]).unwrap().elsewhere.is_empty());
    assert!(!one.folder().unwrap().join("u64").exists());
}

#[test]
fn why_content_misses_is_not_asked_of_sparse_inputs() {
    let (module, _) = doubling();
    let dense = rows(1, 1, 4);
    for sparse in [dense.to_sparse(None, None::<&[i64]>, None), dense.to_sparse_csr(None)] {
        let error = module.why_miss_content(&sparse).unwrap_err();
        assert!(error.to_string().contains("argument 0 is a sparse tensor"), "{error}");
    }
}

#[test]
fn an_empty_batch_for_a_module_that_panics_at_it() {
    // Modules of tch panic at any error of libtorch, such as for the maximum of no elements.
    let module = wrapped(|x| Output::Tensor(x - x.max()));
    let empty = || module.forward(&rows(0, 0, 4));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(empty)).is_err());
    module.forward(&rows(0, 3, 4)).unwrap();
    assert_same(&empty().unwrap().into_tensor().unwrap(), &rows(0, 0, 4));
}

#[test]
fn inputs_in_the_layout_of_mkldnn() {
    let module = wrapped(|x| Output::Tensor(x.to_dense(None::<Kind>, false) * 2));
    module.forward(&rows(0, 2, 4)).unwrap();
    let x = rows(0, 3, 4);
    assert_same(&module.forward(&x.to_mkldnn()).unwrap().into_tensor().unwrap(), &(&x * 2));
    assert_eq!((module.counts().hits, module.counts().misses), (2, 3));
}

#[test]
fn fresh_rows_of_another_handle_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let options = || CacheOptions::in_folder(dir.path(), "m");
    let ((one, _), (other, _)) = (doubling_with(options()), doubling_with(options().memory_bytes(1 << 20)));
    one.forward_with_ids(&rows(0, 3, 2), &ids(0, 3)).unwrap();
    assert_eq!((other.len().unwrap(), other.is_empty().unwrap()), (3, false));
}
