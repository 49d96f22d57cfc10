//! Batches of kept outputs, read ahead by a thread.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use crate::error::{Error, Result, invalid};
use crate::framework::Framework;
use crate::keys::ids::{Ids, IntoIds};
use crate::layer::cached::Cached;
use crate::layer::inner::Loads;
use crate::threads::nested;
use crate::threads::waits::{self, Waited};
use crate::values::input::{Inputs, IntoInputs};
use crate::values::output::Output;

type Loader<F> = Box<dyn FnMut(&Ids) -> Result<Inputs<F>> + Send>;

/// How batches are read.
#[must_use = "no batch is read before `start`"]
pub struct Batches<F: Framework> {
    module: Cached<F>,
    ids: Result<Ids>,
    batch_size: usize,
    device: F::Device,
    ahead: usize,
    shuffle: Option<u64>,
    drop_last: bool,
    variant: u32,
    arguments: Inputs<F>,
    load: Option<Loader<F>>,
}

/// The outputs of some ids, in their order.
#[derive(Debug)]
pub struct Batch<F: Framework> {
    /// The ids.
    pub ids: Ids,
    /// Their outputs.
    pub output: Output<F>,
}

impl<F: Framework> std::fmt::Debug for Batches<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches").field("batch_size", &self.batch_size).finish_non_exhaustive()
    }
}

impl<F: Framework> Cached<F> {
    /// The outputs of `ids` in batches, read ahead: what a training loop iterates over.
    ///
    /// ```
    /// # fn main() -> tensorcask_cache::Result<()> {
    /// use tensorcask::Tensor;
    /// use tensorcask_cache::{CacheOptions, Ids, Inputs};
    ///
    /// let double = CacheOptions::in_memory().module_id("double").wrap_fn(|x: &Tensor| {
    ///     Tensor::from_slice(x.shape(), &x.to_vec::<f32>()?.iter().map(|x| x * 2.0).collect::<Vec<_>>())
    /// })?;
    /// let ids: Vec<u64> = (0..100).collect();
    /// let load = |ids: &Ids| match ids {
    ///     Ids::Int(ids) => {
    ///         let numbers: Vec<f32> = ids.iter().map(|&id| id as f32).collect();
    ///         Ok(Inputs::from(&Tensor::from_slice(&[ids.len(), 1], &numbers)?))
    ///     }
    ///     _ => unreachable!(),
    /// };
    /// for epoch in 0..2 {
    ///     for batch in double.batches(&ids, 32).shuffle(epoch).load(load).start()? {
    ///         let batch = batch?;
    ///         assert_eq!(batch.output.tensor().unwrap().shape(), [batch.ids.len(), 1]);
    ///     }
    /// }
    /// assert_eq!(double.counts().misses, 100);
    /// # Ok(())
    /// # }
    /// ```
    pub fn batches(&self, ids: impl IntoIds<F>, batch_size: usize) -> Batches<F> {
        Batches {
            module: self.clone(),
            ids: ids.into_ids(),
            batch_size,
            device: F::HOST,
            ahead: 2,
            shuffle: None,
            drop_last: false,
            variant: 0,
            arguments: Inputs::tensors(1),
            load: None,
        }
    }
}

impl<F: Framework> Batches<F> {
    /// The device that outputs come on (default: the CPU).
    pub fn device(mut self, device: F::Device) -> Self {
        self.device = device;
        self
    }

    /// Batches that are read before they are asked for (default: 2).
    pub fn ahead(mut self, batches: usize) -> Self {
        self.ahead = batches;
        self
    }

    /// Takes the ids in an order that this seed gives, such as the epoch's number (default: as they are).
    pub fn shuffle(mut self, seed: u64) -> Self {
        self.shuffle = Some(seed);
        self
    }

    /// Leaves out a last batch that is not full (default: off).
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// Which of several cached augmentations of the samples to read (default: 0).
    pub fn variant(mut self, variant: u32) -> Self {
        self.variant = variant;
        self
    }

    /// What a call takes (default: one tensor by position): the places of tensors, which `load` fills, and the other
    /// arguments: `Inputs::tensors(2).named("layer", 3)`.
    pub fn arguments(mut self, arguments: impl IntoInputs<F>) -> Self {
        self.arguments = arguments.into_inputs();
        self
    }

    /// Makes the inputs of ids whose outputs are missing, tensors only, and of those that are verified. Without it a
    /// missing output is an error, and nothing is verified.
    pub fn load(mut self, load: impl FnMut(&Ids) -> Result<Inputs<F>> + Send + 'static) -> Self {
        self.load = Some(Box::new(load));
        self
    }

