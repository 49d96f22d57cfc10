//! The wrapped module, which one thread at a time runs.
//!
//! A thread that waits inside of its module, for a sample, for another module or for batches that are read ahead, runs
//! the module for those threads that it waits for: as if the module called itself. So nobody waits for ever.

use std::ops::Deref;
use std::time::{Duration, Instant};

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use tch::Tensor;

use crate::convert::own;
use crate::error::Result;
use crate::error::{invalid, torch};
use crate::input::Inputs;
use crate::module::Compute;
use crate::output::Output;
use crate::resolve::Inner;
use tensorcask_cache::threads::waits::{Lock, Locked};

/// A module and who runs it. The mutex is what makes it safe; who gets it, the lock decides.
pub(crate) struct Exclusive {
    lock: Lock,
    module: ReentrantMutex<Box<dyn Compute>>,
}

/// The module, for as long as this is held.
pub(crate) struct Held<'a> {
    module: ReentrantMutexGuard<'a, Box<dyn Compute>>,
    /// Dropped last.
    _locked: Locked<'a>,
}

impl Deref for Held<'_> {
    type Target = dyn Compute;

    fn deref(&self) -> &Self::Target {
        &**self.module
    }
}

impl Exclusive {
    pub(crate) fn new(module: Box<dyn Compute>) -> Self {
        Self { lock: Lock::new(), module: ReentrantMutex::new(module) }
    }

    /// `None` if the thread that has the module waits for this one.
    fn lock(&self) -> Option<Held<'_>> {
        let locked = self.lock.lock()?;
        Some(Held { module: self.module.lock(), _locked: locked })
    }
}

impl Inner {
    /// Runs what `make` makes with the module, and returns the result with the module still held; or has it run by the
    /// thread that has the module and waits for this one, to which the second argument says so.
    pub(crate) fn exclusively<'a, T, F>(&'a self, make: &dyn Fn() -> F) -> Result<(T, Option<Held<'a>>)>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Compute, bool) -> Result<T> + Send + 'static,
    {
        loop {
            if let Some(held) = self.compute.lock() {
                let result = make()(&*held, false)?;
                return Ok((result, Some(held)));
            }
            let gone = || invalid("the handle is gone");
            let (run, inner) = (make(), self.me.upgrade().ok_or_else(gone)?);
            let job = move || match inner.compute.lock() {
                Some(held) => run(&*held, true),
                None => Err(invalid("the module is held by another thread")),
            };
            if let Some(result) = self.compute.lock.delegate(job) {
                return Ok((result?, None));
            }
        }
    }
}

/// The output for `inputs`, without gradients, and how long it took. For another thread it is a copy of its own: the
/// module may give the same buffer to the next call.
pub(crate) fn infer(module: &dyn Compute, inputs: &Inputs, for_another: bool) -> Result<(Output, Duration)> {
    let started = Instant::now();
    let output = {
        let _guard = tch::no_grad_guard();
        module.compute(inputs)?
    };
    let output = if for_another {
        output.try_map(&mut own)?
    } else {
        output.try_map(&mut |tensor| tensor.f_detach().map_err(torch("detach an output")))?
    };
    Ok((output, started.elapsed()))
}

/// Whether this thread records gradients. `tch` does not tell; a tensor does.
pub(crate) fn records_gradients() -> bool {
    let leaf = Tensor::from_slice(&[0.0_f32]).set_requires_grad(true);
    (&leaf + 1.0).requires_grad()
}
