//! Reads of keys that are computed, and put, where they are missing.

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::engine::complete::{Work, complete};
use crate::engine::flight::nested::Nested;
use crate::engine::leases::Leases;
use crate::engine::report::ComputeReport;
use crate::engine::store::Store;
use crate::engine::store::room::is_refused;
use crate::error::{Error, Result};
use crate::io::Durability;
use crate::key::{Key, KeyRef, Keys};
use crate::tensor::Element;
use crate::value::Value;

impl Store {
    /// Copies the rows of `keys` into `out`, as [`Reader::get_batch_into`](crate::Reader::get_batch_into) does, and
    /// computes those that are missing: `compute` gets the positions of the missing keys, in order and each key once,
    /// and returns their contiguous `[positions, …row_shape]` rows. They are put and copied into `out`.
    ///
    /// **Single flight.** A key that another thread of this process is computing is waited for. So is a key that
    /// another process is computing, for up to [`Options::lease_timeout`](crate::Options::lease_timeout). Keys that
    /// nobody computes are computed first. If the other computation fails, panics, or its process ends, this call
    /// computes those keys itself, with a further call of `compute`. Calls for overlapping keys in any order do not
    /// deadlock. `compute` may ask the store for other keys, but must not wait for threads of its own that ask for the
    /// keys that it computes: the store cannot detect that.
    ///
    /// **Processes** are excluded from each other by leases: locks that end with their process. Once a second lane has
    /// had a writer, each computed batch is flushed with [`Durability::Buffered`], so that other processes find it. A
    /// call takes at most 512 leases: if it misses more keys, and other calls ask for some of them, a few keys may be
    /// computed twice. A key may also be computed twice if its lease times out, or if its store is opened by a second
    /// process between the computation and the next write (100 ms). The later row wins.
    ///
    /// A row that is put meanwhile by other means is replaced. Damaged rows are computed and put again.
    ///
    /// ```
    /// # fn main() -> tensorcask::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = tensorcask::Store::open(dir.path(), "lengths")?;
    /// let texts = ["one", "three", "one"];
    /// let mut lengths = [0.0_f32; 3];
    /// for computed in [2, 0] {
    ///     let report = store.get_or_compute_rows(&texts, &[1], &mut lengths, |missing| {
    ///         Ok(missing.iter().map(|&at| texts[at].len() as f32).collect())
    ///     })?;
    ///     assert_eq!((report.computed, lengths), (computed, [3.0, 5.0, 3.0]));
    /// }
    /// # store.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of `compute` ([`Error::compute`] makes one); [`Error::Invalid`] if it returns another number of elements;
    /// [`Error::Recursion`] if it asks for the keys that it computes; those of
    /// [`Reader::get_batch_into`](crate::Reader::get_batch_into), except for damage, and, if keys are missing, of
    /// [`Store::put_rows`].
    pub fn get_or_compute_rows<'k, T: Element>(
        &self,
        keys: impl Into<Keys<'k>>,
        row_shape: &[usize],
        out: &mut [T],
        compute: impl FnMut(&[usize]) -> Result<Vec<T>>,
    ) -> Result<ComputeReport> {
        let keys = keys.into();
        // The first lookup reports a shape that cannot be.
        let width = T::DTYPE.tensor_len_bytes(row_shape).unwrap_or(0) / size_of::<T>();
        let mut call = Call::new(self, keys, Rows { keys: keys.len(), row_shape, width, out, compute });
        call.run()?;
        Ok(call.report)
    }

    /// [`Store::get_or_compute_rows`] for values of any structure. `compute` gets the positions of the missing keys,
    /// and returns one value for each. Returns a value for each key.
    ///
    /// # Errors
    /// As [`Store::get_or_compute_rows`] and [`Store::put_batch`].
    pub fn get_or_compute<'k>(
        &self,
        keys: impl Into<Keys<'k>>,
        compute: impl FnMut(&[usize]) -> Result<Vec<Value>>,
    ) -> Result<Vec<Value>> {
        let keys = keys.into();
        let mut call = Call::new(self, keys, Values { found: vec![None; keys.len()], compute });
        call.run()?;
        let values: Option<Vec<Value>> = call.batch.found.into_iter().collect();
        values.ok_or_else(|| Error::internal("a key of a completed batch has no value"))
    }

    /// Why [`Store::get_or_compute_rows`] takes no leases, so that processes may compute the same keys: the file system
    /// is a network file system or has no such locks, or the user may not write the lock file. `None` while leases
    /// work, are off ([`Options::lease_timeout`](crate::Options::lease_timeout)), or were not needed yet.
    #[must_use]
    pub fn lease_failure(&self) -> Option<&Error> {
        self.inner.leases.failure()
    }

    /// The leases of this handle, for the caching layer.
    #[doc(hidden)]
    #[must_use]
    pub fn leases(&self) -> &Leases {
        &self.inner.leases
    }
}

