//! Outputs have the structure, dtype, shape and bits that the module returned.

use tch::{Device, Kind, Tensor};
use tensorcask_torch::OutputLike as _;
use tensorcask_torch::{CacheOptions, CachedModule, Output, Ragged};

use super::{assert_outputs, assert_same, ids, rows};

fn wrapped(f: impl Fn(&Tensor) -> Output + Send + 'static) -> CachedModule {
    CacheOptions::in_memory().module_id("m").wrap_fn(f).unwrap()
}

/// Compares misses, hits and mixed batches with the module itself.
fn check(f: impl Fn(&Tensor) -> Output + Send + Copy + 'static) {
    for known in [0, 1, 2, 5] {
        let module = wrapped(f);
        let all = rows(0, 5, 4);
        let numbers = ids(0, 5);
        if known > 0 {
            module.forward_with_ids(&all.narrow(0, 0, known), &numbers[..known as usize]).unwrap();
        }
        let expected = f(&all);
        for round in 0..3 {
            let output = module.forward_with_ids(&all, &numbers).unwrap();
            assert_outputs(&output, &expected);
            assert_eq!(module.counts().misses, 5, "round {round} with {known} known");
        }
        assert_eq!(module.counts().not_kept, 0);
    }
}

#[test]
fn trees_of_tensors_and_plain_values() {
    check(|x| {
        Output::map([
            ("pooled", Output::Tensor(x.sum_dim_intlist(1, false, Kind::Float))),
            ("hidden", Output::Tensor(x.reshape([-1, 2, 2]) * 3)),
            (
                "levels",
                Output::List(vec![Output::Tensor(x + 1), Output::Tensor(x.narrow(1, 0, 2).to_kind(Kind::Int64))]),
            ),
            ("pair", (x + 2, x + 3).output()),
            ("name", "resnet".into()),
            ("scale", 0.5.into()),
            ("nan", f64::NAN.into()),
            ("count", 7_i64.into()),
            ("frozen", true.into()),
            ("nothing", Output::Null),
            ("empty", Output::List(Vec::new())),
        ])
    });
}

#[test]
fn one_of_each_shape() {
    check(|x| (x * 2).output());
    check(|x| vec![x + 1, x * 2].output());
    check(|x| (x + 1, x.sum_dim_intlist(1, true, Kind::Float), x.to_kind(Kind::Bool)).output());
    // A sample that is one number, and one without elements.
    check(|x| x.select(1, 0).output());
    check(|x| x.narrow(1, 0, 0).output());
}

#[test]
fn names_that_look_like_marks() {
    check(|x| Output::map([("$each", Output::Tensor(x + 1))]));
    check(|x| Output::map([("$complex", x + 1), ("$$each", x + 2), ("", x + 3)]));
}

#[test]
fn every_kind() {
    for kind in [
        Kind::Uint8,
        Kind::Int8,
        Kind::Int16,
        Kind::Int,
        Kind::Int64,
        Kind::Half,
        Kind::BFloat16,
        Kind::Float,
        Kind::Double,
        Kind::Bool,
        Kind::ComplexHalf,
        Kind::ComplexFloat,
        Kind::ComplexDouble,
        Kind::Float8e5m2,
        Kind::Float8e4m3fn,
        Kind::Float8e5m2fnuz,
        Kind::Float8e4m3fnuz,
    ] {
        let module = wrapped(move |x| x.to_kind(kind).output());
        let expected = rows(0, 4, 3).to_kind(kind);
        for known in [0_i64, 2, 4, 4] {
            let first = known.max(2);
            let some = module.forward_with_ids(&rows(0, first, 3), &ids(0, first as u64)).unwrap();
            assert_same(&some.into_tensor().unwrap(), &expected.narrow(0, 0, first));
        }
        assert_eq!(module.counts().misses, 4, "{kind:?}");
    }
}

#[test]
fn views_conjugates_and_sparse_tensors() {
    check(|x| x.transpose(1, 0).contiguous().transpose(1, 0).output());
    check(|x| x.flip([1]).output());
    check(|x| Output::Tensor(x.to_kind(Kind::ComplexFloat).conj().resolve_conj()));
    // A lazily conjugated tensor is returned conjugated.
    let module = wrapped(|x| {
        (x.to_kind(Kind::ComplexFloat) * Tensor::from_slice(&[1.0_f32]).to_kind(Kind::ComplexFloat)).conj().output()
    });
    let first = module.forward_with_ids(&rows(0, 2, 2), &[0_u64, 1]).unwrap().into_tensor().unwrap().resolve_conj();
    let second = module.forward_with_ids(&rows(0, 2, 2), &[0_u64, 1]).unwrap().into_tensor().unwrap();
    assert_same(&first, &second);
}

