//! A cache in memory, bounded in bytes, which does not depend on any storage.
//!
//! The bound counts every entry's key, value and a fixed overhead, and always holds: room is made before an entry is
//! inserted. All operations are O(1). Entries lie in shards by hash, each with its own lock; a small capacity is not
//! split, so that only large values are refused.

use std::fmt;

use hashbrown::HashTable;

use crate::engine::options::ValueCachePolicy;
use crate::engine::report::ValueCacheStats;
use crate::engine::state::eviction::{Lru, Slot};
use crate::sync::Mutex;

/// Bytes an entry is counted for beyond its key and value: slot, links, hash table share, allocator headers.
pub(crate) const ENTRY_OVERHEAD_BYTES: usize = 128;
/// Smallest size of a shard, if there are several.
const SHARD_BYTES: usize = 16 << 20;
const MOST_SHARDS: usize = 16;

/// The memory that a value takes.
pub(crate) trait Weigh {
    /// Bytes beyond the value's own fixed size (what it points to). It must not change while the value is cached.
    fn weight_bytes(&self) -> usize;
}

struct Entry<V> {
    hash: u64,
    key: Box<[u8]>,
    value: V,
    weight_bytes: usize,
}

struct Shard<V> {
    capacity_bytes: usize,
    weight_bytes: usize,
    /// Hashes, and where their entries lie.
    table: HashTable<(u64, Slot)>,
    slots: Vec<Option<Entry<V>>>,
    free: Vec<Slot>,
    /// `None`: nothing is evicted.
    lru: Option<Lru>,
    /// The counters alone.
    stats: ValueCacheStats,
}

fn entry_at<V>(slots: &[Option<Entry<V>>], slot: Slot) -> Option<&Entry<V>> {
    slots.get(slot as usize)?.as_ref()
}

impl<V: Clone> Shard<V> {
    fn new(capacity_bytes: usize, policy: ValueCachePolicy) -> Self {
        Self {
            capacity_bytes,
            weight_bytes: 0,
            table: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            lru: (policy == ValueCachePolicy::Lru).then(Lru::default),
            stats: ValueCacheStats::default(),
        }
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<Slot> {
        let has_key = |slot: Slot| entry_at(&self.slots, slot).is_some_and(|entry| *entry.key == *key);
        self.table.find(hash, |(other, slot)| *other == hash && has_key(*slot)).map(|(_, slot)| *slot)
    }

    fn get(&mut self, hash: u64, key: &[u8]) -> Option<V> {
        let slot = self.find(hash, key);
        let value = slot.and_then(|slot| entry_at(&self.slots, slot)).map(|entry| entry.value.clone());
        match slot {
            Some(slot) => {
                self.stats.hits += 1;
                self.lru.iter_mut().for_each(|lru| lru.hit(slot));
            }
            None => self.stats.misses += 1,
        }
        value
    }

    fn insert(&mut self, hash: u64, key: &[u8], value: V, weight_bytes: usize) -> bool {
        if let Some(former) = self.find(hash, key) {
            self.take(former);
        }
        if weight_bytes > self.capacity_bytes {
            self.stats.refused += 1;
            return false;
        }
        while self.capacity_bytes - self.weight_bytes < weight_bytes {
            let Some(victim) = self.lru.as_ref().and_then(Lru::victim).and_then(|victim| self.take(victim)) else {
                self.stats.refused += 1;
                return false;
            };
            drop(victim);
            self.stats.evictions += 1;
        }
        self.put(Entry { hash, key: key.into(), value, weight_bytes })
    }

    fn put(&mut self, entry: Entry<V>) -> bool {
        let (hash, weight_bytes) = (entry.hash, entry.weight_bytes);
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let Ok(slot) = Slot::try_from(self.slots.len()) else {
                    self.stats.refused += 1;
                    return false;
                };
                self.slots.push(None);
                slot
            }
        };
        let Some(place) = self.slots.get_mut(slot as usize) else {
            debug_assert!(false, "free slot {slot} of {} slots", self.slots.len());
            self.stats.refused += 1;
            return false;
        };
        debug_assert!(place.is_none(), "slot {slot} is free and has an entry");
        *place = Some(entry);
        self.table.insert_unique(hash, (hash, slot), |(hash, _)| *hash);
        self.weight_bytes += weight_bytes;
        self.lru.iter_mut().for_each(|lru| lru.inserted(slot));
        true
    }

    /// Takes the entry out of `slot`.
    fn take(&mut self, slot: Slot) -> Option<Entry<V>> {
        let entry = self.slots.get_mut(slot as usize)?.take()?;
        let found = self.table.find_entry(entry.hash, |(_, other)| *other == slot).map(|found| found.remove());
        debug_assert!(found.is_ok(), "the entry in slot {slot} is in no table");
        self.weight_bytes -= entry.weight_bytes;
        self.free.push(slot);
        self.lru.iter_mut().for_each(|lru| lru.removed(slot));
        Some(entry)
    }

    fn clear(&mut self) {
        self.table = HashTable::new();
        self.slots = Vec::new();
        self.free = Vec::new();
        self.weight_bytes = 0;
        self.lru.iter_mut().for_each(Lru::cleared);
    }
}

