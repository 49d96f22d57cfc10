//! Writes a run. Rows come in order of hash, so buckets are written in order, and memory holds only a few of them.

use super::merge::HashRow;
use super::run_layout::{
    BUCKET_LEN_BYTES, BUCKETS_OFFSET, Bucket, Covered, EMPTY, Footer, MAGIC, PAGE_BUCKETS, SLOTS, home, tag,
};
use crate::checksum::crc32;
use crate::error::{Error, Result};

/// Bytes gathered before they are written.
const WRITE_LEN_BYTES: usize = 2 << 20;
/// Rows that are placed in buckets before their memory is reused.
const MOST_TAKEN: usize = 1 << 12;

/// The metadata of a run.
#[derive(Debug, Clone)]
pub(crate) struct RunHeader {
    pub store: [u8; 16],
    pub hash_id: u8,
    /// The seed of key hashes; 0 before version 2.
    pub hash_seed: u64,
    /// Version of the run.
    pub version: u32,
    /// The covered segments; row numbers of the run count through them.
    pub covered: Vec<Covered>,
    /// The state of the store for which `live_keys` holds.
    pub known_fingerprint: u64,
}

/// Builds a run.
pub(crate) struct RunBuilder<'a> {
    header: RunHeader,
    sink: &'a mut dyn FnMut(&[u8]) -> Result<()>,
    buckets: u64,
    keys: u64,
    last_hash: u64,
    /// The number of the bucket that comes next.
    base: u64,
    /// (tag, row) of rows without a bucket, from `taken` on: a bucket takes the first of them.
    waiting: Vec<(u64, u64)>,
    taken: usize,
    /// Whether any of them has its home in bucket `base`; these are then the last ones.
    at_home: bool,
    /// Complete pages of 64 buckets, and the page that is being filled.
    buffer: Vec<u8>,
    page_start: usize,
    page_crcs: Vec<u32>,
}

impl<'a> RunBuilder<'a> {
    /// A builder of a run of at most `keys_upper_bound` keys that goes to `sink`. Buckets are filled to 0.85.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the covered segments have more rows than a run can number; what `sink` returns.
    pub(crate) fn new(
        header: RunHeader,
        keys_upper_bound: u64,
        sink: &'a mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Self> {
        let rows: u64 = header.covered.iter().map(|covered| covered.rows).fold(0, u64::saturating_add);
        if rows >= EMPTY {
            return Err(Error::TooLarge { what: "the rows of one index run".into(), found: rows, limit: EMPTY - 1 });
        }
        let mut first_page = vec![0; BUCKETS_OFFSET as usize];
        let version = header.version.to_le_bytes();
        for (target, byte) in first_page.iter_mut().zip(MAGIC.iter().chain(&version)) {
            *target = *byte;
        }
        Ok(Self {
            header,
            sink,
            // 11 slots at a load of 0.85.
            buckets: (keys_upper_bound.saturating_mul(100) / 935).max(1) + 1,
            keys: 0,
            last_hash: 0,
            base: 0,
            waiting: Vec::new(),
            taken: 0,
            at_home: false,
            page_start: first_page.len(),
            buffer: first_page,
            page_crcs: Vec::new(),
        })
    }

    /// Adds (hash, row) pairs. Hashes ascend. Amortised O(1) a pair.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a hash is below the one before; what the sink returns.
    pub(crate) fn extend(&mut self, pairs: &[HashRow]) -> Result<()> {
        for &(hash, row) in pairs {
            if hash < self.last_hash || row >= EMPTY {
                return Err(Error::invalid(format!(
                    "row {row} with hash {hash:x} does not follow hash {:x}",
                    self.last_hash
                )));
            }
            self.last_hash = hash;
            // No later row has its home before this one's.
            self.emit_before(home(hash, self.buckets))?;
            self.waiting.push((tag(hash), row));
            self.at_home = true;
        }
        self.keys += pairs.len() as u64;
        Ok(())
    }

    /// Writes all buckets before `bucket`.
    fn emit_before(&mut self, bucket: u64) -> Result<()> {
        while self.base < bucket {
            self.emit()?;
        }
        Ok(())
    }

    /// Writes the next bucket, with the first waiting rows. The others get the next buckets before later rows do, so it
    /// is known here how far the last row with this home reaches.
    fn emit(&mut self) -> Result<()> {
        let waiting = self.waiting.get(self.taken..).unwrap_or(&[]);
        let (now, later) = waiting.split_at_checked(SLOTS).unwrap_or((waiting, &[]));
        let reach = if self.at_home { later.len().div_ceil(SLOTS) as u64 } else { 0 };
        self.buffer.extend_from_slice(&Bucket::packed(now, reach).to_bytes());
        self.at_home = false;
        self.taken += now.len();
        if self.taken == self.waiting.len() || self.taken >= MOST_TAKEN.max(self.waiting.len() / 2) {
            self.waiting.drain(..self.taken);
            self.taken = 0;
        }
        self.base += 1;
        if self.base.is_multiple_of(PAGE_BUCKETS) {
            self.end_page()?;
        }
        Ok(())
    }

    fn end_page(&mut self) -> Result<()> {
        let page = self.buffer.get(self.page_start..).unwrap_or(&[]);
        if page.is_empty() {
            return Ok(());
        }
        self.page_crcs.push(crc32(page));
        if self.buffer.len() >= WRITE_LEN_BYTES {
            (self.sink)(&self.buffer)?;
            self.buffer.clear();
        }
        self.page_start = self.buffer.len();
        Ok(())
    }

    /// Writes the rest. Returns the number of keys.
    ///
    /// # Errors
    /// What the sink returns.
    pub(crate) fn finish(mut self, live_keys: u64) -> Result<u64> {
        self.emit_before(self.buckets)?;
        while !self.waiting.is_empty() {
            self.emit()?;
        }
        self.end_page()?;
        let crcs: Vec<u8> = self.page_crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect();
        let covered: Vec<u8> = self.header.covered.iter().flat_map(Covered::encode).collect();
        let pages_offset = BUCKETS_OFFSET + self.base * BUCKET_LEN_BYTES as u64;
        let footer = Footer {
            store: self.header.store,
            version: self.header.version,
            hash_id: self.header.hash_id,
            hash_seed: self.header.hash_seed,
            keys: self.keys,
            buckets: self.buckets,
            spill_buckets: self.base - self.buckets,
            live_keys,
            known_fingerprint: self.header.known_fingerprint,
            pages_offset,
            pages: self.page_crcs.len() as u64,
            pages_crc: crc32(&crcs),
            covered_offset: pages_offset + crcs.len() as u64,
            covered: self.header.covered.len() as u64,
            covered_crc: crc32(&covered),
        };
        self.buffer.extend_from_slice(&crcs);
        self.buffer.extend_from_slice(&covered);
        self.buffer.extend_from_slice(&footer.encode());
        (self.sink)(&self.buffer)?;
        Ok(self.keys)
    }
}
