//! Reads an epoch from disk in its order: from a store whose rows lie in the order in which they were put (the control),
//! and from a copy of it that was sorted by the order of the epoch. Both are read in turn, each by a fresh handle after
//! its files were dropped from the page cache.
//!
//! `cargo bench --bench order -- [--rows 1000000] [--row-bytes 3072] [--rounds 9] [--dir DIR]`
//!
//! The folder has to be on a disk, as nothing can be dropped in a `tmpfs`, and needs space for the rows four times.

#[path = "support/pair.rs"]
mod pair;
#[path = "support/random.rs"]
mod random;

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use pair::{Fallible, Settings, load, settings};
use random::Random;
use tensorcask::{Backup, Compaction, Dtype, Key, Options, Order, Reader};

/// Keys of a batch, and batches of a round.
const BATCH: usize = 256;
const BATCHES: usize = 40;

fn drop_from_memory(store: &Path) -> Fallible {
    for folder in ["segments", "runs"] {
        for entry in std::fs::read_dir(store.join(folder))? {
            let file = File::open(entry?.path())?;
            #[cfg(target_os = "linux")]
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            drop(file);
        }
    }
    Ok(())
}

/// Reads consecutive batches of the epoch from batch `first` on. Returns rows per second.
fn read(settings: &Settings, module: &str, epoch: &[u64], first: usize) -> Fallible<f64> {
    drop_from_memory(&settings.dir.join(module))?;
    let reader = Reader::open(&settings.dir, module)?;
    let (mut out, mut found) = (vec![0_u8; BATCH * settings.row_bytes], [false; BATCH]);
    let (start, mut rows) = (Instant::now(), 0);
    for keys in epoch.chunks_exact(BATCH).skip(first).take(BATCHES) {
        rows += reader.get_batch_into_bytes(keys, Dtype::U8, &[settings.row_bytes], &mut out, &mut found)?;
    }
    Ok(rows as f64 / start.elapsed().as_secs_f64())
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Fallible {
    let settings = settings("tensorcask-bench-order", 9)?;
    std::fs::create_dir_all(&settings.dir)?;
    load(&settings)?;
    std::fs::remove_file(settings.dir.join("raw.bin"))?;
    let mut epoch: Vec<u64> = (0..settings.rows as u64).collect();
    let mut random = Random(7);
    for at in (1..epoch.len()).rev() {
        epoch.swap(at, random.below(at as u64 + 1) as usize);
    }
    let store = Options::new().open(&settings.dir, "bench")?;
    store.backup_with(settings.dir.join("sorted"), &Backup::new().link(false), &mut |_, _| {})?;
    store.close()?;
    let store = Options::new().open(&settings.dir, "sorted")?;
    let start = Instant::now();
    let order = Order::Given(epoch.iter().map(|key| Key::U64(*key)).collect());
    let report = store.compact(&Compaction::new().sort(order))?;
    store.close()?;
    println!("{} rows sorted in {:.1} s", report.rows_sorted, start.elapsed().as_secs_f64());
    let (mut as_put, mut sorted) = (Vec::new(), Vec::new());
    for round in 0..settings.rounds {
        let first = round * BATCHES % (epoch.len() / BATCH).max(1);
        as_put.push(read(&settings, "bench", &epoch, first)?);
        sorted.push(read(&settings, "sorted", &epoch, first)?);
    }
    let ratios = as_put.iter().zip(&sorted).map(|(as_put, sorted)| sorted / as_put).collect();
    println!("in the order in which they were put: {:.0} rows a second", median(as_put));
    println!("in the order of the epoch:           {:.0} rows a second, {:.2} x", median(sorted), median(ratios));
    std::fs::remove_dir_all(&settings.dir)?;
    Ok(())
}
