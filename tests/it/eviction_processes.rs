//! Eviction while other processes read, compact and prune, and while its own is killed.
//!
//! `TENSORCASK_CAP_BYTES` is the cap of [`a_cap_holds_at_every_moment`], which writes ten times as much.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tensorcask::{Compaction, Error, Eviction, Lane, Options, Prune, Reader, Recovery};

use crate::eviction::Random;

const ROLE: &str = "TENSORCASK_EVICTION_ROLE";
const DIR: &str = "TENSORCASK_EVICTION_DIR";
const FROM: &str = "TENSORCASK_EVICTION_FROM";
const KEYS: u64 = 4003;
const ROWS: u64 = 16;
const DIMS: usize = 256;
const CAP: u64 = 2 << 20;

fn options() -> Options {
    let options = Options::new().max_disk_bytes(CAP).eviction(Eviction::ColdestFirst);
    options.memtable_keys(1000).refresh_interval(Duration::from_millis(5))
}

/// The keys of put `number`; their version is its number.
fn keys(number: u64) -> Vec<u64> {
    (0..ROWS).map(|at| (number * ROWS + at) * 37 % KEYS).collect()
}

fn row(key: u64, version: u64) -> Vec<f32> {
    let mut row = vec![(key + version) as f32; DIMS];
    (row[0], row[1]) = (key as f32, version as f32);
    row
}

/// The version of each of `keys` that exists. Checks all its elements.
fn read(reader: &Reader, keys: &[u64]) -> BTreeMap<u64, u64> {
    let (mut out, mut found) = (vec![0.0_f32; keys.len() * DIMS], vec![false; keys.len()]);
    reader.get_batch_into(keys, &[DIMS], &mut out, &mut found).unwrap();
    let rows = keys.iter().zip(&found).zip(out.chunks(DIMS)).filter(|((_, found), _)| **found);
    rows.map(|((key, _), found)| {
        assert_eq!(found, row(*key, found[1] as u64), "{key}");
        (*key, found[1] as u64)
    })
    .collect()
}

/// Not a test by itself: the child processes, each with its role.
#[test]
fn child_process() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIR)) else { return };
    match &*role {
        "writer" => write(Path::new(&dir), std::env::var(FROM).unwrap().parse().unwrap()),
        _ => follow(Path::new(&dir)),
    }
}

/// Puts until it is killed. Reads some keys, so that segments in the middle are the coldest.
fn write(dir: &Path, from: u64) {
    let store = options().open(dir, "m").unwrap();
    for number in from.. {
        let keys = keys(number);
        let rows: Vec<f32> = keys.iter().flat_map(|key| row(*key, number)).collect();
        store.put_rows(&keys, &[DIMS], &rows).unwrap();
        store.flush().unwrap();
        println!("flushed {number}");
        read(store.reader(), &(0..KEYS).filter(|key| key % 97 == number % 9).collect::<Vec<_>>());
    }
}

/// Reads until it is told to stop: no call fails, and no key's version goes back.
fn follow(dir: &Path) {
    let reader = options().open_reader(dir, "m").unwrap();
    let (mut random, mut newest) = (Random(std::process::id().into()), BTreeMap::<u64, u64>::new());
    while !dir.join("stop").exists() {
        let keys: Vec<u64> = (0..64).map(|_| random.below(KEYS)).collect();
        for (key, version) in read(&reader, &keys) {
            let seen = newest.entry(key).or_default();
            assert!(version >= *seen, "key {key}: version {version} after {seen}");
            *seen = version;
        }
        if random.below(50) == 0 {
            let keys = reader.keys().map(|key| key.unwrap().as_u64().unwrap()).collect::<Vec<_>>();
            assert!(keys.iter().all(|key| *key < KEYS));
        }
    }
    println!("read {}", newest.len());
}

fn child(dir: &Path, role: &str, from: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "eviction_processes::child_process", "--nocapture"])
        .env(ROLE, role)
        .env(DIR, dir)
        .env(FROM, from.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn files_len_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let files = entries.flatten().filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() { files_len_bytes(&entry.path()) } else { metadata.len() })
    });
    files.sum()
}

