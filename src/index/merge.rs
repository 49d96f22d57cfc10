//! Bringing sorted hash blocks together, and deciding which runs to bring together.

use super::block::HashBlock;
use crate::error::Result;

/// Entries that are brought together at a time: enough to make the reads sequential, few enough for the cache.
const CHUNK_ENTRIES: u64 = 1 << 18;

/// Calls `emit` with the (hash, run row) of all blocks in ascending order of hash. Each block comes with the run row
/// of its first row. Rows that share a hash go through `resolve` first, which keeps those that survive.
///
/// Hashes are uniform, so each range of them holds about as many entries: a range at a time is copied out of all
/// blocks and sorted, which does not slow down with the number of blocks as a heap does. O(n log n), sequential.
pub(crate) fn merge_blocks(
    inputs: &[(HashBlock, u64)],
    resolve: &mut dyn FnMut(u64, &mut Vec<u64>) -> Result<()>,
    emit: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let total: u64 = inputs.iter().map(|(block, _)| block.len() as u64).sum();
    let chunks = total.div_ceil(CHUNK_ENTRIES).max(1);
    let mut positions = vec![0_usize; inputs.len()];
    let mut entries: Vec<(u64, u64)> = Vec::new();
    let mut sharing: Vec<u64> = Vec::new();
    for chunk in 1..=chunks {
        // The first hash of the next range; the last range has no end.
        let bound = (chunk < chunks).then(|| ((u128::from(chunk) << 64) / u128::from(chunks)) as u64);
        entries.clear();
        for ((block, start), position) in inputs.iter().zip(&mut positions) {
            let end = bound.map_or(block.len(), |bound| block.lower_bound(*position, bound));
            entries.extend(block.range(*position, end).map(|(hash, row)| (hash, start + u64::from(row))));
            *position = end;
        }
        entries.sort_unstable();
        for group in entries.chunk_by(|a, b| a.0 == b.0) {
            match group {
                [(hash, row)] => emit(*hash, *row)?,
                [(hash, _), ..] => {
                    sharing.clear();
                    sharing.extend(group.iter().map(|(_, row)| *row));
                    resolve(*hash, &mut sharing)?;
                    sharing.iter().try_for_each(|row| emit(*hash, *row))?;
                }
                [] => {}
            }
        }
    }
    Ok(())
}

/// How many of the newest runs the next run takes in, so that sizes stay geometric and at most `max_runs` are left.
/// `runs` are sizes from new to old. Each key is rewritten O(log n) times in all.
pub(crate) fn plan_merge(runs: &[u64], fresh: u64, ratio: u64, max_runs: usize) -> usize {
    let mut size = fresh;
    let mut absorbed = 0;
    for &run in runs {
        let too_many = runs.len() - absorbed + 1 > max_runs;
        if !too_many && run > size.saturating_mul(ratio) {
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
                let mut pairs: Vec<(u64, u32)> = (0..size).map(|row| (hash(row), row)).collect();
                model.extend(pairs.iter().map(|(hash, row)| (*hash, start + u64::from(*row))));
                inputs.push((HashBlock::parse(encode(&mut pairs).into()).unwrap(), start));
                start += u64::from(size);
            }
            model.sort_unstable();
            let mut merged = Vec::new();
            merge_blocks(&inputs, &mut |_, _| Ok(()), &mut |hash, row| {
                merged.push((hash, row));
                Ok(())
            })
            .unwrap();
            assert!(merged == model);
        }
    }

    #[test]
    fn plans_keep_sizes_geometric() {
        assert_eq!(plan_merge(&[], 10, 8, 4), 0);
        assert_eq!(plan_merge(&[1000], 10, 8, 4), 0);
        assert_eq!(plan_merge(&[70, 1000], 10, 8, 4), 1);
        assert_eq!(plan_merge(&[70, 600], 10, 8, 4), 2);
        let mut runs: Vec<u64> = Vec::new();
        for _ in 0..1000 {
            let absorbed = plan_merge(&runs, 10, 8, 4);
            let size = 10 + runs.drain(..absorbed).sum::<u64>();
            runs.insert(0, size);
            assert!(runs.len() <= 4);
        }
    }
}