/// A sample of `n` elements for the sample that starts with `n`.
fn ragged(x: &Tensor) -> Output {
    let row = |at: i64| Tensor::arange(at % 3 + 1, (Kind::Float, Device::Cpu)) + at as f64;
    Output::each((0..x.size()[0]).map(|at| row(x.double_value(&[at, 0]) as i64)))
}

#[test]
fn shapes_that_differ_come_back_as_a_list() {
    check(ragged);
    // For one sample, or samples of equal shapes, the output is still a list, as the module returned it.
    let module = wrapped(ragged);
    for _ in 0..2 {
        let one = module.forward_with_ids(&rows(0, 1, 1), &[0_u64]).unwrap();
        assert!(matches!(&one, Output::Each(rows) if rows.len() == 1), "{one:?}");
    }
}

#[test]
fn shapes_that_differ_are_padded_on_request() {
    let module = CacheOptions::in_memory().module_id("m").ragged(Ragged::Pad(-1.0)).wrap_fn(ragged).unwrap();
    let expected = Tensor::from_slice(&[0.0_f32, -1.0, -1.0, 1.0, 2.0, -1.0, 2.0, 3.0, 4.0]).reshape([3, 3]);
    for _ in 0..3 {
        let output = module.forward_with_ids(&rows(0, 3, 1), &[0_u64, 1, 2]).unwrap().into_tensor().unwrap();
        assert_same(&output, &expected);
    }
}

#[test]
fn batches_padded_by_the_module_join() {
    // As with a tokenizer's padding, each batch is as long as its longest sample.
    let f = |x: &Tensor| {
        let longest = x.max().double_value(&[]) as i64 + 1;
        (x.select(1, 0).unsqueeze(1) * Tensor::ones([1, longest], (Kind::Float, Device::Cpu))).output()
    };
    let module = wrapped(f);
    module.forward_with_ids(&rows(0, 2, 1), &[0_u64, 1]).unwrap();
    module.forward_with_ids(&rows(2, 2, 1), &[2_u64, 3]).unwrap();
    let both = module.forward_with_ids(&rows(0, 4, 1), &[0_u64, 1, 2, 3]).unwrap();
    let sizes: Vec<_> = both.items().iter().map(|row| row.tensor().unwrap().size()).collect();
    assert_eq!(sizes, [[2], [2], [4], [4]]);
    let padded = CacheOptions::in_memory().module_id("m").ragged(Ragged::Pad(0.0)).wrap_fn(f).unwrap();
    padded.forward_with_ids(&rows(0, 2, 1), &[0_u64, 1]).unwrap();
    padded.forward_with_ids(&rows(2, 2, 1), &[2_u64, 3]).unwrap();
    let both = padded.forward_with_ids(&rows(0, 4, 1), &[0_u64, 1, 2, 3]).unwrap().into_tensor().unwrap();
    assert_eq!(both.size(), [4, 4]);
    assert_same(&both.get(1), &Tensor::from_slice(&[1.0_f32, 1.0, 0.0, 0.0]));
}

#[test]
fn results_keep_their_own_dtype_whatever_the_input() {
    let module = wrapped(|x| x.to_kind(Kind::Double).output());
    let half = rows(0, 2, 2).to_kind(Kind::Half);
    for _ in 0..2 {
        let output = module.forward_with_ids(&half, &[0_u64, 1]).unwrap().into_tensor().unwrap();
        assert_eq!(output.kind(), Kind::Double);
    }
}

#[test]
fn structures_that_differ_between_samples() {
    // Odd samples have another structure, and each is returned as it was.
    let module = wrapped(|x| {
        let odd = x.double_value(&[0, 0]) as i64 % 2 == 1;
        if odd { Output::map([("odd", x + 1)]) } else { Output::Tensor(x * 2) }
    });
    for at in 0..2 {
        module.forward_with_ids(&rows(at, 1, 1), &[at]).unwrap();
    }
    let both = module.forward_with_ids(&rows(0, 2, 1), &[0_u64, 1]).unwrap();
    assert!(both.items()[0].tensor().is_some() && both.items()[1].get("odd").is_some(), "{both:?}");
}
