//! An immutable run: finds rows by hash, with one cache line a probe.
//!
//! Buckets of short tags that are probed as they lie in the file come from sparkey's hash file and from SwissTable
//! groups. Sparkey's index also names what it covers, and is refused on a mismatch.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::run_layout::{
    BUCKET_LEN_BYTES, BUCKETS_OFFSET, BucketView, COVERED_LEN_BYTES, Covered, EMPTY, FAR, FOOTER_LEN_BYTES, Footer,
    MAGIC, PAGE_BUCKETS, home, tag,
};
use crate::checksum::crc32;
use crate::error::{Error, Result};
use crate::io::residency::read_ahead;
use crate::prefetch::prefetch_read;

/// An open run.
#[derive(Debug)]
pub(crate) struct Run {
    path: PathBuf,
    footer: Footer,
    buckets: Bytes,
    page_crcs: Bytes,
    covered: Vec<Covered>,
    max_timestamp: u64,
    /// One bit for each page whose checksum was compared.
    verified: Box<[AtomicU64]>,
    /// How many pages lack this bit.
    unverified: AtomicU64,
}

impl Run {
    /// Opens the run in `bytes`, without touching its buckets. O(segments covered), and O(pages / 64) for the bits of
    /// verified pages.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if anything but the buckets is damaged, [`Error::NewerFormat`] for a newer version.
    pub(crate) fn open(path: PathBuf, bytes: Bytes) -> Result<Self> {
        if !bytes.starts_with(MAGIC) {
            return Err(Error::corrupt(path, 0, "expected an index run, found other bytes"));
        }
        let footer_offset = bytes.len().saturating_sub(FOOTER_LEN_BYTES);
        let footer = Footer::decode(bytes.get(footer_offset..).unwrap_or(&[]), &path, footer_offset as u64)?;
        // The footer's numbers are known to match the file's length.
        let (pages_at, covered_at) = (footer.pages_offset as usize, footer.covered_offset as usize);
        let page_crcs = bytes.slice(pages_at..covered_at);
        let list = bytes.slice(covered_at..footer_offset);
        read_ahead(&page_crcs);
        if crc32(&page_crcs) != footer.pages_crc || crc32(&list) != footer.covered_crc {
            return Err(Error::corrupt(
                path,
                footer.pages_offset,
                "the checksum of the run's tables does not match its bytes",
            ));
        }
        let covered: Vec<Covered> = list.as_chunks::<COVERED_LEN_BYTES>().0.iter().map(Covered::decode).collect();
        let rows = covered.iter().fold(0_u64, |rows, segment| rows.saturating_add(segment.rows));
        if rows >= EMPTY {
            return Err(Error::corrupt(
                path,
                footer.covered_offset,
                format!("{rows} rows are more than a run can number"),
            ));
        }
        Ok(Self {
            max_timestamp: covered.iter().map(|segment| segment.last_timestamp).max().unwrap_or(0),
            buckets: bytes.slice(BUCKETS_OFFSET as usize..pages_at),
            verified: (0..footer.pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            unverified: AtomicU64::new(footer.pages),
            path,
            footer,
            page_crcs,
            covered,
        })
    }

    /// All bytes that lookups read.
    pub(crate) fn bucket_area(&self) -> &[u8] {
        &self.buckets
    }

    /// Prefetches the home bucket of `hash`.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        prefetch_read(&self.buckets, home(hash, self.footer.buckets) as usize * BUCKET_LEN_BYTES);
    }

    /// The home bucket of `hash`, without touching it.
    pub(crate) fn bucket_bytes(&self, hash: u64) -> Option<&[u8]> {
        let start = home(hash, self.footer.buckets) as usize * BUCKET_LEN_BYTES;
        self.buckets.get(start..start + BUCKET_LEN_BYTES)
    }

    /// Calls `found` with every row whose tag is that of `hash`; the caller compares keys. Expected O(1).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a page of buckets is damaged: nothing is then known of the hash.
    #[inline]
    pub(crate) fn find(&self, hash: u64, found: &mut impl FnMut(u64)) -> Result<()> {
        let mut found = |row| {
            if row != EMPTY {
                found(row);
            }
        };
        match self.find_at_home(hash, &mut found)? {
            0 => Ok(()),
            reach => self.find_spilled(hash, reach, &mut found),
        }
    }

