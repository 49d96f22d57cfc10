//! The limits: the speed of the machine without a lookup of keys.

use std::fs::File;
use std::io::Write;

use memmap2::Mmap;

use crate::Fallible;
use crate::engine::{Engine, Opening, Order};
use crate::rows;

/// Rows one after another in a file. Their offsets are known in advance.
pub struct Raw {
    file: File,
    map: Option<Mmap>,
    /// The position of each row in the file, by its number.
    places: Vec<u32>,
    asked: Vec<usize>,
    rows: usize,
    order: Order,
    row_bytes: usize,
    durable: bool,
}

impl Raw {
    /// Creates the file, or maps it.
    ///
    /// # Errors
    /// IO errors.
    pub fn open(opening: &Opening, create: bool) -> Fallible<Self> {
        let path = opening.dir.join("rows.bin");
        let file = if create { File::create_new(path)? } else { File::open(path)? };
        // SAFETY: the benchmark owns the file, and nothing changes it after the load.
        let map = if create { None } else { Some(unsafe { Mmap::map(&file)? }) };
        Ok(Self {
            file,
            map,
            places: Vec::new(),
            asked: Vec::new(),
            rows: opening.rows,
            order: opening.order,
            row_bytes: opening.row_bytes,
            durable: opening.durable,
        })
    }

    /// Computes the positions of rows on first use. This is not part of opening, as a caller of the control is assumed
    /// to know them.
    fn learn(&mut self) {
        let order = rows::load_order(self.rows, self.order);
        self.places = vec![0; order.len()];
        for (place, number) in order.iter().enumerate() {
            if let Some(entry) = self.places.get_mut(*number as usize) {
                *entry = place as u32;
            }
        }
    }
}

/// Prefetches the first cache lines of a row; the processor's own prefetcher continues.
fn prefetch(map: &[u8], start: usize, row_bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..row_bytes.div_ceil(64).min(8) {
        if let Some(byte) = map.get(start + line * 64) {
            // SAFETY: a prefetch has no architectural effect and cannot fault.
            unsafe {
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(byte).cast());
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (map, start, row_bytes);
}

impl Engine for Raw {
    fn load(&mut self, _keys: &[u64], rows: &[u8]) -> Fallible {
        self.file.write_all(rows)?;
        if self.durable {
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn place(&mut self, keys: &[u64]) -> Fallible {
        if self.places.is_empty() {
            self.learn();
        }
        self.asked.clear();
        for key in keys {
            let number = usize::try_from(key / 2)?;
            let place = self.places.get(number).ok_or("the control has no place for a key")?;
            self.asked.push(*place as usize * self.row_bytes);
        }
        Ok(())
    }

    fn get_batch(&mut self, keys: &[u64], out: &mut [u8]) -> Fallible<usize> {
        let map = self.map.as_deref().ok_or("opened for loading")?;
        for (position, (start, place)) in self.asked.iter().zip(out.chunks_exact_mut(self.row_bytes)).enumerate() {
            if let Some(next) = self.asked.get(position + 1) {
                prefetch(map, *next, self.row_bytes);
            }
            let row = map.get(*start..start + self.row_bytes).ok_or("the file is too short")?;
            place.copy_from_slice(row);
        }
        Ok(keys.len())
    }

    fn close(self: Box<Self>) -> Fallible {
        if self.map.is_none() {
            self.file.sync_all()?;
        }
        Ok(())
    }
}
