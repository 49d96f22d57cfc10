//! Sorts by hash: hashes are uniform, so a hash tells about where its pair belongs.

/// Average number of pairs in a bin: few enough for insertion sort, enough that the bins' counts stay in the cache.
const PAIRS_A_BIN: usize = 4;

/// Sorts `pairs` into `sorted`, replacing its contents: by hash, then by the other value. Each pair is put into its bin
/// of hashes, then bins are sorted. O(n) for uniform hashes, never worse than O(n log n).
pub(crate) fn sort_by_hash<T: Copy + Ord + Default>(
    pairs: impl ExactSizeIterator<Item = (u64, T)> + Clone,
    sorted: &mut Vec<(u64, T)>,
) {
    let len = pairs.len();
    let hashes = || pairs.clone().map(|(hash, _)| hash);
    let (low, high) = hashes().fold((u64::MAX, 0), |(low, high), hash| (low.min(hash), high.max(hash)));
    let bins = (len / PAIRS_A_BIN).next_power_of_two();
    sorted.clear();
    if bins <= PAIRS_A_BIN || u32::try_from(len).is_err() {
        sorted.extend(pairs);
        return sorted.sort_unstable();
    }
    // The highest bits in which hashes differ choose the bin.
    let shift = (u64::BITS - (high - low).leading_zeros()).saturating_sub(bins.ilog2());
    let bin = |hash: u64| ((hash - low) >> shift) as usize;
    let mut ends = vec![0_u32; bins];
    for hash in hashes() {
        if let Some(count) = ends.get_mut(bin(hash)) {
            *count += 1;
        }
    }
    let mut before = 0;
    for count in &mut ends {
        before += std::mem::replace(count, before);
    }
    sorted.resize(len, (0, T::default()));
    // Each bin's entry is where its next pair goes, and in the end where the bin ends.
    for pair in pairs {
        if let Some(next) = ends.get_mut(bin(pair.0))
            && let Some(place) = sorted.get_mut(*next as usize)
        {
            *place = pair;
            *next += 1;
        }
    }
    let mut start = 0;
    for end in ends {
        if let Some(bin) = sorted.get_mut(start..end as usize).filter(|bin| bin.len() > 1) {
            bin.sort_unstable();
        }
        start = end as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_as_the_standard_library_does() {
        let hash = |row: u64| xxhash_rust::xxh3::xxh3_64(&row.to_le_bytes());
        for (low, mask) in
            [(0, u64::MAX), (0, 0), (0, 0xFF), (0, 0xFF << 56), (u64::MAX - 1000, 511), (1 << 63, 1 << 20)]
        {
            for len in [0, 1, 2, 15, 16, 17, 1000, 70_000_u32] {
                let pairs: Vec<(u64, u32)> =
                    (0..len).rev().map(|row| (low + (hash(u64::from(row)) & mask), row)).collect();
                let mut expected = pairs.clone();
                expected.sort_unstable();
                let mut sorted = vec![(1, 1)];
                sort_by_hash(pairs.iter().copied(), &mut sorted);
                assert!(sorted == expected, "{len} pairs from {low:x}, mask {mask:x}");
            }
        }
    }
}
