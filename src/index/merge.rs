//! Merging sorted hash blocks, and deciding which runs to merge.

use super::block::HashBlock;
use super::sort::sort_by_hash;
use crate::error::Result;

/// Entries that are merged at a time: few enough for the cache.
const CHUNK_ENTRIES: u64 = 1 << 15;
/// Fewest entries of each block in a chunk: enough for sequential reads.
const ENTRIES_A_BLOCK: u64 = 1 << 7;

/// A hash and a run row.
pub(crate) type HashRow = (u64, u64);

/// Calls `emit` with the (hash, run row) pairs of all blocks, many at a time, in ascending order of hash. Each block
/// comes with the run row of its first row. Rows that share a hash first go through `resolve`, which selects the
/// survivors.
///
/// Hashes are uniform, so equal ranges of them hold about as many entries. One range at a time is copied out of all
/// blocks and sorted; unlike a heap, this does not slow down with the number of blocks. O(n), sequential.
pub(crate) fn merge_blocks(
    inputs: &[(HashBlock, u64)],
    resolve: &mut dyn FnMut(&mut Vec<u64>) -> Result<()>,
    emit: &mut dyn FnMut(&[HashRow]) -> Result<()>,
) -> Result<()> {
    let total: u64 = inputs.iter().map(|(block, _)| block.len() as u64).sum();
    let chunks = total.div_ceil(CHUNK_ENTRIES.max(inputs.len() as u64 * ENTRIES_A_BLOCK)).max(1);
    let mut positions = vec![0_usize; inputs.len()];
    let mut entries: Vec<HashRow> = Vec::new();
    let mut sorted: Vec<HashRow> = Vec::new();
    for chunk in 1..=chunks {
        // The first hash of the next range; the last range has no end.
        let bound = (chunk < chunks).then(|| ((u128::from(chunk) << 64) / u128::from(chunks)) as u64);
        entries.clear();
        for ((block, start), position) in inputs.iter().zip(&mut positions) {
            let end = bound.map_or(block.len(), |bound| block.end_below(*position, bound));
            entries.extend(block.range(*position, end).map(|(hash, row)| (hash, start + u64::from(row))));
            *position = end;
        }
        // A single block is in order.
        if inputs.len() == 1 {
            std::mem::swap(&mut entries, &mut sorted);
        } else {
            sort_by_hash(entries.iter().copied(), &mut sorted);
        }
        if !sorted.is_sorted_by(|a, b| a.0 != b.0) {
            resolve_shared(&sorted, &mut entries, resolve)?;
            emit(&entries)?;
        } else {
            emit(&sorted)?;
        }
    }
    Ok(())
}

/// Copies `entries` to `kept`, except those that do not survive `resolve`.
fn resolve_shared(
    entries: &[HashRow],
    kept: &mut Vec<HashRow>,
    resolve: &mut dyn FnMut(&mut Vec<u64>) -> Result<()>,
) -> Result<()> {
    kept.clear();
    let mut sharing: Vec<u64> = Vec::new();
    for group in entries.chunk_by(|a, b| a.0 == b.0) {
        match group {
            [(hash, _), _, ..] => {
                sharing.clear();
                sharing.extend(group.iter().map(|(_, row)| *row));
                resolve(&mut sharing)?;
                kept.extend(sharing.iter().map(|row| (*hash, *row)));
            }
            _ => kept.extend_from_slice(group),
        }
    }
    Ok(())
}

/// How large runs may grow relative to one another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// A run is left alone if it is more than this many times larger than all newer ones together.
    pub ratio: u64,
    /// Most runs that remain.
    pub max_runs: usize,
    /// Most keys of a merged run.
    pub most_keys: u64,
}

/// How many of the newest runs to merge with `fresh` keys. `runs` are sizes from new to old. Each key is rewritten
/// O(log n) times in total, since each merge moves it to a run that is larger by a factor.
pub(crate) fn plan_merge(runs: &[u64], fresh: u64, sizes: Sizes) -> usize {
    let mut size = fresh;
    let mut absorbed = 0;
    for &run in runs {
        let too_many = runs.len() - absorbed + 1 > sizes.max_runs;
        if !too_many && run > size.saturating_mul(sizes.ratio) || size.saturating_add(run) > sizes.most_keys {
            break;
        }
        size = size.saturating_add(run);
        absorbed += 1;
    }
    absorbed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::block::encode;

    #[test]
    fn merges_like_a_sort() {
        for mask in [u64::MAX, 0xFF00_0000_0000_0000, 0] {
            let mut inputs = Vec::new();
            let mut model = Vec::new();
            let mut start = 0_u64;
            for size in [0_u32, 1, 1000, 300_000] {
                let hash = |row: u32| {
                    xxhash_rust::xxh3::xxh3_64(&(start, row).0.wrapping_add(u64::from(row)).to_le_bytes()) & mask
                };
                let pairs: Vec<(u64, u32)> = (0..size).map(|row| (hash(row), row)).collect();
                model.extend(pairs.iter().map(|(hash, row)| (*hash, start + u64::from(*row))));
                inputs.push((HashBlock::parse(encode(pairs.into_iter()).into()).unwrap(), start));
                start += u64::from(size);
            }
            model.sort_unstable();
            let mut merged = Vec::new();
            merge_blocks(&inputs, &mut |_| Ok(()), &mut |entries| {
                merged.extend_from_slice(entries);
                Ok(())
            })
            .unwrap();
            assert!(merged == model);
        }
    }

    #[test]
    fn plans_keep_sizes_geometric() {
        let sizes = |ratio, max_runs, most_keys| Sizes { ratio, max_runs, most_keys };
        let even = sizes(1, 4, u64::MAX);
        assert_eq!(plan_merge(&[], 10, even), 0);
        assert_eq!(plan_merge(&[11], 10, even), 0);
        assert_eq!(plan_merge(&[10, 1000], 10, even), 1);
        assert_eq!(plan_merge(&[10, 20, 40, 81], 10, even), 3);
        assert_eq!(plan_merge(&[10, 20, 40, 81], 10, sizes(1, 4, 40)), 2);
        assert_eq!(plan_merge(&[20, 40, 80, 160], 10, even), 1);
        assert_eq!(plan_merge(&[80, 730, 8000], 10, sizes(8, 4, u64::MAX)), 1);
        for (ratio, max_runs, most_rewritten) in [(1, 6, 6), (8, 4, 16)] {
            let mut runs: Vec<u64> = Vec::new();
            let mut rewritten = 0;
            for _ in 0..1000 {
                let absorbed = plan_merge(&runs, 10, sizes(ratio, max_runs, u64::MAX));
                let size = 10 + runs.drain(..absorbed).sum::<u64>();
                rewritten += size;
                runs.insert(0, size);
                assert!(runs.len() <= max_runs);
            }
            assert!(rewritten < most_rewritten * 10_000, "{rewritten}");
        }
    }
}
