//! Segments, and samples of rows.

use tensorcask::{Compaction, Durability, Error, Key, Location, Options, Reader, Store, Value};

fn put(store: &Store, keys: std::ops::Range<u64>) {
    let keys: Vec<u64> = keys.collect();
    store.put_rows(&keys, &[8], &vec![1.0_f32; keys.len() * 8]).unwrap();
    store.flush_with(Durability::Buffered).unwrap();
}

#[test]
fn a_sample_estimates_the_live_share_of_each_segment() {
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().segment_rows(2000).compaction_live_share(0.0).open(dir.path(), "m").unwrap();
    (0..5).for_each(|part| put(&store, part * 2000..(part + 1) * 2000));
    // A quarter of the first segment is overwritten, and the second is deleted.
    put(&store, 0..500);
    assert_eq!(store.delete_range(2000_u64..4000).unwrap(), 2000);
    store.flush().unwrap();
    let live = [0.75, 0.0, 1.0, 1.0, 1.0];

    let check = |reader: &Reader, rows: u64, run_rows: u32| {
        let survey = reader.survey(rows, run_rows).unwrap();
        let sampled: u64 = survey.segments.iter().map(|segment| segment.sampled).sum();
        assert!((rows * 9 / 10..=rows).contains(&sampled), "{sampled} of {rows}");
        for (segment, expected) in survey.segments.iter().zip(live) {
            let found = segment.sampled_live as f64 / segment.sampled as f64;
            assert!((found - expected).abs() < 0.25, "{segment:?}, {expected}");
            assert!((segment.path.exists() || !segment.sealed) && segment.sampled_damaged == 0, "{segment:?}");
            assert!(segment.first_commit_s > 1.7e9 && segment.last_commit_s >= segment.first_commit_s, "{segment:?}");
        }
        let rows: u64 = survey.segments.iter().map(|segment| segment.rows).sum();
        let tombstones: u64 = survey.segments.iter().map(|segment| segment.tombstones).sum();
        assert_eq!((rows, tombstones, survey.rows_waiting), (12_500, 2000, 0));
        assert!(reader.contains_batch(&survey.keys).unwrap().iter().all(|there| *there));
        let mut keys = survey.keys.clone();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), survey.keys.len());
        assert_eq!(reader.survey(rows, run_rows).unwrap().segments.len(), survey.segments.len());
        survey.keys
    };
    for (rows, run_rows) in [(1000, 1), (2000, 32)] {
        check(store.reader(), rows, run_rows);
        check(&Reader::open(dir.path(), "m").unwrap(), rows, run_rows);
    }
    let keys = check(store.reader(), 2000, 32);
    let in_order = keys.windows(2).filter(|pair| pair[1].as_u64() == pair[0].as_u64().map(|key| key + 1)).count();
    assert!(in_order * 10 > keys.len() * 9, "{in_order} of {}", keys.len());
    // A sample of all rows has all keys, those that wait to be written included.
    store.put_rows(&[1_000_000_u64], &[8], &[2.0_f32; 8]).unwrap();
    let all = store.survey(1 << 20, 1).unwrap();
    assert_eq!((all.keys.len() as u64, all.keys.contains(&Key::U64(1_000_000))), (store.len().unwrap(), true));
    store.close().unwrap();

    let empty = Options::new().open(dir.path(), "empty").unwrap();
    assert_eq!(empty.survey(100, 1).unwrap(), tensorcask::Survey::default());
}

#[test]
fn the_row_of_a_key_is_located() {
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().open(dir.path(), "m").unwrap();
    assert!(matches!(store.locate(1_u64).unwrap(), Location::Absent));
    // Nothing writes the queue meanwhile.
    let slow = Options::new().flush_interval(std::time::Duration::from_secs(60)).open(dir.path(), "slow").unwrap();
    slow.put(1_u64, Value::Int(1)).unwrap();
    let Location::Present(waiting) = slow.locate(1_u64).unwrap() else { panic!("it waits") };
    assert_eq!((waiting.path, waiting.committed_s), (None, None));

    put(&store, 0..10);
    assert!(store.delete(3_u64).unwrap());
    store.flush().unwrap();
    let reader = Reader::open(dir.path(), "m").unwrap();
    for handle in [store.reader(), &reader] {
        let Location::Present(place) = handle.locate(2_u64).unwrap() else { panic!("it is there") };
        assert!(place.path.unwrap().exists() && place.committed_s.unwrap() > 1.7e9);
        assert!(matches!(handle.locate(3_u64).unwrap(), Location::Deleted(place) if place.path.is_some()));
        assert!(matches!(handle.locate(10_u64).unwrap(), Location::Absent));
        assert!(matches!(handle.locate("2"), Err(Error::KeyKind { .. })));
    }
    // What another handle commits is seen at once, and asking counts no read.
    put(&store, 10..11);
    assert!(matches!(reader.locate(10_u64).unwrap(), Location::Present(_)));
    assert_eq!(reader.stats().unwrap().misses, 0);
}

#[test]
fn compaction_and_preloading_tell_how_far_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new().segment_rows(8192).compaction_live_share(0.0);
    let store = options.open(dir.path(), "m").unwrap();
    for part in 0..4_u64 {
        let keys: Vec<u64> = (part * 8192..(part + 1) * 8192).collect();
        store.put_rows(&keys, &[32], &vec![1.0_f32; keys.len() * 32]).unwrap();
        store.flush().unwrap();
    }
    let odd: Vec<u64> = (0..4 * 8192).filter(|key| key % 2 == 1).collect();
    store.delete_batch(&odd).unwrap();
    assert_eq!(store.compaction_progress(), None);
    let mut seen = Vec::new();
    let compaction = Compaction::new().bytes_per_s(Some(4 << 20));
    std::thread::scope(|scope| {
        let compact = scope.spawn(|| store.compact(&compaction).unwrap());
        while !compact.is_finished() {
            seen.extend(store.compaction_progress());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    assert!(seen.iter().all(|progress| progress.done_bytes <= progress.total_bytes), "{seen:?}");
    assert!(seen.iter().any(|progress| progress.is_rewriting && progress.total_bytes > 4 << 20), "{seen:?}");
    assert_eq!(store.compaction_progress(), None);
    store.close().unwrap();

    let reader = Reader::open(dir.path(), "m").unwrap();
    let mut steps = Vec::new();
    let preloaded = reader.preload_with(u64::MAX, &mut |done| steps.push(done)).unwrap();
    assert!(steps.is_sorted() && steps.last() == Some(&(preloaded.index_bytes + preloaded.segment_bytes)), "{steps:?}");
}
