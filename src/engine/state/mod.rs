//! What a reader and a writer share: the published view, the delta, and the slots that its entries point to.

pub(crate) mod live;
pub(crate) mod registry;
pub(crate) mod segments;
pub(crate) mod value_cache;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::engine::lookup::prefault::ColdWatch;
use crate::engine::options::Options;
use crate::engine::rows::locator::Directory;
use crate::engine::rows::row::{Age, Row, Slots, Source};
use crate::engine::state::live::LiveCount;
use crate::engine::state::registry::Known;
use crate::engine::state::segments::Segments;
use crate::engine::state::value_cache::{HotTier, Weigh};
use crate::engine::threads;
use crate::error::{Error, Result};
use crate::index::block::HashBlock;
use crate::index::entries::Delta;
use crate::index::run::Run;
use crate::io::Storage;
use crate::key::{KeyHasher, KeyKind};
use crate::names::SegmentId;
use crate::segment::batch::Batch;
use crate::segment::columns::Columns;
use crate::segment::reader::Segment;
use crate::segment::writer::StoreIdentity;
use crate::value::Value;

/// A run and the segments its rows are in.
#[derive(Debug)]
pub(crate) struct LoadedRun {
    pub run: Run,
    /// Its file; `None` for a run that is in memory only.
    pub name: Option<SegmentId>,
    /// In the order of the run's coverage list.
    pub segments: Vec<Arc<Segment>>,
    /// Made when a row is first looked for, so that opening stays O(segments).
    directory: OnceLock<Directory>,
}

impl LoadedRun {
    /// `run`, whose rows are those of `segments`.
    pub(crate) fn new(run: Run, name: Option<SegmentId>, segments: Vec<Arc<Segment>>) -> Self {
        Self { run, name, segments, directory: OnceLock::new() }
    }

    /// Whether it has the rows of segment `id`.
    pub(crate) fn covers(&self, id: SegmentId) -> bool {
        self.segments.iter().any(|segment| segment.id == id)
    }

    /// The batches of its rows.
    #[inline]
    pub(crate) fn directory(&self) -> &Directory {
        self.directory.get_or_init(|| Directory::new(&self.segments))
    }
}

/// What is published: replaced as a whole, so that a reader sees one state from the start of a call to its end.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Newest rows first.
    pub runs: Vec<Arc<LoadedRun>>,
    pub segments: Segments,
}

/// Counters since the handle was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub damaged: AtomicU64,
    pub rows_put: AtomicU64,
    pub batches_written: AtomicU64,
    pub bytes_written: AtomicU64,
    pub flushes: AtomicU64,
    pub runs_built: AtomicU64,
    pub refreshes: AtomicU64,
}

impl Counters {
    /// Adds to a counter.
    pub(crate) fn add(counter: &AtomicU64, by: usize) {
        counter.fetch_add(by as u64, Ordering::Relaxed);
    }
}

/// Rows of a put whose places in the runs are asked for together: their waits for memory overlap.
const ASKED_AHEAD: usize = 32;

/// Whether a run has the tag of `hash`. A damaged one may hold anything.
fn in_runs(runs: &[Arc<LoadedRun>], hash: u64) -> bool {
    let mut any = false;
    runs.iter().any(|loaded| loaded.run.find(hash, &mut |_| any = true).is_err() || any)
}

/// The state of one open store in one process.
#[derive(Debug)]
pub(crate) struct Core {
    pub storage: Arc<dyn Storage>,
    pub options: Options,
    pub identity: StoreIdentity,
    pub hasher: KeyHasher,
    key_kind: OnceLock<KeyKind>,
    pub delta: Delta,
    pub slots: RwLock<Slots>,
    pub view: ArcSwap<View>,
    /// Held while rows enter the delta, so that each row is weighed against the newest of its key. Reads never take it.
    admission: Mutex<()>,
    /// Held while a run is built in memory, so that no two are of the same rows.
    pub memory_runs: Mutex<()>,
    /// What is known of the segments folder. Held during a refresh, and while a file gets its number.
    pub known: Mutex<Known>,
    pub last_refresh: Mutex<Instant>,
    /// Why the last refresh did not take in everything.
    pub refresh_failed: ArcSwapOption<Error>,
    pub live: LiveCount,
    pub hot: Option<HotTier<Value>>,
    /// Counts up when rows were superseded: tells a reader that what it read may be old.
    pub epoch: AtomicU64,
    newest_stamp: AtomicU64,
    pub counters: Counters,
    pub cold: ColdWatch,
    /// Whether no writer is attached.
    pub read_only: bool,
    /// Why nothing may be written, although the store was opened for writing.
    refusal: OnceLock<Error>,
    /// How many forks lay between the first process and this one when the store was opened.
    forks: u32,
}

