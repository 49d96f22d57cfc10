//! One store of an identity, opened when it is needed and reopened after a failure.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use tensorcask::Keys;
use tensorcask::storage::{MemoryStorage, Storage};
use tensorcask::{Error, Result};
use tensorcask::{Lane, Options, Reader, Store};

use crate::values::stacked::Structure;

/// The time after which a failed store is reopened. Each further failure doubles it, up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The layout of the rows that a store has returned so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    Unknown,
    /// This structure, whose leaves have fixed shapes; batches are read directly into their buffers.
    Fixed(Arc<Structure>),
    /// Several structures or shapes, or leaves of no fixed size.
    Mixed,
}

/// The location of a store, and how it is opened.
#[derive(Debug)]
pub enum Source {
    Memory(Arc<MemoryStorage>),
    /// Writes in the lane of this rank, or in the first free lane.
    Writer {
        cache_dir: PathBuf,
        rank: u16,
    },
    /// Reads only; can be opened once a writer has created the store.
    Reader {
        cache_dir: PathBuf,
    },
}

#[derive(Debug, Default)]
struct State {
    writer: Option<Store>,
    /// Reads from a store that this process does not write, or whose writer failed.
    reader: Option<Reader>,
    failure: Option<Failure>,
    /// The error that lost rows, until a flush returns it.
    lost: Option<Error>,
}

#[derive(Debug)]
struct Failure {
    error: Error,
    again: Instant,
    wait: Duration,
    /// Whether a caller was warned.
    told: bool,
}

/// One store.
#[derive(Debug)]
pub struct Space {
    source: Source,
    name: &'static str,
    options: Options,
    state: RwLock<State>,
    pub layout: RwLock<Layout>,
}

/// Whether the disk failed, or the writer stopped because of it: later calls may succeed.
pub fn is_of_disk(error: &Error) -> bool {
    matches!(error.cause(), Error::Io { .. } | Error::Poisoned { .. } | Error::Closed)
}

/// Whether a folder or file system is not writable.
pub fn is_read_only(error: &Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.cause(), Error::Io { source, .. } if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem))
}

/// Whether a file system or a quota is full.
pub fn is_full(error: &Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error.cause() {
        Error::Io { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge),
        Error::Poisoned { cause } => is_full(cause),
        _ => false,
    }
}

impl Space {
    /// Opens the store. If the disk fails, the failure is recorded and the store is opened later.
    ///
    /// # Errors
    /// Failures that do not pass by themselves, such as a newer format.
    pub fn open(source: Source, name: &'static str, options: Options) -> Result<Self> {
        let state = RwLock::default();
        let space = Self { source, name, options, state, layout: RwLock::new(Layout::Unknown) };
        match space.open_again() {
            Err(error) if !is_of_disk(&error) => Err(error),
            _ => Ok(space),
        }
    }

    fn writer(&self) -> Result<Option<Store>> {
        let options = self.options.clone();
        match &self.source {
            Source::Memory(storage) => options.open_on(Arc::clone(storage) as Arc<dyn Storage>).map(Some),
            Source::Reader { .. } => Ok(None),
            Source::Writer { cache_dir, rank } => {
                // A rank uses the same lane in each run, unless another job in the same folder has it.
                let opened = match options.clone().lane(Lane::Number(*rank)).open(cache_dir, self.name) {
                    Err(Error::LaneBusy { .. }) => options.lane(Lane::Auto).open(cache_dir, self.name),
                    other => other,
                };
                let store = opened?;
                if !store.open_report().is_clean() {
                    tracing::warn!(report = ?store.open_report(), "the store was repaired when it was opened");
                }
                Ok(Some(store))
            }
        }
    }

    /// Opens the store now, without waiting after an earlier failure.
    fn open_again(&self) -> Result<()> {
        let opened = self.writer();
        let mut state = self.state.write();
        match opened {
            Ok(writer) => {
                if state.failure.take().is_some() {
                    tracing::info!(store = self.name, "the store is open again: outputs are kept from here on");
                }
                if writer.is_some() {
                    (state.writer, state.reader) = (writer, None);
                }
                Ok(())
            }
            Err(error) => {
                state.fail(&error);
                Err(error)
            }
        }
    }

