//! The candle layer, on the CPU: `cargo test -p tensorcask-candle`.
#![expect(clippy::needless_borrows_for_generic_args, reason = "ids are passed by reference, as callers mostly do")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first thing that is not as expected"
)]

mod contract;
mod exchange;
mod tensors;
mod weights;
mod wrapping;

use candle_core::{Device, Tensor};
use tensorcask_candle::{CacheOptions, to_stored};

/// A tensor of `[rows, dims]` with numbered elements.
fn rows(count: usize, dims: usize) -> Tensor {
    Tensor::arange(0.0, (count * dims) as f32, &Device::Cpu).unwrap().reshape((count, dims)).unwrap()
}

fn in_memory() -> CacheOptions {
    CacheOptions::in_memory().module_id("module")
}

/// Asserts that dtype, shape and bits are equal.
#[track_caller]
fn assert_same(a: &Tensor, b: &Tensor) {
    assert_eq!(to_stored(a).unwrap(), to_stored(b).unwrap());
}
