//! Limits that a real run meets: descriptors, maps, names, nesting, hashes, clocks, and processes that fork.
#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as expected")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tensorcask::io::Durability;
use tensorcask::{Error, Lane, Options, Value, ValueView};

const ROLE: &str = "TENSORCASK_LIMITS_ROLE";
const DIR: &str = "TENSORCASK_LIMITS_DIR";

/// Not a test of its own: what children do, by role.
#[test]
fn child_process() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIR)) else { return };
    let dir = Path::new(&dir);
    match role.as_str() {
        "small segments" => write_small_segments(dir),
        "structures" => write_structures(dir),
        "follow" => follow(dir),
        other => unreachable!("{other}"),
    }
}

/// Runs a role in a process that may have 64 files open.
fn run_with_few_descriptors(role: &str, dir: &Path) {
    let binary = std::env::current_exe().unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 64; exec \"$0\" --exact child_process --nocapture --test-threads=1"])
        .arg(binary)
        .env(ROLE, role)
        .env(DIR, dir)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{role}: {}\n{}", text(&output.stdout), text(&output.stderr));
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Maps of this process, and those of them that are of files below `dir`.
fn maps(dir: &Path) -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (maps.lines().count(), maps.lines().filter(|line| line.contains(dir.to_str().unwrap())).count())
}

fn files_in(dir: &Path, end: &str) -> usize {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().ends_with(end)).count()
}

fn options() -> Options {
    Options::new().durability(Durability::Buffered).flush_interval(Duration::from_millis(10))
}

/// Descriptors beside those of sealed segments: of the process, the lane, and the active segments.
const DESCRIPTORS: usize = 40;

fn write_small_segments(dir: &Path) {
    const SEGMENTS: u64 = 3000;
    let options = || options().segment_rows(2);
    let check = |store: &tensorcask::Reader| {
        for key in 0..SEGMENTS * 2 {
            assert_eq!(store.get(key).unwrap(), Some(Value::Int(key as i64)));
        }
        assert!(descriptors() < DESCRIPTORS, "{} descriptors", descriptors());
        // One for each segment at most, and a few for active ones and runs.
        assert!(maps(dir).1 as u64 <= SEGMENTS + 30, "{:?} maps", maps(dir));
    };
    let store = options().open(dir, "m").unwrap();
    let mut held = Vec::new();
    for segment in 0..SEGMENTS {
        let keys = [segment * 2, segment * 2 + 1];
        store.put_batch(&keys, &keys.map(|key| Value::Int(key as i64))).unwrap();
        store.flush().unwrap();
        if segment % 50 == 0 {
            // What a reader keeps of a segment that is active keeps no descriptor either.
            held.push(store.get(segment * 2).unwrap());
            assert!(descriptors() < DESCRIPTORS, "{} descriptors", descriptors());
        }
    }
    check(&store);
    assert!(files_in(&dir.join("m/segments"), ".arrow") >= SEGMENTS as usize - 2);
    // Values that are held keep the map that they were read from.
    drop(held);
    store.close().unwrap();
    drop(store);
    assert_eq!(maps(dir).1, 0);
    check(&options().open_reader(dir, "m").unwrap());
    let store = options().open(dir, "m").unwrap();
    check(&store);
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
    store.close().unwrap();
}

#[test]
fn three_thousand_small_segments_need_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    run_with_few_descriptors("small segments", dir.path());
}

/// A value of a structure of its own.
fn structure(number: u64) -> Value {
    Value::Map(vec![(format!("name {number}"), Value::Int(number as i64))])
}

fn write_structures(dir: &Path) {
    const STRUCTURES: u64 = 20_000;
    let most_maps: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    let check = |store: &tensorcask::Reader| {
        for key in 0..STRUCTURES {
            assert_eq!(store.get(key).unwrap(), Some(structure(key)));
        }
        assert!(descriptors() < DESCRIPTORS, "{} descriptors", descriptors());
        assert!(maps(dir).0 < most_maps / 4, "{:?} maps of {most_maps}", maps(dir));
    };
    let store = options().open(dir, "m").unwrap();
    for key in 0..STRUCTURES {
        store.put(key, &structure(key)).unwrap();
        if key % 1000 == 0 {
            assert!(descriptors() < DESCRIPTORS, "{} descriptors", descriptors());
        }
    }
    store.flush().unwrap();
    check(&store);
    store.close().unwrap();
    drop(store);
    assert_eq!(files_in(&dir.join("m/segments"), ".arrow") as u64, STRUCTURES);
    check(&options().open_reader(dir, "m").unwrap());
    let store = options().open(dir, "m").unwrap();
    assert!(store.open_report().is_clean(), "{:?}", store.open_report());
    check(&store);
    store.close().unwrap();
}

