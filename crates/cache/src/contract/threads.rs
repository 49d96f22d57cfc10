//! Threads that share a handle, and modules that call their own handle.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::time::Duration;

use super::{elements, in_memory, map, one, refused, tensor};
use crate::layer::{Adapter, Cached};
use crate::values::output::Output;

/// While one thread computes a sample, the other threads wait for it.
pub fn threads_wait_for_each_other<F: Adapter>() {
    const THREADS: usize = 4;
    let samples = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&samples);
    let module = in_memory::<F>().wrap_fn(move |x: &F::Tensor| {
        seen.fetch_add(F::shape(x)[0], Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(50));
        Output::<F>::Tensor(map::<F>(x, |x| x + 1.0))
    });
    let module = module.unwrap().as_ref().clone();
    let start = Arc::new(Barrier::new(THREADS));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (module, start) = (module.clone(), Arc::clone(&start));
            std::thread::spawn(move || {
                let x = tensor::<F>(&[2, 1], &[1.0, 2.0]);
                start.wait();
                elements::<F>(module.forward_with_ids(one::<F>(&x), &["a", "b"]))
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), [2.0, 3.0]);
    }
    assert_eq!(samples.load(Ordering::SeqCst), 2);
    let counts = module.counts();
    assert_eq!((counts.misses, counts.hits), (2, 2 * (THREADS as u64 - 1)));
}

/// Fibonacci numbers: each call asks the handle for the two numbers before.
pub fn a_module_may_call_its_handle<F: Adapter>() {
    let handle: Arc<OnceLock<Cached<F>>> = Arc::default();
    let own = Arc::clone(&handle);
    let samples = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&samples);
    let module = in_memory::<F>().wrap_fn(move |x: &F::Tensor| {
        seen.fetch_add(1, Ordering::SeqCst);
        let n = super::floats::<F>(x)[0];
        let number = |n: f32| {
            let module = own.get().unwrap();
            elements(module.forward_with_ids(one::<F>(&tensor::<F>(&[1, 1], &[n])), &[n as u64]))[0]
        };
        let value = if n < 2.0 { n } else { number(n - 1.0) + number(n - 2.0) };
        Output::<F>::Tensor(tensor::<F>(&[1, 1], &[value]))
    });
    let module = module.unwrap().as_ref().clone();
    assert!(handle.set(module.clone()).is_ok());
    assert_eq!(elements(module.forward_with_ids(one::<F>(&tensor::<F>(&[1, 1], &[20.0])), &[20_u64])), [6765.0]);
    assert_eq!(samples.load(Ordering::SeqCst), 21);
}

/// A computation that needs its own result is an error, as it would wait for itself.
pub fn a_computation_that_needs_itself_is_an_error<F: Adapter>() {
    let handle: Arc<OnceLock<Cached<F>>> = Arc::default();
    let own = Arc::clone(&handle);
    let module =
        in_memory::<F>().wrap_fn(move |x: &F::Tensor| own.get().unwrap().forward_with_ids(one::<F>(x), &["itself"]));
    let module = module.unwrap().as_ref().clone();
    assert!(handle.set(module.clone()).is_ok());
    refused(
        module.forward_with_ids(one::<F>(&tensor::<F>(&[1, 1], &[1.0])), &["itself"]),
        "the very sample that it is to make",
    );
}
