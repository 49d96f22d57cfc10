//! The store through its public interface: reads return what was put, after any sequence of operations.

use tensorcask::{Dtype, Error, Key, Options, Store, Tensor, Value};

fn tree(i: i64) -> Value {
    Value::Map(vec![
        ("tokens".into(), Value::Tensor(Tensor::from_slice(&[2, 2], &[i as f32, f32::NAN, -0.0, 1.5]).unwrap())),
        (
            "meta".into(),
            Value::Tuple(vec![Value::Int(i), Value::Null, Value::Bool(i % 2 == 0), Value::Float(f64::NAN)]),
        ),
        ("name".into(), Value::Str(format!("sample {i}"))),
        ("raw".into(), Value::Bytes(vec![i as u8; i as usize % 5].into())),
        ("empty".into(), Value::List(vec![])),
    ])
}

#[test]
fn values_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    for i in 0..100 {
        store.put(format!("k{i}"), tree(i)).unwrap();
    }
    let check = |store: &tensorcask::Reader| {
        for i in 0..100 {
            let value = store.get(format!("k{i}")).unwrap().unwrap();
            assert_eq!(format!("{value:?}"), format!("{:?}", tree(i)));
        }
        assert_eq!(store.len().unwrap(), 100);
    };
    check(store.reader());
    store.flush().unwrap();
    check(store.reader());
    store.close().unwrap();
    check(store.reader());
    let store = Store::open(dir.path(), "m").unwrap();
    assert!(store.open_report().is_clean());
    check(store.reader());
    assert_eq!(store.get("nope").unwrap(), None);
}

#[test]
fn rows_go_in_and_out_in_one_piece() {
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().segment_bytes(1 << 20).memtable_keys(2000).open(dir.path(), "m").unwrap();
    let keys: Vec<u64> = (0..20_000).collect();
    for chunk in keys.chunks(512) {
        let rows: Vec<f32> = chunk.iter().flat_map(|key| (0..64).map(move |i| (key * 64 + i) as f32)).collect();
        store.put_rows(chunk, &[64], &rows).unwrap();
    }
    let check = |store: &tensorcask::Reader| {
        let wanted: Vec<u64> = (0..1000).map(|i| i * 7919 % 25_000).collect();
        let mut out = vec![-1.0_f32; 1000 * 64];
        let mut found = vec![false; 1000];
        let hits = store.get_batch_into(&wanted, &[64], &mut out, &mut found).unwrap();
        assert_eq!(hits, wanted.iter().filter(|key| **key < 20_000).count());
        for ((key, row), found) in wanted.iter().zip(out.chunks(64)).zip(found) {
            assert_eq!(found, *key < 20_000);
            assert!(row.iter().enumerate().all(|(i, x)| *x == if found { (key * 64 + i as u64) as f32 } else { -1.0 }));
        }
        assert_eq!(store.len().unwrap(), 20_000);
    };
    check(store.reader());
    store.flush().unwrap();
    check(store.reader());
    store.close().unwrap();
    assert_eq!(store.merges_running(), 0, "closing waits for merges");
    let store = Store::open(dir.path(), "m").unwrap();
    assert!(store.stats().unwrap().runs > 0);
    check(store.reader());
    let reader = tensorcask::Reader::open(dir.path(), "m").unwrap();
    check(&reader);
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
    assert_eq!(Dtype::ALL.len(), 22);
}

#[test]
fn an_index_is_merged_to_one_run_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Store::open(dir.path(), "m").unwrap();
    let row = |key: &u64| (*key as f32).sqrt();
    let put = |keys: std::ops::Range<u64>| {
        let (store, keys) = (open(), keys.collect::<Vec<u64>>());
        store.put_rows(&keys, &[1], &keys.iter().map(row).collect::<Vec<f32>>()).unwrap();
        store.close().unwrap();
    };
    // The older run is more than eight times as large, so closing does not merge them.
    put(0..50_000);
    put(49_000..55_000);
    let store = open();
    assert_eq!(store.stats().unwrap().runs, 2);
    store.merge_index().unwrap();
    assert_eq!(store.stats().unwrap().runs, 1);
    let built = store.stats().unwrap().runs_built;
    store.merge_index().unwrap();
    assert_eq!(store.stats().unwrap().runs_built, built, "there is nothing to merge");
    let keys: Vec<u64> = (0..56_000).collect();
    let (mut out, mut found) = (vec![0.0_f32; keys.len()], vec![false; keys.len()]);
    assert_eq!(store.get_batch_into(&keys, &[1], &mut out, &mut found).unwrap(), 55_000);
    assert!(keys.iter().zip(&out).take(55_000).all(|(key, value)| *value == row(key)));
    assert_eq!(store.len().unwrap(), 55_000);
    store.close().unwrap();
    assert_eq!(open().stats().unwrap().runs, 1);
}