#[test]
fn twenty_thousand_structures_need_few_descriptors_and_maps() {
    let dir = tempfile::tempdir().unwrap();
    run_with_few_descriptors("structures", dir.path());
}

/// A reader, and a writer of another lane, beside a writer whose segments are followed while they are active.
fn follow(dir: &Path) {
    let options = || options().segment_rows(20).refresh_interval(Duration::ZERO);
    let writer = options().open(dir, "m").unwrap();
    let other = options().lane(Lane::Auto).open(dir, "m").unwrap();
    writer.put(0_u64, &Value::Int(0)).unwrap();
    writer.flush().unwrap();
    let reader = options().open_reader(dir, "m").unwrap();
    for key in 0..4000_u64 {
        writer.put(key, &Value::Int(key as i64)).unwrap();
        if key % 7 == 0 {
            writer.flush().unwrap();
            for store in [&reader, &*other] {
                assert_eq!(store.get(key).unwrap(), Some(Value::Int(key as i64)));
            }
        }
        assert!(descriptors() < DESCRIPTORS, "{} descriptors", descriptors());
    }
    // Three handles, each with a map a segment.
    assert!(maps(dir).1 < 3 * 220, "{:?} maps", maps(dir));
}

#[test]
fn followed_segments_need_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    run_with_few_descriptors("follow", dir.path());
}

/// The `u64` key whose xxh3 hash with seed 0 is `hash`: each step of the hash can be undone.
fn key_of_hash(hash: u64) -> u64 {
    const FACTOR: u64 = 0x9FB2_1C65_1E98_DF25;
    // Newton's steps towards the inverse of an odd number.
    let inverse = (0..6).fold(FACTOR, |x, _| x.wrapping_mul(2_u64.wrapping_sub(FACTOR.wrapping_mul(x))));
    let mut h = hash ^ hash >> 28 ^ hash >> 56;
    h = h.wrapping_mul(inverse);
    h ^= (h >> 35) + 8;
    h = h.wrapping_mul(inverse);
    // x ^ rotl(x, 49) ^ rotl(x, 24), done 64 times, is x: done 63 times more, it is undone.
    for power in [1, 2, 4, 8, 16, 32] {
        h ^= h.rotate_left(49 * power % 64) ^ h.rotate_left(24 * power % 64);
    }
    let secret = u64::from_le_bytes(*b"\x7c\x01\x81\x2c\xf7\x21\xad\x1c")
        ^ u64::from_le_bytes(*b"\xde\xd4\x6d\xe9\x83\x90\x97\xdb");
    (h ^ secret).rotate_left(32)
}

/// The farthest that a row of the store's run lies from its home bucket, in buckets; 63 for all from there on.
fn farthest(dir: &Path) -> u8 {
    let run = std::fs::read_dir(dir.join("m/runs")).unwrap().next().unwrap().unwrap();
    let bytes = std::fs::read(run.path()).unwrap();
    let footer = bytes.last_chunk::<160>().unwrap();
    let buckets = u64::from_le_bytes(*footer.last_chunk::<120>().unwrap().first_chunk().unwrap()) as usize;
    let homes = bytes.get(4096..4096 + buckets * 64).unwrap();
    homes.as_chunks::<64>().0.iter().map(|bucket| bucket[13] >> 6 | (bucket[14] & 15) << 2).max().unwrap()
}

