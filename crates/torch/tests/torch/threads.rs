//! Several threads that call one wrapped module.

use std::sync::Barrier;
use std::time::Duration;

use tch::Tensor;
use tensorcask_torch::CacheOptions;

use super::{Seen, assert_same, ids, rows};

#[test]
fn what_several_threads_miss_is_computed_once() {
    let seen = Seen::default();
    let noted = seen.clone();
    let module = CacheOptions::in_memory().module_id("m").wrap_fn(move |x: &Tensor| {
        noted.note(x);
        std::thread::sleep(Duration::from_millis(5));
        x * 2 + 1
    });
    let module = module.unwrap();
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4_i64 {
            let (module, start) = (&module, &start);
            scope.spawn(move || {
                start.wait();
                for step in 0..12_i64 {
                    // Windows that overlap between threads and steps.
                    let from = (step * 5 + thread * 3) % 40;
                    let x = rows(from, 20, 3);
                    let output = module.forward_with_ids(&x, &ids(from as u64, 20)).unwrap().into_tensor().unwrap();
                    assert_same(&output, &(x * 2 + 1));
                }
            });
        }
    });
    let counts = module.counts();
    assert_eq!(counts.misses, module.len().unwrap());
    assert_eq!(counts.misses as usize, seen.samples());
    assert_eq!(counts.hits + counts.misses, 4 * 12 * 20);
}

#[test]
fn a_failure_in_one_thread_is_no_failure_of_another() {
    let failed = std::sync::atomic::AtomicBool::new(false);
    let module = CacheOptions::in_memory().module_id("m").wrap_fn(move |x: &Tensor| {
        std::thread::sleep(Duration::from_millis(20));
        if failed.swap(true, std::sync::atomic::Ordering::SeqCst) { Ok(x + 1) } else { Err("the first call fails") }
    });
    let module = module.unwrap();
    let start = Barrier::new(2);
    let call = || {
        start.wait();
        module.forward_with_ids(&rows(0, 2, 2), &[0_u64, 1]).is_ok()
    };
    let outcomes =
        std::thread::scope(|scope| [scope.spawn(call), scope.spawn(call)].map(|thread| thread.join().unwrap()));
    assert_eq!(outcomes.iter().filter(|ok| **ok).count(), 1);
    assert_eq!(module.len().unwrap(), 2);
}
