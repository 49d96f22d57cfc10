//! Loading, flushing and opening, compared with plain writes of the same bytes.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tensorcask::{Dtype, Durability, Options, Reader, Store};

use crate::random::Random;
use crate::table::{Table, percentiles};
use crate::{BATCH, Fallible, MODULE, Size};

fn fill(batch: usize, row_bytes: usize, buffer: &mut Vec<u8>) {
    let mut random = Random(batch as u64);
    buffer.clear();
    while buffer.len() < BATCH * row_bytes {
        buffer.extend_from_slice(&random.next().to_le_bytes());
    }
    buffer.truncate(BATCH * row_bytes);
}

/// Puts all rows and flushes; returns the total time.
pub(crate) fn load(store: &Store, rows: usize, row_bytes: usize) -> Fallible<Duration> {
    let mut buffer = Vec::new();
    let mut spent = Duration::ZERO;
    for (batch, start) in (0..rows).step_by(BATCH).enumerate() {
        fill(batch, row_bytes, &mut buffer);
        let keys: Vec<u64> = (start as u64..(start + BATCH).min(rows) as u64).collect();
        let begin = Instant::now();
        let bytes = buffer.get(..keys.len() * row_bytes).unwrap_or(&buffer);
        store.put_rows_bytes(&keys, Dtype::U8, &[row_bytes], bytes)?;
        spent += begin.elapsed();
    }
    let begin = Instant::now();
    store.flush()?;
    Ok(spent + begin.elapsed())
}

/// Writes all rows to a plain file; returns the time.
pub(crate) fn write_raw(path: &Path, rows: usize, row_bytes: usize) -> Fallible<Duration> {
    let mut file = File::create(path)?;
    let mut buffer = Vec::new();
    let mut spent = Duration::ZERO;
    for batch in 0..rows.div_ceil(BATCH) {
        fill(batch, row_bytes, &mut buffer);
        let begin = Instant::now();
        file.write_all(&buffer)?;
        spent += begin.elapsed();
    }
    let begin = Instant::now();
    file.sync_data()?;
    Ok(spent + begin.elapsed())
}

/// Flushes of 2,048 rows to the loaded store and writes of the same bytes to a file, in turn.
pub(crate) fn flushes(size: &Size<'_>, table: &mut Table) -> Fallible {
    let store = Options::new().flush_every(1 << 20, 1 << 30).open(size.dir(), MODULE)?;
    let mut file = File::create(size.dir().join("control.bin"))?;
    let mut buffer = Vec::new();
    for (durability, name) in [(Durability::Buffered, "write"), (Durability::SyncData, "write + fdatasync")] {
        let (mut ours, mut raw) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
        for turn in 0..30_u64 {
            fill(turn as usize, size.row_bytes, &mut buffer);
            let first = 1 << 50 | (durability as u64) << 40 | turn << 20;
            let keys: Vec<u64> = (first..first + BATCH as u64).collect();
            let begin = Instant::now();
            store.put_rows_bytes(&keys, Dtype::U8, &[size.row_bytes], &buffer)?;
            store.flush_with(durability)?;
            ours.record(begin.elapsed().as_nanos() as u64)?;
            let begin = Instant::now();
            file.write_all(&buffer)?;
            if durability == Durability::SyncData {
                file.sync_data()?;
            }
            raw.record(begin.elapsed().as_nanos() as u64)?;
        }
        let ratio = ours.value_at_quantile(0.5) as f64 / raw.value_at_quantile(0.5) as f64;
        table.add(&format!("put and flush 2,048 rows, {durability:?} / {name}"), format!("{ratio:.2} ×"), "");
        table.add("  p50 / p99 / p99.9", percentiles(&ours), "");
    }
    store.close()?;
    Ok(())
}

/// Opening the closed store, as a writer and as a reader.
pub(crate) fn open_times(size: &Size<'_>, table: &mut Table) -> Fallible {
    let mut writer = Histogram::<u64>::new(3)?;
    let mut reader = Histogram::<u64>::new(3)?;
    for _ in 0..11 {
        let begin = Instant::now();
        let store = Store::open(size.dir(), MODULE)?;
        writer.record(begin.elapsed().as_nanos() as u64)?;
        store.close()?;
        let begin = Instant::now();
        let opened = Reader::open(size.dir(), MODULE)?;
        reader.record(begin.elapsed().as_nanos() as u64)?;
        drop(opened);
    }
    table.add(
        "open after a clean close, in memory, p50 of 11",
        format!("{:.2} ms", writer.value_at_quantile(0.5) as f64 / 1e6),
        "≤ 5 ms",
    );
    table.add("  as a reader", format!("{:.2} ms", reader.value_at_quantile(0.5) as f64 / 1e6), "");
    Ok(())
}
