//! Writer and reader processes share one directory, with overwrites, deletes, compaction, kills and openings. No
//! flushed row is lost, no call fails, and all readers find the same rows in the end.
//!
//! `TENSORCASK_SOAK_S` is the duration in seconds.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tensorcask::{Compaction, Lane, Options, Order, Reader, Store};

const ROLE: &str = "TENSORCASK_SOAK_ROLE";
const DIR: &str = "TENSORCASK_SOAK_DIR";
const WRITERS: u64 = 4;
const KEYS: u64 = 2400;
const DIMS: usize = 64;

/// The newest version of each key, and whether it was deleted.
type Versions = BTreeMap<u64, (u32, bool)>;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Whether `key` is never deleted.
fn stays(key: u64) -> bool {
    key.is_multiple_of(3)
}

fn row(key: u64, version: u32) -> Vec<f32> {
    let mut row = vec![(key % 1000) as f32 + version as f32 / 7.0; DIMS];
    (row[0], row[1]) = (key as f32, version as f32);
    row
}

/// The version of a row that was read. Checks all its elements.
fn version(key: u64, found: &[f32]) -> u32 {
    assert_eq!(found, row(key, found[1] as u32), "{key}");
    found[1] as u32
}

fn read_all(reader: &Reader, keys: &[u64]) -> BTreeMap<u64, u32> {
    let (mut out, mut found) = (vec![0.0_f32; keys.len() * DIMS], vec![false; keys.len()]);
    reader.get_batch_into(keys, &[DIMS], &mut out, &mut found).unwrap();
    let rows = keys.iter().zip(&found).zip(out.chunks(DIMS)).filter(|((_, found), _)| **found);
    rows.map(|((key, _), row)| (*key, version(*key, row))).collect()
}

/// Not a test by itself: the child processes, each with its role.
#[test]
fn child_process() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIR)) else { return };
    match role.strip_prefix("writer ") {
        Some(number) => write(Path::new(&dir), number.parse().unwrap()),
        None => read(Path::new(&dir)),
    }
}

fn options() -> Options {
    Options::new().lane(Lane::Auto).segment_rows(400).memtable_keys(1500).refresh_interval(Duration::from_millis(20))
}

/// Changes its own keys until it is told to stop, and records the flushed versions.
fn write(dir: &Path, number: u64) {
    let flushed = dir.join(format!("flushed-{number}"));
    let own: Vec<u64> = (0..KEYS).filter(|key| key % WRITERS == number).collect();
    let mut store = options().open(dir, "m").unwrap();
    let mut random = Random(std::process::id().into());
    let mut versions: Versions = read_versions(&flushed);
    store.refresh().unwrap();
    let there = read_all(store.reader(), &own);
    for (key, (version, deleted)) in &mut versions {
        // The store has the flushed version, or a newer one that was put but not flushed.
        match there.get(key) {
            Some(found) => assert!(*found >= *version, "{key} has version {found}, and {version} was flushed"),
            None => assert!(*deleted || !stays(*key), "{key} is not there, and version {version} was flushed"),
        }
        (*version, *deleted) = (*there.get(key).unwrap_or(version), !there.contains_key(key));
    }
    for (key, version) in there {
        versions.entry(key).or_insert((version, false));
    }
    // Skips the versions of rows that were put but not flushed.
    let mut next = versions.values().map(|(version, _)| version + 1000).max().unwrap_or(1);
    let stop = dir.join("stop");
    while !stop.exists() {
        step(&store, &own, &mut random, &mut versions, &mut next);
        if random.below(4) == 0 {
            store.flush().unwrap();
            write_versions(&flushed, &versions);
        }
        match random.below(60) {
            0 => {
                let order = (random.below(2) == 0).then_some(Order::Keys);
                drop(store.compact(&Compaction::new().live_share(0.6).sort(order)).unwrap());
            }
            1 => {
                store.close().unwrap();
                drop(store);
                store = options().open(dir, "m").unwrap();
                let report = store.open_report();
                assert!(report.quarantined.is_empty() && report.missing.is_empty(), "{report:?}");
            }
            _ => {}
        }
    }
    store.close().unwrap();
    write_versions(&flushed, &versions);
}

