//! The target ratio of tensorcask to each peer, and the results of a run.

use std::fmt::Write as _;

use crate::Fallible;
use crate::engine::{EngineId, KeyForm, Order};
use crate::report::{ORDERS, OURS, figure};
use crate::results::{Measure, Quartiles, Results, Workload};

const LARGE: usize = 3072;
const SMALL: usize = 128;

/// The minimum ratio of a peer's time to tensorcask's.
struct Target {
    row_bytes: usize,
    keys: KeyForm,
    measure: Measure,
    orders: &'static [Order],
    peers: &'static [(EngineId, f64)],
}

/// Both orders, as reads are random in either.
const BOTH: &[Order] = &[Order::Sorted, Order::Shuffled];

const SHUFFLED: &[(EngineId, f64)] = &[
    (EngineId::Lmdb, 5.0),
    (EngineId::Redb, 5.0),
    (EngineId::Sqlite, 5.0),
    (EngineId::Rocksdb, 2.5),
    (EngineId::Fjall, 2.5),
];

const fn shuffled(row_bytes: usize, measure: Measure) -> Target {
    Target { row_bytes, keys: KeyForm::Number, measure, orders: &[Order::Shuffled], peers: SHUFFLED }
}

const fn sorted(keys: KeyForm, measure: Measure) -> Target {
    Target { row_bytes: SMALL, keys, measure, orders: &[Order::Sorted], peers: &[(EngineId::Lmdb, 1.25)] }
}

const TARGETS: &[Target] = &[
    Target {
        row_bytes: LARGE,
        keys: KeyForm::Number,
        measure: Measure::Read,
        orders: BOTH,
        peers: &[
            (EngineId::Lmdb, 3.4),
            (EngineId::Bitcask, 4.4),
            (EngineId::Redb, 7.4),
            (EngineId::Sqlite, 7.8),
            (EngineId::Rocksdb, 10.0),
            (EngineId::Fjall, 10.0),
        ],
    },
    Target {
        row_bytes: SMALL,
        keys: KeyForm::Number,
        measure: Measure::Read,
        orders: BOTH,
        peers: &[
            (EngineId::Lmdb, 10.0),
            (EngineId::Bitcask, 10.0),
            (EngineId::Redb, 16.0),
            (EngineId::Rocksdb, 20.0),
            (EngineId::Fjall, 20.0),
        ],
    },
    sorted(KeyForm::Number, Measure::LoadClosed),
    sorted(KeyForm::Number, Measure::DurableClosed),
    sorted(KeyForm::Text, Measure::LoadClosed),
    sorted(KeyForm::Text, Measure::DurableClosed),
    shuffled(SMALL, Measure::LoadClosed),
    shuffled(SMALL, Measure::DurableClosed),
    shuffled(LARGE, Measure::LoadClosed),
    shuffled(LARGE, Measure::DurableClosed),
];

/// Peers that misses are compared with: those that keep their keys in files, as tensorcask does.
const STORES: [EngineId; 5] = [EngineId::Lmdb, EngineId::Redb, EngineId::Fjall, EngineId::Rocksdb, EngineId::Sqlite];

const MISSES: f64 = 3.0;

const HEAD: &str = "\
The targets say how long each peer should take at least, as a multiple of tensorcask's time; next to them is the time
that it took (quartiles in brackets). Targets for reads apply at 1,000,000 keys for rows of 3,072 B and at 10,000,000
for rows of 128 B. The best peer of misses is the fastest of the five that keep their keys in files. `~` says that the
target lies between the quartiles.

| what | rows | peer | at least | in order | | shuffled | |
| --- | ---: | --- | ---: | ---: | --- | ---: | --- |
";

