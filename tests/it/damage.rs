//! Flipped bytes and truncated files: every row is returned correctly, or as damage, or is reported as lost. No row is
//! wrong, and nothing panics.

use std::time::Duration;

use crate::storages::{Kind, TestStorage, options};
use tensorcask::{Error, Recovery, Store, Tensor, Value, Verify};

on_both!(
    flipped_bytes_in_sealed_segments_are_found,
    flipped_bytes_in_active_segments_are_found,
    flipped_bytes_in_runs_cost_nothing,
    cut_files_are_found,
    runs_and_the_identity_file_can_be_deleted,
    damaged_seals_are_quarantined_and_their_rows_saved,
    one_damaged_row_fails_alone,
    a_reader_takes_no_damage_in_an_active_segment_for_its_end,
    damage_that_a_refresh_finds_is_no_miss,
    a_damaged_front_with_batches_behind_it_is_no_empty_segment,
    a_torn_tail_is_the_end,
    a_damaged_frame_table_costs_no_row,
    verify_checks_frames_and_the_end_of_the_stream,
    a_sealed_segment_counts_and_an_active_copy_of_it_does_not,
);

const ROWS: usize = 60;

fn value(i: usize) -> Value {
    let tensor = Tensor::from_slice(&[6], &[i as f32; 6]).unwrap();
    if i.is_multiple_of(3) { Value::List(vec![tensor.into(), Value::Str(format!("note {i}"))]) } else { tensor.into() }
}

/// A store with two sealed segments, a run over them, and an active segment if `active`.
fn store(kind: Kind, active: bool) -> TestStorage {
    let storage = kind.empty();
    let store = options().open_on(storage.storage()).unwrap();
    for i in 0..ROWS {
        store.put(format!("key {i}"), value(i)).unwrap();
    }
    store.flush().unwrap();
    if active {
        return storage.copy();
    }
    store.close().unwrap();
    drop(store);
    storage.merge(options());
    storage
}

/// Opens a damaged store in every mode. Returns the number of rows served in quiet mode.
fn check(storage: &TestStorage, what: &str) -> usize {
    if let Ok(reader) = options().open_reader_on(storage.copy().storage()) {
        for i in 0..ROWS {
            if let Ok(Some(found)) = reader.get(format!("key {i}")) {
                assert_eq!(found, value(i), "{what}");
            }
        }
    }
    if let Ok(store) = options().recovery(Recovery::Strict).open_on(storage.copy().storage()) {
        for i in 0..ROWS {
            match store.get(format!("key {i}")) {
                Ok(found) => assert!(found.is_none_or(|found| found == value(i)), "{what}"),
                Err(error) => assert!(error.is_corrupt(), "{what}: {error}"),
            }
        }
    }
    let copy = storage.copy();
    let store = options().open_on(copy.storage()).unwrap();
    let report = store.open_report().clone();
    let mut served = 0;
    for i in 0..ROWS {
        match store.get(format!("key {i}")) {
            Ok(Some(found)) => {
                assert_eq!(found, value(i), "{what}");
                served += 1;
            }
            Ok(None) => assert!(!report.is_clean() || !report.notes.is_empty(), "{what}: key {i} is silently gone"),
            Err(error) => assert!(error.is_corrupt(), "{what}: {error}"),
        }
    }
    let _ = store.keys().count();
    let _keys = store.prefix("key").count();
    let _ = store.verify(&mut |_, _| {}).unwrap();
    // After damaged rows are overwritten, the store is whole again.
    for i in 0..ROWS {
        store.put(format!("key {i}"), value(i)).unwrap();
    }
    store.close().unwrap();
    drop(store);
    let store = options().open_on(copy.storage()).unwrap();
    for i in 0..ROWS {
        assert_eq!(store.get(format!("key {i}")).unwrap(), Some(value(i)), "{what}");
    }
    served
}

