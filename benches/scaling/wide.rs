//! A working set of wide rows in the same store. Their number is the same at every size, so that only the index grows.
//! Small rows show the cost of the index; wide rows show its share where copying dominates.

use std::fs::File;

use memmap2::Mmap;
use tensorcask::Store;

use crate::data::{make_keys_and_rows, mix, raw_gather};
use crate::{Fallible, GATHER, MODULE, Settings};

/// Bytes per wide row.
pub(crate) const WIDE_BYTES: usize = 3072;
/// The first counter of wide rows: above those of small rows, below those that are never put.
const FIRST: u64 = 1 << 61;
const PUT: u64 = 256;

/// The wide rows: in the store, and in a plain file for the raw control.
pub(crate) struct Wide {
    control: Mmap,
    rows: u64,
}

impl Wide {
    /// Puts the rows into the store, before all others, and writes them to the control.
    pub(crate) fn new(settings: &Settings) -> Fallible<Self> {
        let store = Store::open(&settings.dir, MODULE)?;
        let path = settings.dir.join("wide.bin");
        let mut file = File::create(&path)?;
        let (mut keys, mut rows) = (Vec::new(), Vec::new());
        for start in (0..settings.wide_rows).step_by(PUT as usize) {
            let counters = FIRST + start..FIRST + settings.wide_rows.min(start + PUT);
            make_keys_and_rows(counters, WIDE_BYTES, &mut keys, &mut rows);
            store.put_rows(&keys, &[WIDE_BYTES], &rows)?;
            std::io::Write::write_all(&mut file, &rows)?;
        }
        store.close()?;
        file.sync_data()?;
        Ok(Self { control: crate::large::map(&path)?, rows: settings.wide_rows })
    }

    /// The number of rows.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of the store's first segments that hold them. This is more than the rows themselves.
    pub(crate) fn store_bytes(&self) -> u64 {
        self.rows * (WIDE_BYTES as u64 + 64)
    }

    /// Touches all pages of the control.
    pub(crate) fn touch(&self) {
        std::hint::black_box(self.control.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>());
    }

    /// The keys of rows `numbers`.
    pub(crate) fn keys(numbers: &[u64], keys: &mut Vec<u64>) {
        keys.clear();
        keys.extend(numbers.iter().map(|number| mix(FIRST + number)));
    }

    /// Copies rows by number from the control.
    pub(crate) fn gather(&self, numbers: &[u64], out: &mut [u8]) {
        raw_gather(&self.control, numbers, WIDE_BYTES, out);
    }

    /// Fails unless `out` has the rows `numbers`.
    pub(crate) fn check(&self, numbers: &[u64], out: &[u8]) -> Fallible {
        for (number, row) in numbers.iter().zip(out.chunks_exact(WIDE_BYTES)) {
            let start = *number as usize * WIDE_BYTES;
            if self.control.get(start..start + WIDE_BYTES) != Some(row) {
                return Err(format!("wide row {number} is not the one that was put").into());
            }
        }
        Ok(())
    }

    /// A buffer for a batch.
    pub(crate) fn buffer() -> Vec<u8> {
        vec![0; GATHER * WIDE_BYTES]
    }
}
