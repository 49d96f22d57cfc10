//! Counts keys: how many are distinct, and how many a store has already.

use tensorcask::{Key, Store};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::failure::Failure;

/// Hashes that are held at a time: 8 MiB.
const MOST_HASHES: u64 = 1 << 20;

/// Calls its argument with all keys, some at a time, once.
pub(crate) type EachKey<'a> = dyn Fn(&mut dyn FnMut(Vec<Key>) -> Result<(), Failure>) -> Result<(), Failure> + 'a;

/// How many of `rows` keys are distinct, by a hash of 64 bits. Reads them several times where they are many, to hold a
/// part of the hashes at a time only.
pub(crate) fn distinct(rows: u64, each: &EachKey<'_>) -> Result<u64, Failure> {
    // Nobody can choose keys that have one hash.
    let seed = uuid::Uuid::new_v4().as_u64_pair().0;
    let passes = rows.div_ceil(MOST_HASHES).max(1);
    let mut distinct = 0;
    for pass in 0..passes {
        let mut hashes = Vec::with_capacity(usize::try_from(rows / passes + rows / passes / 16).unwrap_or_default());
        each(&mut |keys| {
            let found = keys.iter().map(|key| match key {
                Key::Str(text) => xxh3_64_with_seed(text.as_bytes(), seed),
                Key::U64(number) => xxh3_64_with_seed(&number.to_le_bytes(), seed),
                Key::Bytes(bytes) => xxh3_64_with_seed(bytes, seed),
            });
            hashes.extend(found.filter(|hash| hash % passes == pass));
            Ok(())
        })?;
        hashes.sort_unstable();
        hashes.dedup();
        distinct += hashes.len() as u64;
    }
    Ok(distinct)
}

/// How many of the distinct `keys`, in the order in which they are put, the store does not have.
pub(crate) fn absent(store: &Store, keys: &[Key]) -> Result<u64, Failure> {
    let found = store.contains_batch(keys)?;
    let mut new = std::collections::HashSet::new();
    let absent = keys.iter().zip(found).filter(|(key, found)| !found && new.insert(*key));
    Ok(absent.count() as u64)
}