fn flipped_bytes_in_sealed_segments_are_found(kind: Kind) {
    let storage = store(kind, false);
    for path in storage.files("segments") {
        let len = storage.read(&path).len() as u64;
        let mut served = 0;
        let mut turns = 0;
        for offset in (0..len).step_by(kind.step(37)) {
            let copy = storage.copy();
            copy.corrupt(&path, offset, 0x41);
            served += check(&copy, &format!("byte {offset} of {path}"));
            turns += 1;
        }
        // One flipped byte affects a row or the structure of a segment, never the whole store.
        assert!(served > turns * ROWS / 2, "{path}: {served} of {}", turns * ROWS);
    }
}

fn flipped_bytes_in_active_segments_are_found(kind: Kind) {
    let storage = store(kind, true);
    for path in storage.files("segments") {
        let len = storage.read(&path).len() as u64;
        for offset in (0..len).step_by(kind.step(23)) {
            let copy = storage.copy();
            copy.corrupt(&path, offset, 0x41);
            check(&copy, &format!("byte {offset} of {path}"));
        }
    }
}

fn flipped_bytes_in_runs_cost_nothing(kind: Kind) {
    let storage = store(kind, false);
    let [path] = storage.files("runs").try_into().unwrap();
    let len = storage.read(&path).len() as u64;
    for offset in (0..len).step_by(kind.step(17)) {
        let copy = storage.copy();
        copy.corrupt(&path, offset, 0x41);
        assert_eq!(check(&copy, &format!("byte {offset} of {path}")), ROWS);
    }
}

fn cut_files_are_found(kind: Kind) {
    for active in [false, true] {
        let storage = store(kind, active);
        for path in storage.files("segments") {
            let len = storage.read(&path).len() as u64;
            for keep in (0..len).step_by(kind.step(101)) {
                let copy = storage.copy();
                copy.truncate(&path, keep);
                check(&copy, &format!("{path} cut to {keep}"));
            }
        }
    }
}

fn runs_and_the_identity_file_can_be_deleted(kind: Kind) {
    let storage = store(kind, false);
    for path in storage.files("runs").into_iter().chain(["store.json".to_owned()]) {
        storage.remove(path);
    }
    assert_eq!(check(&storage, "no run"), ROWS);
}

fn damaged_seals_are_quarantined_and_their_rows_saved(kind: Kind) {
    let storage = store(kind, false);
    let path = &storage.files("segments")[0];
    let len = storage.read(path).len() as u64;
    storage.corrupt(path, len - 3, 0xFF);
    assert!(matches!(options().recovery(Recovery::Strict).open_on(storage.storage()), Err(Error::Corrupt { .. })));
    let store = options().open_on(storage.storage()).unwrap();
    let [quarantined] = store.open_report().quarantined.as_slice() else { panic!("{:?}", store.open_report()) };
    assert!(quarantined.rows_saved > 0 && quarantined.moved_to.is_some());
    assert_eq!(store.len().unwrap(), ROWS as u64);
    assert_eq!(storage.files("quarantine").len(), 2, "the file, and a note on it");
    for i in 0..ROWS {
        assert_eq!(store.get(format!("key {i}")).unwrap(), Some(value(i)));
    }
}

