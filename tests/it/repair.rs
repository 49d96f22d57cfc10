//! The cost of damage is limited: valid rows of a damaged batch are served, rows that are put again count once from
//! then on, and lookups do not get slower with the amount of damage.

use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::storages::{Kind, TestStorage};
use tensorcask::{Error, Key, Options, Reader, Store, Value};

on_both!(
    rows_put_again_count_once_and_the_disk_stays_flat,
    rows_put_again_count_in_each_kind_of_index,
    looking_at_a_damaged_batch_is_linear,
    a_newer_damaged_row_hides_an_older_one,
    verify_names_what_to_put_again,
);

/// The bytes of a batch that are damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Prefix,
    Key,
    RowChecksum,
    KeyOffset,
    Values,
    Frame,
    FrameTable,
    IndexBlock,
    OrderedKeys,
}

const ALL: [Damage; 9] = [
    Damage::Prefix,
    Damage::Key,
    Damage::RowChecksum,
    Damage::KeyOffset,
    Damage::Values,
    Damage::Frame,
    Damage::FrameTable,
    Damage::IndexBlock,
    Damage::OrderedKeys,
];

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A part that the seal lists: 0 schema, 1 frame table, 2 index block, 3 ordered keys, 4 replaced segments, 5 footer.
fn part(bytes: &[u8], number: usize) -> (usize, usize) {
    let seal = bytes.windows(8).rposition(|window| window == b"TCSEAL\r\n").unwrap();
    let at = seal + 80 + number * 20;
    (u64_at(bytes, at) as usize, u64_at(bytes, at + 8) as usize)
}

/// Flips a bit in the middle batch of the first segment. Returns false if it has no such bytes.
fn damage(storage: &TestStorage, what: Damage, key: &[u8], width: usize) -> bool {
    let path = &storage.files("segments")[0];
    let bytes = storage.read(path);
    let (table, len) = part(&bytes, 1);
    let frame = table + len / 96 / 2 * 96;
    let rows = u32::from_le_bytes(bytes[frame + 12..frame + 16].try_into().unwrap()) as usize;
    let (offset, metadata) = (u64_at(&bytes, frame + 40) as usize, u64_at(&bytes, frame + 48) as u32 as usize);
    let (structure, body) = (u64_at(&bytes, frame + 56) as usize, u64_at(&bytes, frame + 64) as usize);
    let end = offset + metadata + body;
    let in_structure = &bytes[offset + metadata..offset + structure];
    let keys = in_structure.windows(key.len()).position(|window| window == key).map(|at| offset + metadata + at);
    let at = match what {
        Damage::Prefix => offset + 1,
        Damage::Key => keys.unwrap() + key.len() - 1,
        // The checksums and zeros end the structure, as there are no offsets of values.
        Damage::RowChecksum => offset + structure - (rows * 4).next_multiple_of(64) + rows / 2 * 4,
        // The offsets are at the start.
        Damage::KeyOffset if key.len() != 8 => offset + metadata + rows / 2 * 4,
        Damage::KeyOffset => return false,
        Damage::Values => end - body / 2 / width.max(1) * width.max(1),
        Damage::Frame => end + 20,
        Damage::FrameTable => frame + 20,
        Damage::IndexBlock => part(&bytes, 2).0 + part(&bytes, 2).1 / 2,
        Damage::OrderedKeys if part(&bytes, 3).1 == 0 => return false,
        Damage::OrderedKeys => part(&bytes, 3).0 + part(&bytes, 3).1 / 2,
    };
    storage.corrupt(path, at as u64, 0x04);
    true
}

/// Rows of `WIDTH` elements that identify their key.
struct Rows {
    keys: Vec<Key>,
    width: usize,
}

impl Rows {
    fn new(count: usize, width: usize, strings: bool) -> Self {
        let key = |i: usize| if strings { Key::Str(format!("sample/{i:08}")) } else { Key::U64(i as u64 * 7919 + 3) };
        Self { keys: (0..count).map(key).collect(), width }
    }

    fn value(&self, i: usize) -> Vec<f32> {
        (0..self.width).map(|x| (i % 8191 * 3 + x) as f32).collect()
    }

