//! The report as Markdown.

use std::fmt::Write as _;

use crate::Fallible;
use crate::engine::{EngineId, KeyForm, Order};
use crate::results::{Measure, Quartiles, Results, Workload};
use crate::targets;

pub(crate) const OURS: EngineId = EngineId::Tensorcask;
pub(crate) const ORDERS: [(Order, &str); 2] = [(Order::Sorted, "in order"), (Order::Shuffled, "shuffled")];

/// Peers that are not complete stores, but show the cost of a lookup without any guarantees.
const LIMITS: [EngineId; 2] = [EngineId::Bitcask, EngineId::BitcaskMmap];

const METHOD: &str = "\
Keys are `u64`, values are rows of random bits. Every engine runs in a process of its own. Loads are timed several
times, all engines and both orders in turn, with a `sync` of the file system before each. Then each peer is loaded once
more and read together with tensorcask and raw. The three are open at once, and in each round every process is asked
for one slice: batches of 256 random keys, the same for all engines. The data read is checked outside of the measured
time: all bytes of all rows once before reading is measured, and the first and last eight bytes of every row read.

The sample of a slice is its median batch, so that an engine whose slices last longer is not interrupted more often. A
figure is the median of the rounds, with quartiles in brackets; for raw and tensorcask, the rounds with all peers
count. **× raw** and **× tensorcask** are medians of the ratios of each round. Below 1.00 × tensorcask the peer wins:
those are bold. A `~` says that the quartiles of the ratio lie on both sides of 1, so that neither wins.

- **raw** is not an engine but the limit: rows are copied from a memory map at known positions, and the next one is
  prefetched while one is copied; the load is a `write` of the same values (and an `fdatasync`). It has no keys.
- **bitcask** is a typical hand-written store: a hash map of offsets over an append-only file, read with `pread`.
  **bitcask-mmap** is the same over a memory map. They have no checksums, do not recover from a torn write, hold all
  keys in memory, do not see other processes, and read the headers of all records when they are opened. They show the
  cost of a lookup without any of these features, which is a limit. Both load in the same way: the difference between
  their load figures is the noise of this machine.
- A miss of tensorcask includes a check, at most once a second, for rows that other processes have written. Of the
  peers, LMDB, redb and SQLite read in a transaction, which sees what others committed before it began. fjall and
  RocksDB belong to one process, or see the state from when they were opened.
- *In order* and *shuffled* are orders of the keys at the load; reads are random in both.
- *Load, buffered*: when a batch returns, the end of the process does not lose it. redb has no such level: its
  `Durability::None` lives in the process until the next durable commit. *To the end of close* adds making everything
  durable, and waiting for background work (the compaction that RocksDB's documentation recommends after a load, the
  compactions of fjall, sealing and the index of tensorcask).
- *Load, each batch durable*: when a batch returns, power loss does not lose it. In-order loads of fjall and RocksDB
  ingest sorted files, which is durable in both loads.
- *Slow durable batches* are the 99th percentile of the time of a durable batch over the median. *Bytes written* counts
  what the process wrote to files in a buffered load, up to the end of close, per byte of rows.
- *String keys* are 16 hexadecimal digits. Only LMDB, the fastest peer for loads in order, is measured with them.
- *Open* ends with the first row that is read; files are in the page cache.
- *Disk* counts allocated blocks, after close. *Memory* is anonymous memory of the process after all reads. The caches
  of redb, fjall, RocksDB and SQLite (beyond its memory map of at most 2 GiB) were made large enough for all rows, as
  their documentation advises for data that fits memory, so their memory is a choice. The page cache, which the other
  engines read from, is not counted.
";

const SETTINGS: [(&str, &str); 7] = [
    ("tensorcask", "default options; read through `Reader`, after `Reader::preload`, with checksums compared at the first read of a row"),
    ("LMDB", "map of 256 GiB, integer keys, `MDB_APPEND` in order, `MDB_NOSYNC` when buffered, batches sorted by key"),
    ("redb", "cache twice the data; `Durability::Immediate` or `None`, batches sorted by key"),
    ("fjall", "cache twice the data, no compression, ingestion in order, separated values from 1 KiB on"),
    (
        "RocksDB",
        "the settings of `OptimizeForPointLookup` with a HyperClockCache twice the data, no compression, ingested files in \
         order, otherwise `PrepareForBulkLoad` and vector memtables, BlobDB from 1 KiB on with a blob cache twice the data, \
         a compaction after the load, `MultiGet`",
    ),
    (
        "SQLite",
        "WAL, checkpoints every 1 GiB and at the end, `synchronous` FULL or OFF, memory map (2 GiB at most), cache twice \
         the data, integer primary key, pages of 16 KiB for large rows, batches sorted by key, one transaction and prepared \
         statement a batch",
    ),
    ("bitcask", "hashbrown's default map; one `write` a batch"),
];

