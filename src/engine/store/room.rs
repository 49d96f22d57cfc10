//! Room for puts under the caps of a store.
//!
//! A put makes room before it is accepted, on the caller's thread: a put that finds none is refused as a whole, and
//! neither stops the writer nor leaves anything behind. What is counted is the length of all files as of the last
//! measurement, what was accepted since, and what sealing and merging will add. All files are measured again before
//! anything is evicted or refused, and in between more often as less space is left, since other writers use it too.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::engine::caps::{Caps, Eviction, Prune};
use crate::engine::compact::context::Context;
use crate::engine::evict::{Goal, evict, oldest, rows_not_of_lane};
use crate::engine::lock_order::{Rank, RankedMutex};
use crate::engine::report::PruneReport;
use crate::engine::state::State;
use crate::engine::write::queue::Queue;
use crate::engine::write::writer::Writer;
use crate::error::{Error, Result};
use crate::io::Durability;

/// Bytes of a row that are added when its segment is sealed: its entries in the index block and the ordered keys.
const SEAL_BYTES: u64 = 16;
/// Bytes of a row in a run. A merge writes a new run before it removes the old ones.
const RUN_BYTES: u64 = 8;
/// Bytes of a batch besides its rows: its frame and its metadata, and the padding that aligns it to a page.
const BATCH_BYTES: u64 = 6 << 10;
/// How long to wait for another process that compacts or evicts, if there is no room without eviction.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time for which a failed attempt to make room is not repeated.
const QUIET: Duration = Duration::from_millis(100);

/// What is counted under the caps.
#[derive(Debug, Default)]
struct Tally {
    /// `None` before the first measurement.
    measured: Option<Measured>,
    /// Added since.
    bytes: u64,
    rows: u64,
    /// When age was looked at last.
    aged: Option<Instant>,
    /// The last refusal, and when it was.
    refused: Option<(Instant, Error)>,
}

/// A measurement.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    /// All files.
    files: u64,
    /// Bytes that wait to be written, and that sealing and merging will add.
    to_come: u64,
    rows: u64,
    /// Rows that wait to be written.
    rows_to_come: u64,
    /// What was free under the cap.
    free: u64,
}

/// Makes room for the puts of one handle.
pub(super) struct Room {
    state: Arc<State>,
    queue: Arc<Queue>,
    writer: Arc<Writer>,
    lane: u16,
    tally: RankedMutex<Tally>,
    /// Bytes and rows that were admitted and are not in the queue, or in a segment, yet.
    putting: (AtomicU64, AtomicU64),
    /// Whether background compaction should end, because it keeps a put from making room.
    is_wanted: Arc<AtomicBool>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("caps", self.caps()).finish_non_exhaustive()
    }
}

/// A put that was admitted; dropped when its rows are in the queue or written.
#[derive(Debug)]
pub(super) struct Admitted<'a> {
    room: Option<&'a Room>,
    bytes: u64,
    rows: u64,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if let Some(room) = self.room {
            room.putting.0.fetch_sub(self.bytes, Ordering::Relaxed);
            room.putting.1.fetch_sub(self.rows, Ordering::Relaxed);
        }
    }
}

/// What is to be admitted.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    bytes: u64,
    rows: u64,
    /// Bytes by which the cap may be exceeded.
    beyond: u64,
}

impl Room {
    /// The room of the handle that writes `lane`.
    pub(super) fn new(state: &Arc<State>, queue: &Arc<Queue>, writer: &Arc<Writer>, lane: u16) -> Self {
        Self {
            state: Arc::clone(state),
            queue: Arc::clone(queue),
            writer: Arc::clone(writer),
            lane,
            tally: RankedMutex::new(Rank::Room, Tally::default()),
            putting: Default::default(),
            is_wanted: Arc::default(),
        }
    }

    fn caps(&self) -> &Caps {
        &self.state.options().caps
    }

    /// Set while a put waits for the end of a background compaction.
    pub(super) fn is_wanted(&self) -> &Arc<AtomicBool> {
        &self.is_wanted
    }