fn one_damaged_row_fails_alone(kind: Kind) {
    let storage = kind.empty();
    let store = options().open_on(storage.storage()).unwrap();
    let keys: Vec<u64> = (0..100).collect();
    let rows: Vec<f32> = (0..100 * 256).map(|i| (i / 256) as f32).collect();
    store.put_rows(&keys, &[256], &rows).unwrap();
    store.close().unwrap();
    drop(store);
    // Row 50 of a page-aligned batch, whose elements are all 50.0.
    let path = &storage.files("segments")[0];
    let pattern = vec![50.0_f32; 256].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let bytes = storage.read(path);
    let at = bytes.windows(1024).position(|window| window == pattern).unwrap();
    storage.corrupt(path, at as u64 + 1000, 1);

    for verify in [Verify::FirstRead, Verify::Always] {
        let reader = options().verify(verify).open_reader_on(storage.storage()).unwrap();
        let (mut out, mut found) = (vec![-1.0_f32; 100 * 256], vec![false; 100]);
        let Err(Error::DamagedRows { rows: damaged }) = reader.get_batch_into(&keys, &[256], &mut out, &mut found)
        else {
            panic!("the damage was not seen");
        };
        assert_eq!(damaged.iter().map(|row| row.position).collect::<Vec<_>>(), [50]);
        assert!(found.iter().enumerate().all(|(i, found)| *found == (i != 50)));
        assert!(out.chunks(256).enumerate().all(|(i, row)| row[0] == if i == 50 { -1.0 } else { i as f32 }));
        assert!(matches!(reader.get(50_u64), Err(Error::Corrupt { .. })));
        assert!(reader.get(51_u64).unwrap().is_some());
        assert_eq!(reader.verify(&mut |_, _| {}).unwrap().damage.len(), 1);
    }
    let reader = options().verify(Verify::Never).open_reader_on(storage.storage()).unwrap();
    assert!(reader.get(50_u64).unwrap().is_some());
}

/// A store that stays open, with one batch for each of the integer keys 0, 1 and 2. Also returns the offset of each
/// batch's message in the active segment.
fn growing(kind: Kind) -> (TestStorage, Store, Vec<u64>) {
    let storage = kind.empty();
    let store = options().open_on(storage.storage()).unwrap();
    let starts = (0..3_u64).map(|key| {
        store.put(key, Value::Int(key as i64)).unwrap();
        store.flush().unwrap();
        let bytes = storage.read(ACTIVE);
        // The newest frame records the offset of its message.
        let place = bytes.get(bytes.len() - 56..).and_then(|frame| frame.first_chunk::<8>());
        u64::from_le_bytes(*place.unwrap())
    });
    let starts = starts.collect();
    (storage, store, starts)
}

const ACTIVE: &str = "segments/0000-0000000001.arrow.open";

fn a_reader_takes_no_damage_in_an_active_segment_for_its_end(kind: Kind) {
    for position in [0, 6, 40, 200] {
        let (storage, store, starts) = growing(kind);
        let what = format!("byte {position} of the second batch");
        let strict = options().recovery(Recovery::Strict).refresh_interval(Duration::from_secs(3600));
        let early = strict.clone().open_reader_on(storage.storage()).unwrap();
        storage.corrupt(ACTIVE, starts[1] + position, 0x15);
        assert!(strict.open_reader_on(storage.storage()).unwrap_err().is_corrupt(), "{what}");
        early.refresh().unwrap();
        assert_eq!(early.get(1_u64).unwrap(), Some(Value::Int(1)), "what was taken in before stays");

        let reader = options().open_reader_on(storage.storage()).unwrap();
        assert_eq!(reader.get(0_u64).unwrap(), Some(Value::Int(0)), "{what}");
        assert_eq!(reader.get(2_u64).unwrap(), Some(Value::Int(2)), "{what}");
        let [found] = reader.open_report().quarantined.as_slice() else { panic!("{:?}", reader.open_report()) };
        assert_eq!((found.rows_saved, &found.moved_to), (2, &None), "{what}");
        assert!(!reader.open_report().is_clean());
        assert_eq!(reader.stats().unwrap().bad_files, 1);
        let [damage] = reader.verify(&mut |_, _| {}).unwrap().damage.try_into().unwrap();
        assert_eq!(damage.rows, 1, "{what}");
        // The reader follows later batches.
        store.put(3_u64, Value::Int(3)).unwrap();
        store.flush().unwrap();
        reader.refresh().unwrap();
        assert_eq!(reader.get(3_u64).unwrap(), Some(Value::Int(3)), "{what}");
        assert_eq!(reader.verify(&mut |_, _| {}).unwrap().damage.len(), 1);
        // After sealing, the damaged batch is found.
        store.close().unwrap();
        reader.refresh().unwrap();
        assert!(reader.get(1_u64).unwrap_err().is_corrupt());
    }
}

