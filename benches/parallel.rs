//! Reading warm rows with several threads: two readers of one store, and one reader that splits large batches, beside a
//! raw gather with as many threads.
//!
//! `cargo bench --bench parallel -- [--rows 1000000] [--row-bytes 3072] [--rounds 200] [--dir DIR]`
#![expect(unsafe_code, reason = "the raw control reads a memory map")]
#![expect(clippy::indexing_slicing, reason = "a control that is wrong about its own rows should stop")]

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use memmap2::Mmap;
use tensorcask::{Dtype, Options, Reader};

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const BATCH: usize = 2048;

struct Settings {
    rows: usize,
    row_bytes: usize,
    rounds: usize,
    dir: PathBuf,
}

fn settings() -> Fallible<Settings> {
    let dir = std::env::temp_dir().join("tensorcask-bench-parallel");
    let mut settings = Settings { rows: 1_000_000, row_bytes: 3072, rounds: 200, dir };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rows" => settings.rows = value()?.parse()?,
            "--row-bytes" => settings.row_bytes = value()?.parse()?,
            "--rounds" => settings.rounds = value()?.parse()?,
            "--dir" => settings.dir = value()?.into(),
            "--bench" | "--test" => {}
            other => return Err(format!("{other} is no option: --rows, --row-bytes, --rounds, --dir").into()),
        }
    }
    Ok(settings)
}

/// A pseudo-random number generator that needs no crate: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn keys(&mut self, count: usize, bound: usize) -> Vec<u64> {
        (0..count).map(|_| ((u128::from(self.next()) * bound as u128) >> 64) as u64).collect()
    }
}

/// The rows in a store, and one after another in a file.
fn load(settings: &Settings) -> Fallible {
    let store = Options::new().open(&settings.dir, "bench")?;
    let mut raw = File::create(settings.dir.join("raw.bin"))?;
    let mut random = Random(1);
    let mut buffer = vec![0_u8; BATCH * settings.row_bytes];
    for start in (0..settings.rows).step_by(BATCH) {
        let keys: Vec<u64> = (start as u64..(start + BATCH).min(settings.rows) as u64).collect();
        for word in buffer.chunks_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes()[..word.len()]);
        }
        let bytes = &buffer[..keys.len() * settings.row_bytes];
        store.put_rows_bytes(&keys, Dtype::U8, &[settings.row_bytes], bytes)?;
        raw.write_all(bytes)?;
    }
    raw.sync_all()?;
    Ok(store.close()?)
}

/// Something that copies rows into a buffer.
trait Gather: Sync {
    fn gather(&self, keys: &[u64], out: &mut [u8], found: &mut [bool]) -> Fallible;
}

struct Raw<'a> {
    map: &'a [u8],
    row_bytes: usize,
}

impl Gather for Raw<'_> {
    fn gather(&self, keys: &[u64], out: &mut [u8], _found: &mut [bool]) -> Fallible {
        for (key, place) in keys.iter().zip(out.chunks_mut(self.row_bytes)) {
            place.copy_from_slice(&self.map[*key as usize * self.row_bytes..][..self.row_bytes]);
        }
        black_box(out);
        Ok(())
    }
}

/// The raw gather, each batch split over two threads that are started for it.
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

/// Rows a second of `threads` threads that gather batches of `batch` rows, each its own.
fn rate(gather: &dyn Gather, settings: &Settings, threads: usize, batch: usize, seed: u64) -> Fallible<f64> {
    let rounds = (settings.rounds * 256 / batch).max(4);
    let work = |thread: u64| -> Fallible<f64> {
        let mut random = Random(seed << 8 | thread);
        let (mut out, mut found) = (vec![1_u8; batch * settings.row_bytes], vec![true; batch]);
        let batches: Vec<Vec<u64>> = (0..rounds).map(|_| random.keys(batch, settings.rows)).collect();
        gather.gather(&batches[0], &mut out, &mut found)?;
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
    let settings = settings()?;
    let _ = std::fs::remove_dir_all(&settings.dir);
    std::fs::create_dir_all(&settings.dir)?;
    load(&settings)?;
    // SAFETY: the file is this benchmark's own, and nothing changes it.
    let map = unsafe { Mmap::map(&File::open(settings.dir.join("raw.bin"))?)? };
    let row_bytes = settings.row_bytes;
    let ours = |threads| -> Fallible<Ours> {
        Ok(Ours { reader: Options::new().read_threads(threads).open_reader(&settings.dir, "bench")?, row_bytes })
    };
    let (one, split) = (ours(1)?, ours(2)?);
    let (raw, raw_split) = (Raw { map: &map, row_bytes }, Split(Raw { map: &map, row_bytes }));
    // Pages are mapped and first reads checked before anything is measured.
    let all: Vec<u64> = (0..settings.rows as u64).collect();
    for keys in all.chunks(BATCH) {
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
