//! Splits the work of a large batch over threads.
//!
//! One core does not use all the memory bandwidth, and a batch of thousands of rows takes long enough that starting
//! threads for it (tens of microseconds each) pays. Threads that end with the call keep no state, need no pool, and may
//! borrow the caller's buffer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;

use crate::engine::lookup::query::Query;
use crate::error::Result;

/// Smaller batches are copied before a thread for them would have started.
const SPLIT_BYTES: usize = 8 << 20;
/// Bytes of a part. There are several parts a thread, so that others can copy those of a thread that starts late.
const PART_BYTES: usize = 1 << 20;
/// Consecutive rows of a batch.
pub(crate) struct Part<'p, 'k> {
    /// Position of the first row in the batch.
    pub first: usize,
    pub queries: &'p [Query<'k>],
    /// The places of each leaf.
    pub outs: Vec<&'p mut [u8]>,
    pub found: &'p mut [bool],
}

impl<'p, 'k> Part<'p, 'k> {
    /// The number of threads that are worth their start.
    fn threads(&self, most: usize) -> usize {
        let len_bytes = self.outs.iter().map(|out| out.len()).sum::<usize>();
        if len_bytes < SPLIT_BYTES { 1 } else { most.min(len_bytes / PART_BYTES) }
    }

    /// Parts of about [`PART_BYTES`], in order. Each row has `widths` bytes.
    fn split(mut self, widths: &[usize]) -> Vec<Self> {
        let rows = (PART_BYTES / widths.iter().sum::<usize>().max(1)).max(1);
        let parts = self.queries.chunks(rows).zip(self.found.chunks_mut(rows)).enumerate();
        parts
            .map(|(number, (queries, found))| {
                let places = self.outs.iter_mut().zip(widths).map(|(out, width)| {
                    // The buffers are as long as all rows.
                    let end = queries.len().saturating_mul(*width).min(out.len());
                    let (part, rest) = std::mem::take(out).split_at_mut(end);
                    *out = rest;
                    part
                });
                Self { first: self.first + number * rows, queries, outs: places.collect(), found }
            })
            .collect()
    }
}

/// Runs `copy` over `whole`, whose rows have `widths` bytes for their leaves, on at most `threads` threads, including
/// the caller's. The results are in the order of the rows.
pub(crate) fn in_parts<T: Send>(
    threads: usize,
    widths: &[usize],
    whole: Part<'_, '_>,
    copy: impl Fn(Part<'_, '_>) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    let threads = whole.threads(threads);
    if threads <= 1 {
        return vec![copy(whole)];
    }
    let parts: Vec<_> = whole.split(widths).into_iter().map(|part| Mutex::new(Some(part))).collect();
    let answers: Vec<_> = parts.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((part, answer)) = {
            let number = next.fetch_add(1, Ordering::Relaxed);
            parts.get(number).zip(answers.get(number))
        } {
            *answer.lock() = part.lock().take().map(&copy);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // If no thread can be started, the caller's copies everything.
            let _started = thread::Builder::new().name("tensorcask-read".into()).spawn_scoped(scope, work);
        }
        work();
    });
    answers.into_iter().filter_map(Mutex::into_inner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::key::KeyRef;

    const WIDTH: usize = 1000;

    /// The bytes of the leaves of a row.
    const WIDTHS: [usize; 3] = [WIDTH - 7, 0, 7];

    /// Splits `rows` rows: each part writes its positions into its places and returns them.
    fn positions(threads: usize, rows: usize, fail_at: Option<usize>) -> (Vec<Result<Vec<usize>>>, [Vec<u8>; 3]) {
        let queries: Vec<_> = (0..rows).map(|row| Query { key: KeyRef::U64(row as u64), hash: row as u64 }).collect();
        let (mut buffers, mut found) = (WIDTHS.map(|width| vec![0; rows * width]), vec![false; rows]);
        let outs = buffers.iter_mut().map(Vec::as_mut_slice).collect();
        let whole = Part { first: 0, queries: &queries, outs, found: &mut found };
        let answers = in_parts(threads, &WIDTHS, whole, |part| {
            assert_eq!(part.found.len(), part.queries.len());
            part.found.fill(true);
            for (out, width) in part.outs.into_iter().zip(WIDTHS) {
                assert_eq!(out.len(), part.queries.len() * width);
                for (query, place) in part.queries.iter().zip(out.chunks_mut(width.max(1))) {
                    place.fill(query.hash as u8);
                }
            }
            let positions: Vec<usize> = (part.first..part.first + part.queries.len()).collect();
            match fail_at.filter(|at| positions.contains(at)) {
                Some(at) => Err(Error::invalid(at.to_string())),
                None => Ok(positions),
            }
        });
        assert!(!found.contains(&false));
        (answers, buffers)
    }

    #[test]
    fn every_row_is_copied_once_and_answers_are_in_order() {
        for (threads, rows) in [(1, 10_000), (2, 10_000), (4, 8389), (64, 5001), (4, 0), (4, 1), (0, 5000)] {
            let (answers, buffers) = positions(threads, rows, None);
            let split = threads > 1 && rows * WIDTH >= SPLIT_BYTES;
            assert_eq!(answers.len() > 1, split, "{threads} {rows}");
            let flat: Vec<usize> = answers.into_iter().flat_map(Result::unwrap).collect();
            assert!(flat.into_iter().eq(0..rows));
            for (out, width) in buffers.iter().zip(WIDTHS) {
                let mut places = out.chunks(width.max(1)).enumerate();
                assert!(places.all(|(row, place)| place.iter().all(|byte| *byte == row as u8)));
            }
        }
    }

    #[test]
    fn the_error_of_a_part_stays_its_own() {
        let (answers, _) = positions(3, 10_000, Some(7000));
        let failed: Vec<String> = answers.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
        assert!(matches!(failed.as_slice(), [one] if one.contains("7000")), "{failed:?}");
    }
}
