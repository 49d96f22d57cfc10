//! Mutual exclusion for the wrapped module, which one thread at a time runs.
//!
//! A thread inside a module may wait for a sample, for another module or for batches that are read ahead. Meanwhile it
//! runs the module for the threads that it waits for, as if the module had called itself. This prevents deadlocks.

use std::ops::Deref;
use std::time::{Duration, Instant};

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use tensorcask::flight::waits::{Lock, Locked};

use crate::error::Result;
use crate::framework::Framework;
use crate::layer::compute::Compute;
use crate::values::input::Inputs;
use crate::values::output::Output;

/// A module and its lock. The mutex provides exclusive access; the lock decides which thread acquires it.
pub(crate) struct Exclusive<F: Framework> {
    lock: Lock,
    module: ReentrantMutex<Box<dyn Compute<F>>>,
}

/// Access to the module.
pub(crate) struct Held<'a, F: Framework> {
    module: ReentrantMutexGuard<'a, Box<dyn Compute<F>>>,
    /// Dropped after the guard of the module.
    _locked: Locked<'a>,
}

impl<F: Framework> Deref for Held<'_, F> {
    type Target = dyn Compute<F>;

    fn deref(&self) -> &Self::Target {
        &**self.module
    }
}

impl<F: Framework> Exclusive<F> {
    pub(crate) fn new(module: Box<dyn Compute<F>>) -> Self {
        Self { lock: Lock::new(), module: ReentrantMutex::new(module) }
    }

    /// Acquires the module; `None` if the thread that holds it waits for this one.
    pub(crate) fn lock(&self) -> Option<Held<'_, F>> {
        let locked = self.lock.lock()?;
        Some(Held { module: self.module.lock(), _locked: locked })
    }
}

impl<F: Framework> Exclusive<F> {
    /// Runs `job` in the thread that holds the module and waits for this one. `None` if there is no such thread any
    /// more.
    pub(crate) fn delegate<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        self.lock.delegate(job)
    }
}

/// The output for `inputs`, without gradients, and the time it took. For another thread the output is copied, as the
/// module may reuse its buffer in the next call.
pub(crate) fn infer<F: Framework>(
    module: &dyn Compute<F>,
    inputs: &Inputs<F>,
    for_another: bool,
) -> Result<(Output<F>, Duration)> {
    let started = Instant::now();
    let output = F::without_gradients(|| module.compute(inputs))?;
    let output = if for_another { output.try_map(&mut F::own)? } else { output.try_map(&mut F::detach)? };
    Ok((output, started.elapsed()))
}