    /// A reader of the store, if it exists.
    pub fn reader(&self) -> Result<Option<Reader>> {
        let state = self.state.read();
        let open = state.writer.as_ref().map(|store| store.reader().clone()).or_else(|| state.reader.clone());
        if open.is_some() {
            return Ok(open);
        }
        let failure = state.failure.as_ref().map(|failure| failure.error.clone());
        drop(state);
        // Rows are readable even if the writer cannot be opened.
        let cache_dir = match (&self.source, &failure) {
            (Source::Reader { cache_dir }, _) | (Source::Writer { cache_dir, .. }, Some(_)) => cache_dir,
            _ => return failure.map_or(Ok(None), Err),
        };
        match self.options.clone().open_reader(cache_dir, self.name) {
            Ok(opened) => Ok(Some(self.state.write().reader.get_or_insert(opened).clone())),
            Err(error) => match failure {
                Some(failure) => Err(failure),
                None if error.is_not_found() => Ok(None),
                None => Err(error),
            },
        }
    }

    /// The store for writing, if this process may write. A failed store is reopened if its time has come.
    ///
    /// # Errors
    /// The failure.
    pub fn store(&self) -> Result<Option<Store>> {
        {
            let state = self.state.read();
            if state.failure.is_none() {
                return Ok(state.writer.clone());
            }
        }
        let mut state = self.state.write();
        if let Some(failure) = &mut state.failure {
            if Instant::now() < failure.again {
                return Err(failure.error.clone());
            }
            // One thread tries to open it; meanwhile the others get the failure.
            failure.again += failure.wait;
        }
        drop(state);
        self.open_again()?;
        Ok(self.state.read().writer.clone())
    }

    /// Records that the disk failed, and closes the writer, which releases its lane. Reads continue. Returns whether
    /// the caller has yet to be warned.
    pub fn fail(&self, error: &Error) -> bool {
        let mut state = self.state.write();
        if state.failure.is_none() {
            state.fail(error);
        }
        let news = state.failure.as_mut().is_some_and(|failure| !std::mem::replace(&mut failure.told, true));
        let Some(store) = state.writer.take() else { return news };
        state.reader = Some(store.reader().clone());
        drop(state);
        if let Err(error) = store.close() {
            self.state.write().lost.get_or_insert(error);
        }
        news
    }

    /// Reopens a store at once that failed, or whose writer stopped without a call noticing.
    pub fn revive(&self) {
        let writer = self.state.read().writer.clone();
        // An empty delete returns the error that stopped the writer.
        if let Some(Err(error)) = writer.map(|store| store.delete_batch(Keys::U64(&[]))) {
            self.fail(&error);
        }
        if self.state.read().failure.is_some()
            && let Err(error) = self.open_again()
        {
            tracing::warn!(%error, store = self.name, "the store still cannot be opened");
        }
    }

    /// Returns when everything that was put is on disk.
    ///
    /// # Errors
    /// The failure of any write since the last flush, as [`Error::Poisoned`].
    pub fn flush(&self) -> Result<()> {
        let stopped = |cause: Error| match cause {
            Error::Poisoned { .. } => cause,
            cause => Error::Poisoned { cause: Arc::new(cause) },
        };
        let mut state = self.state.write();
        let failure = state.failure.as_ref().map(|failure| failure.error.clone());
        if let Some(cause) = state.lost.take().or(failure) {
            return Err(stopped(cause));
        }
        let Some(writer) = state.writer.clone() else { return Ok(()) };
        drop(state);
        writer.flush().inspect_err(|error| {
            self.fail(error);
            // The flush returns this error, so it is not recorded as lost.
            self.state.write().lost = None;
        })
    }

    /// Bytes that are not written yet.
    pub fn waiting_len_bytes(&self) -> usize {
        self.state.read().writer.as_ref().map_or(0, |store| store.waiting().bytes)
    }
}

impl State {
    fn fail(&mut self, error: &Error) {
        let wait = self.failure.as_ref().map_or(FIRST_WAIT, |failure| (failure.wait * 2).min(LONGEST_WAIT));
        let told = self.failure.as_ref().is_some_and(|failure| failure.told);
        self.failure = Some(Failure { error: error.clone(), again: Instant::now() + wait, wait, told });
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Some(store) = self.state.get_mut().writer.take()
            && let Err(error) = store.close()
        {
            tracing::error!(%error, "closing a store failed; rows not flushed before are lost");
        }
    }
}