    fn put(&self, store: &Store, chosen: &[usize]) {
        let keys: Vec<Key> = chosen.iter().map(|i| self.keys[*i].clone()).collect();
        let rows: Vec<f32> = chosen.iter().flat_map(|i| self.value(*i)).collect();
        store.put_rows(&keys, &[self.width], &rows).unwrap();
    }

    /// Reads all rows, as a training loop does. Returns those that could not be read, and fails if a row is wrong or
    /// missing.
    fn read(&self, reader: &Reader, what: &str) -> Vec<usize> {
        let mut damaged = Vec::new();
        for (batch, keys) in self.keys.chunks(4096).enumerate() {
            let (mut out, mut found) = (vec![-1.0; keys.len() * self.width], vec![false; keys.len()]);
            match reader.get_batch_into(keys, &[self.width], &mut out, &mut found) {
                Ok(hits) => assert_eq!(hits, keys.len(), "{what}: a miss"),
                Err(Error::DamagedRows { rows }) => damaged.extend(rows.iter().map(|row| batch * 4096 + row.position)),
                Err(error) => panic!("{what}: {error}"),
            }
            for (at, row) in out.chunks(self.width).enumerate() {
                let i = batch * 4096 + at;
                let expected = if found[at] { self.value(i) } else { vec![-1.0; self.width] };
                assert!(row == expected, "{what}: row {i} is wrong");
                assert_eq!(found[at], damaged.binary_search(&i).is_err(), "{what}: row {i}");
            }
        }
        damaged
    }
}

/// A closed store with `rows` in batches of `batch` rows.
fn filled(kind: Kind, options: &Options, rows: &Rows, batch: usize) -> TestStorage {
    let storage = kind.empty();
    let store = options.clone().open_on(storage.storage()).unwrap();
    let all: Vec<usize> = (0..rows.keys.len()).collect();
    for chunk in all.chunks(batch) {
        rows.put(&store, chunk);
        store.flush().unwrap();
    }
    store.close().unwrap();
    storage
}

fn key_bytes(key: &Key) -> Vec<u8> {
    match key {
        Key::Str(text) => text.clone().into_bytes(),
        Key::U64(number) => number.to_le_bytes().to_vec(),
        Key::Bytes(bytes) => bytes.clone(),
    }
}

fn options() -> Options {
    Options::new().synchronous(true).flush_every(1 << 20, 1 << 30)
}

/// Reads, puts damaged rows again, and reads again, over several epochs and openings.
fn epochs(storage: &TestStorage, options: &Options, rows: &Rows, what: &str) -> usize {
    let mut put_again = 0;
    let mut sizes = Vec::new();
    for epoch in 0..3 {
        let store = options.clone().open_on(storage.storage()).unwrap();
        assert!(store.open_report().quarantined.is_empty(), "{what}: {:?}", store.open_report());
        assert_eq!(store.len().unwrap(), rows.keys.len() as u64, "{what}, epoch {epoch}");
        let damaged = rows.read(store.reader(), what);
        assert!(epoch == 0 || damaged.is_empty(), "{what}: damaged in epoch {epoch}");
        if !damaged.is_empty() {
            rows.put(&store, &damaged);
            put_again += damaged.len();
        }
        assert!(rows.read(store.reader(), what).is_empty(), "{what}: in one handle");
        assert_eq!(store.len().unwrap(), rows.keys.len() as u64, "{what}: put again in epoch {epoch}");
        if epoch == 1 {
            store.flush().unwrap();
            store.merge_index().unwrap();
            assert!(rows.read(store.reader(), what).is_empty(), "{what}: merged");
        }
        store.close().unwrap();
        assert_eq!(store.len().unwrap(), rows.keys.len() as u64, "{what}: closed in epoch {epoch}");
        let mut keys = store.keys().collect::<Result<Vec<_>, _>>().unwrap();
        keys.sort_unstable();
        assert!(keys == rows.keys, "{what}: {} keys are listed", keys.len());
        let reader = options.clone().open_reader_on(storage.storage()).unwrap();
        assert_eq!(reader.len().unwrap(), rows.keys.len() as u64, "{what}: a reader");
        assert!(rows.read(&reader, what).is_empty(), "{what}: a reader");
        let lost: u64 = reader.verify(&mut |_, _| {}).unwrap().damage.iter().map(|damage| damage.rows).sum();
        assert_eq!(lost, 0, "{what}");
        sizes.push(storage.len_bytes());
    }
    // Runs may be rebuilt.
    assert!(sizes.windows(2).all(|pair| pair[1] <= pair[0] + pair[0] / 50 + 20_000), "{what}: {sizes:?}");
    put_again
}

