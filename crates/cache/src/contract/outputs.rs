//! Outputs of any structure.

use tensorcask::{Dtype, Tensor};

use super::{ids, in_memory, map, one, refused, rows, stored, tensor};
use crate::layer::options::Verification;
use crate::layer::{Adapter, Cached};
use crate::values::output::{Lists, Output};
use crate::values::tree::Ragged;

fn same<F: Adapter>(a: &Output<F>, b: &Output<F>) -> bool {
    let all = |a: &[Output<F>], b: &[Output<F>]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b));
    match (a, b) {
        (Output::Tensor(a), Output::Tensor(b)) => stored::<F>(a) == stored::<F>(b),
        (Output::Each(a), Output::Each(b))
        | (Output::List(a), Output::List(b))
        | (Output::Tuple(a), Output::Tuple(b)) => all(a, b),
        (Output::Map(a), Output::Map(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && same(&a.1, &b.1))
        }
        (Output::Float(a), Output::Float(b)) => a.to_bits() == b.to_bits(),
        (a, b) => format!("{a:?}") == format!("{b:?}"),
    }
}

fn wrapped<F: Adapter>(f: impl Fn(&F::Tensor) -> Output<F> + Send + 'static) -> Cached<F> {
    in_memory::<F>().wrap_fn(f).unwrap().as_ref().clone()
}

/// On a miss, on a hit, and with half of the samples kept.
pub fn trees_come_back_as_they_went_in<F: Adapter>() {
    let tree = |x: &F::Tensor| {
        Output::<F>::map([
            ("features", Output::Tensor(map::<F>(x, |x| x + 1.0))),
            ("layers", Output::List(vec![Output::Tensor(map::<F>(x, |x| 2.0 * x)), Output::Null])),
            ("pair", Output::Tuple(vec![Output::Tensor(map::<F>(x, |x| -x)), Output::Float(f64::NAN)])),
            ("$each", Output::Str("a name that has to be escaped".into())),
            ("count", Output::Int(3)),
            ("flag", Output::Bool(true)),
        ])
    };
    let module = wrapped::<F>(tree);
    module.forward_with_ids(one::<F>(&rows::<F>(1, 2, 2)), &ids(1, 2)).unwrap();
    for _ in 0..2 {
        let output = module.forward_with_ids(one::<F>(&rows::<F>(0, 4, 2)), &ids(0, 4)).unwrap();
        assert!(same(&output, &tree(&rows::<F>(0, 4, 2))), "{output:?}");
    }
    assert_eq!(module.counts().misses, 4);
    for dtype in [Dtype::Bool, Dtype::U8, Dtype::I64, Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::C64] {
        if !F::holds(dtype) {
            let element = Tensor::new(dtype, &[], vec![0; dtype.tensor_len_bytes(&[]).unwrap()]).unwrap();
            assert!(F::from_stored(&element).is_err(), "{dtype}");
            continue;
        }
        let bytes = move |len: usize| (0..len).map(|at| u8::from(at % 3 == 0)).collect::<Vec<u8>>();
        let module = wrapped::<F>(move |x| {
            let shape = [F::shape(x)[0], 2];
            let tensor = Tensor::new(dtype, &shape, bytes(dtype.tensor_len_bytes(&shape).unwrap())).unwrap();
            Output::Tensor(F::from_stored(&tensor).unwrap())
        });
        let call = || module.forward_with_ids(one::<F>(&rows::<F>(0, 3, 1)), &ids(0, 3)).unwrap();
        let (miss, hit) = (call(), call());
        assert!(same(&miss, &hit), "{dtype} {miss:?} {hit:?}");
        assert_eq!(stored::<F>(&hit.into_tensor().unwrap()).dtype(), dtype);
    }
}

