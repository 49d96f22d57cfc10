//! No order of calls causes a deadlock.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::time::Duration;

use tch::{Device, Kind, Tensor};
use tensorcask_torch::WrapModules as _;
use tensorcask_torch::{CacheOptions, CachedModule, Ids, Inputs};

use super::{assert_same, ids, rows};

/// Fails instead of hanging.
fn in_time(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = channel();
    let thread = std::thread::spawn(move || {
        test();
        done.send(()).unwrap();
    });
    let ended = ended.recv_timeout(Duration::from_secs(120));
    assert!(ended != Err(RecvTimeoutError::Timeout), "threads wait for each other");
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A handle that is given to the module after wrapping.
type Handle = Arc<OnceLock<CachedModule>>;

fn number(x: &Tensor) -> i64 {
    x.double_value(&[0, 0]) as i64
}

fn one(number: i64) -> Tensor {
    Tensor::from_slice(&[number as f32]).reshape([1, 1])
}

fn many(numbers: &[u64]) -> Tensor {
    Tensor::from_slice(&numbers.iter().map(|n| *n as f32).collect::<Vec<_>>()).reshape([-1, 1])
}

fn load(ids: &Ids) -> tensorcask_torch::Result<Inputs> {
    match ids {
        Ids::Int(ids) => Ok(Inputs::from(&many(ids))),
        _ => unreachable!("ids are integers"),
    }
}

fn call(module: &CachedModule, id: i64) -> tensorcask_torch::Result<Tensor> {
    module.forward_with_ids(&one(id), &[id])?.into_tensor()
}

/// A module that is given its own handle.
fn recursive(f: impl Fn(&CachedModule, &Tensor) -> tensorcask_torch::Result<Tensor> + Send + 'static) -> CachedModule {
    let own = Handle::default();
    let inner = Arc::clone(&own);
    let module = CacheOptions::in_memory().module_id("m").wrap_fn(move |x: &Tensor| f(inner.get().unwrap(), x));
    let module = module.unwrap();
    own.set(module.clone()).unwrap();
    module
}

#[test]
fn a_module_asks_its_own_handle_while_another_thread_asks_for_the_same() {
    in_time(|| {
        let module = recursive(|own, x| {
            if number(x) == 1 {
                std::thread::sleep(Duration::from_millis(100));
                return Ok(x + call(own, 0)?);
            }
            Ok(x + 10)
        });
        std::thread::scope(|scope| {
            let first = scope.spawn(|| call(&module, 1).unwrap());
            std::thread::sleep(Duration::from_millis(30));
            let second = scope.spawn(|| call(&module, 0).unwrap());
            assert_same(&second.join().unwrap(), &one(10));
            assert_same(&first.join().unwrap(), &one(11));
        });
    });
}

#[test]
fn loaders_ask_for_each_others_samples() {
    in_time(|| {
        let (module, _) = super::doubling();
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            for at in 0..2_i64 {
                let (module, start) = (&module, &start);
                scope.spawn(move || {
                    let output = module.forward_lazy(&[at], Device::Cpu, |_| {
                        start.wait();
                        let other = call(module, 1 - at)?;
                        assert_same(&other, &(one(1 - at) * 2 + 1));
                        Ok(Inputs::from(&one(at)))
                    });
                    assert_same(&output.unwrap().into_tensor().unwrap(), &(one(at) * 2 + 1));
                });
            }
        });
        assert_eq!(module.len().unwrap(), 2);
    });
}

#[test]
fn a_module_reads_batches_of_its_own_handle() {
    in_time(|| {
        for ahead in [0, 1, 2, 100] {
            let module = recursive(move |own, x| {
                if number(x) < 100 {
                    return Ok(x * 2);
                }
                let mut sum = x.shallow_clone();
                for batch in own.batches(&ids(0, 10), 3).ahead(ahead).load(load).start()? {
                    sum += batch?.output.into_tensor()?.sum(Kind::Float);
                }
                // And an iterator that is dropped while it reads ahead.
                let _first = own.batches(&ids(10, 50), 1).ahead(ahead).load(load).start()?.next();
                Ok(sum)
            });
            std::thread::scope(|scope| {
                for id in [100, 101, 3] {
                    let module = &module;
                    scope.spawn(move || {
                        let expected = if id < 100 { one(id * 2) } else { one(id + 90) };
                        assert_same(&call(module, id).unwrap(), &expected);
                    });
                }
            });
        }
    });
}