    /// Makes room for `rows` rows of values of `bytes` in total, in `batches` batches. `bytes` is only called under caps.
    ///
    /// # Errors
    /// [`Error::Full`]; [`Error::TooLarge`] if they take more than half of a cap; IO errors. Nothing is admitted then.
    pub(super) fn make(&self, bytes: impl FnOnce() -> usize, rows: usize, batches: usize) -> Result<Admitted<'_>> {
        self.admit(if self.caps().are_none() { 0 } else { bytes() }, rows, batches, 0)
    }

    /// As [`Room::make`], for tombstones, which may exceed the cap on bytes by half a segment: a full store must not
    /// keep its keys from being deleted.
    ///
    /// # Errors
    /// As [`Room::make`].
    pub(super) fn make_for_deletes(&self, bytes: usize, rows: usize) -> Result<Admitted<'_>> {
        // Rows of tombstones do not count.
        self.admit(bytes + rows * (SEAL_BYTES + RUN_BYTES) as usize, 0, 1, self.segment_bytes() / 2)
    }

    /// Makes the caps hold for what did not come through this room: what earlier handles put, what was merged or
    /// rewritten.
    ///
    /// # Errors
    /// IO errors. A store that stays too full refuses puts.
    pub(super) fn settle(&self) -> Result<()> {
        let mut tally = self.tally.lock();
        (tally.measured, tally.refused) = (None, None);
        drop(tally);
        match self.admit(0, 0, 0, 0) {
            Err(error) if !matches!(error, Error::Full { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    fn segment_bytes(&self) -> u64 {
        self.state.options().segment_bytes
    }

    fn admit(&self, bytes: usize, rows: usize, batches: usize, beyond: u64) -> Result<Admitted<'_>> {
        if self.caps().are_none() {
            return Ok(Admitted { room: None, bytes: 0, rows: 0 });
        }
        let rows = rows as u64;
        let bytes = bytes as u64 + rows * (SEAL_BYTES + RUN_BYTES) + batches as u64 * BATCH_BYTES;
        let wanted = Wanted { bytes, rows, beyond };
        self.check_size(wanted)?;
        let mut tally = self.tally.lock();
        self.keep_age(&mut tally)?;
        let grown = tally.measured.map(|measured| tally.bytes >= (self.segment_bytes() / 8).max(measured.free / 8));
        if grown.unwrap_or(true) || !self.fits(&tally, wanted) {
            self.measure(&mut tally)?;
        }
        if !self.fits(&tally, wanted) {
            self.make_room(&mut tally, wanted)?;
        }
        tally.bytes += bytes;
        tally.rows += rows;
        self.putting.0.fetch_add(bytes, Ordering::Relaxed);
        self.putting.1.fetch_add(rows, Ordering::Relaxed);
        Ok(Admitted { room: Some(self), bytes, rows })
    }

    fn check_size(&self, wanted: Wanted) -> Result<()> {
        let limits =
            [(TOO_MANY_BYTES, wanted.bytes, self.caps().disk_bytes), (TOO_MANY_ROWS, wanted.rows, self.caps().rows)];
        for (what, found, cap) in limits {
            if let Some(limit) = cap.map(|cap| cap / 2).filter(|limit| found > *limit) {
                return Err(Error::TooLarge { what: what.into(), found, limit });
            }
        }
        Ok(())
    }

    fn context(&self) -> Context<'_> {
        Context { state: &self.state, writer: &self.writer, lane: self.lane, stop: &|| Ok(()) }
    }

    fn measure(&self, tally: &mut Tally) -> Result<()> {
        // First, since rows move from a put to the queue.
        let putting = (self.putting.0.load(Ordering::Relaxed), self.putting.1.load(Ordering::Relaxed));
        // The lane is held, so no rows move from the queue to the files meanwhile: they would count twice.
        let (waiting, unsealed, rows, files) = self.writer.with_lane(|lane| {
            let (waiting, unsealed) = (self.queue.depth(), lane.unsealed_rows());
            Ok((waiting, unsealed, unsealed + rows_not_of_lane(&self.state), self.state.usage()?.total()))
        })?;
        let writes = waiting.bytes.div_ceil(self.state.options().flush_bytes.max(1)) as u64;
        let unwritten = waiting.bytes as u64 + writes * BATCH_BYTES + waiting.rows as u64 * (SEAL_BYTES + RUN_BYTES);
        let to_come = putting.0 + unwritten + unsealed * SEAL_BYTES + rows * RUN_BYTES;
        let free = self.caps().disk_bytes.map_or(u64::MAX, |cap| cap.saturating_sub(files + to_come));
        let rows_to_come = waiting.rows as u64 + putting.1;
        tally.measured = Some(Measured { files, to_come, rows, rows_to_come, free });
        (tally.bytes, tally.rows) = (0, 0);
        Ok(())
    }

    fn fits(&self, tally: &Tally, wanted: Wanted) -> bool {
        let Some(measured) = tally.measured else { return false };
        let bytes = measured.files + measured.to_come + tally.bytes + wanted.bytes;
        let rows = measured.rows + measured.rows_to_come + tally.rows + wanted.rows;
        self.caps().disk_bytes.is_none_or(|cap| bytes <= cap.saturating_add(wanted.beyond))
            && self.caps().rows.is_none_or(|cap| rows <= cap)
    }

    /// Evicts until `wanted` fits; seals the active segments of this handle if the others are not enough.
    fn make_room(&self, tally: &mut Tally, wanted: Wanted) -> Result<()> {
        if self.caps().eviction == Eviction::Stop {
            return Err(self.full(tally, wanted, STOPPED.into()));
        }
        if let Some((_, error)) = tally.refused.as_ref().filter(|(when, _)| when.elapsed() < QUIET) {
            return Err(error.clone());
        }
        let mut report = PruneReport::default();
        for is_last in [false, true] {
            if is_last {
                self.seal_active()?;
                self.measure(tally)?;
            }
            match evict(self.context(), &self.goal(tally, wanted, Duration::ZERO)) {
                Ok(done) => report = done,
                Err(error) if error.is_timed_out() => {
                    // A compaction frees space too, so part of a segment is not worth waiting for it.
                    if self.fits(tally, Wanted { beyond: wanted.beyond.max(self.segment_bytes() / 4), ..wanted }) {
                        return Ok(());
                    }
                    self.is_wanted.store(true, Ordering::Relaxed);
                    let evicted = evict(self.context(), &self.goal(tally, wanted, PATIENCE));
                    self.is_wanted.store(false, Ordering::Relaxed);
                    report = match evicted {
                        Err(error) if error.is_timed_out() => return Err(self.full(tally, wanted, COMPACTED.into())),
                        evicted => evicted?,
                    };
                }
                Err(error) => return Err(error),
            }
            self.measure(tally)?;
            if self.fits(tally, wanted) {
                tally.refused = None;
                return Ok(());
            }
        }
        let why = format!(
            "nothing more can be evicted: {} segment(s) belong to lanes that other handles write, {} are damaged, and \
             files in quarantine count too; close the other writers, remove what `verify` lists, or raise the cap",
            report.segments_in_use,
            report.skipped.len()
        );
        let error = self.full(tally, wanted, why);
        tally.refused = Some((Instant::now(), error.clone()));
        Err(error)
    }

    /// What eviction is to reach: room for `wanted`, and for a part of a segment more, so that small puts do not evict
    /// one small segment each.
    fn goal(&self, tally: &Tally, wanted: Wanted, patience: Duration) -> Goal {
        let measured = tally.measured.unwrap_or_default();
        let more = measured.to_come + tally.bytes + wanted.bytes + self.segment_bytes() / 4;
        let more_rows = measured.rows_to_come + tally.rows + wanted.rows;
        Goal {
            before: None,
            bytes: self.caps().disk_bytes.map(|cap| cap.saturating_add(wanted.beyond).saturating_sub(more)),
            rows: self.caps().rows.map(|cap| cap.saturating_sub(more_rows)),
            order: self.caps().eviction,
            dry_run: false,
            patience,
        }
    }

    fn full(&self, tally: &Tally, wanted: Wanted, why: String) -> Error {
        let measured = tally.measured.unwrap_or_default();
        let bytes = measured.files + measured.to_come + tally.bytes;
        match (self.caps().disk_bytes, self.caps().rows) {
            (Some(limit), _) if bytes + wanted.bytes > limit => {
                Error::Full { what: "bytes on disk", used: bytes, wanted: wanted.bytes, limit, why }
            }
            (_, limit) => {
                let (used, limit) = (measured.rows + measured.rows_to_come + tally.rows, limit.unwrap_or(u64::MAX));
                Error::Full { what: "rows", used, wanted: wanted.rows, limit, why }
            }
        }
    }

    /// Writes what waits, and seals the active segments.
    fn seal_active(&self) -> Result<()> {
        let up_to = self.queue.ask(Durability::Buffered)?;
        self.writer.reach_barrier();
        self.queue.wait_for_barrier(up_to, Durability::Buffered)?;
        self.writer.with_lane(|lane| lane.start_seals(&self.state))?.wait()
    }

    /// Evicts what is too old, and seals active segments with old rows, so that these do not stay for long.
    fn keep_age(&self, tally: &mut Tally) -> Result<()> {
        let Some(age) = self.caps().age.filter(|_| self.caps().eviction != Eviction::Stop) else { return Ok(()) };
        if tally.aged.is_some_and(|last| last.elapsed() < age / 16) {
            return Ok(());
        }
        tally.aged = Some(Instant::now());
        let now = (self.state.options().clock)();
        let before = |age| earlier(now, age);
        let old = self.writer.with_lane(|lane| Ok(lane.oldest_unsealed()))?;
        if old.is_some_and(|first| first > 0 && first < before(age / 2)) {
            self.writer.with_lane(|lane| lane.start_seals(&self.state).map(drop))?;
        }
        if oldest(&self.state).is_none_or(|last| last >= before(age)) {
            return Ok(());
        }
        let goal = Goal {
            before: Some(before(age)),
            bytes: None,
            rows: None,
            order: Eviction::OldestFirst,
            dry_run: false,
            patience: Duration::ZERO,
        };
        match evict(self.context(), &goal) {
            // Another process compacts: the next look evicts.
            Err(error) if !error.is_timed_out() => Err(error),
            _ => {
                tally.measured = None;
                Ok(())
            }
        }
    }

    /// Evicts as `options` say.
    ///
    /// # Errors
    /// As [`evict`].
    pub(super) fn prune(&self, options: &Prune) -> Result<PruneReport> {
        let mut tally = self.tally.lock();
        let now = (self.state.options().clock)();
        let stop = || self.queue.check();
        let goal = Goal {
            before: options.older_than.map(|age| earlier(now, age)),
            bytes: options.to_bytes,
            rows: options.to_rows,
            order: options.order,
            dry_run: options.dry_run,
            patience: options.patience,
        };
        tally.measured = None;
        evict(Context { stop: &stop, ..self.context() }, &goal)
    }
}

const TOO_MANY_BYTES: &str = "the rows of a put in bytes, under a cap twice as large as the limit";
const TOO_MANY_ROWS: &str = "the number of rows of a put, under a cap twice as large as the limit";

/// Whether the caps leave no room for a put.
pub(super) fn is_refused(error: &Error) -> bool {
    match error {
        Error::Full { .. } => true,
        Error::TooLarge { what, .. } => [TOO_MANY_BYTES, TOO_MANY_ROWS].contains(&&**what),
        _ => false,
    }
}

/// The commit timestamp of `age` before `now`.
fn earlier(now: u64, age: Duration) -> u64 {
    now.saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX))
}

const COMPACTED: &str = "another process compacts, prunes or merges the store, so nothing can be evicted: try again when \
                         it has finished";

const STOPPED: &str = "its options say to evict nothing (Eviction::Stop): delete keys and compact, prune it, or raise \
                       the cap";
