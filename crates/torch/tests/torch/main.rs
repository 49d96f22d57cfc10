//! The torch layer, with real libtorch: `scripts/with-torch cargo test -p tensorcask-torch --test torch`.
#![expect(clippy::needless_borrows_for_generic_args, reason = "ids are passed by reference, as callers mostly do")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first thing that is not as expected"
)]

mod calls;
mod changes;
mod content;
mod contract;
mod devices;
mod edges;
mod failing;
mod gradients;
mod hits;
mod identity;
mod operations;
mod outputs;
mod places;
mod python;
mod ranks;
mod refusals;
mod script;
mod settings;
mod shared;
mod structure;
mod threads;
mod verification;
mod waiting;
mod watching;
mod wrapping;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::{Device, Kind, Tensor};
use tensorcask_torch::{CacheOptions, CachedModule, Output, to_stored};

/// A tensor of `[rows, dims]` with numbered elements.
fn rows(from: i64, count: i64, dims: i64) -> Tensor {
    Tensor::arange_start(from * dims, (from + count) * dims, (Kind::Float, Device::Cpu)).reshape([count, dims])
}

/// Integer ids, from `from` on.
fn ids(from: u64, count: u64) -> Vec<u64> {
    (from..from + count).collect()
}

/// Counts the calls of a wrapped function, and their samples.
#[derive(Debug, Clone, Default)]
struct Seen {
    calls: Arc<AtomicUsize>,
    samples: Arc<AtomicUsize>,
}

impl Seen {
    fn note(&self, batch: &Tensor) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.samples.fetch_add(batch.size()[0] as usize, Ordering::SeqCst);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn samples(&self) -> usize {
        self.samples.load(Ordering::SeqCst)
    }
}

/// Wraps `x * 2 + 1` in memory, and counts its calls.
fn doubling() -> (CachedModule, Seen) {
    doubling_with(CacheOptions::in_memory().module_id("doubling"))
}

/// Wraps `x * 2 + 1`, and counts its calls.
fn doubling_with(options: CacheOptions) -> (CachedModule, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    // Closures require a version in a folder.
    let options = if format!("{options:?}").contains("version: None") { options.version("1") } else { options };
    let module = options.wrap_fn(move |x: &Tensor| {
        noted.note(x);
        x * 2 + 1
    });
    (module.unwrap(), seen)
}

/// Asserts that kind, shape and bits are equal; NaN equals NaN.
#[track_caller]
fn assert_same(a: &Tensor, b: &Tensor) {
    assert_eq!((a.kind(), a.size()), (b.kind(), b.size()));
    let bits = |t: &Tensor| to_stored(t).map(|t| t.data().to_vec());
    match (bits(a), bits(b)) {
        (Ok(a), Ok(b)) => assert!(a == b, "the bits differ"),
        // A complex kind without a dtype is compared as its real view.
        _ => assert_same(&a.view_as_real(), &b.view_as_real()),
    }
}

/// Asserts that two trees are equal, bit by bit.
#[track_caller]
fn assert_outputs(a: &Output, b: &Output) {
    match (a, b) {
        (Output::Tensor(a), Output::Tensor(b)) => assert_same(a, b),
        (Output::Each(a), Output::Each(b))
        | (Output::List(a), Output::List(b))
        | (Output::Tuple(a), Output::Tuple(b)) => {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(a, b)| assert_outputs(a, b));
        }
        (Output::Map(a), Output::Map(b)) => {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(a, b)| {
                assert_eq!(a.0, b.0);
                assert_outputs(&a.1, &b.1);
            });
        }
        (Output::Float(a), Output::Float(b)) => assert_eq!(a.to_bits(), b.to_bits()),
        (a, b) => assert_eq!(format!("{a:?}"), format!("{b:?}")),
    }
}
