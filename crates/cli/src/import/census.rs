//! Counts keys: how many are distinct, and how many the store does not have.

use tensorcask::{Key, Store};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::failure::Failure;

/// The most hashes in memory at a time: 8 MiB.
const MOST_HASHES: u64 = 1 << 20;

/// Calls its argument with all keys once, in batches.
pub(crate) type EachKey<'a> = dyn Fn(&mut dyn FnMut(Vec<Key>) -> Result<(), Failure>) -> Result<(), Failure> + 'a;

/// The number of distinct keys among `rows` keys, by a 64-bit hash. Many keys are read in several passes, each over a
/// part of the hashes, so that memory stays bounded.
pub(crate) fn distinct(rows: u64, each: &EachKey<'_>) -> Result<u64, Failure> {
    // A random seed: keys cannot be chosen to collide.
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

/// The number of distinct keys among `keys` that the store does not have.
pub(crate) fn absent(store: &Store, keys: &[Key]) -> Result<u64, Failure> {
    let found = store.contains_batch(keys)?;
    let mut new = std::collections::HashSet::new();
    let absent = keys.iter().zip(found).filter(|(key, found)| !found && new.insert(*key));
    Ok(absent.count() as u64)
}