/// The targets and the results.
///
/// # Errors
/// None; writing to a string does not fail.
pub fn table(results: &Results, text: &mut String) -> Fallible {
    text.push_str(HEAD);
    for target in TARGETS {
        for (peer, least) in target.peers {
            let cells = ORDERS.map(|(order, _)| {
                let (row_bytes, keys, measure) = (target.row_bytes, target.keys, target.measure);
                let workload = Workload { row_bytes, keys, order, measure };
                let wanted = target.orders.contains(&order);
                wanted.then(|| results.ratio(*peer, OURS, workload)).flatten()
            });
            line(results, (target.row_bytes, target.keys), target.measure, peer.name(), *least, &cells.map(|cell| (cell, "")), text)?;
        }
    }
    for row_bytes in [SMALL, LARGE] {
        let cells = ORDERS.map(|(order, _)| {
            let workload = Workload { row_bytes, keys: KeyForm::Number, order, measure: Measure::Miss };
            let ratios = STORES.iter().filter_map(|peer| Some((results.ratio(*peer, OURS, workload)?, peer.name())));
            let best = ratios.min_by(|one, other| one.0.median.total_cmp(&other.0.median));
            best.map_or((None, ""), |(ratio, name)| (Some(ratio), name))
        });
        line(results, (row_bytes, KeyForm::Number), Measure::Miss, "the best", MISSES, &cells, text)?;
    }
    limits(results, text)?;
    orders(results, text)
}

/// A line of the table, unless nothing of it was measured. A cell has a ratio and its engine.
fn line(
    results: &Results,
    (row_bytes, keys): (usize, KeyForm),
    measure: Measure,
    peer: &str,
    least: f64,
    cells: &[(Option<Quartiles>, &str); 2],
    text: &mut String,
) -> Fallible {
    if cells.iter().all(|(ratio, _)| ratio.is_none()) {
        return Ok(());
    }
    let settings = &results.settings;
    let rows = if measure.is_load() { settings.load_rows(row_bytes) } else { settings.rows(row_bytes) };
    let cells = cells.map(|(ratio, whose)| {
        ratio.map_or("– | –".into(), |ratio| {
            let verdict = verdict(ratio.median >= least, ratio, least);
            format!("{whose} {} | {verdict}", bracketed(ratio)).trim().to_owned()
        })
    });
    let what = measure.title();
    writeln!(text, "| {what}, {} | {rows} | {peer} | {least:.2} × | {} |", Workload::rows(row_bytes, keys), cells.join(" | "))?;
    Ok(())
}

fn bracketed(ratio: Quartiles) -> String {
    format!("{} × [{}–{}]", figure(ratio.median), figure(ratio.low), figure(ratio.high))
}

fn verdict(met: bool, ratio: Quartiles, bound: f64) -> String {
    let close = if ratio.low < bound && bound < ratio.high { "~" } else { "" };
    format!("{close}{}", if met { "met" } else { "**not met**" })
}

/// Bounds of tensorcask's own loads, without a peer.
fn limits(results: &Results, text: &mut String) -> Fallible {
    const LIMITS: [(Measure, f64); 2] = [(Measure::Stall, 5.0), (Measure::Written, 1.6)];
    let mut lines = String::new();
    for (row_bytes, keys) in results.settings.sizes() {
        for (measure, most) in LIMITS {
            for (order, name) in ORDERS {
                if let Some(found) = results.quartiles(OURS, Workload { row_bytes, keys, order, measure }) {
                    let (rows, verdict) = (Workload::rows(row_bytes, keys), verdict(found.median <= most, found, most));
                    let (title, found) = (measure.title(), figure(found.median));
                    writeln!(lines, "| {title}, {rows}, {name} | {} | {most} | {found} | {verdict} |", measure.unit().0)?;
                }
            }
        }
    }
    if !lines.is_empty() {
        text.push_str("\n| tensorcask | unit | at most | found | |\n| --- | --- | ---: | ---: | --- |\n");
        text.push_str(&lines);
    }
    Ok(())
}

/// Whether the load order of keys affects tensorcask.
fn orders(results: &Results, text: &mut String) -> Fallible {
    let measures = [Measure::LoadClosed, Measure::DurableClosed, Measure::Disk];
    let mut lines = String::new();
    for row_bytes in [SMALL, LARGE] {
        for measure in measures {
            if let Some(ratio) = results.shuffled_over_sorted(OURS, row_bytes, measure) {
                // A ratio that is printed as 1.00 counts as no slower.
                let verdict = verdict(ratio.median < 1.005, ratio, 1.0);
                writeln!(lines, "| {}, {row_bytes} B | {} | {verdict} |", measure.title(), bracketed(ratio))?;
            }
        }
    }
    if !lines.is_empty() {
        text.push_str("\nLoads in shuffled order should be no slower and no larger than in order:\n\n");
        text.push_str("| tensorcask | shuffled / in order | |\n| --- | ---: | --- |\n");
        text.push_str(&lines);
    }
    Ok(())
}
