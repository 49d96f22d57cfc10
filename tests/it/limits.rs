//! Limits of real systems: descriptors, memory maps, nesting, and colliding hashes.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tensorcask::{Durability, Error, Lane, Options, Value, ValueView};

use crate::storages::files_in;

const ROLE: &str = "TENSORCASK_LIMITS_ROLE";
const DIR: &str = "TENSORCASK_LIMITS_DIR";

/// Not a test: the code of the child processes, by role.
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

/// Runs a role in a process that is limited to 64 open files.
fn run_with_few_descriptors(role: &str, dir: &Path) {
    let binary = std::env::current_exe().unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 64; exec \"$0\" --exact limits::child_process --nocapture --test-threads=1"])
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

/// The number of this process's memory maps, and how many of them are of files below `dir`.
fn maps(dir: &Path) -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (maps.lines().count(), maps.lines().filter(|line| line.contains(dir.to_str().unwrap())).count())
}

fn options() -> Options {
    Options::new().durability(Durability::Buffered).flush_interval(Duration::from_millis(10))
}

/// The maximum number of descriptors: those of the process, the lane, and the active segments. Sealed segments need
/// none.
const DESCRIPTORS: usize = 40;

fn write_small_segments(dir: &Path) {
    const SEGMENTS: u64 = 3000;
    let options = || options().segment_rows(2);
    let check = |store: &tensorcask::Reader| {
        for key in 0..SEGMENTS * 2 {
            assert_eq!(store.get(key).unwrap(), Some(Value::Int(key as i64)));
        }
        assert!(descriptors() < DESCRIPTORS, "{} descriptors", descriptors());
        // At most one map per segment, and a few for active segments and runs.
        assert!(maps(dir).1 as u64 <= SEGMENTS + 30, "{:?} maps", maps(dir));
    };
    let store = options().open(dir, "m").unwrap();
    let mut held = Vec::new();
    for segment in 0..SEGMENTS {
        let keys = [segment * 2, segment * 2 + 1];
        store.put_batch(&keys, &keys.map(|key| Value::Int(key as i64))).unwrap();
        store.flush().unwrap();
        if segment % 50 == 0 {
            // A value that is held from an active segment does not keep a descriptor open.
            held.push(store.get(segment * 2).unwrap());
            assert!(descriptors() < DESCRIPTORS, "{} descriptors", descriptors());
        }
    }
    check(store.reader());
    assert!(files_in(&dir.join("m/segments"), ".arrow") >= SEGMENTS as usize - 2);
    // Held values keep the maps that they were read from.
    drop(held);
    store.close().unwrap();
    drop(store);
    assert_eq!(maps(dir).1, 0);
    check(&options().open_reader(dir, "m").unwrap());
    let store = options().open(dir, "m").unwrap();
    check(store.reader());
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
    store.close().unwrap();
}

#[test]
fn three_thousand_small_segments_need_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    run_with_few_descriptors("small segments", dir.path());
}

/// A value whose structure depends on `number`.
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
        store.put(key, structure(key)).unwrap();
        if key % 1000 == 0 {
            assert!(descriptors() < DESCRIPTORS, "{} descriptors", descriptors());
        }
    }
    store.flush().unwrap();
    check(store.reader());
    store.close().unwrap();
    drop(store);
    assert_eq!(files_in(&dir.join("m/segments"), ".arrow") as u64, STRUCTURES);
    check(&options().open_reader(dir, "m").unwrap());
    let store = options().open(dir, "m").unwrap();
    assert!(store.open_report().is_clean(), "{:?}", store.open_report());
    check(store.reader());
    store.close().unwrap();
}

#[test]
fn twenty_thousand_structures_need_few_descriptors_and_maps() {
    let dir = tempfile::tempdir().unwrap();
    run_with_few_descriptors("structures", dir.path());
}

/// A reader and a writer of another lane follow the active segments of a writer.
fn follow(dir: &Path) {
    let options = || options().segment_rows(20).refresh_interval(Duration::ZERO);
    let writer = options().open(dir, "m").unwrap();
    let other = options().lane(Lane::Auto).open(dir, "m").unwrap();
    writer.put(0_u64, Value::Int(0)).unwrap();
    writer.flush().unwrap();
    let reader = options().open_reader(dir, "m").unwrap();
    for key in 0..4000_u64 {
        writer.put(key, Value::Int(key as i64)).unwrap();
        if key % 7 == 0 {
            writer.flush().unwrap();
            for store in [&reader, other.reader()] {
                assert_eq!(store.get(key).unwrap(), Some(Value::Int(key as i64)));
            }
        }
        assert!(descriptors() < DESCRIPTORS, "{} descriptors", descriptors());
    }
    // Three handles, each with one map per segment.
    assert!(maps(dir).1 < 3 * 220, "{:?} maps", maps(dir));
}

#[test]
fn followed_segments_need_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    run_with_few_descriptors("follow", dir.path());
}

/// The `u64` key whose xxh3 hash with seed 0 is `hash`. Each step of the hash is invertible.
fn key_of_hash(hash: u64) -> u64 {
    const FACTOR: u64 = 0x9FB2_1C65_1E98_DF25;
    // Newton's iteration for the inverse of an odd number.
    let inverse = (0..6).fold(FACTOR, |x, _| x.wrapping_mul(2_u64.wrapping_sub(FACTOR.wrapping_mul(x))));
    let mut h = hash ^ hash >> 28 ^ hash >> 56;
    h = h.wrapping_mul(inverse);
    h ^= (h >> 35) + 8;
    h = h.wrapping_mul(inverse);
    // Applying x ^ rotl(x, 49) ^ rotl(x, 24) 64 times is the identity, so applying it 63 times more inverts it.
    for power in [1, 2, 4, 8, 16, 32] {
        h ^= h.rotate_left(49 * power % 64) ^ h.rotate_left(24 * power % 64);
    }
    let secret = u64::from_le_bytes(*b"\x7c\x01\x81\x2c\xf7\x21\xad\x1c")
        ^ u64::from_le_bytes(*b"\xde\xd4\x6d\xe9\x83\x90\x97\xdb");
    (h ^ secret).rotate_left(32)
}

/// The largest distance of a row of the store's run from its home bucket, in buckets; 63 stands for 63 or more.
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
    // All keys are in one 1,024th of the range of hashes with seed 0.
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
    let is_refused =
        |put: tensorcask::Result<()>| matches!(put.as_ref().map_err(Error::cause), Err(Error::TooLarge { .. }));
    for wrap in wraps {
        let nested = |levels: usize| (0..levels).fold(Value::Null, |inner, _| wrap(inner));
        let deep = nested(LEVELS);
        assert!(is_refused(store.put(1_u64, &deep)));
        assert!(is_refused(store.put_batch(&[1_u64], std::slice::from_ref(&deep))));
        assert!(deep == deep.clone() && deep != nested(LEVELS - 1));
        assert!(!format!("{deep:?}").is_empty());
        // The maximum depth, and one level more.
        assert!(is_refused(store.put(2_u64, nested(33))));
        store.put(3_u64, nested(32)).unwrap();
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