    /// As [`Run::find`], but only in the home bucket, and `found` gets [`EMPTY`] as well. Unless it returns 0, the
    /// caller must call [`Run::find_spilled`], whose first bucket is prefetched: about half of the home buckets are
    /// full.
    ///
    /// # Errors
    /// As [`Run::find`].
    #[inline]
    pub(crate) fn find_at_home(&self, hash: u64, found: &mut impl FnMut(u64)) -> Result<u64> {
        let home = home(hash, self.footer.buckets);
        // Every home bucket exists: spill buckets follow them.
        let Some(bucket) = self.bucket(home)? else { return Ok(0) };
        bucket.rows_of(tag(hash), found);
        let reach = bucket.overflow();
        prefetch_read(&self.buckets, (home as usize + usize::from(reach > 0)) * BUCKET_LEN_BYTES);
        Ok(reach)
    }

    /// As [`Run::find`], but in the `reach` buckets that rows of the home bucket spilled to, and `found` gets [`EMPTY`]
    /// as well.
    ///
    /// # Errors
    /// As [`Run::find`].
    #[inline]
    pub(crate) fn find_spilled(&self, hash: u64, reach: u64, found: &mut impl FnMut(u64)) -> Result<()> {
        let (home, tag) = (home(hash, self.footer.buckets), tag(hash));
        let mut distance = 1;
        // There is no bucket after the last spill bucket.
        while let Some(bucket) = self.bucket(home + distance)? {
            bucket.rows_of(tag, found);
            let last = if reach == FAR { !bucket.is_full() } else { distance >= reach };
            if last {
                break;
            }
            distance += 1;
        }
        Ok(())
    }