#[test]
fn keys_that_were_chosen_to_collide_are_spread() {
    const KEYS: u64 = 200_000;
    // All in one 1,024th of the range of hashes with seed 0.
    let keys: Vec<u64> =
        (0..KEYS).map(|i| key_of_hash(0x155 << 54 | i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 10)).collect();
    let load = |options: Options| {
        let dir = tempfile::tempdir().unwrap();
        let store = options.durability(Durability::Buffered).open(dir.path(), "m").unwrap();
        store.put_rows(&keys, &[1], &vec![7_u8; keys.len()]).unwrap();
        store.close().unwrap();
        let (mut rows, mut found) = (vec![0_u8; 1000], vec![false; 1000]);
        let sample: Vec<u64> = keys.iter().step_by(200).copied().collect();
        assert_eq!(store.get_batch_into(&sample, &[1], &mut rows, &mut found).unwrap(), 1000);
        let seed = std::fs::read_to_string(dir.path().join("m/store.json")).unwrap();
        (farthest(dir.path()), seed)
    };
    assert_eq!(load(Options::new().hash_seed(0)).0, 63, "the keys are well chosen");
    let (reach, first) = load(Options::new());
    assert!(reach < 20, "a row lies {reach} buckets from its home");
    assert_ne!(first, load(Options::new()).1, "each store has a seed of its own");
}

/// Puts something that is no file at `path`.
fn make(kind: &str, path: &Path) {
    use rustix::fs::{CWD, Mode};
    use std::os::unix::fs::symlink;
    match kind {
        "folder" => std::fs::create_dir(path).unwrap(),
        "pipe" => rustix::fs::mkfifoat(CWD, path, Mode::RWXU).unwrap(),
        "socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        "dangling link" => symlink("nowhere", path).unwrap(),
        "circle" => symlink(path, path).unwrap(),
        "link to a folder" => symlink("..", path).unwrap(),
        "link to a device" => symlink("/dev/zero", path).unwrap(),
        other => unreachable!("{other}"),
    }
}

const NO_FILES: [&str; 7] =
    ["folder", "pipe", "socket", "dangling link", "circle", "link to a folder", "link to a device"];

#[test]
fn what_is_no_file_is_left_out_and_told() {
    const NAMES: [&str; 10] = [
        "segments/0000-0000000007.arrow",
        "segments/0000-0000000008.arrow.open",
        "segments/0003-0000000001.arrow.open",
        "segments/0000-0000000009.arrow.tmp",
        "runs/0000-0000000007.run",
        "runs/0000-0000000008.run.tmp",
        "lanes/0000.synced",
        "lanes/0000.synced.tmp",
        "store.json",
        "store.json.tmp",
    ];
    for kind in NO_FILES {
        for name in NAMES {
            let dir = tempfile::tempdir().unwrap();
            let open = || Options::new().durability(Durability::Buffered).segment_rows(2).open(dir.path(), "m");
            let store = open().unwrap();
            store.put(1_u64, &Value::Int(1)).unwrap();
            store.close().unwrap();
            drop(store);
            let path = dir.path().join("m").join(name);
            let _there = std::fs::remove_file(&path);
            make(kind, &path);
            let told = |report: &tensorcask::OpenReport| {
                let name = path.file_name().unwrap().to_str().unwrap();
                report.notes.iter().any(|note| note.contains(name))
            };
            let is_segment = name.starts_with("segments") || name.ends_with(".run");
            let reader = Options::new().open_reader(dir.path(), "m").unwrap();
            assert_eq!(reader.get(1_u64).unwrap(), Some(Value::Int(1)), "{kind} {name}");
            assert!(!is_segment || told(reader.open_report()), "{kind} {name}: {:?}", reader.open_report());
            reader.refresh().unwrap();
            let store = open().unwrap();
            let is_temporary = name.ends_with("json.tmp") || name.ends_with("run.tmp");
            assert!(is_temporary || told(store.open_report()), "{kind} {name}: {:?}", store.open_report());
            assert_eq!(store.get(1_u64).unwrap(), Some(Value::Int(1)), "{kind} {name}");
            // Up to the number that is taken, and beyond it.
            for key in 2..20_u64 {
                store.put(key, &Value::Int(key as i64)).unwrap();
                store.flush_with(Durability::SyncData).unwrap();
            }
            store.merge_index().unwrap();
            store.close().unwrap();
            drop(store);
            let store = open().unwrap();
            for key in 1..20_u64 {
                assert_eq!(store.get(key).unwrap(), Some(Value::Int(key as i64)), "{kind} {name}");
            }
            assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
            store.close().unwrap();
            // It is still there, or was set aside: nothing that the store did not make is removed.
            let aside = dir.path().join("m/quarantine").join(path.file_name().unwrap());
            let is_there = |path: &Path| path.symlink_metadata().is_ok_and(|found| !found.file_type().is_file());
            assert!(is_there(&path) || is_there(&aside), "{kind} {name}");
        }
    }
}