fn damage_that_a_refresh_finds_is_no_miss(kind: Kind) {
    let (storage, store, _) = growing(kind);
    let open = |recovery| {
        let options = options().recovery(recovery).refresh_interval(Duration::from_secs(3600));
        options.open_reader_on(storage.storage()).unwrap()
    };
    let (strict, quiet) = (open(Recovery::Strict), open(Recovery::Quiet));
    let start = storage.read(ACTIVE).len() as u64;
    for key in 3..5_u64 {
        store.put(key, Value::Int(key as i64)).unwrap();
        store.flush().unwrap();
    }
    storage.corrupt(ACTIVE, start + 6, 0x15);
    // The refresh fails, and so does every lookup that known rows do not answer.
    for _ in 0..2 {
        assert!(strict.refresh().unwrap_err().is_corrupt());
        assert!(strict.get(4_u64).unwrap_err().is_corrupt());
        assert!(strict.contains(9_u64).unwrap_err().is_corrupt());
        assert_eq!(strict.get(2_u64).unwrap(), Some(Value::Int(2)));
    }
    let report = strict.verify(&mut |_, _| {}).unwrap();
    assert!(!report.is_clean());
    assert!(quiet.refresh().unwrap());
    assert_eq!(quiet.get(4_u64).unwrap(), Some(Value::Int(4)));
    assert_eq!(quiet.stats().unwrap().bad_files, 1);
    assert_eq!(quiet.verify(&mut |_, _| {}).unwrap().damage.len(), 1);
}

fn a_damaged_front_with_batches_behind_it_is_no_empty_segment(kind: Kind) {
    let (storage, _store, _) = growing(kind);
    storage.corrupt(ACTIVE, 100, 0x15);
    let strict = options().recovery(Recovery::Strict).open_reader_on(storage.storage());
    assert!(strict.unwrap_err().is_corrupt());
    let reader = options().open_reader_on(storage.storage()).unwrap();
    assert!(!reader.open_report().is_clean());
    assert_eq!(reader.stats().unwrap().bad_files, 1);
}

fn a_torn_tail_is_the_end(kind: Kind) {
    let (storage, store, starts) = growing(kind);
    let whole = storage.read(ACTIVE);
    for keep in starts[2] + 1..whole.len() as u64 {
        if keep % 29 != 0 && keep + 1 != whole.len() as u64 {
            continue;
        }
        let copy = storage.copy();
        copy.truncate(ACTIVE, keep);
        // Marks are not synced. If one is present, the batches that it covers cannot have been torn.
        copy.truncate("lanes/0000.synced", 0);
        let strict = options().recovery(Recovery::Strict);
        let reader = strict.open_reader_on(copy.storage()).unwrap();
        assert!(!reader.refresh().unwrap());
        assert_eq!(reader.get(2_u64).unwrap(), None, "{keep} bytes");
        assert!(reader.open_report().is_clean());
    }
    drop(store);
}

/// The offsets of frames that follow their messages, and of those in the frame table.
fn frames(bytes: &[u8]) -> (Vec<usize>, Vec<usize>) {
    let from = |at: usize| bytes.get(at..).unwrap_or_default();
    let number = |at: usize| u64::from_le_bytes(*from(at).first_chunk().unwrap());
    let in_place = |at: &usize| number(at + 40) + (number(at + 48) & 0xFFFF_FFFF) + number(at + 64) == *at as u64;
    let all = (0..bytes.len() - 96).step_by(8).filter(|at| from(*at).starts_with(b"TCFRAME1"));
    all.partition(in_place)
}