impl Core {
    /// An empty store.
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        options: Options,
        identity: StoreIdentity,
        read_only: bool,
    ) -> Result<Self> {
        let hasher = KeyHasher::new(identity.hash_id, identity.hash_seed)
            .ok_or_else(|| Error::invalid(format!("key hash {} is not known", identity.hash_id)))?;
        Ok(Self {
            storage,
            identity,
            hasher,
            key_kind: OnceLock::new(),
            delta: Delta::new(options.delta_keys),
            slots: RwLock::default(),
            view: ArcSwap::default(),
            admission: Mutex::new(()),
            memory_runs: Mutex::new(()),
            known: Mutex::default(),
            last_refresh: Mutex::new(Instant::now()),
            refresh_failed: ArcSwapOption::empty(),
            live: LiveCount::default(),
            hot: (options.hot_bytes > 0).then(|| HotTier::new(options.hot_bytes, options.hot_policy)),
            epoch: AtomicU64::new(0),
            newest_stamp: AtomicU64::new(0),
            counters: Counters::default(),
            cold: ColdWatch::default(),
            read_only,
            refusal: OnceLock::new(),
            forks: threads::forks(),
            options,
        })
    }

    /// Has every put refused with `error`.
    pub(crate) fn refuse_writes(&self, error: Error) {
        self.refusal.get_or_init(|| error);
    }

    /// Fails if puts are refused.
    ///
    /// # Errors
    /// Why they are.
    pub(crate) fn check_writes(&self) -> Result<()> {
        self.refusal.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// The kind of the store's keys, once a first write has fixed it.
    pub(crate) fn key_kind(&self) -> Option<KeyKind> {
        self.key_kind.get().copied()
    }

    /// Fixes the kind of keys, or checks it.
    ///
    /// # Errors
    /// [`Error::KeyKind`] if it is another.
    pub(crate) fn fix_key_kind(&self, kind: KeyKind) -> Result<()> {
        self.key_kind.get_or_init(|| kind).expect(kind)
    }

    /// Serialises the entry of rows into the delta.
    pub(crate) fn admission(&self) -> MutexGuard<'_, ()> {
        self.admission.lock()
    }

    /// The same, if nobody does it now.
    pub(crate) fn try_admission(&self) -> Option<MutexGuard<'_, ()>> {
        self.admission.try_lock()
    }

    /// Changes the view: `change` gets a copy of it.
    pub(crate) fn change_view(&self, change: impl Fn(&mut View)) {
        self.view.rcu(|view| {
            let mut next = View { runs: view.runs.clone(), segments: view.segments.clone() };
            change(&mut next);
            next.runs.sort_by_key(|run| std::cmp::Reverse(run.run.max_stamp()));
            next
        });
    }

    /// How many keys the delta may hold before they are merged. Each merge seals a segment, and opening takes O(segments):
    /// a store of many keys takes up to four times as many at once as the options say.
    pub(crate) fn delta_bound(&self) -> usize {
        const MOST: usize = 4;
        const RUN_KEYS_A_DELTA_KEY: u64 = 64;
        let least = self.options.delta_keys.max(1);
        let in_runs = self.view.load().runs.iter().fold(0_u64, |keys, run| keys.saturating_add(run.run.keys()));
        usize::try_from(in_runs / RUN_KEYS_A_DELTA_KEY).unwrap_or(usize::MAX).clamp(least, least.saturating_mul(MOST))
    }

    /// A new slot for `source`.
    pub(crate) fn add_slot(&self, source: Source, rows: u32) -> Result<u32> {
        let slot = self.reserve_slot()?;
        self.slots.write().fill(slot, source, rows);
        Ok(slot)
    }

    /// The number of a new slot that has no rows yet.
    pub(crate) fn reserve_slot(&self) -> Result<u32> {
        self.slots.write().reserve().ok_or_else(|| Error::ReadOnly {
            why: "this handle has used up its 2^32 batches of puts: close and open the store".into(),
        })
    }

    /// Enters row `row` of `slot` into the delta if it is the newest of its key. `fetch` gets the row itself, which
    /// is only needed when its hash is there already. The caller holds [`Core::admission`].
    ///
    /// Never fails: where damage keeps it from finding what the row supersedes, the row enters all the same, and the
    /// count of live keys is marked as unknown.
    pub(crate) fn admit(
        &self,
        hash: u64,
        slot: u32,
        row: u32,
        tombstone: bool,
        fetch: impl FnOnce() -> Result<Option<Row<'static>>>,
    ) {
        let enter = || {
            self.delta.insert(hash, slot, row);
            self.live.add(i64::from(!tombstone));
        };
        if !self.may_hold(hash) {
            return enter();
        }
        let new = match fetch() {
            Ok(Some(new)) => new,
            Ok(None) => return,
            // The row enters unweighed: whoever looks its key up must learn of the damage, and not get an older row.
            Err(_) => {
                enter();
                self.epoch.fetch_add(1, Ordering::SeqCst);
                self.hot.iter().for_each(HotTier::clear);
                return self.live.set(None);
            }
        };
        let Some(key) = new.key() else { return };
        let found = match self.locate(hash, key) {
            Ok(Some(found)) => found,
            Ok(None) => return enter(),
            Err(_) => {
                enter();
                self.forget_hot(hash, key);
                return self.live.set(None);
            }
        };
        if found.row.age() >= new.age() {
            // What waits here may be getting an older stamp just now than this row of another lane has.
            if found.row.waits() && !new.waits() {
                self.delta.insert(hash, slot, row);
                if tombstone != found.row.is_tombstone() {
                    self.live.set(None);
                }
            }
            return;
        }
        let replaced = found.entry.is_some_and(|old| self.delta.replace(hash, old, (slot, row)));
        if !replaced {
            self.delta.insert(hash, slot, row);
        }
        self.live.add(i64::from(!tombstone) - i64::from(!found.row.is_tombstone()));
        self.forget_hot(hash, key);
    }

    /// Drops what the hot tier has of `key`, of which a newer row has entered: whoever read an older one either sees the
    /// epoch, or kept it before it is removed.
    fn forget_hot(&self, hash: u64, key: &[u8]) {
        if let Some(hot) = &self.hot {
            self.epoch.fetch_add(1, Ordering::SeqCst);
            hot.remove(hash, key);
        }
    }

    /// Enters the rows of a put, which are newer than all others, as `slot`. Returns when each is the one that is read.
    /// The caller holds [`Core::admission`].
    ///
    /// Most keys of a put are new. So rows go into the delta together, without a look at what they may supersede; only
    /// those whose hash was there are weighed one by one. That keeps one entry a key however often it is overwritten.
    /// Then the runs are asked, for the count of live keys alone: a row in them is older, and stays where it is.
    pub(crate) fn admit_put(&self, hashes: &[u64], columns: &Columns, slot: u32, source: &Source) {
        let taken = self.delta.insert_new(hashes, slot);
        self.admit_taken(hashes, columns, slot, source, taken);
    }

    /// The second half of [`Core::admit_put`], with what the first one, [`Delta::insert_new`], left over.
    pub(crate) fn admit_taken(&self, hashes: &[u64], columns: &Columns, slot: u32, source: &Source, taken: Vec<u32>) {
        let tombstone = columns.schema.is_tombstones();
        let entered = hashes.len() - taken.len();
        self.settle(hashes, columns, &taken, if tombstone { 0 } else { entered as i64 });
        for row in taken {
            if let Some(hash) = hashes.get(row as usize) {
                self.admit(*hash, slot, row, tombstone, || source.row(slot, row));
            }
        }
        if let Some(hot) = &self.hot {
            // As in `forget_hot`.
            self.epoch.fetch_add(1, Ordering::SeqCst);
            for (row, hash) in hashes.iter().enumerate() {
                if let Some(key) = columns.key(row) {
                    hot.remove(*hash, key);
                }
            }
        }
    }

    /// Counts `entered` more live keys, less those that the runs have already. Rows of `taken` (ascending) are not
    /// looked at.
    fn settle(&self, hashes: &[u64], columns: &Columns, taken: &[u32], entered: i64) {
        let view = self.view.load();
        let mut superseded = 0;
        if !view.runs.is_empty() {
            for (first, chunk) in (0..).step_by(ASKED_AHEAD).zip(hashes.chunks(ASKED_AHEAD)) {
                view.runs.iter().for_each(|loaded| chunk.iter().for_each(|hash| loaded.run.prefetch(*hash)));
                for (row, hash) in (first..).zip(chunk) {
                    if taken.binary_search(&row).is_ok() || !in_runs(&view.runs, *hash) {
                        continue;
                    }
                    let Some(key) = columns.key(row as usize) else { continue };
                    match self.locate_merged(*hash, key) {
                        Ok(found) => superseded += i64::from(found.is_some_and(|row| !row.is_tombstone())),
                        // Damage hides what the row supersedes.
                        Err(_) => return self.live.set(None),
                    }
                }
            }
        }
        self.live.add(entered - superseded);
    }

    /// Enters all rows of a sealed segment into the delta. O(rows).
    pub(crate) fn admit_segment(&self, segment: &Arc<Segment>) -> Result<()> {
        self.admit_block(segment, &crate::engine::runs::build::hash_block(self, segment)?)
    }

    /// The same, with the segment's hashes.
    pub(crate) fn admit_block(&self, segment: &Arc<Segment>, block: &HashBlock) -> Result<()> {
        let slot = self.add_slot(Source::Sealed(Arc::clone(segment)), segment.rows())?;
        let tombstone = segment.schema().is_tombstones();
        let _admission = self.admission();
        for (hash, row) in block.iter() {
            self.admit(hash, slot, row, tombstone, || Row::of_segment(segment, row));
        }
        Ok(())
    }

    /// Has the slots of `segment`, which was active, point to it as it is now, sealed: nothing holds the file as it was
    /// while it grew then, but what readers have taken. A batch that cannot be read stays where it was.
    pub(crate) fn let_go_of_active(&self, segment: &Segment) {
        let batches = segment.batches().map_or(0, |batches| batches.frames().len());
        let batches: Vec<Arc<Batch>> =
            (0..batches).filter_map(|number| segment.batch(number).ok().map(Arc::clone)).collect();
        let before = self.slots.write().sealed(segment.id, &batches);
        // Behind the lock: with the last batch goes the map, which takes milliseconds.
        drop(before);
    }

    /// Notes a commit stamp that was seen, so that this handle's own are later.
    pub(crate) fn saw_stamp(&self, stamp: u64) {
        self.newest_stamp.fetch_max(stamp, Ordering::Relaxed);
    }

    /// Fails in a child that was forked since the store was opened: at that moment other threads may have held any lock,
    /// and in the child they never let go of it. Costs one load.
    pub(crate) fn check_fork(&self) -> Result<()> {
        if threads::forks() == self.forks { Ok(()) } else { Err(Error::Forked) }
    }

    /// How far this machine's clock is behind the newest row that was seen.
    pub(crate) fn clock_behind(&self) -> Duration {
        Duration::from_micros(self.newest_stamp().saturating_sub((self.options.clock)()))
    }

    /// The newest stamp seen.
    pub(crate) fn newest_stamp(&self) -> u64 {
        self.newest_stamp.load(Ordering::Relaxed)
    }
}

impl Age {
    /// Newer than every row.
    pub(crate) const NEWEST: Self = Self { stamp: u64::MAX, lane: u16::MAX, order: u64::MAX };
}

impl Weigh for Value {
    fn weight_bytes(&self) -> usize {
        const NODE: usize = std::mem::size_of::<Value>();
        NODE + match self {
            Self::Tensor(tensor) => tensor.data().len() + size_of_val(tensor.shape()),
            Self::Str(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Map(items) => items.iter().map(|(name, item)| name.len() + NODE + item.weight_bytes()).sum(),
            Self::List(items) | Self::Tuple(items) => items.iter().map(Weigh::weight_bytes).sum(),
            Self::Null | Self::Bool(_) | Self::Int(_) | Self::Float(_) => 0,
        }
    }
}