/// The whole report.
///
/// # Errors
/// None; writing to a string does not fail.
pub fn markdown(results: &Results) -> Fallible<String> {
    let mut text = String::from("# Peers, side by side\n\n");
    head(results, &mut text)?;
    text.push_str("\n## Targets\n\n");
    targets::table(results, &mut text)?;
    text.push_str("\n## Where peers win\n\n");
    wins(results, &mut text)?;
    text.push_str("\n## All ratios\n\n");
    summary(results, &mut text)?;
    text.push_str("\n## What is measured\n\n");
    text.push_str(METHOD);
    text.push_str("\nSettings, each with its source in `benches/peers/src/engines/`:\n\n");
    for (name, what) in SETTINGS {
        writeln!(text, "- {name}: {what}.")?;
    }
    for (row_bytes, keys) in results.settings.sizes() {
        for measure in Measure::ALL {
            table(results, (row_bytes, keys), measure, &mut text)?;
        }
    }
    Ok(text)
}

fn head(results: &Results, text: &mut String) -> Fallible {
    let (machine, settings) = (&results.machine, &results.settings);
    let sizes: Vec<String> = settings
        .row_bytes
        .iter()
        .map(|bytes| {
            let (loaded, batch) = (settings.load_rows(*bytes), crate::rows::load_batch(*bytes));
            format!("{} rows of {bytes} B, timed loads of {loaded} in batches of {batch}", settings.rows(*bytes))
        })
        .collect();
    let measured = |name: &str| settings.engines.contains(&EngineId::Rocksdb) || !name.contains("rocksdb");
    let versions: Vec<String> = machine
        .versions
        .iter()
        .filter(|(name, _)| measured(name))
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    writeln!(
        text,
        "Written by `cargo run --release --manifest-path benches/peers/Cargo.toml` on {} at commit {}. {}, {} cores, \
         {} GiB; Linux {}, {}; load average before the run {} (the machine is shared). {}. {}; {} loads, {} rounds of {} \
         batches. {}.",
        machine.date,
        machine.commit,
        machine.cpu,
        machine.cores,
        machine.memory_gib,
        machine.kernel,
        machine.file_system,
        machine.load_before,
        machine.compiler,
        sizes.join("; "),
        settings.loads,
        settings.rounds,
        settings.batches,
        versions.join(", "),
    )?;
    let missing: Vec<&str> =
        EngineId::ALL.iter().filter(|id| !settings.engines.contains(id)).map(|id| id.name()).collect();
    if !missing.is_empty() {
        writeln!(text, "\n**Not in this run:** {}.", missing.join(", "))?;
    }
    writeln!(text, "\nRaw numbers: [peers.json](peers.json). Plots:")?;
    let plots: Vec<String> =
        Measure::ALL.iter().map(|measure| format!("[{0}](peers-{0}.svg)", measure.name())).collect();
    writeln!(text, "{}.", plots.join(", "))?;
    Ok(())
}

/// The peers: all engines except the control and this project.
fn peers(results: &Results) -> impl Iterator<Item = EngineId> {
    results.settings.engines.iter().copied().filter(|engine| ![EngineId::Raw, OURS].contains(engine))
}

fn wins(results: &Results, text: &mut String) -> Fallible {
    let (limits, stores): (Vec<EngineId>, Vec<EngineId>) = peers(results).partition(|engine| LIMITS.contains(engine));
    let lines = lines_won(results, &stores)?;
    if lines.is_empty() {
        text.push_str("Nowhere in this run.\n");
    } else {
        text.push_str("Ratios to tensorcask; smaller is better, `~` is a tie.\n\n");
    }
    text.push_str(&lines);
    let lines = lines_won(results, &limits)?;
    if !lines.is_empty() {
        text.push_str(
            "\nThe hand-written Bitcasks keep all keys in memory and check nothing. Their figures are limits:\n\n",
        );
    }
    text.push_str(&lines);
    Ok(())
}