#[test]
fn a_lock_that_is_no_file_is_an_error_and_waits_for_nobody() {
    for kind in NO_FILES {
        for name in ["lanes/0000.lock", "lanes/open.lock"] {
            let dir = tempfile::tempdir().unwrap();
            Options::new().open(dir.path(), "m").unwrap().close().unwrap();
            let path = dir.path().join("m").join(name);
            std::fs::remove_file(&path).unwrap();
            make(kind, &path);
            let error = Options::new().open(dir.path(), "m").unwrap_err();
            assert_eq!(error.path(), Some(&*path), "{kind} {name}: {error}");
            assert!(error.to_string().contains("move it away"), "{error}");
            let free = Options::new().lane(Lane::Auto).open(dir.path(), "m");
            assert_eq!(free.is_ok_and(|store| store.lane() == 1), name == "lanes/0000.lock", "{kind} {name}");
            assert!(path.symlink_metadata().is_ok_and(|found| !found.file_type().is_file()));
        }
    }
}

#[test]
fn linked_files_are_read_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().segment_rows(2).open(dir.path(), "m").unwrap();
    for key in 0..5_u64 {
        store.put(key, &Value::Int(key as i64)).unwrap();
        store.flush_with(Durability::SyncData).unwrap();
    }
    // A copy of which each file is a link, as download caches make it: two sealed segments, and an active one.
    let (from, to) = (dir.path().join("m"), dir.path().join("links"));
    for folder in ["segments", "runs", "lanes", "quarantine"] {
        std::fs::create_dir_all(to.join(folder)).unwrap();
    }
    assert_eq!(files_in(&from.join("segments"), ".arrow"), 2);
    let segments = std::fs::read_dir(from.join("segments")).unwrap().map(|entry| entry.unwrap().path());
    let before: Vec<_> = segments.map(|path| (std::fs::read(&path).unwrap(), path)).collect();
    for (_, path) in &before {
        std::os::unix::fs::symlink(path, to.join(path.strip_prefix(&from).unwrap())).unwrap();
    }
    std::os::unix::fs::symlink(from.join("store.json"), to.join("store.json")).unwrap();
    let check = |reader: &tensorcask::Reader| {
        for key in 0..5_u64 {
            assert_eq!(reader.get(key).unwrap(), Some(Value::Int(key as i64)));
        }
    };
    check(&Options::new().open_reader(dir.path(), "links").unwrap());
    let other = options().open(dir.path(), "links").unwrap();
    check(&other);
    other.put(9_u64, &Value::Int(9)).unwrap();
    other.close().unwrap();
    check(&Options::new().open_reader(dir.path(), "links").unwrap());
    assert!(before.iter().all(|(bytes, path)| std::fs::read(path).unwrap() == *bytes));
}

#[test]
fn names_at_the_numeric_limit_use_up_nothing() {
    const NUMBERS: [&str; 4] =
        ["18446744073709551615", "18446744073709551614", "9223372036854775807", "281474976710656"];
    for number in NUMBERS {
        for name in
            ["segments/0000-N.arrow", "segments/0000-N.arrow.open", "runs/0000-N.run", "quarantine/0000-N.arrow"]
        {
            let dir = tempfile::tempdir().unwrap();
            let open = || Options::new().durability(Durability::Buffered).open(dir.path(), "m");
            for key in 1..4_u64 {
                let store = open().unwrap();
                for earlier in 1..key {
                    assert_eq!(store.get(earlier).unwrap(), Some(Value::Int(1)), "{name} {number}");
                }
                store.put(key, &Value::Int(1)).unwrap();
                store.flush().unwrap();
                store.merge_index().unwrap();
                store.close().unwrap();
                // Before the second opening, and again before the third if it was moved away.
                std::fs::write(dir.path().join("m").join(name.replace('N', number)), b"no segment").unwrap();
            }
            let names = std::fs::read_dir(dir.path().join("m/segments")).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let low = names.filter(|name| name.starts_with("0000-00000000")).count();
            assert_eq!(low, 3, "{name} {number}");
        }
    }
    // All numbers that a lane may give out are given out.
    let dir = tempfile::tempdir().unwrap();
    Options::new().open(dir.path(), "m").unwrap().close().unwrap();
    std::fs::write(dir.path().join("m/quarantine/0000-281474976710655.arrow"), b"").unwrap();
    let error = Options::new().open(dir.path(), "m").unwrap_err();
    assert!(matches!(error, tensorcask::Error::TooLarge { .. }), "{error}");
    assert_eq!(Options::new().lane(Lane::Number(1)).open(dir.path(), "m").unwrap().lane(), 1);
}

