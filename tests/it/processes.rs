//! Several processes on one store: readers follow writers, and concurrent writers in separate lanes lose nothing.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use tensorcask::{Lane, Options, Reader, Recovery, Store, Value};

const ROLE: &str = "TENSORCASK_PROCESS_ROLE";
const DIR: &str = "TENSORCASK_PROCESS_DIR";

/// Not a test: the code of the child processes, by role.
#[test]
fn child_process() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIR)) else { return };
    match role.as_str() {
        "reader" => answer(&dir),
        writer => {
            let number: u64 = writer.parse().unwrap();
            let store = Options::new().lane(Lane::Auto).segment_rows(100).memtable_keys(150).open(dir, "m").unwrap();
            for i in 0..500 {
                store.put(number * 1000 + i, Value::Int((number * 1000 + i) as i64)).unwrap();
                if i % 50 == 0 {
                    store.flush().unwrap();
                }
            }
            store.close().unwrap();
        }
    }
}

/// Reads lines with a number of keys. Answers each with the number of smaller keys that are found with the right value,
/// after a refresh.
fn answer(dir: &str) {
    let reader = Reader::open(dir, "m").unwrap();
    for line in std::io::stdin().lines() {
        let keys: u64 = line.unwrap().trim().parse().unwrap();
        reader.refresh().unwrap();
        let there = (0..keys).filter(|key| match reader.get(*key).unwrap() {
            Some(value) => {
                assert_eq!(value, Value::Int(*key as i64 * 3));
                true
            }
            None => false,
        });
        println!("\nthere {}", there.count());
    }
}

fn child(role: &str, dir: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::child_process", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_reader_follows_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().segment_rows(200).memtable_keys(300).open(dir.path(), "m").unwrap();
    let mut reader = child("reader", dir.path());
    let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines();
    let mut stdin = reader.stdin.take().unwrap();
    let mut ask = |keys: u64| -> u64 {
        writeln!(stdin, "{keys}").unwrap();
        stdin.flush().unwrap();
        lines.by_ref().map_while(Result::ok).find_map(|line| line.strip_prefix("there ")?.parse().ok()).unwrap()
    };
    assert_eq!(ask(10), 0);
    let mut put = 0;
    // Rows of the active segment, of sealed segments, and of merged ones.
    for keys in [10_u64, 150, 250, 900, 901] {
        for key in put..keys {
            store.put(key, Value::Int(key as i64 * 3)).unwrap();
        }
        put = keys;
        store.flush().unwrap();
        assert_eq!(ask(keys + 5), keys);
    }
    store.merge_index().unwrap();
    assert_eq!(ask(950), 901);
    store.close().unwrap();
    drop(store);
    assert_eq!(ask(950), 901);
    // Another writer continues.
    let store = Store::open(dir.path(), "m").unwrap();
    store.put(901_u64, Value::Int(901 * 3)).unwrap();
    store.flush().unwrap();
    assert_eq!(ask(950), 902);
    drop(stdin);
    assert!(reader.wait().unwrap().success());
}

#[test]
fn damage_behind_a_writer_that_still_writes_is_no_miss() {
    use std::os::unix::fs::FileExt;
    for at in [6, 40] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "m").unwrap();
        let path = dir.path().join("m/segments/0000-0000000001.arrow.open");
        let mut starts = Vec::new();
        for key in 0..3_u64 {
            starts.push(std::fs::metadata(&path).map_or(0, |file| file.len()));
            store.put(key, Value::Int(key as i64)).unwrap();
            store.flush().unwrap();
        }
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // Bits are flipped, as an overwritten byte might have had the same value.
        let damage = |at: u64| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x15], at).unwrap();
        };
        damage(starts[1] + at);
        let strict = Options::new().recovery(Recovery::Strict).open_reader(dir.path(), "m");
        assert!(strict.unwrap_err().is_corrupt());
        let reader = Reader::open(dir.path(), "m").unwrap();
        assert_eq!(reader.get(2_u64).unwrap(), Some(Value::Int(2)));
        assert!(!reader.open_report().is_clean());
        store.put(3_u64, Value::Int(3)).unwrap();
        store.flush().unwrap();
        reader.refresh().unwrap();
        assert_eq!(reader.get(3_u64).unwrap(), Some(Value::Int(3)));
        // The last batch is also reported: it is known to be synced, although no batch follows it.
        let end = std::fs::metadata(&path).unwrap().len();
        damage(end - 1);
        let reader = Reader::open(dir.path(), "m").unwrap();
        assert_eq!(reader.verify(&mut |_, _| {}).unwrap().damage.len(), 2);
    }
}

#[test]
fn four_writers_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<Child> = (0..4).map(|number| child(&number.to_string(), dir.path())).collect();
    for mut child in children {
        drop(child.stdin.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let store = Store::open(dir.path(), "m").unwrap();
    assert!(store.open_report().is_clean(), "{:?}", store.open_report());
    assert_eq!(store.len().unwrap(), 2000);
    for number in 0..4_u64 {
        for i in 0..500 {
            let key = number * 1000 + i;
            assert_eq!(store.get(key).unwrap(), Some(Value::Int(key as i64)));
        }
    }
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn across_lanes_the_later_put_wins() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options::new().lane(Lane::Auto);
    let (one, two) = (options().open(dir.path(), "m").unwrap(), options().open(dir.path(), "m").unwrap());
    for version in 0..6 {
        let writer = if version % 2 == 0 { &one } else { &two };
        writer.put("k", Value::Int(version)).unwrap();
        writer.flush().unwrap();
        for store in [&one, &two] {
            store.refresh().unwrap();
            assert_eq!(store.get("k").unwrap(), Some(Value::Int(version)));
            assert_eq!(store.len().unwrap(), 1);
        }
    }
    assert!(two.delete("k").unwrap());
    two.flush().unwrap();
    one.refresh().unwrap();
    assert_eq!(one.get("k").unwrap(), None);
    one.close().unwrap();
    two.close().unwrap();
    assert!(Reader::open(dir.path(), "m").unwrap().is_empty().unwrap());
}