fn rows_put_again_count_once_and_the_disk_stays_flat(kind: Kind) {
    for (count, batch, width) in [(20, 20, 4), (20, 7, 4), (2000, 2000, 32), (2000, 300, 32)] {
        for strings in [false, true] {
            let rows = Rows::new(count, width, strings);
            // The default options, as callers use them, for one batch size.
            let options = if batch == 300 { Options::new() } else { options() };
            let whole = filled(kind, &options, &rows, batch);
            for what in ALL {
                let storage = whole.copy();
                let middle = count.div_ceil(batch) / 2 * batch + 5;
                if !damage(&storage, what, &key_bytes(&rows.keys[middle]), width * 4) {
                    continue;
                }
                let name = format!("{count} rows in batches of {batch}, strings {strings}, {what:?}");
                let put_again = epochs(&storage, &options, &rows, &name);
                let most = match what {
                    Damage::Frame | Damage::FrameTable | Damage::IndexBlock | Damage::OrderedKeys => 0,
                    // Two rows share an offset.
                    Damage::Key | Damage::RowChecksum | Damage::KeyOffset | Damage::Values => 2,
                    Damage::Prefix => batch,
                };
                assert!(put_again <= most, "{name}: {put_again} rows were put again");
                assert!(most == 0 || put_again > 0, "{name}: nothing was damaged");
            }
        }
    }
}

/// 30,000 rows: the index of the damaged rows is a run in memory or on disk, and the memtable has the rows that are put
/// again.
fn rows_put_again_count_in_each_kind_of_index(kind: Kind) {
    let rows = Rows::new(30_000, 4, true);
    for (memtable_keys, what) in [(1 << 20, Damage::Prefix), (1000, Damage::Prefix), (1000, Damage::Key)] {
        let options = options().memtable_keys(memtable_keys);
        let storage = filled(kind, &options, &rows, 30_000);
        assert!(damage(&storage, what, &key_bytes(&rows.keys[7]), 16));
        epochs(&storage, &options, &rows, &format!("30,000 rows, {what:?}, memtable of {memtable_keys}"));
    }
}

/// The same with 300,000 rows: `cargo test --release -- --ignored`.
#[test]
#[ignore = "takes a minute without optimisation: cargo test --release --test it repair -- --ignored"]
fn three_hundred_thousand_rows_put_again() {
    for kind in [Kind::Memory, Kind::Disk] {
        for strings in [false, true] {
            let rows = Rows::new(300_000, 4, strings);
            let whole = filled(kind, &options(), &rows, 300_000);
            for what in [Damage::Prefix, Damage::Key, Damage::RowChecksum, Damage::IndexBlock, Damage::FrameTable] {
                let storage = whole.copy();
                assert!(damage(&storage, what, &key_bytes(&rows.keys[7]), 16));
                epochs(&storage, &options(), &rows, &format!("300,000 rows, strings {strings}, {what:?}"));
            }
        }
    }
}