    #[inline]
    fn bucket(&self, number: u64) -> Result<Option<BucketView<'_>>> {
        let Some(bytes) = self.buckets.as_chunks::<BUCKET_LEN_BYTES>().0.get(number as usize) else {
            return Ok(None);
        };
        // Most runs were verified as a whole.
        if self.unverified.load(Ordering::Relaxed) > 0 {
            self.check_page(number / PAGE_BUCKETS)?;
        }
        Ok(Some(BucketView(bytes)))
    }

    /// Compares the checksum of a page of buckets when it is first used.
    fn check_page(&self, page: u64) -> Result<()> {
        let bit = 1_u64 << (page % 64);
        match self.verified.get((page / 64) as usize) {
            Some(word) if word.load(Ordering::Relaxed) & bit != 0 => Ok(()),
            _ => {
                self.verify_page(page)?;
                self.set_verified(page);
                Ok(())
            }
        }
    }

    fn set_verified(&self, page: u64) {
        let bit = 1_u64 << (page % 64);
        if let Some(word) = self.verified.get((page / 64) as usize)
            && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
        {
            self.unverified.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[cold]
    fn verify_page(&self, page: u64) -> Result<()> {
        const PAGE_LEN_BYTES: usize = PAGE_BUCKETS as usize * BUCKET_LEN_BYTES;
        let start = page as usize * PAGE_LEN_BYTES;
        let end = (start + PAGE_LEN_BYTES).min(self.buckets.len());
        let bytes = self.buckets.get(start..end).unwrap_or(&[]);
        let expected = self.page_crcs.get(page as usize * 4..page as usize * 4 + 4);
        if expected == Some(&crc32(bytes).to_le_bytes()) {
            Ok(())
        } else {
            let offset = BUCKETS_OFFSET + start as u64;
            Err(Error::corrupt(&self.path, offset, "the checksum of a page of buckets does not match its bytes"))
        }
    }

    /// Compares the checksums of all pages, so that lookups do not have to. O(bytes).
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first page that is damaged.
    pub(crate) fn verify_all(&self) -> Result<()> {
        read_ahead(&self.buckets);
        (0..self.footer.pages).try_for_each(|page| {
            self.verify_page(page)?;
            self.set_verified(page);
            Ok(())
        })
    }

    /// The segments covered.
    pub(crate) fn covered(&self) -> &[Covered] {
        &self.covered
    }

    /// Keys in the run.
    pub(crate) fn keys(&self) -> u64 {
        self.footer.keys
    }

    /// Live keys of the whole store when the run was built, if they were known.
    pub(crate) fn live_keys(&self) -> u64 {
        self.footer.live_keys
    }

    /// The state of the store for which [`Run::live_keys`] holds.
    pub(crate) fn known_fingerprint(&self) -> u64 {
        self.footer.known_fingerprint
    }

    /// The newest timestamp of any row.
    pub(crate) fn max_timestamp(&self) -> u64 {
        self.max_timestamp
    }

    /// The store that the run belongs to.
    pub(crate) fn store(&self) -> &[u8; 16] {
        &self.footer.store
    }

    /// The key hash that the run was built with.
    pub(crate) fn hash(&self) -> (u8, u64) {
        (self.footer.hash_id, self.footer.hash_seed)
    }

    /// The file, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::build::{RunBuilder, RunHeader};

    fn run_of(pairs: &mut [(u64, u64)], rows: u64) -> Vec<u8> {
        pairs.sort_unstable();
        let covered = Covered { lane: 1, sequence: 2, rows, seal_crc: 3, first_timestamp: 4, last_timestamp: 5 };
        let header = RunHeader {
            store: [7; 16],
            hash_id: 0,
            hash_seed: 0,
            version: 1,
            covered: vec![covered],
            known_fingerprint: 9,
        };
        let mut bytes = Vec::new();
        let mut sink = |part: &[u8]| {
            bytes.extend_from_slice(part);
            Ok(())
        };
        let mut builder = RunBuilder::new(header, pairs.len() as u64, &mut sink).unwrap();
        builder.extend(pairs).unwrap();
        assert_eq!(builder.finish(42).unwrap(), pairs.len() as u64);
        bytes
    }

    fn rows_of(run: &Run, hash: u64) -> Result<Vec<u64>> {
        let mut rows = Vec::new();
        run.find(hash, &mut |row| rows.push(row))?;
        Ok(rows)
    }

    fn hashes(count: u64, mask: u64) -> Vec<(u64, u64)> {
        (0..count).map(|row| (xxhash_rust::xxh3::xxh3_64(&row.to_le_bytes()) & mask, row)).collect()
    }

    #[test]
    fn finds_every_row() {
        for (count, mask) in
            [(0, u64::MAX), (1, u64::MAX), (10, u64::MAX), (100_000, u64::MAX), (5000, 0), (20_000, 0xFF << 56)]
        {
            let mut pairs = hashes(count, mask);
            let run = Run::open("x".into(), run_of(&mut pairs, count).into()).unwrap();
            run.verify_all().unwrap();
            assert_eq!((run.keys(), run.live_keys(), run.max_timestamp()), (count, 42, 5));
            for (hash, row) in pairs.iter().step_by(if mask == u64::MAX { 1 } else { 97 }) {
                assert!(rows_of(&run, *hash).unwrap().contains(row));
            }
        }
    }

    #[test]
    fn misses_are_rarely_proposed() {
        let mut pairs = hashes(50_000, u64::MAX);
        let run = Run::open("x".into(), run_of(&mut pairs, 50_000).into()).unwrap();
        let proposed: usize = (50_000..100_000_u64)
            .map(|key| rows_of(&run, xxhash_rust::xxh3::xxh3_64(&key.to_le_bytes())).unwrap().len())
            .sum();
        assert!(proposed < 1500, "{proposed}");
    }

    #[test]
    fn damage_is_never_a_miss() {
        let mut pairs = hashes(2000, u64::MAX);
        let good = run_of(&mut pairs, 2000);
        for position in (0..good.len()).step_by(13) {
            let mut bad = good.clone();
            bad[position] ^= 0x20;
            let Ok(run) = Run::open("x".into(), bad.into()) else { continue };
            for (hash, row) in &pairs {
                assert!(rows_of(&run, *hash).is_ok_and(|rows| rows.contains(row)) || rows_of(&run, *hash).is_err());
            }
        }
        for len in [0, 7, 100, 4096, good.len() - 1] {
            assert!(Run::open("x".into(), good[..len].to_vec().into()).is_err());
        }
    }
}
