//! Batches of kept outputs, read ahead by a thread.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use tch::Device;

use super::cache::CachedModule;
use super::error::invalid;
use super::input::Inputs;
use super::key::{Ids, IntoIds};
use super::output::Output;
use crate::error::{Error, Result};

type Loader = Box<dyn FnMut(&Ids) -> Result<Inputs> + Send>;

/// How batches are read.
#[must_use = "no batch is read before `start`"]
pub struct Batches {
    module: CachedModule,
    ids: Result<Ids>,
    batch_size: usize,
    device: Device,
    ahead: usize,
    shuffle: Option<u64>,
    drop_last: bool,
    load: Option<Loader>,
}

/// The outputs of some ids, in their order.
#[derive(Debug)]
pub struct Batch {
    /// The ids.
    pub ids: Ids,
    /// Their outputs.
    pub output: Output,
}

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches").field("batch_size", &self.batch_size).finish_non_exhaustive()
    }
}

impl CachedModule {
    /// The outputs of `ids` in batches, read ahead: what a training loop iterates over.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// use tch::{Kind, Tensor};
    /// use tensorcask::torch::{CacheOptions, Ids, Inputs};
    ///
    /// let double = CacheOptions::in_memory().module_id("double").wrap_fn(|x: &Tensor| x * 2)?;
    /// let ids: Vec<u64> = (0..100).collect();
    /// let load = |ids: &Ids| match ids {
    ///     Ids::Int(ids) => {
    ///         let numbers: Vec<f32> = ids.iter().map(|&id| id as f32).collect();
    ///         Ok(Inputs::from(&Tensor::from_slice(&numbers).reshape([-1, 1])))
    ///     }
    ///     _ => unreachable!(),
    /// };
    /// for epoch in 0..2 {
    ///     for batch in double.batches(&ids, 32).shuffle(epoch).load(load).start()? {
    ///         let batch = batch?;
    ///         assert_eq!(batch.output.tensor().unwrap().size()[0] as usize, batch.ids.len());
    ///     }
    /// }
    /// assert_eq!(double.counts().misses, 100);
    /// # Ok(())
    /// # }
    /// ```
    pub fn batches(&self, ids: impl IntoIds, batch_size: usize) -> Batches {
        Batches {
            module: self.clone(),
            ids: ids.into_ids(),
            batch_size,
            device: Device::Cpu,
            ahead: 2,
            shuffle: None,
            drop_last: false,
            load: None,
        }
    }
}

impl Batches {
    /// The device that outputs come on (default: the CPU).
    pub fn device(mut self, device: Device) -> Self {
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

    /// Makes the inputs of ids whose outputs are missing. Without it a missing output is an error.
    pub fn load(mut self, load: impl FnMut(&Ids) -> Result<Inputs> + Send + 'static) -> Self {
        self.load = Some(Box::new(load));
        self
    }

    /// Starts reading.
    ///
    /// # Errors
    /// [`Error::Invalid`] for ids that cannot be used or batches of nothing; IO errors if no thread can be started.
    pub fn start(self) -> Result<BatchIter> {
        let ids = self.ids?;
        if self.batch_size == 0 {
            return Err(invalid("a batch size of 0: give at least 1"));
        }
        let mut order: Vec<usize> = (0..ids.len()).collect();
        if let Some(seed) = self.shuffle {
            fastrand::Rng::with_seed(seed).shuffle(&mut order);
        }
        let (sender, receiver) = sync_channel(self.ahead.min(order.len()));
        let Self { module, device, batch_size, drop_last, mut load, .. } = self;
        let read = move || {
            for chunk in order.chunks(batch_size) {
                if drop_last && chunk.len() < batch_size {
                    break;
                }
                let batch = read(&module, ids.select(chunk), device, load.as_mut());
                let failed = batch.is_err();
                // The iterator may be gone: nobody wants more then.
                if sender.send(batch).is_err() || failed {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("tensorcask-batches".into()).spawn(read);
        let thread = thread.map_err(|error| Error::io("start the thread that reads ahead for", "batches", error))?;
        Ok(BatchIter { receiver: Some(receiver), thread: Some(thread) })
    }
}

fn read(module: &CachedModule, ids: Ids, device: Device, load: Option<&mut Loader>) -> Result<Batch> {
    let mut load = load;
    let output = module.forward_lazy(&ids, device, |positions| {
        let missing = ids.select(positions);
        match &mut load {
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

/// Batches, as they come. Ends after the first error.
#[derive(Debug)]
pub struct BatchIter {
    receiver: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Iterator for BatchIter {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.receiver.as_ref()?.recv();
        match batch {
            Ok(batch) => Some(batch),
            Err(_) => {
                self.receiver = None;
                // A panic of the wrapped module goes on in the thread that asked.
                match self.thread.take()?.join() {
                    Ok(()) => None,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        }
    }
}

impl Drop for BatchIter {
    fn drop(&mut self) {
        // A thread that waits to send sees that nobody receives.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
