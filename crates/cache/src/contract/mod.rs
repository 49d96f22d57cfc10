//! The test suite of the caching layer, which every adapter runs: `tensorcask_cache::contract!(MyFramework);` in a test
//! of the adapter, with the feature `contract` of this crate.
//!
//! Each test is generic over the tensor library. Its tensors are made from stored tensors, and compared as stored
//! tensors.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first thing that is not as expected"
)]
#![expect(clippy::needless_borrows_for_generic_args, reason = "ids are passed by reference, as callers mostly do")]

pub mod calls;
pub mod hits;
pub mod identity;
pub mod keys;
pub mod outputs;
pub mod places;
pub mod threads;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tensorcask::Tensor;

use crate::error::Result;
use crate::layer::{Adapter, CacheOptions, Cached};
use crate::values::input::{Argument, Inputs};
use crate::values::output::Output;

/// Runs the whole suite for an adapter.
#[macro_export]
macro_rules! contract {
    ($framework:ty) => {
        $crate::contract!(@ $framework, calls:
            a_failed_computation_keeps_nothing,
            a_panic_keeps_nothing,
            batches_are_read_ahead,
            ids_are_derived,
            inputs_are_loaded_for_what_is_missing,
            loaded_tensors_have_their_places,
            nothing_is_cached_in_training_or_off,
            unusable_batches_are_refused,
            verification_finds_what_is_not_reproducible
        );
        $crate::contract!(@ $framework, hits:
            a_sample_is_computed_once,
            an_empty_batch_looks_like_the_others,
            duplicates_are_computed_once,
            only_what_is_missing_is_computed,
            rows_are_held_on_a_device,
            what_was_counted_is_told
        );
        $crate::contract!(@ $framework, identity:
            a_version_is_asked_for_in_a_folder,
            former_identities_are_listed_and_pruned,
            other_modules_never_meet,
            why_a_sample_is_missing
        );
        $crate::contract!(@ $framework, keys:
            content_is_every_byte,
            ids_of_any_kind,
            keys_are_those_of_every_library,
            places_of_arguments_count,
            variants_are_kept_apart
        );
        $crate::contract!(@ $framework, outputs:
            down_cast_outputs_are_the_same_on_a_miss,
            rows_of_several_shapes,
            trees_come_back_as_they_went_in,
            trees_of_fixed_shapes_are_read_in_one_pass,
            trees_that_change_are_read_all_the_same,
            what_has_no_row_for_a_sample_is_refused
        );
        $crate::contract!(@ $framework, places:
            a_folder_outlives_its_handles,
            a_folder_that_is_only_read,
            a_full_cache_computes,
            a_full_cache_evicts,
            a_temporary_folder_goes
        );
        $crate::contract!(@ $framework, threads:
            a_computation_that_needs_itself_is_an_error,
            a_module_may_call_its_handle,
            threads_wait_for_each_other
        );
    };
    (@ $framework:ty, $room:ident: $($test:ident),*) => {
        mod $room {
            #[allow(unused_imports, reason = "the adapter may be named by a path")]
            use super::*;
            $(
                #[test]
                fn $test() {
                    $crate::contract::$room::$test::<$framework>();
                }
            )*
        }
    };
}

/// A tensor of `f32`.
fn tensor<F: Adapter>(shape: &[usize], elements: &[f32]) -> F::Tensor {
    F::from_stored(&Tensor::from_slice(shape, elements).unwrap()).unwrap()
}

/// `count` rows of `dims` elements, numbered from row `from` on.
fn rows<F: Adapter>(from: usize, count: usize, dims: usize) -> F::Tensor {
    tensor::<F>(&[count, dims], &(from * dims..(from + count) * dims).map(|at| at as f32).collect::<Vec<_>>())
}

/// Converts a tensor to a stored tensor.
fn stored<F: Adapter>(tensor: &F::Tensor) -> Tensor {
    let host = F::host(tensor).unwrap();
    Tensor::new(F::dtype(&host).unwrap().unwrap(), &F::shape(&host), F::to_bytes(&host).unwrap()).unwrap()
}

/// The elements of an `f32` tensor.
fn floats<F: Adapter>(tensor: &F::Tensor) -> Vec<f32> {
    stored::<F>(tensor).to_vec().unwrap()
}

/// The elements of an output that is one `f32` tensor.
fn elements<F: Adapter>(output: Result<Output<F>>) -> Vec<f32> {
    floats::<F>(&output.unwrap().into_tensor().unwrap())
}

/// The inputs of a call with one tensor.
fn one<F: Adapter>(tensor: &F::Tensor) -> Inputs<F> {
    Inputs::new().with(Argument::Tensor(F::share(tensor)))
}

/// Applies `f` to each element.
fn map<F: Adapter>(x: &F::Tensor, f: impl Fn(f32) -> f32) -> F::Tensor {
    tensor::<F>(&F::shape(x), &floats::<F>(x).into_iter().map(f).collect::<Vec<_>>())
}

/// The batches that a wrapped function was called with.
#[derive(Debug, Clone, Default)]
struct Seen {
    calls: Arc<AtomicUsize>,
    samples: Arc<AtomicUsize>,
}

impl Seen {
    fn note<F: Adapter>(&self, x: &F::Tensor) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.samples.fetch_add(F::shape(x)[0], Ordering::SeqCst);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn samples(&self) -> usize {
        self.samples.load(Ordering::SeqCst)
    }
}

/// Options of a module in memory.
fn in_memory<F: Adapter>() -> CacheOptions<F> {
    CacheOptions::in_memory().module_id("module")
}

/// Wraps `2 x + 1`, and records its calls.
fn doubling<F: Adapter>(options: CacheOptions<F>) -> (Cached<F>, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    let module = options.wrap_fn(move |x: &F::Tensor| {
        noted.note::<F>(x);
        Output::<F>::Tensor(map::<F>(x, |x| 2.0 * x + 1.0))
    });
    (module.unwrap().as_ref().clone(), seen)
}

/// The output of [`doubling`] for [`rows`].
fn doubled<F: Adapter>(from: usize, count: usize, dims: usize) -> Vec<f32> {
    floats::<F>(&rows::<F>(from, count, dims)).into_iter().map(|x| 2.0 * x + 1.0).collect()
}

/// A folder that is removed at the end of the test.
fn folder() -> crate::TemporaryFolder {
    crate::TemporaryFolder::new(None).unwrap()
}

/// Integer ids, from `from` on.
fn ids(from: u64, count: u64) -> Vec<u64> {
    (from..from + count).collect()
}

/// Fails unless the call returned an error whose message contains `says`.
fn refused<T>(result: Result<T>, says: &str) {
    match result {
        Ok(_) => panic!("it was not refused: {says}"),
        Err(error) => assert!(error.to_string().contains(says), "{error}"),
    }
}