fn a_damaged_frame_table_costs_no_row(kind: Kind) {
    let (storage, store, _) = growing(kind);
    store.close().unwrap();
    let path = "segments/0000-0000000001.arrow";
    let (in_place, table) = frames(&storage.read(path));
    assert_eq!(table.len(), 3);
    for at in table.iter().flat_map(|frame| [*frame, frame + 20, frame + 95]) {
        storage.corrupt(path, at as u64, 0x15);
        let reader = options().open_reader_on(storage.storage()).unwrap();
        assert!((0..3_u64).all(|key| reader.get(key).unwrap().is_some()));
        let found = reader.verify(&mut |_, _| {}).unwrap();
        assert_eq!((found.damage.len(), found.rows), (1, 3), "byte {at}: {found:?}");
        let writer = options().open_on(storage.copy().storage()).unwrap();
        assert!((0..3_u64).all(|key| writer.get(key).unwrap().is_some()));

        // With another copy damaged as well, the rows of that batch are errors, not misses.
        storage.corrupt(path, in_place[2] as u64 + 30, 0x15);
        let reader = options().open_reader_on(storage.storage()).unwrap();
        assert!([0, 2_u64].iter().all(|key| reader.get(*key).unwrap().is_some()));
        assert!(reader.get(1_u64).is_err_and(|error| error.is_corrupt()));
        assert!(reader.get(99_u64).is_ok_and(|value| value.is_none()));
        let found = reader.verify(&mut |_, _| {}).unwrap();
        assert_eq!(found.damage.iter().map(|damage| damage.rows).sum::<u64>(), 1, "{found:?}");
        let writer = options().open_on(storage.copy().storage()).unwrap();
        assert!(writer.get(1_u64).is_err_and(|error| error.is_corrupt()));
        assert!([0, 2_u64].iter().all(|key| writer.get(*key).unwrap().is_some()));
        storage.corrupt(path, in_place[2] as u64 + 30, 0x15);
        storage.corrupt(path, at as u64, 0x15);
    }
}

fn verify_checks_frames_and_the_end_of_the_stream(kind: Kind) {
    let (storage, store, _) = growing(kind);
    store.close().unwrap();
    let path = "segments/0000-0000000001.arrow";
    let bytes = storage.read(path);
    let (frames, _) = frames(&bytes);
    assert_eq!(frames.len(), 4, "the schema's, and one for each key");
    let end = frames[3] + 96;
    let opened = options().open_reader_on(storage.storage()).unwrap();
    assert!(opened.verify(&mut |_, _| {}).unwrap().is_clean());
    for at in frames.iter().flat_map(|frame| [*frame, frame + 50, frame + 95]).chain([end, end + 7]) {
        storage.corrupt(path, at as u64, 0x15);
        assert_eq!(opened.verify(&mut |_, _| {}).unwrap().damage.len(), 1, "byte {at}");
        let reader = options().open_reader_on(storage.storage()).unwrap();
        if at >= frames[1] {
            // No row depends on these bytes.
            assert_eq!(reader.verify(&mut |_, _| {}).unwrap().damage.len(), 1, "byte {at}");
            assert!((0..3_u64).all(|key| reader.contains(key).unwrap()));
        } else {
            assert!(!reader.open_report().is_clean(), "byte {at}");
        }
        storage.corrupt(path, at as u64, 0x15);
    }
    assert!(opened.verify(&mut |_, _| {}).unwrap().is_clean());
}

fn a_sealed_segment_counts_and_an_active_copy_of_it_does_not(kind: Kind) {
    let (storage, store, starts) = growing(kind);
    let active = storage.read(ACTIVE);
    store.close().unwrap();
    drop(store);
    let sealed = storage.read("segments/0000-0000000001.arrow");
    // An older, damaged copy of the segment.
    storage.write(ACTIVE, &active);
    storage.corrupt(ACTIVE, starts[1] + 40, 0x15);
    let strict = || options().recovery(Recovery::Strict);
    for _ in 0..2 {
        let reader = strict().open_reader_on(storage.storage()).unwrap();
        let store = strict().open_on(storage.storage()).unwrap();
        assert!(reader.open_report().is_clean() && store.open_report().is_clean());
        assert_eq!((reader.len().unwrap(), store.len().unwrap()), (3, 3));
        store.close().unwrap();
    }
    assert_eq!(storage.read("segments/0000-0000000001.arrow"), sealed);
}
