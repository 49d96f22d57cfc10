//! Reads of rows in memory by several threads: two readers of one store, one reader that splits large batches, and a
//! raw gather with as many threads.
//!
//! `cargo bench --bench parallel -- [--rows 1000000] [--row-bytes 3072] [--rounds 200] [--dir DIR]`
#[path = "support/large.rs"]
mod large;
#[path = "support/pair.rs"]
mod pair;
#[path = "support/random.rs"]
mod random;
#[path = "support/raw.rs"]
mod raw;

use std::hint::black_box;
use std::time::Instant;

use tensorcask::{Dtype, Options, Reader};

use pair::{Fallible, Settings};
use random::Random;

/// Copies rows into a buffer.
trait Gather: Sync {
    fn gather(&self, keys: &[u64], out: &mut [u8], found: &mut [bool]) -> Fallible;
}

struct Raw<'a> {
    map: &'a [u8],
    row_bytes: usize,
}

impl Gather for Raw<'_> {
    fn gather(&self, keys: &[u64], out: &mut [u8], _found: &mut [bool]) -> Fallible {
        raw::gather(self.map, keys, self.row_bytes, out);
        black_box(out);
        Ok(())
    }
}

/// The raw gather, with each batch split over two threads that are started for it.
struct Split<'a>(Raw<'a>);

impl Gather for Split<'_> {
    fn gather(&self, keys: &[u64], out: &mut [u8], _found: &mut [bool]) -> Fallible {
        let (first, second) = keys.split_at(keys.len() / 2);
        let (front, back) = out.split_at_mut(first.len() * self.0.row_bytes);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| self.0.gather(second, back, &mut []));
            self.0.gather(first, front, &mut [])?;
            other.join().map_err(|_| "a thread panicked")?
        })
    }
}

struct Ours {
    reader: Reader,
    row_bytes: usize,
}

impl Gather for Ours {
    fn gather(&self, keys: &[u64], out: &mut [u8], found: &mut [bool]) -> Fallible {
        let hits = self.reader.get_batch_into_bytes(keys, Dtype::U8, &[self.row_bytes], out, found)?;
        if hits == keys.len() { Ok(()) } else { Err("a row is missing".into()) }
    }
}

/// Rows per second of `threads` threads that gather batches of `batch` rows, each its own.
fn rate(gather: &dyn Gather, settings: &Settings, threads: usize, batch: usize, seed: u64) -> Fallible<f64> {
    let rounds = (settings.rounds * 256 / batch).max(4);
    let work = |thread: u64| -> Fallible<f64> {
        let mut random = Random(seed << 8 | thread);
        let (mut out, mut found) = (vec![1_u8; batch * settings.row_bytes], vec![true; batch]);
        let batches: Vec<Vec<u64>> =
            (0..rounds).map(|_| (0..batch).map(|_| random.below(settings.rows as u64)).collect()).collect();
        if let Some(first) = batches.first() {
            gather.gather(first, &mut out, &mut found)?;
        }
        let begin = Instant::now();
        for keys in &batches {
            gather.gather(keys, &mut out, &mut found)?;
        }
        Ok((rounds * batch) as f64 / begin.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads as u64).map(|thread| scope.spawn(move || work(thread))).collect();
        handles.into_iter().map(|handle| handle.join().map_err(|_| "a thread panicked")?).sum()
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Fallible {
    let settings = pair::settings("tensorcask-bench-parallel", 200)?;
    let _ = std::fs::remove_dir_all(&settings.dir);
    std::fs::create_dir_all(&settings.dir)?;
    pair::load(&settings)?;
    let map = large::map(&settings.dir.join("raw.bin"))?;
    let row_bytes = settings.row_bytes;
    let ours = |threads| -> Fallible<Ours> {
        Ok(Ours { reader: Options::new().read_threads(threads).open_reader(&settings.dir, "bench")?, row_bytes })
    };
    let (one, split) = (ours(1)?, ours(2)?);
    let (raw, raw_split) = (Raw { map: &map, row_bytes }, Split(Raw { map: &map, row_bytes }));
    one.reader.preload(u64::MAX)?;
    // All pages are mapped and all first reads verified before measuring.
    let all: Vec<u64> = (0..settings.rows as u64).collect();
    for keys in all.chunks(2048) {
        let (mut out, mut found) = (vec![0; keys.len() * row_bytes], vec![false; keys.len()]);
        for gather in [&one as &dyn Gather, &split, &raw] {
            gather.gather(keys, &mut out, &mut found)?;
        }
    }
    println!("{} rows of {row_bytes} B; million rows a second, medians of 7 turns\n", settings.rows);
    let cases: [(&str, &dyn Gather, usize, usize); 10] = [
        ("raw gather, batches of 256, one thread", &raw, 1, 256),
        ("  two threads", &raw, 2, 256),
        ("get_batch_into, batches of 256, one thread", &one, 1, 256),
        ("  two threads", &one, 2, 256),
        ("raw gather, batches of 4,096, one thread", &raw, 1, 4096),
        ("  each batch split over two threads", &raw_split, 1, 4096),
        ("get_batch_into, batches of 4,096, one thread", &one, 1, 4096),
        ("  each batch split over two threads", &split, 1, 4096),
        ("get_batch_into, batches of 16,384, one thread", &one, 1, 16_384),
        ("  each batch split over two threads", &split, 1, 16_384),
    ];
    let mut rates = vec![Vec::new(); cases.len()];
    for turn in 0..7 {
        for ((_, gather, threads, batch), rates) in cases.iter().zip(&mut rates) {
            rates.push(rate(*gather, &settings, *threads, *batch, turn)?);
        }
    }
    let rates: Vec<f64> = rates.into_iter().map(median).collect();
    for (pair, rates) in cases.chunks(2).zip(rates.chunks(2)) {
        let ([one, two], [before, after]) = (pair, rates) else { continue };
        println!("{:<50} {:>7.3}", one.0, before / 1e6);
        println!("{:<50} {:>7.3}   {:.2} ×", two.0, after / 1e6, after / before);
    }
    drop((one, split));
    Ok(std::fs::remove_dir_all(&settings.dir)?)
}
