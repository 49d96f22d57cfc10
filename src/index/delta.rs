//! The in-memory part of the index: a sharded table of (hash, slot, row).
//!
//! As Bitcask's keydir, but bounded: rows leave it when a run covers them. Entries of equal hash stand side by side;
//! the caller compares keys.

use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashTable;
use parking_lot::RwLock;

/// Shards, so that a writer blocks a sixty-fourth of the readers for the time of one insertion.
const SHARDS: usize = 64;

/// Where a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub hash: u64,
    pub slot: u32,
    pub row: u32,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Delta {
    shards: Box<[RwLock<HashTable<Entry>>]>,
    shard_capacity: usize,
    len: AtomicUsize,
}

/// Spreads a hash over all bits, so that shard, bucket and tag are independent of one another even where a test keeps
/// only a few bits of it.
#[inline]
fn mix(hash: u64) -> u64 {
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 29)
}

impl Delta {
    /// An empty table for about `capacity_keys` keys. A shard that holds an eighth of its share reserves all of it, and
    /// a quarter more, so that growing never moves more than that eighth at a time.
    pub(crate) fn new(capacity_keys: usize) -> Self {
        let share = capacity_keys / SHARDS;
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            shard_capacity: share + share / 4,
            len: AtomicUsize::new(0),
        }
    }

    #[inline]
    fn shard(&self, mixed: u64) -> Option<&RwLock<HashTable<Entry>>> {
        // Neither the low bits (the bucket) nor the top seven (the tag).
        self.shards.get((mixed >> 48) as usize % SHARDS)
    }

    /// Adds an entry beside whatever is there. O(1).
    pub(crate) fn insert(&self, hash: u64, slot: u32, row: u32) {
        let mixed = mix(hash);
        let Some(shard) = self.shard(mixed) else { return };
        let mut table = shard.write();
        if table.len() == table.capacity() {
            // Small stores stay small; from an eighth of its share on, a shard takes all of it at once.
            let len = table.len();
            let more =
                if len < self.shard_capacity / 8 { len.max(14) } else { self.shard_capacity.saturating_sub(len) };
            table.reserve(more.max(1), |entry| mix(entry.hash));
        }
        table.insert_unique(mixed, Entry { hash, slot, row }, |entry| mix(entry.hash));
        drop(table);
        self.len.fetch_add(1, Ordering::Release);
    }

    /// Points the entry `old` (slot, row) of `hash` to `new`. Returns whether it was there. O(1).
    pub(crate) fn replace(&self, hash: u64, old: (u32, u32), new: (u32, u32)) -> bool {
        let mixed = mix(hash);
        let Some(shard) = self.shard(mixed) else { return false };
        let mut table = shard.write();
        let found = table.find_mut(mixed, |entry| entry.hash == hash && (entry.slot, entry.row) == old);
        found.map(|entry| (entry.slot, entry.row) = new).is_some()
    }

    /// Calls `found` with every entry of `hash`. The shard is locked meanwhile: `found` must be short. O(1).
    #[inline]
    pub(crate) fn find(&self, hash: u64, found: &mut impl FnMut(Entry)) {
        if self.is_empty() {
            return;
        }
        let mixed = mix(hash);
        let Some(shard) = self.shard(mixed) else { return };
        let table = shard.read();
        table.iter_hash(mixed).filter(|entry| entry.hash == hash).for_each(|entry| found(*entry));
    }

    /// Drops entries, one shard after another. O(entries).
    pub(crate) fn prune(&self, keep: impl Fn(&Entry) -> bool) {
        for shard in &self.shards {
            let mut table = shard.write();
            let before = table.len();
            table.retain(|entry| keep(entry));
            let dropped = before - table.len();
            drop(table);
            self.len.fetch_sub(dropped, Ordering::Release);
        }
    }

    /// Entries.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Whether there are none.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Anonymous memory of the tables in bytes, about.
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().allocation_size()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn entries(delta: &Delta, hash: u64) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        delta.find(hash, &mut |entry| found.push((entry.slot, entry.row)));
        found.sort_unstable();
        found
    }

    #[test]
    fn behaves_like_a_multimap() {
        for keep_bits in [64_u32, 8] {
            let delta = Delta::new(1000);
            let mut model: HashMap<u64, Vec<(u32, u32)>> = HashMap::new();
            for row in 0..5000_u32 {
                let hash = xxhash_rust::xxh3::xxh3_64(&row.to_le_bytes());
                let hash = if keep_bits == 64 { hash } else { hash & !(u64::MAX >> keep_bits) };
                delta.insert(hash, row % 7, row);
                model.entry(hash).or_default().push((row % 7, row));
            }
            assert_eq!(delta.len(), 5000);
            for (hash, rows) in &mut model {
                rows.sort_unstable();
                assert_eq!(entries(&delta, *hash), *rows);
            }
            let (hash, rows) = model.iter().next().unwrap();
            assert!(delta.replace(*hash, rows[0], (99, 99)));
            assert!(!delta.replace(*hash, rows[0], (99, 99)));
            assert!(entries(&delta, *hash).contains(&(99, 99)));
            delta.prune(|entry| entry.slot == 99);
            assert_eq!(delta.len(), 1);
        }
    }
}
