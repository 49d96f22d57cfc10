//! The gain from a second reader thread, compared to the gain for the raw gather, as memory bandwidth is shared.

use std::hint::black_box;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use tensorcask::{Dtype, Reader};

use crate::random::{Random, mix};
use crate::reads::read_all;
use crate::table::{Table, spread};
use crate::{Fallible, GATHER, MODULE, Size, raw};

/// Bytes that a thread reads per round. This takes milliseconds, so that starting the thread is negligible.
const SHARE_BYTES: usize = 32 << 20;

/// The time until all threads have gathered, each its own random rows.
fn race(
    size: &Size<'_>,
    threads: u64,
    round: u64,
    gather: &(dyn Fn(&[u64], &mut [u8]) -> Fallible + Sync),
) -> Fallible<Duration> {
    let barrier = Barrier::new(threads as usize);
    let run = |thread: u64| -> Result<Duration, String> {
        let mut random = Random(mix(round << 8 | thread));
        let mut out = vec![1_u8; GATHER * size.row_bytes];
        let mut draw = || (0..GATHER).map(|_| random.below(size.settings.rows as u64)).collect();
        let batches: Vec<Vec<u64>> = (0..SHARE_BYTES / out.len()).map(|_| draw()).collect();
        barrier.wait();
        let begin = Instant::now();
        for numbers in &batches {
            gather(numbers, &mut out).map_err(|error| error.to_string())?;
        }
        black_box(&out);
        Ok(begin.elapsed())
    };
    std::thread::scope(|scope| {
        let run = &run;
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        let mut longest = Duration::ZERO;
        for thread in running {
            longest = longest.max(thread.join().map_err(|_| "a thread panicked")??);
        }
        Ok(longest)
    })
}

/// One thread and two in turn, for the store and for the raw gather.
pub(crate) fn threads(size: &Size<'_>, path: &Path, table: &mut Table) -> Fallible {
    let reader = Reader::open(size.dir(), MODULE)?;
    read_all(size, &reader)?;
    let map = raw::map(path)?;
    black_box(map.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>());
    let ours = |numbers: &[u64], out: &mut [u8]| -> Fallible {
        let mut found = [false; GATHER];
        let hits = reader.get_batch_into_bytes(numbers, Dtype::U8, &[size.row_bytes], out, &mut found)?;
        if hits == GATHER { Ok(()) } else { Err("a row is missing".into()) }
    };
    let control = |numbers: &[u64], out: &mut [u8]| -> Fallible {
        raw::gather(&map, numbers, size.row_bytes, out);
        Ok(())
    };
    let (mut ours_gain, mut raw_gain, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..size.settings.rounds.div_ceil(2) as u64 {
        let time = |threads, turn, gather: &(dyn Fn(&[u64], &mut [u8]) -> Fallible + Sync)| {
            race(size, threads, 4 * round + turn, gather).map(|time| time.as_secs_f64())
        };
        let (one, raw_one) = (time(1, 0, &ours)?, time(1, 1, &control)?);
        let (two, raw_two) = (time(2, 2, &ours)?, time(2, 3, &control)?);
        ours_gain.push(2.0 * one / two);
        raw_gain.push(2.0 * raw_one / raw_two);
        ratios.push(two / raw_two);
    }
    table.add("two reader threads / one, rows a second", spread(&ours_gain, "×"), "≥ 1.8 ×");
    table.add("  the raw gather with two threads / one", spread(&raw_gain, "×"), "");
    table.add("  two threads / the raw gather with two", spread(&ratios, "×"), "");
    Ok(())
}