/// The rows or values of one call.
trait Batch {
    /// Reads the keys at the positions `at`; returns the positions that have no row, and how many rows are damaged.
    fn read(&mut self, store: &Store, keys: Keys<'_>, at: &[usize]) -> Result<(Vec<usize>, usize)>;
    /// Computes and puts the keys at the positions `at`; returns whether the caps left room to keep them.
    fn compute(&mut self, store: &Store, keys: &[KeyRef<'_>], at: &[usize]) -> Result<bool>;
    /// Copies a row to another position.
    fn copy(&mut self, from: usize, to: usize);
}

struct Call<'a, B> {
    store: &'a Store,
    keys: Keys<'a>,
    batch: B,
    report: ComputeReport,
}

impl<'a, B: Batch> Call<'a, B> {
    fn new(store: &'a Store, keys: Keys<'a>, batch: B) -> Self {
        Self { store, keys, batch, report: ComputeReport::default() }
    }

    fn run(&mut self) -> Result<()> {
        let flight = &self.store.inner.flight;
        let landings = flight.landings();
        let all: Vec<usize> = (0..self.keys.len()).collect();
        let (missing, damaged) = self.batch.read(self.store, self.keys, &all)?;
        (self.report.found, self.report.damaged) = (all.len() - missing.len(), damaged);
        if missing.is_empty() {
            return Ok(());
        }
        self.store.inner.puts.begin(self.keys)?;
        let _nested = Nested::enter().ok_or_else(|| Error::Recursion {
            what: "computations are inside of each other without end: each asks the store for more keys".into(),
        })?;
        let mut firsts: HashMap<KeyRef<'_>, usize> = HashMap::with_capacity(missing.len());
        let (mut open, mut again) = (Vec::with_capacity(missing.len()), Vec::new());
        for (at, key) in missing.into_iter().filter_map(|at| Some((at, self.keys.get(at)?))) {
            match firsts.get(&key) {
                Some(&first) => again.push((first, at)),
                None => {
                    firsts.insert(key, at);
                    open.push(at);
                }
            }
        }
        self.report.duplicates = again.len();
        complete(flight, Some(self.store.leases()), self, open, landings)?;
        again.into_iter().for_each(|(from, to)| self.batch.copy(from, to));
        Ok(())
    }

    fn select(&self, at: &[usize]) -> Vec<KeyRef<'a>> {
        at.iter().filter_map(|at| self.keys.get(*at)).collect()
    }
}

impl<B: Batch> Work for Call<'_, B> {
    type Error = Error;
    type Stop = std::convert::Infallible;

    fn keys(&self, at: &[usize]) -> Vec<Key> {
        self.select(at).iter().map(KeyRef::to_key).collect()
    }

    fn look_again(&mut self, at: &[usize]) -> Result<Vec<usize>> {
        let (missing, _) = self.batch.read(self.store, (&self.select(at)).into(), at)?;
        self.report.waited += at.len() - missing.len();
        Ok(missing)
    }

    fn compute(&mut self, at: &[usize]) -> Result<ControlFlow<Self::Stop>> {
        let kept = self.batch.compute(self.store, &self.select(at), at)?;
        self.report.computed += at.len();
        self.report.not_kept += if kept { 0 } else { at.len() };
        Ok(ControlFlow::Continue(()))
    }

    fn publish(&mut self) -> Result<()> {
        self.store.flush_with(Durability::Buffered)
    }

    fn recursion(&self) -> Error {
        Error::Recursion {
            what: "a computation asked the store for a key that it is to compute: let it compute the value itself"
                .into(),
        }
    }
}

/// Whether a put was accepted. What the caps leave no room for is computed all the same.
fn is_kept(put: Result<()>, at: &[usize]) -> Result<bool> {
    match put {
        Err(error) if is_refused(&error) => Ok(false),
        put => put.map(|()| true).map_err(|error| error.at_positions(at)),
    }
}

/// Fails if a computation returned another number of items than it was asked for.
fn check_len(found: usize, expected: usize, items: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::invalid(format!("the computation returned {found} {items}, but {expected} were expected")))
}

struct Rows<'a, T, C> {
    /// The number of keys.
    keys: usize,
    row_shape: &'a [usize],
    /// Elements of a row.
    width: usize,
    out: &'a mut [T],
    compute: C,
}

