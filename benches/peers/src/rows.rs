//! Keys, rows and orders. All are functions of a number, so that every process can compute them.

use crate::Fallible;
use crate::engine::Order;

/// Keys per batched read.
pub const GATHER: usize = 256;

const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(value: u64) -> u64 {
    let mixed = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// A pseudo-random number generator without a dependency: splitmix64.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.number()) * bound as u128) >> 64) as usize
    }
}

/// The key of the row `number`. Keys are even, so that absent ones lie between them, and an engine cannot exclude these
/// by its smallest and largest key.
#[must_use]
pub fn key(number: usize) -> u64 {
    2 * number as u64
}

/// A key that is never loaded.
#[must_use]
pub fn absent_key(number: usize) -> u64 {
    key(number) + 1
}

/// `key` as 16 hexadecimal digits, which have the order of the numbers.
#[must_use]
pub fn text(key: u64) -> [u8; 16] {
    std::array::from_fn(|at| b"0123456789abcdef".get((key >> (60 - 4 * at)) as usize & 15).copied().unwrap_or(b'?'))
}

/// Eight bytes of the row of `key`, at index `at`.
#[must_use]
pub fn word(key: u64, at: usize) -> [u8; 8] {
    mix(mix(key.wrapping_add(STEP)).wrapping_add((at as u64).wrapping_mul(STEP))).to_le_bytes()
}

/// Writes the rows of `keys` to `out`, one after another.
pub fn fill(keys: &[u64], row_bytes: usize, out: &mut Vec<u8>) {
    out.clear();
    for key in keys {
        for at in 0..row_bytes / 8 {
            out.extend_from_slice(&word(*key, at));
        }
    }
}

/// Compares the rows with the loaded ones: every byte, or the first and last eight bytes of each row.
///
/// # Errors
/// Names the first key whose row differs.
pub fn check(keys: &[u64], row_bytes: usize, rows: &[u8], whole: bool) -> Fallible {
    let last = row_bytes / 8 - 1;
    for (key, row) in keys.iter().zip(rows.chunks_exact(row_bytes)) {
        let same = row.chunks_exact(8).enumerate().all(|(at, bytes)| {
            let asked = whole || at == 0 || at == last;
            !asked || bytes == word(*key, at)
        });
        if !same {
            return Err(format!("the row of key {key} is not what was loaded").into());
        }
    }
    Ok(())
}

/// The numbers of all rows in load order.
#[must_use]
pub fn load_order(rows: usize, order: Order) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..rows as u32).collect();
    if order == Order::Shuffled {
        let mut random = Random(1);
        for at in (1..rows).rev() {
            numbers.swap(at, random.below(at + 1));
        }
    }
    numbers
}

/// The positions of `keys` in ascending order of the keys. B-trees get a batch in this order, so that rows of one page
/// follow each other.
#[must_use]
pub fn ascending(keys: &[u64]) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..keys.len()).collect();
    if !keys.is_sorted() {
        positions.sort_unstable_by_key(|position| keys.get(*position));
    }
    positions
}

/// Keys and rows of a batch in ascending order of the keys.
pub fn ascending_rows<'a>(keys: &'a [u64], rows: &'a [u8]) -> impl Iterator<Item = (u64, &'a [u8])> {
    let row_bytes = rows.len() / keys.len().max(1);
    ascending(keys).into_iter().filter_map(move |position| {
        let row = rows.get(position * row_bytes..(position + 1) * row_bytes)?;
        Some((*keys.get(position)?, row))
    })
}

/// Rows per batch of a load: 8 MiB of rows of 128 B, or 6 MiB of rows of 3,072 B.
#[must_use]
pub fn load_batch(row_bytes: usize) -> usize {
    if row_bytes < 1024 { 65_536 } else { 2_048 }
}