#[test]
fn a_killed_eviction_loses_nothing_that_stays_and_readers_see_no_error() {
    let dir = tempfile::tempdir().unwrap();
    options().open(dir.path(), "m").unwrap().close().unwrap();
    let (mut random, mut next, mut most) = (Random(3), 0, 0);
    let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
    let readers = [child(dir.path(), "reader", 0), child(dir.path(), "reader", 0)];
    let mut evicted = 0;
    for _ in 0..6 {
        let mut writer = child(dir.path(), "writer", next);
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut numbers = lines.filter_map(|line| line.split_once("flushed ")?.1.trim().parse::<u64>().ok());
        let until = next + 60 + random.below(60);
        let mut take = |number: u64| {
            newest.extend(keys(number).into_iter().map(|key| (key, number)));
            // A put that was killed before it was flushed may be there.
            next = number + 2;
            most = most.max(files_len_bytes(dir.path()));
            number
        };
        while numbers.next().is_some_and(|number| take(number) < until) {}
        std::thread::sleep(Duration::from_millis(random.below(30)));
        writer.kill().unwrap();
        writer.wait().unwrap();
        for number in numbers {
            take(number);
        }
        let reader = options().recovery(Recovery::Strict).open_reader(dir.path(), "m").unwrap();
        let found = read(&reader, &(0..KEYS).collect::<Vec<_>>());
        let flushed = found.iter().filter_map(|(key, version)| Some((key, version, newest.get(key)?)));
        for (key, version, flushed) in flushed {
            assert!(version >= flushed, "key {key}: version {version} is older than {flushed}");
        }
        assert!(!found.is_empty() && reader.open_report().missing.is_empty());
        evicted = newest.len() - found.len();
    }
    assert!(evicted > 0 && most <= CAP + CAP / 16 * 2, "{evicted} {most}");
    std::fs::write(dir.path().join("stop"), "").unwrap();
    for reader in readers {
        assert!(reader.wait_with_output().unwrap().status.success());
    }
    let store = options().recovery(Recovery::Strict).open(dir.path(), "m").unwrap();
    assert!(store.open_report().missing.is_empty() && store.verify(&mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn pruning_waits_for_another_process_or_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let open = |lane| options().lane(Lane::Number(lane)).open(dir.path(), "m").unwrap();
    let (store, other) = (open(0), open(1));
    for number in 0..60 {
        let rows: Vec<f32> = keys(number).iter().flat_map(|key| row(*key, number)).collect();
        store.put_rows(&keys(number), &[DIMS], &rows).unwrap();
    }
    store.flush().unwrap();
    let lock = std::fs::File::options().write(true).open(dir.path().join("m/lanes/compact.lock"));
    let lock = lock.unwrap_or_else(|_| std::fs::File::create(dir.path().join("m/lanes/compact.lock")).unwrap());
    lock.lock().unwrap();
    let impatient = Prune::new().to_rows(0).patience(Duration::from_millis(10));
    let error = store.prune(&impatient).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut), "{error}");
    let start = Instant::now();
    std::thread::scope(|scope| {
        let pruned = scope.spawn(|| store.prune(&Prune::new().to_rows(100)).unwrap());
        std::thread::sleep(Duration::from_millis(200));
        lock.unlock().unwrap();
        assert!(pruned.join().unwrap().reached && start.elapsed() >= Duration::from_millis(200));
    });
    // Segments of a lane that another handle writes stay, and the report says so.
    let report = other.prune(&Prune::new().to_rows(0)).unwrap();
    assert!(!report.reached && report.segments_evicted == 0 && report.segments_in_use > 0, "{report:?}");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for store in [&store, &other] {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    store.prune(&Prune::new().to_rows(200)).unwrap();
                    store.compact(&Compaction::new()).unwrap();
                }
            });
        }
        let reader = options().open_reader(dir.path(), "m").unwrap();
        let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
        for number in 60..300 {
            let rows: Vec<f32> = keys(number).iter().flat_map(|key| row(*key, number)).collect();
            [&store, &other][(number % 2) as usize].put_rows(&keys(number), &[DIMS], &rows).unwrap();
            newest.extend(keys(number).into_iter().map(|key| (key, number)));
            for reader in [store.reader(), &reader] {
                for (key, version) in read(reader, &(0..KEYS).step_by(11).collect::<Vec<_>>()) {
                    assert!(version <= newest.get(&key).copied().unwrap_or(u64::MAX));
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    store.close().unwrap();
    other.close().unwrap();
    let store = Options::new().open(dir.path(), "m").unwrap();
    assert!(store.open_report().is_clean(), "{:?}", store.open_report());
    store.prune(&Prune::new().to_rows(0)).unwrap();
    assert_eq!(store.len().unwrap(), 0);
}

#[test]
fn a_cap_holds_at_every_moment() {
    let cap: u64 = std::env::var("TENSORCASK_CAP_BYTES").map_or(16 << 20, |bytes| bytes.parse().unwrap());
    let dir = tempfile::tempdir_in(std::env::var_os("TENSORCASK_CAP_DIR").map_or(std::env::temp_dir(), PathBuf::from))
        .unwrap();
    let store = Options::new().max_disk_bytes(cap).open(dir.path(), "m").unwrap();
    let (start, stop) = (Instant::now(), AtomicBool::new(false));
    let (most, samples, written) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let (mut most, mut samples) = (0, 0_u64);
            while !stop.load(Ordering::Relaxed) {
                most = most.max(files_len_bytes(dir.path()));
                samples += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            (most, samples)
        });
        let row_bytes = 3072;
        let rows: Vec<f32> = (0..256 * row_bytes / 4).map(|at| at as f32).collect();
        let mut written = 0_u64;
        for first in (0..).step_by(256) {
            let keys: Vec<u64> = (first..first + 256).collect();
            store.put_rows(&keys, &[row_bytes / 4], &rows).unwrap();
            if first % 2048 == 0 {
                store.flush().unwrap();
            }
            written += 256 * row_bytes as u64;
            if written >= 10 * cap {
                break;
            }
        }
        store.close().unwrap();
        stop.store(true, Ordering::Relaxed);
        let (most, samples) = sampler.join().unwrap();
        (most, samples, written)
    });
    let left = files_len_bytes(dir.path());
    println!(
        "{written} bytes written under a cap of {cap} in {:?}: at most {most} in {samples} samples, {left} at the end",
        start.elapsed()
    );
    assert!(most <= cap + cap / 16, "{most} of {cap}");
    assert!(left >= cap / 10 * 8, "evicts no more than it has to: {left} of {cap}");
    let store = Options::new().open(dir.path(), "m").unwrap();
    assert!(store.open_report().is_clean());
    let newest = written / 3072 - 1;
    assert!(store.contains(newest).unwrap() && !store.contains(0_u64).unwrap());
}