/// Every row of a damaged batch is looked up, but the batch is read only once.
fn looking_at_a_damaged_batch_is_linear(kind: Kind) {
    for memtable_keys in [1 << 20, 1000] {
        let rows = Rows::new(20_000, 2, false);
        let options = options().memtable_keys(memtable_keys);
        let storage = filled(kind, &options, &rows, 20_000);
        assert!(damage(&storage, Damage::Prefix, &key_bytes(&rows.keys[7]), 8));
        let (counting, asked) = storage.counting();
        let reader = options.clone().open_reader_on(counting).unwrap();
        let len_bytes = storage.len_bytes();
        let before = asked.load(Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(rows.read(&reader, "all").len(), 20_000);
            assert!(reader.get_batch(&rows.keys).unwrap().iter().all(Result::is_err));
            assert!(reader.contains_batch(&rows.keys).unwrap_err().is_corrupt());
            assert_eq!(reader.keys().filter(Result::is_err).count(), 20_000);
            assert!(reader.range(0..u64::MAX).any(|key| key.is_err_and(|error| error.is_corrupt())));
        }
        // The prefetched tables, the batch, and the index block.
        let read = asked.load(Ordering::Relaxed) - before;
        assert!(read < 4 * len_bytes, "{read} bytes were asked for of {len_bytes}");
        let before = asked.load(Ordering::Relaxed);
        assert_eq!(reader.verify(&mut |_, _| {}).unwrap().damage[0].rows, 20_000);
        let read = asked.load(Ordering::Relaxed) - before;
        assert!(read < 4 * len_bytes, "verify asked for {read} bytes of {len_bytes}");
    }
}

/// Prints the time that it takes: `cargo test --release -- --ignored --nocapture`.
#[test]
#[ignore = "measures: cargo test --release --test it repair -- --ignored --nocapture"]
fn four_times_the_damaged_rows_take_about_four_times_as_long() {
    let seconds = |count: usize, what: Damage| {
        let rows = Rows::new(count, 8, false);
        let storage = filled(Kind::Memory, &options(), &rows, count);
        assert!(damage(&storage, what, &key_bytes(&rows.keys[7]), 32));
        let reader = options().open_reader_on(storage.storage()).unwrap();
        let (mut out, mut found) = (vec![0.0_f32; count * 8], vec![false; count]);
        let start = Instant::now();
        let result = reader.get_batch_into(&rows.keys, &[8], &mut out, &mut found);
        assert!(matches!(result, Err(Error::DamagedRows { .. })));
        start.elapsed().as_secs_f64()
    };
    for what in [Damage::Prefix, Damage::Key] {
        let (small, large) = (seconds(25_000, what), seconds(100_000, what));
        println!("{what:?}: 25,000 rows {:.1} ms, 100,000 rows {:.1} ms", small * 1e3, large * 1e3);
        assert!(large < 8.0 * small + 0.05, "{what:?}: {small} s, then {large} s");
    }
}

/// If a damaged row may be newer than the row that is found, the lookup is an error, and neither a hit nor a miss.
fn a_newer_damaged_row_hides_an_older_one(kind: Kind) {
    for merged in [false, true] {
        for strings in [false, true] {
            let storage = kind.empty();
            let (old, new) = (Rows::new(40, 4, strings), Rows::new(40, 4, strings));
            let store = options().open_on(storage.storage()).unwrap();
            new.put(&store, &(0..40).collect::<Vec<_>>());
            store.close().unwrap();
            drop(store);
            // The first segment by name has the newer rows; an older copy is in a segment of another lane.
            let newer = storage.copy();
            assert!(damage(&newer, Damage::Prefix, &key_bytes(&new.keys[9]), 16));
            let store = options().open_on(newer.storage()).unwrap();
            if merged {
                store.merge_index().unwrap();
            }
            assert!(old.read(store.reader(), "no newer row").len() == 40);
            assert!(store.delete(&old.keys[0]).is_err() || !store.contains(&old.keys[0]).unwrap());
            old.put(&store, &[1, 2, 3]);
            let damaged = old.read_but(store.reader(), &[0]);
            assert_eq!(damaged, (4..40).collect::<Vec<_>>());
            store.close().unwrap();
        }
    }
}

impl Rows {
    /// As [`Rows::read`], one by one and without the rows `left_out`.
    fn read_but(&self, reader: &Reader, left_out: &[usize]) -> Vec<usize> {
        let mut damaged = Vec::new();
        for (i, key) in self.keys.iter().enumerate().filter(|(i, _)| !left_out.contains(i)) {
            match reader.get(key) {
                Ok(found) => {
                    let found = found.unwrap().into_tensor().unwrap().to_vec::<f32>().unwrap();
                    assert_eq!(found, self.value(i));
                }
                Err(error) => {
                    assert!(error.is_corrupt());
                    damaged.push(i);
                }
            }
        }
        damaged
    }
}