impl<T: Element, C> Rows<'_, T, C> {
    /// Copies those of the contiguous `rows` that are `there` to their positions; returns the other positions.
    fn scatter(&mut self, rows: &[T], at: &[usize], there: &[bool]) -> Vec<usize> {
        let place = |row: usize| row * self.width..(row + 1) * self.width;
        for (row, (&at, _)) in at.iter().zip(there).enumerate().filter(|(_, (_, there))| **there) {
            if let (Some(to), Some(from)) = (self.out.get_mut(place(at)), rows.get(place(row))) {
                to.copy_from_slice(from);
            }
        }
        at.iter().zip(there).filter(|(_, there)| !**there).map(|(at, _)| *at).collect()
    }
}

impl<T: Element, C: FnMut(&[usize]) -> Result<Vec<T>>> Batch for Rows<'_, T, C> {
    fn read(&mut self, store: &Store, keys: Keys<'_>, at: &[usize]) -> Result<(Vec<usize>, usize)> {
        let mut found = vec![false; at.len()];
        // Each position occurs once, in order.
        let is_whole = at.len() == self.keys;
        let mut rows = if is_whole { Vec::new() } else { vec![T::zeroed(); at.len() * self.width] };
        let into = if is_whole { &mut *self.out } else { &mut rows };
        let damaged = match store.get_batch_into(keys, self.row_shape, into, &mut found) {
            Ok(_) => 0,
            Err(Error::DamagedRows { rows }) => rows.len(),
            Err(error) => return Err(error.at_positions(at)),
        };
        let missing = if is_whole { self.scatter(&[], at, &found) } else { self.scatter(&rows, at, &found) };
        Ok((missing, damaged))
    }

    fn compute(&mut self, store: &Store, keys: &[KeyRef<'_>], at: &[usize]) -> Result<bool> {
        let options = store.inner.state.options();
        let read_dtype = options.read_dtype(T::DTYPE);
        if read_dtype != T::DTYPE {
            let [expected, found] = [T::DTYPE, read_dtype].map(|dtype| format!("a {dtype} tensor"));
            return Err(Error::Mismatch { expected, found });
        }
        let rows = (self.compute)(at)?;
        check_len(rows.len(), at.len() * self.width, "elements")?;
        let kept = is_kept(store.put_rows(keys, self.row_shape, &rows), at)?;
        self.scatter(&rows, at, &vec![true; at.len()]);
        // Rows that are rounded are read again, as every later call does.
        if kept && options.stored_dtype(T::DTYPE) != T::DTYPE {
            self.read(store, keys.into(), at)?;
        }
        Ok(kept)
    }

    fn copy(&mut self, from: usize, to: usize) {
        self.out.copy_within(from * self.width..(from + 1) * self.width, to * self.width);
    }
}

struct Values<C> {
    found: Vec<Option<Value>>,
    compute: C,
}

impl<C> Values<C> {
    fn set(&mut self, at: usize, value: Value) {
        if let Some(place) = self.found.get_mut(at) {
            *place = Some(value);
        }
    }
}

impl<C: FnMut(&[usize]) -> Result<Vec<Value>>> Batch for Values<C> {
    fn read(&mut self, store: &Store, keys: Keys<'_>, at: &[usize]) -> Result<(Vec<usize>, usize)> {
        let (mut missing, mut damaged) = (Vec::new(), 0);
        for (lookup, &at) in store.get_batch(keys).map_err(|error| error.at_positions(at))?.into_iter().zip(at) {
            match lookup {
                Ok(Some(value)) => self.set(at, value),
                Ok(None) => missing.push(at),
                Err(error) if error.is_corrupt() => {
                    missing.push(at);
                    damaged += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok((missing, damaged))
    }

    fn compute(&mut self, store: &Store, keys: &[KeyRef<'_>], at: &[usize]) -> Result<bool> {
        let values = (self.compute)(at)?;
        check_len(values.len(), at.len(), "values")?;
        let kept = is_kept(store.put_batch(keys, &values), at)?;
        values.into_iter().zip(at).for_each(|(value, at)| self.set(*at, value));
        // Values that are rounded are read again, as every later call does.
        if kept && store.inner.state.options().store_as.is_some() {
            self.read(store, keys.into(), at)?;
        }
        Ok(kept)
    }

    fn copy(&mut self, from: usize, to: usize) {
        if let Some(value) = self.found.get(from).cloned().flatten() {
            self.set(to, value);
        }
    }
}