#[test]
fn a_loader_reads_batches_with_its_own_sample() {
    in_time(|| {
        let (module, _) = super::doubling();
        let result = module.forward_lazy(&[5_u64], Device::Cpu, |_| {
            // The sixth of these ids is the one that this call computes.
            let read: tensorcask_torch::Result<Vec<_>> = module.batches(&ids(0, 10), 1).load(load).start()?.collect();
            read.map(|_| Inputs::from(&one(5)))
        });
        assert!(result.unwrap_err().to_string().contains("asked for the very sample"));
        // Another call is not affected.
        assert_same(&call(&module, 5).unwrap(), &(one(5) * 2 + 1));
    });
}

#[test]
fn an_iterator_made_outside_is_read_inside() {
    in_time(|| {
        let iterator = Arc::new(Mutex::new(None));
        let inside = Arc::clone(&iterator);
        let module = recursive(move |_, x| {
            let mut sum = x.shallow_clone();
            if number(x) == 100 {
                for batch in inside.lock().unwrap().take().into_iter().flatten() {
                    let batch: tensorcask_torch::Batch = batch?;
                    sum += batch.output.into_tensor()?.sum(Kind::Float);
                }
            }
            Ok(sum)
        });
        *iterator.lock().unwrap() = Some(module.batches(&ids(0, 20), 2).ahead(1).load(load).start().unwrap());
        assert_same(&call(&module, 100).unwrap(), &one(290));
    });
}

#[test]
fn modules_call_each_other() {
    in_time(|| {
        // Each module halves the output of the next one, down to 0: a cycle of handles and locks.
        for count in [2_usize, 3] {
            let handles: Vec<Handle> = (0..count).map(|_| Handle::default()).collect();
            for at in 0..count {
                let next = Arc::clone(&handles[(at + 1) % count]);
                let options = CacheOptions::in_memory().module_id(format!("m{at}"));
                let module = options.wrap_fn(move |x: &Tensor| -> tensorcask_torch::Result<Tensor> {
                    std::thread::sleep(Duration::from_millis(1));
                    let n = number(x);
                    if n == 0 { Ok(one(0)) } else { Ok(call(next.get().unwrap(), n / 2)? + n as f64) }
                });
                handles[at].set(module.unwrap()).unwrap();
            }
            let expected = |mut n: i64| {
                let mut sum = 0;
                while n > 0 {
                    sum += n;
                    n /= 2;
                }
                one(sum)
            };
            std::thread::scope(|scope| {
                for thread in 0..6_usize {
                    let module = handles[thread % count].get().unwrap();
                    scope.spawn(move || {
                        for step in 0..40 {
                            let n = (thread as i64 * 7 + step * 5) % 64;
                            assert_same(&call(module, n).unwrap(), &expected(n));
                        }
                    });
                }
            });
        }
    });
}

#[test]
fn many_threads_ask_for_what_others_make() {
    in_time(|| {
        // f(n) needs f(n / 2) and f(n / 3), by calls, by loaders or by batches.
        let module = recursive(|own, x| {
            let mut all = Vec::new();
            for at in 0..x.size()[0] {
                let x = x.narrow(0, at, 1);
                let n = number(&x);
                let mut sum = x.shallow_clone();
                if n > 0 {
                    sum += call(own, n / 2)?;
                    sum += match n % 3 {
                        0 => call(own, n / 3)?,
                        1 => {
                            own.forward_lazy(&[n / 3], Device::Cpu, |_| Ok(Inputs::from(&one(n / 3))))?.into_tensor()?
                        }
                        _ => {
                            let mut batches = own.batches(&[n / 3], 1).load(load).start()?;
                            batches.next().unwrap()?.output.into_tensor()?
                        }
                    };
                }
                all.push(sum);
            }
            Ok(Tensor::cat(&all, 0))
        });
        fn expected(n: i64) -> i64 {
            if n == 0 { 0 } else { n + expected(n / 2) + expected(n / 3) }
        }
        std::thread::scope(|scope| {
            for thread in 0..6_i64 {
                let module = &module;
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(thread as u64);
                    for _ in 0..60 {
                        let n = rng.i64(0..300);
                        assert_same(&call(module, n).unwrap(), &one(expected(n)));
                    }
                });
            }
        });
    });
}