/// Rows of one structure of fixed shapes are read straight into the tensors of a batch: whole, with some of them missing
/// or twice, and for verification.
pub fn trees_of_fixed_shapes_are_read_in_one_pass<F: Adapter>() {
    fn tree<F: Adapter>(x: &F::Tensor) -> Output<F> {
        Output::map([
            ("features", Output::Tensor(map::<F>(x, |x| x + 1.0))),
            ("$layers", Output::List(vec![Output::Tensor(map::<F>(x, |x| 2.0 * x)), Output::Null])),
            ("pair", Output::Tuple(vec![Output::Tensor(map::<F>(x, |x| -x)), Output::Float(f64::NAN)])),
            ("none", Output::Tensor(tensor::<F>(&[F::shape(x)[0], 0], &[]))),
            ("count", Output::Int(3)),
            ("flag", Output::Bool(true)),
        ])
    }
    let module = in_memory::<F>().verify(Verification::rate(1.0)).wrap_fn(tree::<F>).unwrap().as_ref().clone();
    let call = |from: usize, count: usize| {
        let output =
            module.forward_with_ids(one::<F>(&rows::<F>(from, count, 2)), &ids(from as u64, count as u64)).unwrap();
        assert!(same(&output, &tree(&rows::<F>(from, count, 2))), "{output:?}");
    };
    // Missed, read as values, read in one pass, and read with missing rows.
    [(0, 4), (0, 4), (0, 4), (1, 2), (2, 4), (0, 6)].into_iter().for_each(|(from, count)| call(from, count));
    assert_eq!((module.counts().misses, module.counts().verified), (6, 18));
    let x = F::stack(&[6, 0, 6].map(|at| F::row(&rows::<F>(0, 7, 2), at, F::HOST).unwrap())).unwrap();
    let output = module.forward_with_ids(one::<F>(&x), &[6_u64, 0, 6]).unwrap();
    assert!(same(&output, &tree(&x)), "{output:?}");
    assert_eq!(module.counts().duplicates, 1);
}

/// What is kept is not what the structure read before lets expect.
pub fn trees_that_change_are_read_all_the_same<F: Adapter>() {
    let tree = |x: &F::Tensor| {
        let wide = F::shape(x)[1];
        let tensor = Output::<F>::Tensor(map::<F>(x, |x| x));
        match wide {
            1 => Output::map([("a", tensor), ("b", Output::Int(1))]),
            2 => Output::map([("a", tensor), ("b", Output::Int(1))]),
            3 => Output::List(vec![tensor]),
            _ => Output::Tuple(vec![tensor]),
        }
    };
    let module = wrapped::<F>(tree);
    for _ in 0..3 {
        for wide in 1..5 {
            let x = rows::<F>(0, 2, wide);
            let output = module.forward_with_ids(one::<F>(&x), &[format!("{wide}/0"), format!("{wide}/1")]).unwrap();
            assert!(same(&output, &tree(&x)), "{output:?}");
        }
    }
    // A plain value has to be the same for all rows of a batch.
    let module = wrapped::<F>(|x: &F::Tensor| {
        let first = super::floats::<F>(x)[0];
        Output::<F>::map([("a", Output::Tensor(map::<F>(x, |x| x))), ("first", Output::Float(first.into()))])
    });
    for at in [0, 0, 0, 1] {
        module.forward_with_ids(one::<F>(&rows::<F>(at, 1, 2)), &ids(at as u64, 1)).unwrap();
    }
    refused(
        module.forward_with_ids(one::<F>(&rows::<F>(0, 2, 2)), &ids(0, 2)),
        "a plain value of the output is Float(0.0) for one sample and Float(2.0) for another",
    );
}

