//! Batches of kept outputs, read ahead by a background thread.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use tensorcask::flight::nested;
use tensorcask::flight::waits::{self, Waited};

use crate::error::{Error, Result, invalid};
use crate::framework::Framework;
use crate::keys::ids::{Ids, IntoIds};
use crate::layer::cached::Cached;
use crate::layer::inner::Loads;
use crate::values::input::{Inputs, IntoInputs};
use crate::values::output::Output;

type Loader<F> = Box<dyn FnMut(&Ids) -> Result<Inputs<F>> + Send>;

/// Options for reading batches.
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

/// The outputs for some ids, in their order.
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
    /// The outputs of `ids` in batches, read ahead by a background thread: a data loader for a training loop.
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
    /// The device of the outputs (default: the CPU).
    pub fn device(mut self, device: F::Device) -> Self {
        self.device = device;
        self
    }

    /// The number of batches to read ahead (default: 2).
    pub fn ahead(mut self, batches: usize) -> Self {
        self.ahead = batches;
        self
    }

    /// Shuffles the ids with this seed, such as the number of the epoch (default: not shuffled).
    pub fn shuffle(mut self, seed: u64) -> Self {
        self.shuffle = Some(seed);
        self
    }

    /// Drops the last batch if it is not full (default: off).
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// The variant of the samples to read, such as an augmentation (default: 0).
    pub fn variant(mut self, variant: u32) -> Self {
        self.variant = variant;
        self
    }

    /// The arguments of a call (default: one tensor by position): the places of the tensors that `load` fills, and the
    /// other arguments, such as `Inputs::tensors(2).named("layer", 3)`.
    pub fn arguments(mut self, arguments: impl IntoInputs<F>) -> Self {
        self.arguments = arguments.into_inputs();
        self
    }

    /// Loads the inputs of ids whose outputs are missing or are verified; only tensors. Without a loader a missing
    /// output is an error, and nothing is verified.
    pub fn load(mut self, load: impl FnMut(&Ids) -> Result<Inputs<F>> + Send + 'static) -> Self {
        self.load = Some(Box::new(load));
        self
    }

    /// Starts the background thread.
    ///
    /// # Errors
    /// [`Error::Invalid`] for unusable ids or a batch size of 0; IO errors if the thread cannot be started.
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
            // The receiver still exists, so this cannot fail.
            let _sent = wanted.send(());
        }
        let depth = nested::depth();
        let read = move || {
            let sender = Announcing { batches: Some(batches) };
            for chunk in order.chunks(self.batch_size) {
                // Receiving fails if the iterator was dropped.
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

/// Wakes the thread that waits for a batch, also when this thread ends.
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

/// An iterator over batches. It ends after the first error.
///
/// It can be used within a wrapped module and within a loader: a thread that waits for a batch there runs the module on
/// behalf of the thread that reads ahead.
#[derive(Debug)]
pub struct BatchIter<F: Framework> {
    receiver: Option<Receiver<Result<Batch<F>>>>,
    /// A message per batch that may be read.
    wanted: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl<F: Framework> BatchIter<F> {
    /// The next batch, or why there is none; `None` if waiting for it would never end.
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
        // Sending fails if the thread has ended.
        let _sent = self.wanted.as_ref()?.send(());
        match self.wait() {
            Some(Ok(batch)) => Some(batch),
            Some(Err(_)) => {
                (self.receiver, self.wanted) = (None, None);
                // A panic of the wrapped module is propagated to the caller.
                match self.thread.take()?.join() {
                    Ok(()) => None,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            None => {
                (self.receiver, self.wanted) = (None, None);
                Some(Err(invalid("loading a batch asked for a batch of the same iterator: it would wait for itself")))
            }
        }
    }
}

impl<F: Framework> Drop for BatchIter<F> {
    fn drop(&mut self) {
        // Tells the thread to stop.
        self.wanted = None;
        let Some(receiver) = self.receiver.take() else { return };
        let Some(thread) = self.thread.take() else { return };
        // The batch that is still being read may need this thread to run the module.
        let ended = || {
            while receiver.try_recv().is_ok() {}
            matches!(receiver.try_recv(), Err(TryRecvError::Disconnected))
        };
        if waits::wait_for_thread(thread.thread().id(), ended) == Waited::Over {
            let _panicked = thread.join();
        }
    }
}
