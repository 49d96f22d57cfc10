//! The cost of a miss: `get_or_compute_rows` with a computation that takes no time, compared to a lookup and a put, and
//! the cost of its leases when several processes hold many.
//!
//! `cargo bench --bench compute -- [--rounds 5] [--dir DIR]`
#![expect(clippy::expect_used, reason = "a bench stops at the first failure")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tensorcask::{Lane, Options, Store};

const DIMS: usize = 768;
/// Keys of all batches of one measurement.
const KEYS: usize = 8192;

fn settings() -> (u64, PathBuf) {
    let (mut rounds, mut dir) = (5, std::env::temp_dir().join("tensorcask-compute"));
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("a value");
        match argument.as_str() {
            "--rounds" => rounds = value().parse().expect("a number"),
            "--dir" => dir = value().into(),
            "--bench" | "--test" => {}
            other => assert!(other.is_empty(), "{other} is no option: --rounds, --dir"),
        }
    }
    (rounds, dir)
}

fn open(dir: &Path, timeout: Duration) -> Store {
    Options::new().lane(Lane::Auto).lease_timeout(timeout).open(dir, "m").expect("a store")
}

/// Microseconds a batch, if all its keys are missing.
fn measure(store: &Store, batch: usize, first: u64, put: bool) -> f64 {
    let rows = vec![0.5_f32; batch * DIMS];
    let (mut out, mut found) = (vec![0.0_f32; batch * DIMS], vec![false; batch]);
    let batches = (KEYS / batch).min(512);
    let mut spent = Duration::ZERO;
    for number in 0..batches {
        let keys: Vec<u64> = (0..batch).map(|at| first + (number * batch + at) as u64).collect();
        // A computation returns a new buffer.
        let computed = rows.clone();
        let start = Instant::now();
        if put {
            store.get_batch_into(&keys, &[DIMS], &mut out, &mut found).expect("a lookup");
            store.put_rows(&keys, &[DIMS], &computed).expect("a put");
            out.copy_from_slice(&computed);
        } else {
            let mut computed = Some(computed);
            let compute =
                |_: &[usize]| computed.take().ok_or_else(|| tensorcask::Error::compute("keys are computed twice"));
            store.get_or_compute_rows(&keys, &[DIMS], &mut out, compute).expect("rows");
        }
        spent += start.elapsed();
    }
    store.flush().expect("a flush");
    spent.as_secs_f64() * 1e6 / batches as f64
}

fn main() {
    let (rounds, dir) = settings();
    let _new = std::fs::remove_dir_all(&dir);
    let leased = Duration::from_secs(30);
    println!("µs a batch of missing rows of {} bytes, best of {rounds} rounds", DIMS * 4);
    println!(
        "{:>6} {:>12} {:>12} {:>12} {:>12} {:>14}",
        "keys", "get + put", "no leases", "leases", "two lanes", "4096 held"
    );
    for batch in [1, 32, 256, 512, 4096] {
        let folder = |name: &str| dir.join(format!("{batch}-{name}"));
        let stores =
            [("put", leased), ("none", Duration::ZERO), ("leases", leased), ("lanes", leased), ("held", leased)]
                .map(|(name, timeout)| open(&folder(name), timeout));
        let others = [open(&folder("lanes"), leased), open(&folder("held"), leased)];
        let mut best = [f64::MAX; 5];
        let mut measure_all = || {
            // A folder that has just changed is listed at each miss.
            for store in &stores {
                let _warm_up = measure(store, 256, 1 << 50, false);
            }
            std::thread::sleep(Duration::from_millis(200));
            for round in 0..rounds {
                for (at, (store, best)) in stores.iter().zip(&mut best).enumerate() {
                    *best = best.min(measure(store, batch, round << 32, at == 0));
                }
            }
        };
        hold(&others[1], 8, &mut measure_all);
        println!(
            "{batch:>6} {:>12.1} {:>12.1} {:>12.1} {:>12.1} {:>14.1}",
            best[0], best[1], best[2], best[3], best[4]
        );
        stores.iter().chain(&others).for_each(|store| store.close().expect("a close"));
    }
    let _done = std::fs::remove_dir_all(&dir);
}

/// Calls `then` while `store` computes `depth` batches of 512 other keys.
fn hold(store: &Store, depth: u64, then: &mut dyn FnMut()) {
    if depth == 0 {
        return then();
    }
    let keys: Vec<u64> = (0..512).map(|key| (1 << 60) + (depth << 40) + key).collect();
    let compute = |at: &[usize]| {
        hold(store, depth - 1, then);
        Ok(vec![tensorcask::Value::Null; at.len()])
    };
    store.get_or_compute(&keys, compute).expect("values");
}
