//! An active segment: its batches, and how it is sealed.

use std::sync::Arc;
use std::thread;

use crate::engine::files::sync_log::SyncRecord;
use crate::engine::options::Options;
use crate::error::Result;
use crate::index::sort_keys::newest_in_order;
use crate::index::{block, keys_fst};
use crate::io::Durability;
use crate::key::KeyKind;
use crate::names::SegmentId;
use crate::schema::{RowLayout, RowSchema};
use crate::segment::batch::Batch;
use crate::segment::columns::BatchPart;
use crate::segment::layout::Seal;
use crate::segment::writer::{SealParts, SegmentWriter};

/// From this many rows on, a segment's data are synced while its index is sorted.
const SYNCED_AHEAD: usize = 1 << 14;

/// An active segment.
#[derive(Debug)]
pub(crate) struct Active {
    writer: SegmentWriter,
    /// The hash of every row, in order, for the index block.
    hashes: Vec<u64>,
    /// Used for the block of ordered keys.
    batches: Vec<Arc<Batch>>,
    /// Whether anything was written since the last sync.
    dirty: bool,
    /// Commit timestamp of its newest durable batch.
    durable_timestamp: u64,
    /// How many of its bytes are durable, if any batch is.
    synced_len_bytes: u64,
}

impl Active {
    /// An active segment that `writer` writes. Nothing of it is known to be durable.
    pub(crate) fn new(writer: SegmentWriter) -> Self {
        let (hashes, batches) = (Vec::new(), Vec::new());
        Self { writer, hashes, batches, dirty: true, durable_timestamp: 0, synced_len_bytes: 0 }
    }

    /// Adds what the sync log of a former writer records.
    pub(crate) fn synced_before(mut self, len_bytes: Option<u64>) -> Self {
        self.synced_len_bytes = len_bytes.unwrap_or(0);
        self
    }

    /// Takes over a batch that a former writer committed.
    pub(crate) fn take_over(&mut self, batch: Arc<Batch>, hashes: impl Iterator<Item = u64>) {
        self.hashes.extend(hashes);
        self.writer.note_times(&batch);
        self.batches.push(batch);
    }

    pub(crate) fn id(&self) -> SegmentId {
        self.writer.id()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.writer.rows()
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.writer.len_bytes()
    }

    pub(crate) fn schema(&self) -> &Arc<RowSchema> {
        self.writer.schema()
    }

    /// Which columns its rows have besides keys and leaves.
    pub(crate) fn layout(&self) -> RowLayout {
        self.writer.layout()
    }

    /// Whether `rows` more rows of `len_bytes` in total fit.
    pub(crate) fn has_room(&self, rows: usize, len_bytes: usize) -> bool {
        self.writer.has_room(rows, len_bytes)
    }

    /// Whether it has reached its full size.
    pub(crate) fn is_full(&self, options: &Options) -> bool {
        self.len_bytes() >= options.segment_bytes || self.rows() >= u64::from(options.segment_rows)
    }

    /// The [fingerprint](block::fingerprint) of its rows.
    pub(crate) fn fingerprint(&self) -> u64 {
        block::fingerprint(self.hashes.iter().zip(0..).map(|(hash, row)| (*hash, row)))
    }

    /// Commit timestamp of its oldest row.
    pub(crate) fn first_timestamp(&self) -> Option<u64> {
        self.writer.first_timestamp()
    }

    /// Whether its file still has its name.
    pub(crate) fn is_in_place(&self) -> bool {
        self.writer.is_in_place()
    }

    /// Appends rows, with these hashes, as one batch.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn append(
        &mut self,
        parts: &[BatchPart<'_>],
        timestamp: u64,
        hashes: impl Iterator<Item = u64>,
    ) -> Result<Arc<Batch>> {
        // If the previous batch was synced, this one will be too. Otherwise the system writes the data when it wants: a
        // bulk load would wait for the disk.
        self.writer.write_early(!self.dirty);
        let batch = Arc::new(self.writer.append(parts, timestamp, self.durable_timestamp)?);
        self.dirty = true;
        self.batches.push(Arc::clone(&batch));
        self.hashes.extend(hashes);
        Ok(batch)
    }

    /// Syncs what was written since the last sync. The caller must call [`Active::synced`] once its name is durable.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn sync(&mut self, durability: Durability) -> Result<()> {
        if self.dirty { self.writer.sync(durability) } else { Ok(()) }
    }

    /// Notes that everything is durable; returns the new record for the sync log, if there is one.
    pub(crate) fn synced(&mut self) -> Option<SyncRecord> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        // A segment without batches needs no record.
        self.durable_timestamp = self.batches.last()?.frame.timestamp;
        self.synced_len_bytes = self.len_bytes();
        self.sync_record()
    }

    /// Its record for the sync log, if any of it is durable.
    pub(crate) fn sync_record(&self) -> Option<SyncRecord> {
        (self.synced_len_bytes > 0).then(|| self.record(self.synced_len_bytes))
    }

    /// Its record for the sync log once it is sealed.
    pub(crate) fn sealed_record(&self) -> SyncRecord {
        self.record(self.len_bytes())
    }

    fn record(&self, len_bytes: u64) -> SyncRecord {
        SyncRecord { sequence: self.id().sequence, len_bytes, seed: self.writer.seed() }
    }

    /// Writes the index and the seal. `replaces` are the segments that it replaces. `data_synced` is called once, as
    /// soon as the batches are as durable as the options say.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn seal(
        self,
        options: &Options,
        replaces: Vec<SegmentId>,
        data_synced: &(dyn Fn() + Sync),
    ) -> Result<Seal> {
        let durability = options.durability;
        let Self { mut writer, hashes, batches, dirty, .. } = self;
        let kind = writer.schema().key;
        // Data are synced while the index is sorted, so that the last sync only writes the index.
        let ahead = dirty && durability > Durability::Buffered && !options.synchronous && hashes.len() >= SYNCED_AHEAD;
        if !dirty {
            data_synced();
        }
        let (parts, synced) = thread::scope(|scope| {
            let file = &mut writer;
            let sync = move || file.sync(durability).map(|()| data_synced());
            // If no thread can be started, the last sync writes everything.
            let syncing = ahead.then(|| thread::Builder::new().spawn_scoped(scope, sync)).and_then(std::io::Result::ok);
            let keys = match kind {
                KeyKind::U64 => Ok(None),
                KeyKind::Str | KeyKind::Bytes => ordered_keys(&batches).map(Some),
            };
            let pairs = hashes.iter().enumerate().map(|(row, hash)| (*hash, row as u32));
            let parts = keys.map(|keys| SealParts { index: block::encode(pairs), keys, replaces });
            (parts, syncing.and_then(|syncing| syncing.join().ok()).transpose())
        });
        let told = !dirty || synced?.is_some();
        let seal = writer.seal(&parts?, durability)?;
        if !told {
            data_synced();
        }
        Ok(seal)
    }
}

/// The keys of a segment in order, each with its newest row.
fn ordered_keys(batches: &[Arc<Batch>]) -> Result<Vec<u8>> {
    let keys = batches.iter().flat_map(|batch| {
        (0..batch.columns.rows)
            .filter_map(|row| Some((batch.columns.key(row)?, batch.frame.first_row as u32 + row as u32)))
    });
    keys_fst::build(&newest_in_order(keys))
}