/// The cache. Keys are compared exactly; `hash` is the store's hash of the key.
pub(crate) struct ByteCache<V> {
    shards: Box<[Mutex<Shard<V>>]>,
}

impl<V: Clone + Weigh> ByteCache<V> {
    /// A cache of at most `capacity_bytes`; 0 holds nothing.
    pub(crate) fn new(capacity_bytes: usize, policy: ValueCachePolicy) -> Self {
        let shards = (capacity_bytes / SHARD_BYTES).clamp(1, MOST_SHARDS);
        let shards = 1 << shards.ilog2();
        Self { shards: (0..shards).map(|_| Mutex::new(Shard::new(capacity_bytes / shards, policy))).collect() }
    }

    /// By hash bits that the tables use neither for the bucket (low) nor for the tag (high).
    fn shard(&self, hash: u64) -> Option<&Mutex<Shard<V>>> {
        self.shards.get((hash >> 40) as usize & (self.shards.len() - 1))
    }

    /// A clone of the value of `key`.
    pub(crate) fn get(&self, hash: u64, key: &[u8]) -> Option<V> {
        self.shard(hash)?.lock().get(hash, key)
    }

    /// Inserts `value` under `key` and returns whether it was accepted. The former value is removed in any case: an
    /// overwritten value must not be found again. A value heavier than a shard (the whole capacity, below 32 MiB) is
    /// refused and evicts nothing.
    pub(crate) fn insert(&self, hash: u64, key: &[u8], value: V) -> bool {
        self.insert_if(hash, key, value, || true)
    }

    /// As `insert`, if `still` returns true while no other thread can change the key's value.
    pub(crate) fn insert_if(&self, hash: u64, key: &[u8], value: V, still: impl FnOnce() -> bool) -> bool {
        let weight_bytes = value.weight_bytes().saturating_add(key.len()).saturating_add(ENTRY_OVERHEAD_BYTES);
        self.shard(hash).is_some_and(|shard| {
            let mut shard = shard.lock();
            still() && shard.insert(hash, key, value, weight_bytes)
        })
    }

    /// Removes the value of `key`; returns whether there was one.
    pub(crate) fn remove(&self, hash: u64, key: &[u8]) -> bool {
        let taken = self.shard(hash).and_then(|shard| {
            let mut shard = shard.lock();
            shard.find(hash, key).and_then(|slot| shard.take(slot))
        });
        taken.is_some()
    }

    /// Drops all values and frees their memory; keeps the counters.
    pub(crate) fn clear(&self) {
        self.shards.iter().for_each(|shard| shard.lock().clear());
    }

    /// Entries, bytes and counters.
    pub(crate) fn stats(&self) -> ValueCacheStats {
        let mut sum = ValueCacheStats::default();
        for shard in &self.shards {
            let shard = shard.lock();
            sum.entries += shard.table.len();
            sum.bytes += shard.weight_bytes;
            sum.hits += shard.stats.hits;
            sum.misses += shard.stats.misses;
            sum.evictions += shard.stats.evictions;
            sum.refused += shard.stats.refused;
        }
        sum
    }
}