#[test]
fn closing_leaves_one_run_of_what_the_handle_put() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Store::open(dir.path(), "m").unwrap();
    let put = |store: &Store, keys: std::ops::Range<u64>| {
        let keys: Vec<u64> = keys.collect();
        store.put_rows(&keys, &[1], &vec![1.0_f32; keys.len()]).unwrap();
    };
    let store = Options::new().segment_rows(5_000).open(dir.path(), "m").unwrap();
    (0..25).for_each(|part| put(&store, part * 5_000..(part + 1) * 5_000));
    store.flush().unwrap();
    store.merge_index().unwrap();
    assert_eq!(store.stats().unwrap().runs, 1);
    put(&store, 125_000..131_000);
    store.close().unwrap();
    assert_eq!(open().stats().unwrap().runs, 1);
    // There are too few new rows to justify rewriting the index.
    let store = open();
    put(&store, 131_000..137_000);
    store.close().unwrap();
    let store = open();
    assert_eq!((store.stats().unwrap().runs, store.len().unwrap()), (2, 137_000));
}

#[test]
fn keys_that_are_written_and_merged_while_they_are_listed_are_listed_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().synchronous(true).segment_rows(50).open(dir.path(), "m").unwrap();
    let put = |keys: std::ops::Range<u64>| keys.for_each(|key| store.put(key, Value::Int(1)).unwrap());
    put(0..50);
    store.flush().unwrap();
    put(50..100);
    store.flush().unwrap();
    // These rows are in the memtable when the listing begins.
    put(100..150);
    let mut keys = store.keys();
    let mut listed: Vec<Key> = vec![keys.next().unwrap().unwrap()];
    store.flush().unwrap();
    store.merge_index().unwrap();
    assert_eq!(store.stats().unwrap().runs, 1);
    listed.extend(keys.map(|key| key.unwrap()));
    listed.sort();
    assert_eq!(listed, (0..150).map(Key::U64).collect::<Vec<_>>());
}

#[test]
fn what_was_put_is_kept_if_another_thread_closes() {
    for round in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        // The writer thread has nothing to do before the store is closed.
        let store = Options::new().flush_interval(std::time::Duration::from_secs(60)).synchronous(round % 4 == 3);
        let store = store.open(dir.path(), "m").unwrap();
        let start = std::sync::Barrier::new(4);
        let put = std::thread::scope(|scope| {
            let close = || {
                start.wait();
                store.close().unwrap();
            };
            let put = |first: u64| {
                start.wait();
                let accepted = |key: &u64| match store.put(*key, Value::Int(1)) {
                    Err(Error::Closed) => false,
                    result => {
                        result.unwrap();
                        true
                    }
                };
                (first..first + 100_000).take_while(accepted).count() as u64
            };
            let closing = [scope.spawn(close), scope.spawn(close)];
            let putting = [0_u64, 1 << 32].map(|first| (first, scope.spawn(move || put(first))));
            closing.into_iter().for_each(|thread| thread.join().unwrap());
            putting.map(|(first, thread)| first..first + thread.join().unwrap())
        });
        drop(store);
        let store = Store::open(dir.path(), "m").unwrap();
        let keys: Vec<u64> = put.into_iter().flatten().collect();
        assert!(store.contains_batch(&keys).unwrap().iter().all(|there| *there), "round {round}");
        assert_eq!(store.len().unwrap(), keys.len() as u64);
    }
}

#[test]
fn handles_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<Store>();
    shared::<tensorcask::Reader>();
}

#[test]
fn readers_bound_their_index_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().segment_rows(200).open(dir.path(), "m").unwrap();
    store.put(0_u64, Value::Int(0)).unwrap();
    store.flush().unwrap();
    let reader = Options::new().memtable_keys(500).open_reader(dir.path(), "m").unwrap();
    for round in 0..10 {
        for key in 0..300_u64 {
            store.put(round * 200 + key, Value::Int(round as i64)).unwrap();
        }
        store.flush().unwrap();
        assert!(reader.refresh().unwrap());
        assert_eq!(reader.len().unwrap(), store.len().unwrap());
        for key in 0..round * 200 + 300 {
            assert_eq!(reader.get(key).unwrap(), store.get(key).unwrap(), "{key}");
        }
    }
    let stats = reader.stats().unwrap();
    assert!(stats.memtable_keys < 1000 && stats.runs == 1, "{stats:?}");
}

#[test]
fn of_threads_that_refresh_one_builds_the_run() {
    const KEYS: u64 = 30_000;
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().segment_rows(1000).open(dir.path(), "m").unwrap();
    store.put(u64::MAX, &Value::Null).unwrap();
    store.flush().unwrap();
    let reader = Options::new().memtable_keys(500).open_reader(dir.path(), "m").unwrap();
    for round in 0..5 {
        let keys: Vec<u64> = (round * KEYS..(round + 1) * KEYS).collect();
        keys.chunks(1000).for_each(|keys| store.put_rows(keys, &[1], &vec![0_u8; keys.len()]).unwrap());
        store.flush().unwrap();
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(|| reader.refresh().unwrap())));
        });
        assert_eq!(reader.stats().unwrap().runs, 1);
        assert!(reader.contains_batch(&keys).unwrap().iter().all(|found| *found));
    }
}