    /// Starts reading.
    ///
    /// # Errors
    /// [`Error::Invalid`] for ids that cannot be used or batches of nothing; IO errors if no thread can be started.
    pub fn start(mut self) -> Result<BatchIter<F>> {
        let ids = std::mem::replace(&mut self.ids, Ok(Ids::Int(Vec::new())))?;
        if self.batch_size == 0 {
            return Err(invalid("a batch size of 0: give at least 1"));
        }
        let mut order: Vec<usize> = (0..ids.len()).collect();
        if let Some(seed) = self.shuffle {
            fastrand::Rng::with_seed(seed).shuffle(&mut order);
        }
        let (batches, receiver) = channel();
        let (wanted, wants) = channel();
        for _ in 0..self.ahead.min(order.len()) {
            // The other end is still here.
            let _sent = wanted.send(());
        }
        let depth = nested::depth();
        let read = move || {
            let sender = Announcing { batches: Some(batches) };
            for chunk in order.chunks(self.batch_size) {
                // The iterator may be gone: nobody wants more then.
                if (self.drop_last && chunk.len() < self.batch_size) || wants.recv().is_err() {
                    break;
                }
                let batch = nested::at_least(depth, || self.read(ids.select(chunk)));
                let failed = batch.is_err();
                if !sender.send(batch) || failed {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("tensorcask-batches".into()).spawn(read);
        let thread = thread.map_err(|error| Error::io("start the thread that reads ahead for", "batches", error))?;
        Ok(BatchIter { receiver: Some(receiver), wanted: Some(wanted), thread: Some(thread) })
    }

    fn read(&mut self, ids: Ids) -> Result<Batch<F>> {
        let call = self.module.call(&self.arguments).ids(&ids).variant(self.variant);
        let loads = if self.load.is_some() { Loads::Lazily } else { Loads::Nothing };
        let load = &mut self.load;
        let output = call.run_from(self.device.clone(), loads, &mut |positions| {
            let missing = ids.select(positions);
            match load {
                Some(load) => load(&missing),
                None => Err(invalid(format!(
                    "{} of {} outputs of a batch are missing: compute them first, or say with `load` how",
                    missing.len(),
                    ids.len()
                ))),
            }
        })?;
        Ok(Batch { ids, output })
    }
}

/// Wakes the thread that waits for a batch, also by the end of this one.
struct Announcing<F: Framework> {
    batches: Option<Sender<Result<Batch<F>>>>,
}

impl<F: Framework> Announcing<F> {
    fn send(&self, batch: Result<Batch<F>>) -> bool {
        let sent = self.batches.as_ref().is_some_and(|batches| batches.send(batch).is_ok());
        waits::announce();
        sent
    }
}

impl<F: Framework> Drop for Announcing<F> {
    fn drop(&mut self) {
        self.batches = None;
        waits::announce();
    }
}

/// Batches, as they come. Ends after the first error.
///
/// It may be used inside of a wrapped module and inside of a loader: a thread that waits for a batch there runs the
/// module for the thread that reads ahead.
#[derive(Debug)]
pub struct BatchIter<F: Framework> {
    receiver: Option<Receiver<Result<Batch<F>>>>,
    /// One for each batch that may be read.
    wanted: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl<F: Framework> BatchIter<F> {
    /// The next batch, or why there is none; `None` if it would never come.
    fn wait(&self) -> Option<std::result::Result<Result<Batch<F>>, TryRecvError>> {
        let (receiver, thread) = (self.receiver.as_ref()?, self.thread.as_ref()?);
        let mut next = receiver.try_recv();
        if !matches!(next, Err(TryRecvError::Empty)) {
            return Some(next);
        }
        let waited = waits::wait_for_thread(thread.thread().id(), || {
            next = receiver.try_recv();
            !matches!(next, Err(TryRecvError::Empty))
        });
        (waited == Waited::Over).then_some(next)
    }
}

impl<F: Framework> Iterator for BatchIter<F> {
    type Item = Result<Batch<F>>;

    fn next(&mut self) -> Option<Self::Item> {
        // A thread that has ended wants to know no more.
        let _sent = self.wanted.as_ref()?.send(());
        match self.wait() {
            Some(Ok(batch)) => Some(batch),
            Some(Err(_)) => {
                (self.receiver, self.wanted) = (None, None);
                // A panic of the wrapped module goes on in the thread that asked.
                match self.thread.take()?.join() {
                    Ok(()) => None,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            None => {
                (self.receiver, self.wanted) = (None, None);
                Some(Err(invalid(
                    "the reading of a batch asked for a batch of the same iterator: it would wait for itself",
                )))
            }
        }
    }
}

impl<F: Framework> Drop for BatchIter<F> {
    fn drop(&mut self) {
        // The thread sees that nobody wants more.
        self.wanted = None;
        let Some(receiver) = self.receiver.take() else { return };
        let Some(thread) = self.thread.take() else { return };
        // What is still being read may need this thread.
        let ended = || {
            while receiver.try_recv().is_ok() {}
            matches!(receiver.try_recv(), Err(TryRecvError::Disconnected))
        };
        if waits::wait_for_thread(thread.thread().id(), ended) == Waited::Over {
            let _panicked = thread.join();
        }
    }
}