fn step(store: &Store, own: &[u64], random: &mut Random, versions: &mut Versions, next: &mut u32) {
    let first = random.below(own.len() as u64) as usize;
    let keys: Vec<u64> = own[first..].iter().step_by(1 + random.below(4) as usize).take(80).copied().collect();
    *next += 1;
    if random.below(5) == 0 {
        let keys: Vec<u64> = keys.into_iter().filter(|key| !stays(*key) && versions.contains_key(key)).collect();
        store.delete_batch(&keys).unwrap();
        keys.iter().for_each(|key| versions.get_mut(key).unwrap().1 = true);
    } else {
        let rows: Vec<f32> = keys.iter().flat_map(|key| row(*key, *next)).collect();
        store.put_rows(&keys, &[DIMS], &rows).unwrap();
        versions.extend(keys.into_iter().map(|key| (key, (*next, false))));
    }
}

/// Reads all keys repeatedly: versions never decrease. Prints the rows that it finds at the end.
fn read(dir: &Path) {
    let reader = options().open_reader(dir, "m").unwrap();
    let keys: Vec<u64> = (0..KEYS).collect();
    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    let stop = dir.join("read no more");
    while !stop.exists() {
        reader.refresh().unwrap();
        let found = read_all(&reader, &keys);
        for (key, version) in &seen {
            match found.get(key) {
                Some(now) => assert!(now >= version, "{key} has version {now} after {version}"),
                None => assert!(!stays(*key), "{key} is not there after version {version}"),
            }
        }
        seen.extend(found);
    }
    reader.refresh().unwrap();
    let found = read_all(&reader, &keys);
    println!("\nfound {}", serde_json::to_string(&found).unwrap());
}

fn read_versions(path: &Path) -> Versions {
    std::fs::read(path).map(|bytes| serde_json::from_slice(&bytes).unwrap()).unwrap_or_default()
}

fn write_versions(path: &Path, versions: &Versions) {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, serde_json::to_vec(versions).unwrap()).unwrap();
    std::fs::rename(temporary, path).unwrap();
}

fn child(role: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "soak::child_process", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn check_same(found: &BTreeMap<u64, u32>, expected: &BTreeMap<u64, u32>) {
    let keys = found.keys().chain(expected.keys());
    let different = keys.filter(|key| found.get(key) != expected.get(key));
    let different: Vec<_> = different.map(|key| (key, found.get(key), expected.get(key))).take(20).collect();
    assert!(different.is_empty(), "key, found, expected: {different:?}");
}

#[test]
fn processes_write_read_and_compact_one_store() {
    let seconds = std::env::var("TENSORCASK_SOAK_S").map_or(4, |seconds| seconds.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let writer = |number: u64| child(&format!("writer {number}"), dir.path());
    let store = options().open(dir.path(), "m").unwrap();
    store.put_rows(&[KEYS], &[DIMS], &row(KEYS, 0)).unwrap();
    store.close().unwrap();
    drop(store);
    let mut writers: Vec<Child> = (0..WRITERS).map(writer).collect();
    let readers: Vec<Child> = (0..4).map(|_| child("reader", dir.path())).collect();
    let start = Instant::now();
    let mut random = Random(7);
    while start.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(700 + random.below(1000)));
        // Kills a writer; another process takes over its lane.
        let number = random.below(WRITERS);
        let killed = &mut writers[number as usize];
        assert!(killed.try_wait().unwrap().is_none(), "writer {number} has failed");
        killed.kill().unwrap();
        killed.wait().unwrap();
        *killed = writer(number);
    }
    std::fs::File::create(dir.path().join("stop")).unwrap().flush().unwrap();
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    std::fs::File::create(dir.path().join("read no more")).unwrap();
    let mut expected: BTreeMap<u64, u32> = BTreeMap::new();
    for number in 0..WRITERS {
        let versions = read_versions(&dir.path().join(format!("flushed-{number}")));
        expected.extend(
            versions.into_iter().filter(|(_, (_, deleted))| !deleted).map(|(key, (version, _))| (key, version)),
        );
    }
    for mut reader in readers {
        let lines = BufReader::new(reader.stdout.take().unwrap()).lines().map_while(Result::ok);
        // Reads to the end, so that the child can finish its output.
        let found = lines.filter_map(|line| line.strip_prefix("found ").map(str::to_owned)).last();
        assert!(reader.wait().unwrap().success());
        check_same(&serde_json::from_str(&found.unwrap()).unwrap(), &expected);
    }
    let store = options().open(dir.path(), "m").unwrap();
    let report = store.open_report();
    assert!(report.quarantined.is_empty() && report.missing.is_empty(), "{report:?}");
    store.compact(&Compaction::new()).unwrap();
    let keys: Vec<u64> = (0..KEYS).collect();
    check_same(&read_all(store.reader(), &keys), &expected);
    assert_eq!(store.len().unwrap(), expected.len() as u64 + 1);
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
}