#[test]
fn failures_and_panics_inside_do_not_block() {
    in_time(|| {
        let handles = [Handle::default(), Handle::default()];
        for at in 0..2 {
            let other = Arc::clone(&handles[1 - at]);
            let options = CacheOptions::in_memory().module_id(format!("m{at}"));
            let module = options.wrap_fn(move |x: &Tensor| -> tensorcask_torch::Result<Tensor> {
                let n = number(x);
                assert!(n % 7 != 3, "a panic of the module");
                if n % 5 == 4 {
                    return Err(tensorcask_torch::Error::compute("a failure of the module"));
                }
                if n == 0 { Ok(one(0)) } else { Ok(call(other.get().unwrap(), n - 1)? + 1.0) }
            });
            handles[at].set(module.unwrap()).unwrap();
        }
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let module = handles[thread % 2].get().unwrap();
                scope.spawn(move || {
                    for n in (0..12).chain(0..12) {
                        let call = std::panic::AssertUnwindSafe(|| call(module, n));
                        match std::panic::catch_unwind(call) {
                            Ok(Ok(output)) => assert!(n < 3, "{n}: {output:?}"),
                            _ => assert!(n >= 3, "{n} failed"),
                        }
                    }
                });
            }
        });
    });
}

#[test]
fn recursion_works_and_ends() {
    in_time(|| {
        let module = recursive(|own, x| {
            let n = number(x);
            if n == 0 { Ok(one(0)) } else { Ok(call(own, n - 1)? + n as f64) }
        });
        assert_same(&call(&module, 5).unwrap(), &one(15));
        assert_same(&call(&module, 90).unwrap(), &one(4095));
        let endless = recursive(|own, x| call(own, number(x) + 1));
        let error = call(&endless, 0).unwrap_err();
        assert!(error.to_string().contains("without end"), "{error}");
        // Through threads that read ahead, too.
        let endless = recursive(|own, x| {
            let next = [number(x) as u64 + 1];
            own.batches(&next, 1).load(load).start()?.next().unwrap()?.output.into_tensor()
        });
        let error = call(&endless, 0).unwrap_err();
        assert!(error.to_string().contains("without end"), "{error}");
    });
}

#[test]
fn an_iterator_that_reads_itself_is_an_error() {
    in_time(|| {
        let (module, _) = super::doubling();
        let iterator = Arc::new(Mutex::new(None::<tensorcask_torch::BatchIter>));
        let inside = Arc::clone(&iterator);
        let load = move |ids: &Ids| {
            let taken = loop {
                if let Some(iterator) = inside.lock().unwrap().take() {
                    break iterator;
                }
                std::thread::yield_now();
            };
            for batch in taken {
                batch?;
            }
            load(ids)
        };
        let started = module.batches(&ids(0, 3), 1).load(load).start().unwrap();
        *iterator.lock().unwrap() = Some(started);
        while iterator.lock().unwrap().is_some() {
            std::thread::yield_now();
        }
    });
}