fn verify_names_what_to_put_again(kind: Kind) {
    for strings in [false, true] {
        let rows = Rows::new(500, 4, strings);
        let whole = filled(kind, &options(), &rows, 100);
        for what in [Damage::Prefix, Damage::Key, Damage::RowChecksum, Damage::KeyOffset, Damage::Values] {
            let storage = whole.copy();
            if !damage(&storage, what, &key_bytes(&rows.keys[205]), 16) {
                continue;
            }
            let store = options().open_on(storage.storage()).unwrap();
            let report = store.verify(&mut |_, _| {}).unwrap();
            let lost = rows.read(store.reader(), "damaged");
            let [found] = report.damage.as_slice() else { panic!("{what:?}: {report:?}") };
            assert_eq!(found.rows, lost.len() as u64, "{what:?}");
            let lost: Vec<Key> = lost.iter().map(|i| rows.keys[*i].clone()).collect();
            assert_eq!(found.keys, lost, "{what:?}");
            for key in &lost {
                let i = rows.keys.iter().position(|other| other == key).unwrap();
                rows.put(&store, &[i]);
            }
            assert!(store.verify(&mut |_, _| {}).unwrap().is_clean(), "{what:?}: put again");
            store.close().unwrap();
            let reader = options().open_reader_on(storage.storage()).unwrap();
            assert!(reader.verify(&mut |_, _| {}).unwrap().is_clean() && reader.open_report().is_clean(), "{what:?}");
        }
    }
}

#[test]
fn damage_that_costs_no_row_is_mended_when_the_store_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options::new().synchronous(true);
    let put = |keys: std::ops::Range<u64>| {
        let store = options().open(dir.path(), "m").unwrap();
        keys.for_each(|key| store.put(format!("key {key}"), Value::Int(key as i64)).unwrap());
        store.close().unwrap();
    };
    let path = dir.path().join("m/segments/0000-0000000001.arrow");
    put(0..50);
    put(50..60);
    let whole = std::fs::read(&path).unwrap();
    for merged in [false, true] {
        if merged {
            let store = options().open(dir.path(), "m").unwrap();
            store.merge_index().unwrap();
            store.close().unwrap();
        }
        // The index block, the ordered keys, the frame table, a frame, the end of the stream.
        let seal = whole.windows(8).rposition(|bytes| bytes == b"TCSEAL\r\n").unwrap();
        let part = |number: usize| {
            let at = seal + 80 + number * 20;
            u64::from_le_bytes(whole[at..at + 8].try_into().unwrap()) as usize
        };
        let frame = whole.windows(8).position(|bytes| bytes == b"TCFRAME1").unwrap() + 600;
        let frame = frame + whole[frame..].windows(8).position(|bytes| bytes == b"TCFRAME1").unwrap();
        for at in [part(2) + 5, part(3) + 40, part(1) + 30, frame + 20] {
            let copy = tempfile::tempdir().unwrap();
            crate::storages::copy_folder(&dir.path().join("m"), &copy.path().join("m"));
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(copy.path().join("m/segments/0000-0000000001.arrow"), bytes).unwrap();
            let store = options().open(copy.path(), "m").unwrap();
            let found = store.verify(&mut |_, _| {}).unwrap();
            assert!(found.damage.len() == 1 && found.damage[0].rows == 0, "{found:?}");
            store.close().unwrap();
            let served = |reader: &tensorcask::Reader| {
                assert_eq!(reader.len().unwrap(), 60, "byte {at}");
                (0..60).for_each(|key| assert_eq!(reader.get(format!("key {key}")).unwrap(), Some(Value::Int(key))));
                assert_eq!(reader.count_prefix("key").unwrap(), 60);
            };
            served(store.reader());
            drop(store);
            let store = options().open(copy.path(), "m").unwrap();
            assert!(store.open_report().is_clean(), "byte {at}: {:?}", store.open_report());
            let again = store.verify(&mut |_, _| {}).unwrap();
            assert!(again.is_clean(), "byte {at}: {again:?}");
            served(store.reader());
            store.close().unwrap();
            assert!(copy.path().join("m/quarantine/0000-0000000001.arrow").exists(), "nothing is deleted");
        }
    }
}
