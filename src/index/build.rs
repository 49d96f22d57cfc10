//! Writing a run: rows come in order of hash, so buckets leave in order, and memory is a window of a few.

use std::collections::VecDeque;

use super::run_layout::{
    BUCKET_LEN_BYTES, BUCKETS_OFFSET, Bucket, Covered, EMPTY, Footer, MAGIC, PAGE_BUCKETS, RUN_VERSION, SLOTS, home,
    tag,
};
use crate::checksum::crc32;
use crate::error::{Error, Result};

/// Bytes gathered before they are written.
const WRITE_LEN_BYTES: usize = 1 << 20;

/// What a run says of itself.
#[derive(Debug, Clone)]
pub(crate) struct RunHeader {
    pub store: [u8; 16],
    pub hash_id: u8,
    /// Row numbers of the run count through these segments.
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
    /// Buckets that may still change, the first of them being number `base`.
    window: VecDeque<(Bucket, usize)>,
    base: u64,
    buffer: Vec<u8>,
    page: Vec<u8>,
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
        let version = RUN_VERSION.to_le_bytes();
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
            window: VecDeque::new(),
            base: 0,
            buffer: first_page,
            page: Vec::with_capacity(PAGE_BUCKETS as usize * BUCKET_LEN_BYTES),
            page_crcs: Vec::new(),
        })
    }

    /// Adds a row. Hashes ascend. Amortised O(1).
    ///
    /// # Errors
    /// [`Error::Invalid`] if the hash is below the last one; what the sink returns.
    pub(crate) fn push(&mut self, hash: u64, row: u64) -> Result<()> {
        if hash < self.last_hash || row >= EMPTY {
            return Err(Error::invalid(format!(
                "row {row} with hash {hash:x} does not follow hash {:x}",
                self.last_hash
            )));
        }
        self.last_hash = hash;
        self.keys += 1;
        let home = home(hash, self.buckets);
        // No later row has its home before this one's.
        self.emit_before(home)?;
        let mut at = 0;
        while self.window.get(at).is_some_and(|(_, used)| *used == SLOTS) {
            at += 1;
        }
        if at == self.window.len() {
            self.window.push_back((Bucket::empty(), 0));
        }
        if let Some((bucket, used)) = self.window.get_mut(at) {
            bucket.fill(*used, tag(hash), row);
            *used += 1;
        }
        if let (Some((first, _)), true) = (self.window.front_mut(), at > 0) {
            first.reach(at as u64);
        }
        Ok(())
    }

    /// Writes all buckets before `bucket`, so that it is the first of the window.
    fn emit_before(&mut self, bucket: u64) -> Result<()> {
        while self.base < bucket {
            let (first, _) = self.window.pop_front().unwrap_or((Bucket::empty(), 0));
            self.emit(first)?;
        }
        Ok(())
    }

    fn emit(&mut self, bucket: Bucket) -> Result<()> {
        self.base += 1;
        self.page.extend_from_slice(&bucket.to_bytes());
        if self.base.is_multiple_of(PAGE_BUCKETS) {
            self.end_page()?;
        }
        Ok(())
    }

    fn end_page(&mut self) -> Result<()> {
        if self.page.is_empty() {
            return Ok(());
        }
        self.page_crcs.push(crc32(&self.page));
        self.buffer.append(&mut self.page);
        if self.buffer.len() >= WRITE_LEN_BYTES {
            (self.sink)(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Writes the rest. Returns the number of keys.
    ///
    /// # Errors
    /// What the sink returns.
    pub(crate) fn finish(mut self, live_keys: u64) -> Result<u64> {
        self.emit_before(self.buckets)?;
        while let Some((spilled, _)) = self.window.pop_front() {
            self.emit(spilled)?;
        }
        self.end_page()?;
        let crcs: Vec<u8> = self.page_crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect();
        let covered: Vec<u8> = self.header.covered.iter().flat_map(Covered::encode).collect();
        let pages_offset = BUCKETS_OFFSET + self.base * BUCKET_LEN_BYTES as u64;
        let footer = Footer {
            store: self.header.store,
            hash_id: self.header.hash_id,
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