#[test]
fn merges_run_beside_one_another_and_beside_puts_and_reads() {
    const KEYS: u64 = 60_000;
    const BATCH: u64 = 512;
    let dir = tempfile::tempdir().unwrap();
    let options = || Options::new().memtable_keys(1000).segment_rows(2000).durability(tensorcask::Durability::Buffered);
    let store = options().open(dir.path(), "m").unwrap();
    let value = |key: u64, round: u64| key << 8 | round;
    for round in 0..3_u64 {
        for start in (0..KEYS).step_by(BATCH as usize) {
            let keys: Vec<u64> = (start..KEYS.min(start + BATCH)).collect();
            let values: Vec<u64> = keys.iter().map(|key| value(*key, round)).collect();
            store.put_rows(&keys, &[], &values).unwrap();
            // During any merge, the newest row of every key is found.
            let asked: Vec<u64> = (0..64).map(|n| (start * 7919 + n * 104_729) % KEYS).collect();
            let (mut out, mut found) = (vec![0; asked.len()], vec![false; asked.len()]);
            store.get_batch_into(&asked, &[], &mut out, &mut found).unwrap();
            for ((key, out), found) in asked.iter().zip(out).zip(found) {
                let newest = if *key < start + BATCH { Some(round) } else { round.checked_sub(1) };
                assert_eq!(found.then_some(out), newest.map(|round| value(*key, round)), "{key} in round {round}");
            }
        }
        for key in (0..KEYS).step_by(1000) {
            assert!(store.delete(key).unwrap());
        }
        assert_eq!(store.len().unwrap(), KEYS - KEYS / 1000);
        // The next round starts with all keys again.
        for key in (0..KEYS).step_by(1000) {
            store.put_rows(&[key], &[], &[value(key, round)]).unwrap();
        }
    }
    store.close().unwrap();
    let store = options().open(dir.path(), "m").unwrap();
    let stats = store.stats().unwrap();
    assert!(stats.runs <= 3 && stats.runs_built == 0, "{stats:?}");
    assert_eq!(stats.keys, Some(KEYS));
    assert_eq!(std::fs::read_dir(dir.path().join("m/runs")).unwrap().count(), stats.runs);
    assert!(store.contains_batch(&(0..KEYS).collect::<Vec<_>>()).unwrap().iter().all(|there| *there));
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn a_store_that_does_not_exist() {
    let dir = tempfile::tempdir().unwrap();
    let refused = [
        Options::new().create(false).open(dir.path(), "m").unwrap_err(),
        Options::new().open_reader(dir.path(), "m").unwrap_err(),
    ];
    for error in refused {
        let said = error.to_string();
        let expected = format!("there is no store m in {}", dir.path().display());
        assert!(error.is_not_found() && said.contains(&expected), "{said}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
    Options::new().open(dir.path(), "m").unwrap().close().unwrap();
    Options::new().create(false).open(dir.path(), "m").unwrap().close().unwrap();
}

/// Ranges are read in chunks. Over sealed and unsealed rows, with keys put again and deleted, no key is skipped or
/// returned twice.
#[test]
fn ranges_of_many_keys() {
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().segment_rows(4000).open(dir.path(), "m").unwrap();
    let key = |number: usize| format!("key {:06}", number * 7919 % 10_000);
    let put = |numbers: std::ops::Range<usize>| {
        let keys: Vec<String> = numbers.map(key).collect();
        store.put_rows(&keys, &[1], &vec![1_u8; keys.len()]).unwrap();
    };
    put(0..9000);
    store.flush().unwrap();
    put(4000..10_000);
    let mut expected: Vec<String> = (0..10_000).map(key).collect();
    expected.sort();
    for number in (0..10_000).step_by(3) {
        store.delete(key(number)).unwrap();
        let at = expected.binary_search(&key(number)).unwrap();
        expected.remove(at);
    }
    let texts = |range: tensorcask::Range| -> Vec<String> { range.map(|key| key.unwrap().to_string()).collect() };
    assert_eq!(texts(store.prefix("key ")), expected);
    assert_eq!(texts(store.range::<&str>(..)), expected);
    assert_eq!(
        store.count_prefix("key 00").unwrap(),
        expected.iter().filter(|key| key.starts_with("key 00")).count() as u64
    );
    let (from, to) = (&expected[2000], &expected[5000]);
    assert_eq!(texts(store.range(from.as_str()..=to.as_str())), expected[2000..=5000]);
    assert_eq!(texts(store.range(from.as_str()..)).len(), expected.len() - 2000);
    assert_eq!(store.iter().count(), expected.len());
    store.close().unwrap();
    assert_eq!(texts(tensorcask::Reader::open(dir.path(), "m").unwrap().prefix("key ")), expected);
}
