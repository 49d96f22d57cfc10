//! The wrapped module, which one thread at a time runs.
//!
//! A thread that waits inside of its module, for a sample, for another module or for batches that are read ahead, runs
//! the module for those threads that it waits for: as if the module called itself. So nobody waits for ever.

use std::ops::Deref;
use std::time::{Duration, Instant};

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

use crate::error::Result;
use crate::framework::Framework;
use crate::layer::compute::Compute;
use crate::threads::waits::{Lock, Locked};
use crate::values::input::Inputs;
use crate::values::output::Output;

/// A module and who runs it. The mutex is what makes it safe; who gets it, the lock decides.
pub(crate) struct Exclusive<F: Framework> {
    lock: Lock,
    module: ReentrantMutex<Box<dyn Compute<F>>>,
}

/// The module, for as long as this is held.
pub(crate) struct Held<'a, F: Framework> {
    module: ReentrantMutexGuard<'a, Box<dyn Compute<F>>>,
    /// Dropped last.
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

    /// `None` if the thread that has the module waits for this one.
    pub(crate) fn lock(&self) -> Option<Held<'_, F>> {
        let locked = self.lock.lock()?;
        Some(Held { module: self.module.lock(), _locked: locked })
    }
}

impl<F: Framework> Exclusive<F> {
    /// Has `job` run by the thread that has the module and waits for this one. `None` if there is none any more.
    pub(crate) fn delegate<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        self.lock.delegate(job)
    }
}

/// The output for `inputs`, without gradients, and how long it took. For another thread it is a copy of its own: the
/// module may give the same buffer to the next call.
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
