//! Keys of a segment in order, as a finite-state transducer ([`fst`](https://docs.rs/fst)) from key bytes to row.

use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use bytes::Bytes;
use fst::{IntoStreamer, Map, MapBuilder, Streamer};

use crate::error::{Error, Result};
use crate::prefetch::prefetch_lines;

/// How many keys ahead are prefetched: keys in order may lie anywhere in memory.
const PREFETCHED: usize = 16;

/// Builds the block from keys in ascending order, each once. O(bytes of keys).
///
/// # Errors
/// [`Error::Invalid`] if keys are out of order.
pub(crate) fn build<K: AsRef<[u8]>>(keys: &[(K, u32)]) -> Result<Vec<u8>> {
    let failed = |error: fst::Error| Error::invalid(format!("the block of ordered keys: {error}"));
    let mut builder = MapBuilder::memory();
    for (at, (key, row)) in keys.iter().enumerate() {
        if let Some((ahead, _)) = keys.get(at + PREFETCHED) {
            prefetch_lines(ahead.as_ref(), 1);
        }
        builder.insert(key, u64::from(*row)).map_err(failed)?;
    }
    builder.into_inner().map_err(failed)
}

/// Called with each key and its row; returns whether to continue.
pub(crate) type KeyVisitor<'a> = dyn FnMut(&[u8], u32) -> Result<ControlFlow<()>> + 'a;

/// A block of ordered keys.
#[derive(Debug)]
pub(crate) struct KeysFst {
    map: Map<Bytes>,
    path: PathBuf,
    offset: u64,
    /// Rows of the segment, which bound the keys of a valid block.
    rows: u32,
}

impl KeysFst {
    /// The block `bytes` at `offset` of `path`. The caller has compared its checksum; the segment has `rows` rows.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is not a transducer.
    pub(crate) fn open(path: PathBuf, offset: u64, bytes: Bytes, rows: u32) -> Result<Self> {
        match guarded(|| Map::new(bytes)) {
            Some(Ok(map)) => Ok(Self { map, path, offset, rows }),
            Some(Err(error)) => Err(Error::corrupt(path, offset, format!("the block of ordered keys: {error}"))),
            None => Err(Error::corrupt(path, offset, "the block of ordered keys is malformed")),
        }
    }

    /// Calls `found` with the keys within bounds, in order, until it breaks. O(keys found).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the block is malformed, and what `found` returns.
    pub(crate) fn range(&self, lower: Bound<&[u8]>, upper: Bound<&[u8]>, found: &mut KeyVisitor<'_>) -> Result<()> {
        let walked = guarded(|| {
            let range = match lower {
                Bound::Included(key) => self.map.range().ge(key),
                Bound::Excluded(key) => self.map.range().gt(key),
                Bound::Unbounded => self.map.range(),
            };
            let range = match upper {
                Bound::Included(key) => range.le(key),
                Bound::Excluded(key) => range.lt(key),
                Bound::Unbounded => range,
            };
            let mut stream = range.into_stream();
            let mut left = self.rows;
            while let Some((key, row)) = stream.next() {
                let row = u32::try_from(row)
                    .ok()
                    .filter(|row| *row < self.rows)
                    .ok_or_else(|| Error::corrupt(&self.path, self.offset, format!("row {row} is out of range")))?;
                left = left.checked_sub(1).ok_or_else(|| {
                    let what = format!("the ordered keys are more than the {} rows of the segment", self.rows);
                    Error::corrupt(&self.path, self.offset, what)
                })?;
                if found(key, row)?.is_break() {
                    break;
                }
            }
            Ok(())
        });
        walked.unwrap_or_else(|| Err(Error::corrupt(&self.path, self.offset, "the block of ordered keys is malformed")))
    }
}

/// Runs `walk` and turns a panic of the fst crate into `None`. The crate indexes by the bytes that it reads, so it
/// panics on bytes that have a matching checksum but are not a transducer.
fn guarded<T>(walk: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(walk)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_in_order() {
        let bytes = build(&[("a", 3), ("ab", 1), ("b", 2)]).unwrap();
        let fst = KeysFst::open("x".into(), 0, bytes.into(), 4).unwrap();
        let mut keys = Vec::new();
        fst.range(Bound::Included(b"ab"), Bound::Unbounded, &mut |key, row| {
            keys.push((key.to_vec(), row));
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        assert_eq!(keys, [(b"ab".to_vec(), 1), (b"b".to_vec(), 2)]);
        assert!(build(&[("b", 1), ("a", 2)]).is_err());
    }

    #[test]
    fn garbage_is_an_error() {
        let good = build(&(0..100_u32).map(|row| (format!("key-{row:05}"), row)).collect::<Vec<_>>()).unwrap();
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 0xFF;
            if let Ok(fst) = KeysFst::open("x".into(), 0, bad.into(), 100) {
                let mut steps = 0;
                let _ = fst.range(Bound::Unbounded, Bound::Unbounded, &mut |_, _| {
                    steps += 1;
                    Ok(if steps > 1000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                });
            }
        }
    }
}