impl<V: Clone + Weigh> fmt::Debug for ByteCache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteCache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Value {
        id: u32,
        weight_bytes: usize,
    }

    impl Weigh for Value {
        fn weight_bytes(&self) -> usize {
            self.weight_bytes
        }
    }

    fn value(id: u32, weight_bytes: usize) -> Value {
        Value { id, weight_bytes }
    }

    /// An entry of a one-byte key and `value(_, UNIT - ...)` weighs exactly this.
    const UNIT: usize = 1000;
    const UNIT_VALUE: usize = UNIT - ENTRY_OVERHEAD_BYTES - 1;

    #[test]
    fn lru_evicts_the_least_recently_used() {
        let cache = ByteCache::new(3 * UNIT, ValueCachePolicy::Lru);
        for key in 0..3_u8 {
            assert!(cache.insert(7, &[key], value(key.into(), UNIT_VALUE)), "one hash for all: keys are compared");
        }
        assert_eq!((cache.stats().entries, cache.stats().bytes), (3, 3 * UNIT));
        assert_eq!(cache.get(7, &[0]).unwrap().id, 0);
        cache.insert(7, &[3], value(3, UNIT_VALUE));
        assert!(cache.get(7, &[1]).is_none() && cache.get(8, &[0]).is_none());
        assert!(cache.remove(7, &[0]) && !cache.remove(7, &[0]));
        assert_eq!(
            cache.stats(),
            ValueCacheStats { entries: 2, bytes: 2 * UNIT, hits: 1, misses: 2, evictions: 1, refused: 0 }
        );
        cache.clear();
        assert_eq!((cache.stats().entries, cache.stats().bytes), (0, 0));
        assert!(cache.insert(7, &[3], value(3, 3 * UNIT - ENTRY_OVERHEAD_BYTES - 1)), "exactly fits");
    }

    #[test]
    fn too_large_evicts_nothing_but_what_it_overwrites() {
        for policy in [ValueCachePolicy::Lru, ValueCachePolicy::StopWhenFull] {
            let cache = ByteCache::new(2 * UNIT, policy);
            cache.insert(1, b"a", value(1, UNIT_VALUE));
            cache.insert(2, b"b", value(2, UNIT_VALUE));
            assert!(!cache.insert(3, b"c", value(3, 2 * UNIT)));
            assert!(!cache.insert(3, b"c", value(3, usize::MAX)));
            assert_eq!(cache.stats().entries, 2);
            assert!(!cache.insert(1, b"a", value(9, 2 * UNIT)));
            assert!(cache.get(1, b"a").is_none() && cache.get(2, b"b").is_some());
            assert_eq!((cache.stats().refused, cache.stats().evictions), (3, 0));
        }
    }

    #[test]
    fn stop_when_full_keeps_what_it_has() {
        let cache = ByteCache::new(2 * UNIT, ValueCachePolicy::StopWhenFull);
        for key in 0..4_u8 {
            assert_eq!(cache.insert(key.into(), &[key], value(0, UNIT_VALUE)), key < 2);
        }
        assert!(cache.insert(0, &[0], value(5, UNIT_VALUE)), "replaces");
        assert_eq!(cache.get(0, &[0]).unwrap().id, 5);
        assert!(cache.remove(1, &[1]) && cache.insert(2, &[2], value(2, UNIT_VALUE)));
    }

    #[test]
    fn small_capacities_are_not_split() {
        let shards = |capacity| ByteCache::<Value>::new(capacity, ValueCachePolicy::Lru).shards.len();
        let counts = [0, 1 << 20, 31 << 20, 32 << 20, 100 << 20, 1 << 40].map(shards);
        assert_eq!(counts, [1, 1, 1, 2, 4, 16]);
        assert!(!ByteCache::new(0, ValueCachePolicy::Lru).insert(1, b"a", value(1, 0)));
    }

    #[test]
    fn threads_share_it() {
        let cache = ByteCache::new(64 << 20, ValueCachePolicy::Lru);
        std::thread::scope(|scope| {
            for thread in 0..4_u32 {
                let cache = &cache;
                scope.spawn(move || {
                    for i in 0..2000_u32 {
                        let key = (i * 4 + thread).to_le_bytes();
                        let hash = u64::from(i).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                        cache.insert(hash, &key, value(i, 100_000));
                        assert_eq!(cache.get(hash, &key).map(|v| v.id).unwrap_or(i), i);
                        assert!(cache.stats().bytes <= 64 << 20);
                    }
                });
            }
        });
        assert!(cache.stats().evictions > 0);
    }

    /// Least recently used first.
    #[derive(Default)]
    struct Model(Vec<(u8, Value)>);

    impl Model {
        fn weight_bytes(&self) -> usize {
            self.0.iter().map(|(_, value)| value.weight_bytes + 1 + ENTRY_OVERHEAD_BYTES).sum()
        }

        fn remove(&mut self, key: u8) -> Option<Value> {
            let at = self.0.iter().position(|(other, _)| *other == key)?;
            Some(self.0.remove(at).1)
        }

        fn insert(&mut self, key: u8, value: Value, capacity: usize, policy: ValueCachePolicy) {
            self.remove(key);
            let weight = value.weight_bytes + 1 + ENTRY_OVERHEAD_BYTES;
            if weight > capacity
                || (policy == ValueCachePolicy::StopWhenFull && self.weight_bytes() + weight > capacity)
            {
                return;
            }
            while self.weight_bytes() + weight > capacity {
                self.0.remove(0);
            }
            self.0.push((key, value));
        }
    }

    proptest! {
        #[test]
        fn behaves_as_the_model(
            operations in prop::collection::vec((0_u8..20, 0_u8..24, 0_usize..3000), 1..400),
            capacity in 0_usize..12_000,
            hash_bits in 0_u32..6,
            stop in any::<bool>(),
        ) {
            let policy = if stop { ValueCachePolicy::StopWhenFull } else { ValueCachePolicy::Lru };
            let (cache, mut model) = (ByteCache::new(capacity, policy), Model::default());
            for (id, (operation, key, weight)) in operations.into_iter().enumerate() {
                // A hash of few bits causes collisions.
                let hash = u64::from(key) & ((1 << hash_bits) - 1);
                match operation {
                    0..8 => {
                        let value = value(id as u32, weight);
                        model.insert(key, value.clone(), capacity, policy);
                        cache.insert(hash, &[key], value);
                    }
                    8..16 => {
                        let expected = model.remove(key).inspect(|value| model.0.push((key, value.clone())));
                        prop_assert_eq!(cache.get(hash, &[key]), expected);
                    }
                    16..19 => prop_assert_eq!(cache.remove(hash, &[key]), model.remove(key).is_some()),
                    _ if weight < 100 => {
                        cache.clear();
                        model.0.clear();
                    }
                    _ => {}
                }
                prop_assert_eq!((cache.stats().entries, cache.stats().bytes), (model.0.len(), model.weight_bytes()));
                prop_assert!(cache.stats().bytes <= capacity);
            }
        }
    }
}
