//! Sorts keys: most comparisons are of numbers that are made of a few bytes of each key.

/// A key with the eight bytes that follow the prefix that all keys share, so that comparing them seldom reads the keys.
struct Entry<'a> {
    leading: u64,
    row: u32,
    key: &'a [u8],
}

/// Keys in ascending order, each with its newest row: `keys` has the rows in ascending order. O(n log n); O(n) if the
/// keys are in order.
pub(crate) fn newest_in_order<'a>(keys: impl Iterator<Item = (&'a [u8], u32)> + Clone) -> Vec<(&'a [u8], u32)> {
    let shared = shared_len_bytes(keys.clone().map(|(key, _)| key));
    let mut entries: Vec<Entry<'a>> =
        keys.map(|(key, row)| Entry { leading: leading(key.get(shared..).unwrap_or(&[])), row, key }).collect();
    // Equal leading bytes tell nothing: shorter keys are padded with zeros.
    entries.sort_unstable_by(|a, b| {
        a.leading.cmp(&b.leading).then_with(|| a.key.cmp(b.key)).then_with(|| a.row.cmp(&b.row))
    });
    let is_newest = |at: usize, entry: &Entry<'_>| {
        entries.get(at + 1).is_none_or(|next| next.leading != entry.leading || next.key != entry.key)
    };
    let newest = entries.iter().enumerate().filter(|(at, entry)| is_newest(*at, entry));
    newest.map(|(_, entry)| (entry.key, entry.row)).collect()
}

/// The length of the prefix that all keys share.
fn shared_len_bytes<'a>(mut keys: impl Iterator<Item = &'a [u8]>) -> usize {
    let Some(first) = keys.next() else { return 0 };
    keys.fold(first.len(), |shared, key| {
        let common = first.iter().zip(key).take(shared);
        common.take_while(|(one, other)| one == other).count()
    })
}

/// The first eight bytes as a number in the order of the bytes.
fn leading(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => {
            let mut padded = [0; 8];
            padded.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            u64::from_be_bytes(padded)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn keys_are_in_order_with_their_newest_rows() {
        let hash = |at: u32| xxhash_rust::xxh3::xxh3_64(&at.to_le_bytes());
        let prefixes: [&[u8]; 3] = [b"", b"train/", &[0xFF, 0, 0]];
        for prefix in prefixes {
            for longest in [0, 1, 2, 9, 30_u64] {
                // Few different bytes, so that keys are equal, are prefixes of others, and end with zeros.
                let key = |row: u32| {
                    let len = hash(row) % (longest + 1);
                    let bytes = (0..len as u32).map(|at| [0, 0, 1, b'a', 0xFF][(hash(row * 31 + at) % 5) as usize]);
                    [prefix, &bytes.collect::<Vec<u8>>()].concat()
                };
                let keys: Vec<Vec<u8>> = (0..2000).map(key).collect();
                let pairs = || keys.iter().map(Vec::as_slice).zip(0..);
                let expected: BTreeMap<&[u8], u32> = pairs().collect();
                assert!(newest_in_order(pairs()).into_iter().eq(expected), "{prefix:?}, {longest}");
            }
        }
        assert!(newest_in_order(std::iter::empty()).is_empty());
    }
}