#[test]
fn training_and_loading_are_run_for_others_too() {
    in_time(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("weights.safetensors");
        let handles = [Handle::default(), Handle::default()];
        let mut stores = Vec::new();
        for at in 0..2 {
            let mut variables = tch::nn::VarStore::new(Device::Cpu);
            let w = variables.root().var("w", &[1], tch::nn::Init::Const(1.0));
            variables.freeze();
            variables.save(&file).unwrap();
            let (other, file) = (Arc::clone(&handles[1 - at]), file.clone());
            let options = CacheOptions::in_memory().module_id(format!("m{at}"));
            let module = options.wrap_inputs_fn_with(&variables, move |inputs: &Inputs| {
                let x = inputs.tensor(0)?;
                let n = number(x);
                std::thread::sleep(Duration::from_millis(1));
                if n > 0 {
                    let other = other.get().unwrap();
                    other.call(&one(n - 1)).training(true).run()?;
                    if n == 2 {
                        other.load(&file)?;
                    }
                }
                Ok(x * &w)
            });
            handles[at].set(module.unwrap()).unwrap();
            stores.push(variables);
        }
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let module = handles[thread % 2].get().unwrap();
                scope.spawn(move || {
                    for n in 0..30 {
                        // The weights may change more often during a call than it has attempts.
                        match call(module, n % 5) {
                            Ok(output) => assert_same(&output, &one(n % 5)),
                            Err(error) => assert!(error.to_string().contains("changed by every call"), "{error}"),
                        }
                    }
                });
            }
        });
    });
}

#[test]
fn what_others_wait_for_is_still_computed_once() {
    in_time(|| {
        let (module, seen) = super::doubling();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| module.forward_with_ids(&rows(0, 50, 2), &ids(0, 50)).unwrap());
            }
        });
        assert_eq!(seen.samples(), 50);
    });
}

#[test]
fn deriving_ids_ends_too() {
    in_time(|| {
        let own = Handle::default();
        let inner = Arc::clone(&own);
        let derive = move |inputs: &Inputs| {
            inner.get().unwrap().forward(inputs)?;
            Ok(Ids::Int(vec![1]))
        };
        let module = CacheOptions::in_memory().module_id("m").ids_from(derive).wrap_fn(|x: &Tensor| x * 2).unwrap();
        own.set(module.clone()).unwrap();
        let error = module.forward(&one(1)).unwrap_err();
        assert!(error.to_string().contains("without end"), "{error}");
        assert_same(&call(&module, 1).unwrap(), &one(2));
    });
}

#[test]
fn handles_of_one_identity_call_each_other() {
    in_time(|| {
        // The handles share claims and rows, but each has its own module.
        let dir = tempfile::tempdir().unwrap();
        let handles = [Handle::default(), Handle::default()];
        for at in 0..2 {
            let other = Arc::clone(&handles[1 - at]);
            let options = CacheOptions::in_folder(dir.path(), "m").version("1");
            let module = options.wrap_fn(move |x: &Tensor| -> tensorcask_torch::Result<Tensor> {
                let n = number(x);
                std::thread::sleep(Duration::from_millis(2));
                if n > 0 {
                    let _previous = call(other.get().unwrap(), n - 1)?;
                }
                Ok(x * 2)
            });
            handles[at].set(module.unwrap()).unwrap();
        }
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let module = handles[thread % 2].get().unwrap();
                scope.spawn(move || {
                    for round in 0..15 {
                        let n = (round * 3 + thread as i64) % 20;
                        assert_same(&call(module, n).unwrap(), &one(2 * n));
                    }
                });
            }
        });
    });
}

#[test]
fn loaders_of_several_handles_wait_in_a_ring() {
    in_time(|| {
        for round in 0..10 {
            let of =
                |at: usize| CacheOptions::in_memory().module_id(format!("m{at}")).wrap_fn(|x: &Tensor| x * 2).unwrap();
            let modules = [of(0), of(1), of(2)];
            let start = Barrier::new(3);
            std::thread::scope(|scope| {
                for at in 0..3 {
                    let (modules, start) = (&modules, &start);
                    scope.spawn(move || {
                        let output = modules[at].forward_lazy(&[7], Device::Cpu, |_| {
                            start.wait();
                            let next = modules[(at + 1) % 3].forward_lazy(&[7], Device::Cpu, |_| {
                                // By content, which is another kind of key.
                                modules[(at + 2) % 3].forward(&one(round))?;
                                Ok(Inputs::from(&one(7)))
                            });
                            assert_same(&next?.into_tensor()?, &one(14));
                            Ok(Inputs::from(&one(7)))
                        });
                        assert_same(&output.unwrap().into_tensor().unwrap(), &one(14));
                    });
                }
            });
        }
    });
}