/// A line for each workload that one of `engines` wins.
fn lines_won(results: &Results, engines: &[EngineId]) -> Fallible<String> {
    let mut lines = String::new();
    for (row_bytes, keys) in results.settings.sizes() {
        let rows = Workload::rows(row_bytes, keys);
        for measure in Measure::ALL {
            for (order, name) in ORDERS {
                let workload = Workload { row_bytes, keys, order, measure };
                let mut winners: Vec<(f64, String)> = engines
                    .iter()
                    .filter_map(|engine| Some((engine, results.ratio(*engine, OURS, workload)?)))
                    .filter(|(_, ratio)| ratio.median < 1.0)
                    .map(|(engine, ratio)| (ratio.median, format!("{engine} {}", times(ratio))))
                    .collect();
                winners.sort_by(|one, other| one.0.total_cmp(&other.0));
                if !winners.is_empty() {
                    let winners: Vec<String> = winners.into_iter().map(|(_, text)| text).collect();
                    writeln!(lines, "- {}, {rows}, {name}: {}", measure.title(), winners.join(", "))?;
                }
            }
        }
    }
    Ok(lines)
}

/// A cell with a ratio and its meaning.
fn times(ratio: Quartiles) -> String {
    let figure = if ratio.median < 100.0 { format!("{:.2}", ratio.median) } else { format!("{:.0}", ratio.median) };
    let tie = ratio.low < 1.0 && ratio.high > 1.0;
    match (tie, ratio.median < 1.0) {
        (true, _) => format!("~{figure} ×"),
        (false, true) => format!("**{figure} ×**"),
        (false, false) => format!("{figure} ×"),
    }
}

/// The cell of an engine, with its ratio to tensorcask. The control cannot win, as it is not an engine.
fn beside(engine: EngineId, ratio: Option<Quartiles>) -> String {
    match (engine, ratio) {
        (_, None) => "–".into(),
        (OURS, _) => "1".into(),
        (EngineId::Raw, Some(ratio)) => format!("{} ×", figure(ratio.median)),
        (_, Some(ratio)) => times(ratio),
    }
}

fn summary(results: &Results, text: &mut String) -> Fallible {
    text.push_str("Each engine's time or space over tensorcask's, from the tables below.\n");
    for (row_bytes, keys) in results.settings.sizes() {
        for (order, name) in ORDERS {
            writeln!(text, "\n{}, loaded {name}:\n", Workload::rows(row_bytes, keys))?;
            let names: Vec<&str> = Measure::ALL.iter().map(|measure| measure.name()).collect();
            writeln!(text, "| engine | {} |", names.join(" | "))?;
            writeln!(text, "| --- |{}", " ---: |".repeat(names.len()))?;
            for engine in results.settings.engines.iter().filter(|engine| **engine != OURS) {
                let cells = Measure::ALL.iter().map(|measure| {
                    let workload = Workload { row_bytes, keys, order, measure: *measure };
                    beside(*engine, results.ratio(*engine, OURS, workload))
                });
                writeln!(text, "| {engine} | {} |", cells.collect::<Vec<_>>().join(" | "))?;
            }
        }
    }
    Ok(())
}

/// A figure with a suitable number of decimal places.
pub(crate) fn figure(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn table(results: &Results, size: (usize, KeyForm), measure: Measure, text: &mut String) -> Fallible {
    let (row_bytes, keys) = size;
    let (unit, share) = measure.unit();
    let settings = &results.settings;
    let rows = if measure.is_load() { settings.load_rows(row_bytes) } else { settings.rows(row_bytes) };
    let has = |engine: &EngineId| {
        ORDERS.iter().any(|(order, _)| {
            results.quartiles(*engine, Workload { row_bytes, keys, order: *order, measure }).is_some()
        })
    };
    if !settings.engines.iter().any(has) {
        return Ok(());
    }
    writeln!(text, "\n## {}: {}, {rows} rows\n", Workload::rows(row_bytes, keys), measure.title())?;
    writeln!(text, "| engine | in order, {unit} | × raw | × tensorcask | shuffled, {unit} | × raw | × tensorcask |")?;
    writeln!(text, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |")?;
    for engine in &settings.engines {
        let mut cells = Vec::new();
        for (order, _) in ORDERS {
            let workload = Workload { row_bytes, keys, order, measure };
            cells.push(results.quartiles(*engine, workload).map_or("–".into(), |quartiles| {
                let Quartiles { low, median, high } = quartiles;
                if low == high {
                    return figure(median / share);
                }
                format!("{} [{}–{}]", figure(median / share), figure(low / share), figure(high / share))
            }));
            let raw = results.ratio(*engine, EngineId::Raw, workload);
            cells.push(raw.map_or("–".into(), |ratio| format!("{} ×", figure(ratio.median))));
            cells.push(beside(*engine, results.ratio(*engine, OURS, workload)));
        }
        if cells.iter().any(|cell| cell != "–") {
            writeln!(text, "| {engine} | {} |", cells.join(" | "))?;
        }
    }
    Ok(())
}