/// Rows whose shapes differ come back one by one, or padded.
pub fn rows_of_several_shapes<F: Adapter>() {
    fn each<F: Adapter>(x: &F::Tensor) -> Output<F> {
        let row = |x: f32| tensor::<F>(&[x as usize], &vec![x; x as usize]);
        Output::each(super::floats::<F>(x).into_iter().map(row))
    }
    let x = tensor::<F>(&[3, 1], &[2.0, 0.0, 3.0]);
    let module = wrapped::<F>(each::<F>);
    for _ in 0..2 {
        let output = module.forward_with_ids(one::<F>(&x), &ids(0, 3)).unwrap();
        assert!(same(&output, &each::<F>(&x)), "{output:?}");
    }
    let padded = in_memory::<F>().ragged(Ragged::Pad(-1.0)).wrap_fn(each::<F>).unwrap().as_ref().clone();
    for _ in 0..2 {
        let output = padded.forward_with_ids(one::<F>(&x), &ids(0, 3)).unwrap().into_tensor().unwrap();
        assert_eq!(F::shape(&output), [3, 3]);
        assert_eq!(super::floats::<F>(&output), [2.0, 2.0, -1.0, -1.0, -1.0, -1.0, 3.0, 3.0, 3.0]);
    }
    // Lists are outputs of the whole batch unless the options say otherwise.
    let list = |x: &F::Tensor| Output::<F>::List(vec![Output::Tensor(F::share(x)), Output::Tensor(F::share(x))]);
    let rows = |x: &F::Tensor| {
        let rows = (0..F::shape(x)[0]).map(|at| F::row(x, at, F::HOST).unwrap());
        Output::<F>::List(rows.map(Output::Tensor).collect())
    };
    let x = super::rows::<F>(0, 2, 2);
    let module = wrapped::<F>(list);
    assert_eq!(module.forward_with_ids(one::<F>(&x), &ids(0, 2)).unwrap().items().len(), 2);
    assert_eq!(module.forward_with_ids(one::<F>(&x), &ids(0, 2)).unwrap().items().len(), 2);
    let module = in_memory::<F>().lists(Lists::Each).wrap_fn(rows).unwrap().as_ref().clone();
    for _ in 0..2 {
        let output = module.forward_with_ids(one::<F>(&x), &ids(0, 2)).unwrap();
        assert_eq!(output.items().len(), 2, "{output:?}");
        assert!(matches!(output, Output::Each(_)));
    }
}

/// A miss and a hit return the same bits.
pub fn down_cast_outputs_are_the_same_on_a_miss<F: Adapter>() {
    for restore in [false, true] {
        let options = in_memory::<F>().cache_dtype(Dtype::F16).restore_dtype(restore);
        let module = options.wrap_fn(|x: &F::Tensor| Output::<F>::Tensor(map::<F>(x, |x| x + 0.1))).unwrap();
        let call = || {
            let output = module.as_ref().forward_with_ids(one::<F>(&rows::<F>(0, 3, 2)), &ids(0, 3));
            stored::<F>(&output.unwrap().into_tensor().unwrap())
        };
        let (miss, hit) = (call(), call());
        assert_eq!(miss, hit);
        assert_eq!(hit.dtype(), if restore { Dtype::F32 } else { Dtype::F16 });
        let exact: Vec<f32> = (0..6).map(|at| at as f32 + 0.1).collect();
        let wide: Vec<f32> = hit.cast(Dtype::F32).unwrap().to_vec().unwrap();
        assert!(wide.iter().zip(&exact).all(|(a, b)| a != b && (a - b).abs() < 0.01), "{wide:?}");
    }
}

/// An output without one row for each sample is refused.
pub fn what_has_no_row_for_a_sample_is_refused<F: Adapter>() {
    fn check<F: Adapter>(f: impl Fn(&F::Tensor) -> Output<F> + Send + 'static, says: &str) {
        let module = wrapped::<F>(f);
        refused(module.forward_with_ids(one::<F>(&rows::<F>(0, 3, 2)), &ids(0, 3)), says);
        assert_eq!(module.len().unwrap(), 0);
    }
    check::<F>(|_| Output::Tensor(tensor::<F>(&[], &[1.0])), "the output has first dimension none, but 3 samples");
    check::<F>(|_| Output::Tensor(tensor::<F>(&[2, 1], &[1.0, 2.0])), "the output has first dimension 2");
    check::<F>(|_| Output::Each(vec![Output::Null]), "the output has 1 rows, but 3 samples");
    let nested =
        |_: &F::Tensor| Output::<F>::map([("a", Output::List(vec![Output::Tensor(tensor::<F>(&[1], &[1.0]))]))]);
    check::<F>(nested, "a.0 has first dimension 1");
}
