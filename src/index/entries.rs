//! The entries of the memtable: a sharded table of (hash, batch, row).
//!
//! Like Bitcask's keydir, but bounded: rows leave it when a run covers them. Several entries may have the same hash;
//! the caller compares keys.

use hashbrown::HashTable;
use hashbrown::hash_table;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{RwLock, RwLockUpgradableReadGuard};

/// Number of shards: a writer blocks a sixty-fourth of the readers, for a few insertions.
const SHARDS: usize = 64;
/// Rows that are inserted together, shard after shard: about 128 insertions a lock, a few microseconds.
const GROUP: usize = 128 * SHARDS;

/// Where a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub hash: u64,
    pub batch: u32,
    pub row: u32,
}

/// The table.
#[derive(Debug)]
pub(crate) struct EntryTable {
    shards: Box<[RwLock<HashTable<Entry>>]>,
    /// The capacity that a shard reserves once it is not small.
    shard_capacity: AtomicUsize,
    /// The capacity that was reserved for all shards.
    made_capacity: AtomicUsize,
    len: AtomicUsize,
}

/// Spreads a hash over all bits, so that shard, bucket and tag are independent even if a test keeps only a few bits of
/// it.
#[inline]
fn mix(hash: u64) -> u64 {
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 29)
}

/// The shard of a mixed hash, by bits that are neither the low ones (the bucket) nor the top seven (the tag).
#[inline]
fn shard_number(mixed: u64) -> usize {
    (mixed >> 48) as usize % SHARDS
}

/// Sorts the (hash, row) pairs of rows `first..` by shard, by counting. Returns where each shard ends.
fn by_shard(hashes: &[u64], first: u32, grouped: &mut [(u64, u32)]) -> [usize; SHARDS] {
    let mut starts = [0_usize; SHARDS];
    for hash in hashes {
        if let Some(count) = starts.get_mut(shard_number(mix(*hash))) {
            *count += 1;
        }
    }
    let mut sum = 0;
    for start in &mut starts {
        sum += std::mem::replace(start, sum);
    }
    for (row, hash) in (first..).zip(hashes) {
        if let Some(at) = starts.get_mut(shard_number(mix(*hash))) {
            if let Some(place) = grouped.get_mut(*at) {
                *place = (*hash, row);
            }
            *at += 1;
        }
    }
    // By now each start has been increased to its end.
    starts
}

/// Inserts rows whose hashes are not there; adds the others to `occupied`.
fn enter(table: &mut HashTable<Entry>, rows: &[(u64, u32)], batch: u32, occupied: &mut Vec<u32>) {
    for &(hash, row) in rows {
        let found = table.entry(mix(hash), |entry| entry.hash == hash, |entry| mix(entry.hash));
        match found {
            hash_table::Entry::Occupied(_) => occupied.push(row),
            hash_table::Entry::Vacant(place) => {
                place.insert(Entry { hash, batch, row });
            }
        }
    }
}

/// An empty table whose pages have all been touched: a first touch takes one or two microseconds a page, and a put of
/// random keys touches many pages.
fn touched_table(capacity: usize) -> HashTable<Entry> {
    const PAGE_ENTRIES: usize = 4096 / size_of::<Entry>();
    let mut table = HashTable::with_capacity(capacity);
    // The low bits of a hash choose its bucket.
    for bucket in (0..table.num_buckets() as u64).step_by(PAGE_ENTRIES) {
        table.insert_unique(bucket, Entry { hash: bucket, batch: 0, row: 0 }, |entry| entry.hash);
    }
    table.clear();
    table
}

/// The capacity that a shard reserves in a table for `keys` keys: a quarter more than its share.
fn shard_capacity(keys: usize) -> usize {
    let share = keys / SHARDS;
    share + share / 4
}