#[test]
fn values_may_be_nested_to_any_depth_and_are_refused() {
    const LEVELS: usize = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let store = options().open(dir.path(), "m").unwrap();
    let wraps: [fn(Value) -> Value; 3] = [
        |inner| Value::List(vec![inner]),
        |inner| Value::Tuple(vec![Value::Int(1), inner]),
        |inner| Value::Map(vec![("n".into(), inner)]),
    ];
    let is_refused = |put: tensorcask::Result<()>| matches!(put, Err(Error::TooLarge { .. }));
    for wrap in wraps {
        let nested = |levels: usize| (0..levels).fold(Value::Null, |inner, _| wrap(inner));
        let deep = nested(LEVELS);
        assert!(is_refused(store.put(1_u64, &deep)));
        assert!(is_refused(store.put_batch(&[1_u64], std::slice::from_ref(&deep))));
        assert!(deep == deep.clone() && deep != nested(LEVELS - 1));
        assert!(!format!("{deep:?}").is_empty());
        // As deep as a store takes, and one level more.
        assert!(is_refused(store.put(2_u64, &nested(33))));
        store.put(3_u64, &nested(32)).unwrap();
        assert_eq!(store.get(3_u64).unwrap(), Some(nested(32)));
    }
    let mut view = ValueView::Null;
    for _ in 0..LEVELS {
        view = ValueView::List(vec![ValueView::Map(vec![("n", view)])]);
    }
    assert!(is_refused(store.put_batch(&[1_u64], &[view.clone()])));
    assert!(is_refused(store.put(1_u64, view)));
    assert!(!store.contains(1_u64).unwrap() && !store.contains(2_u64).unwrap());
    store.close().unwrap();
}

#[test]
fn a_key_that_another_lane_has_just_flushed_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    // Looks for what others committed are not due during the test.
    let open =
        |lane| options().refresh_interval(Duration::from_secs(1000)).lane(Lane::Number(lane)).open(dir.path(), "m");
    let (one, two) = (open(0).unwrap(), open(1).unwrap());
    one.put("first", &Value::Int(1)).unwrap();
    one.flush().unwrap();
    for round in 0..3 {
        one.put_batch(&["a", "b"], &[Value::Int(round), Value::Int(round)]).unwrap();
        one.flush().unwrap();
        assert!(two.delete("a").unwrap(), "round {round}");
        assert_eq!(two.delete_batch(&["b", "a", "c", "b"]).unwrap(), 1);
        two.flush().unwrap();
        one.refresh().unwrap();
        assert!(!one.contains("a").unwrap() && !one.contains("b").unwrap());
    }
    // What was deleted here and put again there is looked for as any missing key.
    let three = options().refresh_interval(Duration::ZERO).lane(Lane::Auto).open(dir.path(), "m").unwrap();
    assert!(three.delete("first").unwrap());
    three.flush().unwrap();
    one.put("first", &Value::Int(2)).unwrap();
    one.flush().unwrap();
    assert!(three.contains("first").unwrap());
    assert_eq!(three.get("first").unwrap(), Some(Value::Int(2)));
}

fn right_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// An hour back.
fn late_clock() -> u64 {
    right_clock() - 3_600_000_000
}

