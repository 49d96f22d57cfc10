//! Dtypes, layouts, and inputs that are refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use tensorcask::Dtype;
use tensorcask_candle::{CachedModule, Output, Ragged, from_stored, to_stored};

use super::{assert_same, in_memory, rows};

const DTYPES: [(DType, Dtype); 10] = [
    (DType::U8, Dtype::U8),
    (DType::U32, Dtype::U32),
    (DType::I16, Dtype::I16),
    (DType::I32, Dtype::I32),
    (DType::I64, Dtype::I64),
    (DType::BF16, Dtype::BF16),
    (DType::F16, Dtype::F16),
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
    (DType::F8E4M3, Dtype::F8E4M3),
];

/// Returns its input, and counts the samples.
fn identity() -> (CachedModule, Arc<AtomicUsize>) {
    let samples = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&samples);
    let module = in_memory().wrap_fn(move |x: &Tensor| {
        seen.fetch_add(x.dims()[0], Ordering::SeqCst);
        x.clone()
    });
    (module.unwrap(), samples)
}

#[test]
fn all_dtypes_come_back_bit_for_bit() {
    for (dtype, stored) in DTYPES {
        let bytes: Vec<u8> = (0..24 * dtype.size_in_bytes()).map(|at| (at * 37 + 5) as u8).collect();
        let batch = Tensor::from_raw_buffer(&bytes, dtype, &[4, 3, 2], &Device::Cpu).unwrap();
        let kept = to_stored(&batch).unwrap();
        assert_eq!((kept.dtype(), kept.data().as_ref()), (stored, bytes.as_slice()));
        assert_eq!(from_stored(&kept).unwrap().dtype(), dtype);
        let (module, samples) = identity();
        // Some samples are kept, all are kept, and one occurs twice.
        module.forward(&batch.narrow(0, 1, 2).unwrap()).unwrap();
        let twice = Tensor::cat(&[&batch, &batch.narrow(0, 2, 1).unwrap()], 0).unwrap();
        for input in [&batch, &batch, &twice] {
            assert_same(&module.forward(input).unwrap().into_tensor().unwrap(), input);
        }
        assert_eq!(samples.load(Ordering::SeqCst), 4, "{dtype:?}");
    }
}

#[test]
fn layouts_do_not_matter() {
    let cube = rows(24, 5).reshape((4, 5, 6)).unwrap();
    let layouts = [
        cube.transpose(1, 2).unwrap(),
        cube.transpose(0, 2).unwrap(),
        cube.narrow(0, 1, 2).unwrap(),
        cube.narrow(2, 1, 3).unwrap(),
        cube.narrow(1, 4, 1).unwrap().broadcast_as((4, 3, 6)).unwrap(),
        rows(1, 6).broadcast_as((4, 6)).unwrap(),
        cube.narrow(0, 4, 0).unwrap(),
        cube.narrow(1, 0, 0).unwrap(),
    ];
    for input in layouts {
        let (module, samples) = identity();
        let output = module.forward(&input).unwrap().into_tensor().unwrap();
        assert_same(&output, &input);
        let computed = samples.load(Ordering::SeqCst);
        assert_same(&module.forward(&input.force_contiguous().unwrap()).unwrap().into_tensor().unwrap(), &input);
        assert_eq!(samples.load(Ordering::SeqCst), computed);
        // Selected rows.
        let (module, _) = identity();
        if input.dims()[0] > 1 {
            module.forward(&input.narrow(0, 0, 1).unwrap()).unwrap();
        }
        assert_same(&module.forward(&input).unwrap().into_tensor().unwrap(), &input);
    }
}

/// A kept output shares no memory with tensors of the module or the caller.
#[test]
fn later_writes_reach_no_output() {
    let module = in_memory().memory_bytes(1 << 20).memory_device(Device::Cpu).wrap_fn(|x: &Tensor| x.clone()).unwrap();
    let input = rows(1, 3);
    let call = || module.forward_with_ids(&input, &["a"]).unwrap().into_tensor().unwrap();
    call();
    for _ in 0..2 {
        let output = call();
        assert_same(&output, &rows(1, 3));
        output.zero_set().unwrap();
    }
    input.zero_set().unwrap();
    assert_same(&call(), &rows(1, 3));
}

#[test]
fn rows_are_padded_in_any_dtype() {
    for (dtype, _) in DTYPES.into_iter().filter(|(dtype, _)| *dtype != DType::F8E4M3) {
        let each = move |x: &Tensor| -> candle_core::Result<Output> {
            let row = |at: usize| rows(1, at + 1).squeeze(0)?.to_dtype(dtype);
            Ok(Output::each((0..x.dims()[0]).map(row).collect::<candle_core::Result<Vec<_>>>()?))
        };
        let module = in_memory().ragged(Ragged::Pad(7.0)).wrap_fn(each).unwrap();
        for _ in 0..2 {
            let padded = module.forward(&rows(2, 1)).unwrap().into_tensor().unwrap();
            let expected = Tensor::new(&[[0_u8, 7], [0, 1]], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            assert_same(&padded, &expected);
        }
    }
}

/// Packed floats and exponent-only floats.
#[test]
fn dtypes_that_candle_only_carries_are_refused() {
    let scales = || Tensor::from_raw_buffer(&[127, 128], DType::F8E8M0, &[2, 1], &Device::Cpu).unwrap();
    let (module, samples) = identity();
    let refused = |said: String| assert!(said.contains("a f8e8m0 tensor cannot be stored"), "{said}");
    refused(module.forward(&scales()).unwrap_err().to_string());
    assert_eq!(samples.load(Ordering::SeqCst), 0);
    let module = in_memory().wrap_fn(move |_: &Tensor| scales()).unwrap();
    refused(module.forward(&rows(2, 1)).unwrap_err().to_string());
    assert_eq!(module.len().unwrap(), 0);
}

#[test]
fn tensors_are_ids() {
    let (module, samples) = identity();
    for dtype in [DType::U8, DType::U32, DType::I16, DType::I32, DType::I64] {
        let ids = Tensor::new(&[3_u8, 4], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        module.forward_with_ids(&rows(2, 1), &ids).unwrap();
    }
    module.forward_with_ids(&rows(2, 1), &[3_u64, 4]).unwrap();
    assert_eq!(samples.load(Ordering::SeqCst), 2);
    let said = module.forward_with_ids(&rows(2, 1), &rows(2, 1)).unwrap_err().to_string();
    assert!(said.contains("one-dimensional tensor of integers"), "{said}");
}

/// The variable that produced an input would silently not learn.
#[test]
fn inputs_of_variables_are_refused() {
    let (module, _) = identity();
    let learnt = Var::from_tensor(&rows(2, 2)).unwrap();
    let derived = (learnt.as_tensor() * 2.0).unwrap();
    for input in [learnt.as_tensor(), &derived] {
        let said = module.forward(input).unwrap_err().to_string();
        assert!(said.contains("requires a gradient"), "{said}");
        module.forward(&input.detach()).unwrap();
    }
    let module = in_memory().allow_grad_inputs(true).wrap_fn(|x: &Tensor| x * 3.0).unwrap();
    for _ in 0..2 {
        assert!(!module.forward(&derived).unwrap().into_tensor().unwrap().track_op());
    }
}