impl EntryTable {
    /// An empty table for about `keys` keys. A shard that reaches an eighth of its share reserves all of it, so that
    /// growing never moves more than that eighth at a time.
    pub(crate) fn new(keys: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            shard_capacity: AtomicUsize::new(shard_capacity(keys)),
            made_capacity: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
        }
    }

    /// Whether a sixteenth of `keys` keys is there, and no room was made for the rest.
    pub(crate) fn lacks_room(&self, keys: usize) -> bool {
        self.len() >= keys / 16 && self.made_capacity.load(Ordering::Relaxed) < shard_capacity(keys)
    }

    /// Makes room for about `keys` keys if it is lacking, before puts have to: they only wait for the exchange of a
    /// shard's table. O(keys), or O(1) if nothing is lacking.
    pub(crate) fn make_room(&self, keys: usize) {
        let capacity = shard_capacity(keys);
        self.shard_capacity.store(capacity, Ordering::Relaxed);
        if !self.lacks_room(keys) {
            return;
        }
        self.made_capacity.store(capacity, Ordering::Relaxed);
        for shard in self.shards.iter().rev() {
            let small = |table: &HashTable<Entry>| table.capacity() < capacity && table.len() < capacity / 4;
            if !small(&shard.read()) {
                continue;
            }
            let mut roomy = touched_table(capacity);
            let mut table = shard.write();
            if small(&table) {
                table.iter().for_each(|entry| {
                    roomy.insert_unique(mix(entry.hash), *entry, |entry| mix(entry.hash));
                });
                std::mem::swap(&mut *table, &mut roomy);
            }
        }
    }

    #[inline]
    fn shard(&self, mixed: u64) -> Option<&RwLock<HashTable<Entry>>> {
        let shard = self.shards.get(shard_number(mixed));
        debug_assert!(shard.is_some(), "a shard number is below the number of shards");
        shard
    }

    /// Inserts entries for rows `0..` of `batch`, with these hashes, except if the hash is there already: returns those
    /// rows, in order. O(rows).
    ///
    /// Rows are inserted shard by shard, so that each lock is acquired once for many of them, and memory accesses
    /// overlap.
    pub(crate) fn insert_new(&self, hashes: &[u64], batch: u32) -> Vec<u32> {
        let mut occupied = Vec::new();
        let mut grouped: Vec<(u64, u32)> = vec![(0, 0); hashes.len().min(GROUP)];
        for (first, group) in (0_u32..).step_by(GROUP).zip(hashes.chunks(GROUP)) {
            let before = occupied.len();
            let ends = by_shard(group, first, &mut grouped);
            let mut start = 0;
            for (shard, &end) in self.shards.iter().zip(&ends) {
                let rows = grouped.get(start..end).unwrap_or_default();
                debug_assert_eq!(rows.len(), end - start, "rows were counted wrongly");
                start = end;
                if !rows.is_empty() {
                    let mut table = shard.write();
                    self.grow(&mut table, rows.len());
                    enter(&mut table, rows, batch, &mut occupied);
                }
            }
            self.len.fetch_add(group.len() - (occupied.len() - before), Ordering::Release);
            if let Some(fresh) = occupied.get_mut(before..) {
                fresh.sort_unstable();
            }
        }
        occupied
    }

    /// Reserves room for `rows` more. Small stores stay small; from an eighth of its share on, a shard reserves all of
    /// it at once.
    fn grow(&self, table: &mut HashTable<Entry>, rows: usize) {
        let len = table.len();
        if len + rows > table.capacity() {
            let capacity = self.shard_capacity.load(Ordering::Relaxed);
            let more = if len < capacity / 8 { len.max(14) } else { capacity.saturating_sub(len) };
            table.reserve(more.max(rows), |entry| mix(entry.hash));
        }
    }

    /// Inserts an entry in addition to existing ones. O(1).
    pub(crate) fn insert(&self, hash: u64, batch: u32, row: u32) {
        let mixed = mix(hash);
        let Some(shard) = self.shard(mixed) else { return };
        let mut table = shard.write();
        self.grow(&mut table, 1);
        table.insert_unique(mixed, Entry { hash, batch, row }, |entry| mix(entry.hash));
        drop(table);
        self.len.fetch_add(1, Ordering::Release);
    }

    /// Points the entry `old` (batch, row) of `hash` to `new`. Returns whether it was there. O(1).
    pub(crate) fn replace(&self, hash: u64, old: (u32, u32), new: (u32, u32)) -> bool {
        let mixed = mix(hash);
        let Some(shard) = self.shard(mixed) else { return false };
        let mut table = shard.write();
        let found = table.find_mut(mixed, |entry| entry.hash == hash && (entry.batch, entry.row) == old);
        found.map(|entry| (entry.batch, entry.row) = new).is_some()
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
        self.relocate(|entry| keep(entry).then_some((entry.batch, entry.row)));
    }

    /// Points each entry to the (batch, row) that `now` returns, or drops it, one shard after another. O(entries).
    ///
    /// The kept entries go into a new table, which then replaces the shard's, so gets wait only for the exchange. Puts
    /// wait for a shard; they visit the shards in the other order, or they would wait at each.
    pub(crate) fn relocate(&self, now: impl Fn(&Entry) -> Option<(u32, u32)>) {
        // The table that one shard gives up takes the entries of the next one.
        let mut kept = HashTable::new();
        let roomy = self.shard_capacity.load(Ordering::Relaxed);
        for shard in self.shards.iter().rev() {
            // A small store stays small.
            let capacity = shard.read().capacity();
            let wanted = if capacity < roomy / 4 { capacity } else { capacity.max(roomy) };
            kept.clear();
            if kept.capacity() < wanted {
                kept = touched_table(wanted);
            }
            let table = shard.upgradable_read();
            let before = table.len();
            for (entry, (batch, row)) in table.iter().filter_map(|entry| Some((entry, now(entry)?))) {
                kept.insert_unique(mix(entry.hash), Entry { hash: entry.hash, batch, row }, |entry| mix(entry.hash));
            }
            let dropped = before - kept.len();
            std::mem::swap(&mut *RwLockUpgradableReadGuard::upgrade(table), &mut kept);
            self.len.fetch_sub(dropped, Ordering::Release);
        }
    }

    /// Drops all entries, and frees their memory. O(shards).
    pub(crate) fn clear(&self) {
        self.made_capacity.store(0, Ordering::Relaxed);
        for shard in self.shards.iter().rev() {
            let table = std::mem::take(&mut *shard.write());
            self.len.fetch_sub(table.len(), Ordering::Release);
        }
    }

    /// The number of entries.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Whether there are none.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Approximate anonymous memory of the tables, in bytes.
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().allocation_size()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn entries(table: &EntryTable, hash: u64) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        table.find(hash, &mut |entry| found.push((entry.batch, entry.row)));
        found.sort_unstable();
        found
    }

    #[test]
    fn rows_of_a_batch_enter_once_a_hash() {
        for keep_bits in [64_u32, 10] {
            let hash = |row: u32| {
                let hash = xxhash_rust::xxh3::xxh3_64(&row.to_le_bytes());
                if keep_bits == 64 { hash } else { hash & !(u64::MAX >> keep_bits) }
            };
            let table = EntryTable::new(1000);
            table.insert(hash(5), 1, 0);
            let rows = GROUP as u32 * 2 + 77;
            let hashes: Vec<u64> = (0..rows).map(hash).collect();
            let occupied = table.insert_new(&hashes, 2);
            let mut seen = std::collections::HashSet::from([hash(5)]);
            let expected: Vec<u32> = (0..rows).filter(|row| !seen.insert(hash(*row))).collect();
            assert_eq!(occupied, expected);
            assert_eq!(table.len(), seen.len());
            assert_eq!(entries(&table, hash(5)), [(1, 0)]);
            for row in (0..rows).filter(|row| !occupied.contains(row)) {
                assert_eq!(entries(&table, hash(row)), [(2, row)]);
            }
        }
    }

    #[test]
    fn behaves_like_a_multimap() {
        for keep_bits in [64_u32, 8] {
            let table = EntryTable::new(1000);
            let mut model: HashMap<u64, Vec<(u32, u32)>> = HashMap::new();
            for row in 0..5000_u32 {
                let hash = xxhash_rust::xxh3::xxh3_64(&row.to_le_bytes());
                let hash = if keep_bits == 64 { hash } else { hash & !(u64::MAX >> keep_bits) };
                table.insert(hash, row % 7, row);
                model.entry(hash).or_default().push((row % 7, row));
            }
            assert_eq!(table.len(), 5000);
            for (hash, rows) in &mut model {
                rows.sort_unstable();
                assert_eq!(entries(&table, *hash), *rows);
            }
            let (hash, rows) = model.iter().next().unwrap();
            assert!(table.replace(*hash, rows[0], (99, 99)));
            assert!(!table.replace(*hash, rows[0], (99, 99)));
            assert!(entries(&table, *hash).contains(&(99, 99)));
            table.prune(|entry| entry.batch == 99);
            assert_eq!(table.len(), 1);
        }
    }

    #[test]
    fn room_is_made_once_and_nothing_is_lost() {
        let keys = if cfg!(miri) { 64 * 64 } else { 64 * 4096 };
        let table = EntryTable::new(keys);
        let hash = |row: u32| xxhash_rust::xxh3::xxh3_64(&row.to_le_bytes());
        let rows = keys as u32 / 8;
        for _ in 0..2 {
            for row in 0..rows / 2 - 1 {
                assert!(!table.lacks_room(keys));
                table.insert(hash(row), 1, row);
            }
            // The same hash twice, as for a replaced key.
            table.insert(hash(0), 2, 0);
            assert!(table.lacks_room(keys));
            let before = table.capacity_bytes();
            table.make_room(keys);
            assert!(!table.lacks_room(keys) && table.capacity_bytes() > before);
            let roomy = table.capacity_bytes();
            (rows / 2..keys as u32).for_each(|row| table.insert(hash(row), 1, row));
            assert_eq!(table.capacity_bytes(), roomy, "no shard grows any more");
            assert_eq!(entries(&table, hash(0)), [(1, 0), (2, 0)]);
            assert!((1..rows / 2 - 1).all(|row| entries(&table, hash(row)) == [(1, row)]));
            // With twice the keys, room is lacking again, but the shards are too full to be copied while puts wait:
            // pruning makes room.
            assert!(table.lacks_room(2 * keys));
            table.make_room(2 * keys);
            assert_eq!(table.capacity_bytes(), roomy);
            table.prune(|entry| entry.row % 2 == 0);
            assert!(table.capacity_bytes() > roomy);
            assert!((1..rows / 2 - 1).all(|row| entries(&table, hash(row)).is_empty() == (row % 2 == 1)));
            table.clear();
            table.make_room(keys);
            assert_eq!((table.len(), table.capacity_bytes()), (0, 0));
        }
    }

    #[test]
    fn what_stays_is_found_while_the_rest_is_dropped() {
        let table = EntryTable::new(1000);
        let hash = |row: u32| xxhash_rust::xxh3::xxh3_64(&row.to_le_bytes());
        let rows = if cfg!(miri) { 200 } else { 20_000_u32 };
        (0..rows).for_each(|row| table.insert(hash(row), row % 10, row));
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..10 {
                    table.prune(|entry| entry.batch >= round);
                    // Puts run concurrently.
                    (0..rows / 10).for_each(|row| table.insert(hash(row), 10 + round, row));
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                for row in (9..rows).step_by(10) {
                    assert!(entries(&table, hash(row)).contains(&(9, row)), "{row}");
                }
            }
        });
        assert_eq!(table.len(), (rows / 10 + rows / 10 * 9) as usize);
    }
}