#[test]
fn the_later_put_wins_whatever_the_clocks_say() {
    for sealed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let open = |lane, clock: fn() -> u64| {
            let options = options().refresh_interval(Duration::from_secs(1000));
            options
                .segment_rows(if sealed { 1 } else { 100 })
                .lane(Lane::Number(lane))
                .clock(clock)
                .open(dir.path(), "m")
        };
        let (right, late) = (open(0, right_clock).unwrap(), open(1, late_clock).unwrap());
        for version in 0..8_i64 {
            let writer = if version % 2 == 0 { &right } else { &late };
            let rows = [7_u8; 300 << 10];
            if version % 4 < 2 {
                writer.put("k", &Value::Int(version)).unwrap();
            } else {
                // Large rows are written on another way.
                writer.put_rows(&["large"], &[rows.len()], &rows).unwrap();
                writer.put("k", &Value::Int(version)).unwrap();
            }
            writer.flush().unwrap();
            assert_eq!(writer.get("k").unwrap(), Some(Value::Int(version)));
            // At first no writer has seen what the other one put before.
            for store in [&right, &late].into_iter().filter(|_| version > 4) {
                store.refresh().unwrap();
                assert_eq!(store.get("k").unwrap(), Some(Value::Int(version)), "sealed {sealed}");
            }
            let reader = options().open_reader(dir.path(), "m").unwrap();
            assert_eq!(reader.get("k").unwrap(), Some(Value::Int(version)), "sealed {sealed}");
        }
        assert!(late.stats().unwrap().clock_behind_s > 3500.0);
        assert!(right.stats().unwrap().clock_behind_s < 60.0);
        right.close().unwrap();
        late.close().unwrap();
        drop((right, late));
        // What a lane committed before the first commit of another counts, and the clock is told.
        let said = |store: &tensorcask::Reader| store.open_report().notes.iter().any(|note| note.contains("clock"));
        let late = open(2, late_clock).unwrap();
        assert!(said(&late) && !said(&open(3, right_clock).unwrap()));
        late.put("k", &Value::Int(100)).unwrap();
        late.close().unwrap();
        assert_eq!(options().open_reader(dir.path(), "m").unwrap().get("k").unwrap(), Some(Value::Int(100)));
    }
}

#[test]
#[expect(unsafe_code, reason = "fork is what is tested")]
fn a_forked_child_is_refused_and_never_waits() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().hot_bytes(1 << 20).open(dir.path(), "m").unwrap();
    store.put("k", &Value::Int(1)).unwrap();
    store.flush().unwrap();
    let reader = options().open_reader(dir.path(), "m").unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Locks are held by others most of the time.
        for thread in 0..2 {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                for i in 0.. {
                    store.put(&format!("{thread} {i}"), &Value::Int(i)).unwrap();
                    assert!(store.contains("k").unwrap());
                    if done.load(std::sync::atomic::Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        for _ in 0..30 {
            // SAFETY: the child calls functions of the store and leaves by `_exit`.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let code = in_child(&store, &reader);
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(code) };
            }
            let mut status = 0;
            let start = std::time::Instant::now();
            loop {
                // SAFETY: waits for the child of this test, and writes to `status` alone.
                if unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == child {
                    break;
                }
                if start.elapsed() > Duration::from_secs(20) {
                    // SAFETY: the child of this test.
                    unsafe { libc::kill(child, libc::SIGKILL) };
                    done.store(true, std::sync::atomic::Ordering::Relaxed);
                    panic!("the child hangs");
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(status, 0, "what the child saw: {}", status >> 8);
            std::thread::sleep(Duration::from_millis(3));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(store.get("k").unwrap(), Some(Value::Int(1)));
    store.close().unwrap();
    assert!(options().open_reader(dir.path(), "m").unwrap().len().unwrap() > 30);
}

/// What goes wrong first with inherited handles, counted from 1; 0 if nothing.
fn in_child(store: &tensorcask::Store, reader: &tensorcask::Reader) -> i32 {
    fn forked<T>(result: tensorcask::Result<T>) -> bool {
        matches!(result, Err(Error::Forked))
    }
    let mut checks = Vec::new();
    for reader in [reader, &**store] {
        let (mut out, mut found) = ([0_u8; 4], [false; 1]);
        checks.extend([
            forked(reader.get("k")),
            forked(reader.get_batch(&["k", "?"])),
            forked(reader.get_batch_into(&["k"], &[4], &mut out, &mut found)),
            forked(reader.contains("k")),
            forked(reader.len()),
            reader.keys().next().is_some_and(forked),
            forked(reader.scan_prefix("k")),
            forked(reader.scan_range("a", "z")),
            forked(reader.refresh()),
            forked(reader.stats()),
            forked(reader.warm(1)),
            forked(reader.verify(&mut |_, _| {})),
        ]);
        reader.clear_hot();
    }
    checks.push(matches!(store.put("x", &Value::Int(1)), Err(Error::ReadOnly { .. })));
    checks.push(matches!(store.delete("k"), Err(Error::ReadOnly { .. })));
    checks.push(store.flush().is_err() && store.waiting() == (0, 0));
    checks.push(store.close().is_ok());
    checks.iter().position(|right| !right).map_or(0, |at| at as i32 + 1)
}
