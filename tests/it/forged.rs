//! Forged files whose checksums match: reads return errors, and never panic, hang, or allocate memory for a count that
//! the file's bytes do not support. Also files with any bit flipped, or truncated anywhere: every read returns the
//! right value or an error, or the row was reported.

use std::process::Command;

use crate::storages::{Kind, TestStorage};
use tensorcask::{Codec, Options, Reader, Store, Tensor, Value};

on_both!(forged_bytes_are_errors, flipped_bits_and_cut_files);

const SEALED: &str = "segments/0000-0000000001.arrow";
const ROWS: u64 = 40;

fn options() -> Options {
    // Small memory maps, as the address space is limited below.
    Options::new().synchronous(true).flush_every(8, 1 << 20).segment_bytes(1 << 20)
}

fn key(i: u64, strings: bool) -> tensorcask::Key {
    if strings { tensorcask::Key::Str(format!("key {i:04}")) } else { tensorcask::Key::U64(i * 0x1_0001) }
}

fn value(i: u64) -> Value {
    Tensor::from_slice(&[6], &[i as f32; 6]).unwrap().into()
}

/// A closed store with one sealed segment and one run, or one that was left open after a flush.
fn store(kind: Kind, strings: bool, codec: Codec, sealed: bool) -> TestStorage {
    let storage = kind.empty();
    let store = options().codec(codec).open_on(storage.storage()).unwrap();
    for i in 0..ROWS {
        store.put(key(i, strings), value(i)).unwrap();
    }
    store.flush().unwrap();
    if !sealed {
        return storage.whole_copy();
    }
    store.close().unwrap();
    drop(store);
    storage.merge(options());
    storage
}

/// Reads all rows through every interface, and returns how many were missed. A listing does not verify rows, so it may
/// contain a forged key.
fn read(reader: &Reader, strings: bool, forged: bool, what: &str) -> usize {
    let keys: Vec<_> = (0..ROWS).map(|i| key(i, strings)).collect();
    let mut missed = 0;
    for (i, found) in (0..).zip(reader.get_batch(&keys).unwrap_or_default()) {
        match found {
            Ok(Some(found)) => assert_eq!(found, value(i), "{what}"),
            Ok(None) => missed += 1,
            Err(error) => assert!(error.is_corrupt(), "{what}: {error}"),
        }
    }
    let (mut out, mut found) = (vec![-1.0_f32; ROWS as usize * 6], vec![false; ROWS as usize]);
    let _damaged = reader.get_batch_into(&keys, &[6], &mut out, &mut found);
    for (i, (row, found)) in out.chunks(6).zip(found).enumerate() {
        assert!(row.iter().all(|x| *x == if found { i as f32 } else { -1.0 }), "{what}: row {i}");
    }
    let _count = reader.len();
    let listed = reader.keys().take(10 * ROWS as usize).filter_map(Result::ok);
    assert!(listed.into_iter().all(|key| forged || keys.contains(&key)), "{what}: another key is listed");
    let _range = if strings { reader.prefix("key").count() } else { reader.range(0_u64..).count() };
    let _entries = reader.iter().count();
    missed
}

/// Opens a changed store as a reader and as a writer, and uses both.
fn exercise(storage: &TestStorage, strings: bool, forged: bool, what: &str) {
    if let Ok(reader) = options().open_reader_on(storage.whole_copy().storage()) {
        let report = reader.open_report().clone();
        let missed = read(&reader, strings, forged, what);
        let verified = reader.verify(&mut |_, _| {}).unwrap();
        let told = !verified.is_clean() || !report.is_clean() || !report.notes.is_empty();
        assert!(missed == 0 || told, "{what}: {missed} rows are silently gone from a reader");
    }
    let copy = storage.whole_copy();
    if let Ok(store) = options().open_on(copy.storage()) {
        let report = store.open_report().clone();
        let missed = read(store.reader(), strings, forged, what);
        let verified = store.verify(&mut |_, _| {}).unwrap();
        let told = !verified.is_clean() || !report.is_clean() || !report.notes.is_empty();
        assert!(missed == 0 || told, "{what}: {missed} rows are silently gone");
        put_again(&store, strings);
        assert_eq!(read(store.reader(), strings, forged, what), 0, "{what}: put again");
        let _merged = store.merge_index();
        store.close().unwrap();
        drop(store);
        let store = options().open_on(copy.storage()).unwrap();
        let keys: Vec<_> = (0..ROWS).map(|i| key(i, strings)).collect();
        for (i, found) in (0..).zip(store.get_batch(&keys).unwrap()) {
            assert_eq!(found.unwrap(), Some(value(i)), "{what}: put again, row {i}");
        }
    }
}

fn put_again(store: &Store, strings: bool) {
    let keys: Vec<_> = (0..ROWS).map(|i| key(i, strings)).collect();
    let values: Vec<Value> = (0..ROWS).map(value).collect();
    store.put_batch(&keys, &values).unwrap();
}

fn u64_at(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

pub fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn set_crc(bytes: &mut [u8], start: usize, end: usize, at: usize) {
    if let Some(covered) = bytes.get(start..end) {
        let crc = crc32fast::hash(covered).to_le_bytes();
        set(bytes, at, &crc);
    }
}

/// The offsets of frames, and of the seal if there is one.
pub fn places(bytes: &[u8]) -> (Vec<usize>, Option<usize>) {
    let frames = (0..bytes.len().saturating_sub(96)).step_by(8).filter(|at| bytes[*at..].starts_with(b"TCFRAME1"));
    (frames.collect(), bytes.windows(8).rposition(|window| window == b"TCSEAL\r\n"))
}

/// Updates the checksums of frames, parts, the seal and a run's footer, but not those of rows.
pub fn reseal(bytes: &mut [u8], (frames, seal): &(Vec<usize>, Option<usize>)) {
    for at in frames {
        let (offset, structure) = (u64_at(bytes, at + 40), u64_at(bytes, at + 56));
        set_crc(bytes, offset, offset.saturating_add(structure), at + 52);
        set_crc(bytes, *at, at + 92, at + 92);
    }
    if let Some(seal) = seal {
        for part in (0..6).map(|part| seal + 80 + part * 20) {
            let (offset, len) = (u64_at(bytes, part), u64_at(bytes, part + 8));
            set_crc(bytes, offset, offset.saturating_add(len), part + 16);
        }
        set_crc(bytes, *seal, seal + 252, seal + 252);
    }
    if bytes.starts_with(b"TCRUN\r\n\x01") {
        let footer = bytes.len() - 160;
        let (pages, covered) = (u64_at(bytes, footer + 80), u64_at(bytes, footer + 96));
        set_crc(bytes, pages, covered, footer + 112);
        set_crc(bytes, covered, footer, footer + 116);
        set_crc(bytes, footer, footer + 156, footer + 156);
    }
}

/// Replaces each of the numbers at `places_of` in the file `path`, alone and together with a damaged index block, and
/// updates the checksums.
fn forge_numbers(storage: &TestStorage, path: &str, places_of: &[(usize, usize)], strings: bool) {
    let good = storage.read(path);
    let places = places(&good);
    for (at, len) in places_of {
        for number in [0, ROWS + 1, u64::from(u32::MAX) - 1, 1 << 62, u64::MAX] {
            let mut bytes = good.clone();
            set(&mut bytes, *at, &number.to_le_bytes()[..*len]);
            reseal(&mut bytes, &places);
            let copy = storage.whole_copy();
            copy.write(path, &bytes);
            exercise(&copy, strings, true, &format!("{path}: {number} at {at}"));
            // The same with a damaged index block, so that the forged count is used.
            if let Some(seal) = places.1.filter(|_| number == u64::from(u32::MAX) - 1) {
                let index = u64_at(&bytes, seal + 120);
                if let Some(byte) = bytes.get_mut(index) {
                    *byte ^= 1;
                }
                copy.write(path, &bytes);
                exercise(&copy, strings, true, &format!("{path}: {number} at {at}, no index block"));
            }
        }
    }
}

/// Forged counts, lengths and offsets of seals, frames and runs.
fn forge_counts(kind: Kind) {
    for strings in if kind == Kind::Memory { [false, true].as_slice() } else { &[true] } {
        let strings = *strings;
        let storage = store(kind, strings, Codec::None, true);
        let (frames, seal) = places(&storage.read(SEALED));
        let seal = seal.unwrap();
        let mut numbers: Vec<(usize, usize)> = (40..80).step_by(8).map(|at| (seal + at, 8)).collect();
        numbers.extend((0..6).flat_map(|part| [(seal + 80 + part * 20, 8), (seal + 88 + part * 20, 8)]));
        for frame in [frames[1], frames[frames.len() - 1]] {
            numbers.extend([(frame + 12, 4), (frame + 48, 4)]);
            numbers.extend([16, 24, 32, 40, 56, 64].map(|at| (frame + at, 8)));
        }
        forge_numbers(&storage, SEALED, &numbers, strings);
        let [run] = storage.files("runs").try_into().unwrap();
        let footer = storage.read(&run).len() - 160;
        let numbers: Vec<(usize, usize)> = (32..112).step_by(8).map(|at| (footer + at, 8)).collect();
        forge_numbers(&storage, &run, &numbers, strings);
        let active = store(kind, strings, Codec::None, false);
        let path = format!("{SEALED}.open");
        let (frames, _) = places(&active.read(&path));
        let frame = frames[1];
        let numbers =
            [(12, 4), (16, 8), (24, 8), (40, 8), (48, 4), (56, 8), (64, 8)].map(|(at, len)| (frame + at, len));
        forge_numbers(&active, &path, &numbers, strings);
    }
}

/// A forged header in the schema message, with text of the same length.
fn forge_headers(kind: Kind) {
    for codec in [Codec::None, Codec::Zstd { level: 1 }] {
        let storage = store(kind, true, codec, true);
        let good = storage.read(SEALED);
        let places = places(&good);
        let shape = br#""shape":[6]"#;
        let at = good.windows(shape.len()).position(|window| window == shape).unwrap();
        for forged in [r#""shape":[9]"#, r#""shape":9e9"#, r#""shape":[ ]"#, r#""shapes":[]"#, r#""shape":"x""#] {
            let mut bytes = good.clone();
            set(&mut bytes, at, forged.as_bytes());
            reseal(&mut bytes, &places);
            let copy = storage.whole_copy();
            copy.write(SEALED, &bytes);
            exercise(&copy, true, true, &format!("{codec:?}: {forged}"));
        }
    }
}

#[test]
fn forged_counts_take_no_memory() {
    let child = Command::new("sh")
        .args(["-c", "ulimit -v 6000000; exec \"$0\" --exact forged::child_with_little_memory --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env("TENSORCASK_FORGE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{said}");
}

/// Not a test: the code of the child process of the test above.
#[test]
fn child_with_little_memory() {
    if std::env::var("TENSORCASK_FORGE").is_ok() {
        for kind in [Kind::Memory, Kind::Disk] {
            forge_counts(kind);
            forge_headers(kind);
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// Any byte is changed, and the checksums are updated.
fn forged_bytes_are_errors(kind: Kind) {
    let mut random = Random(11);
    for (strings, sealed) in [(false, true), (true, true), (true, false)] {
        let storage = store(kind, strings, Codec::None, sealed);
        for path in storage.files("segments").into_iter().chain(storage.files("runs")) {
            let good = storage.read(&path);
            let places = places(&good);
            for turn in 0..kind.tries(100) {
                let mut bytes = good.clone();
                for _ in 0..=turn % 3 {
                    let at = random.below(bytes.len());
                    bytes[at] = random.below(256) as u8;
                }
                reseal(&mut bytes, &places);
                let copy = storage.whole_copy();
                copy.write(&path, &bytes);
                exercise(&copy, strings, true, &format!("{path}, turn {turn}"));
            }
        }
    }
}

/// One bit of every byte of each file is flipped, and each file is truncated to every length. Takes minutes: `cargo
/// test --release -- --ignored`.
#[test]
#[ignore = "takes minutes: cargo test --release --test it forged -- --ignored"]
fn every_byte_and_every_length() {
    let mut random = Random(77);
    for kind in [Kind::Memory, Kind::Disk] {
        for (strings, sealed) in [(false, true), (true, true), (false, false), (true, false)] {
            let storage = store(kind, strings, Codec::None, sealed);
            for path in ["segments", "runs", "lanes"].iter().flat_map(|folder| storage.files(folder)) {
                for at in 0..storage.read(&path).len() {
                    let copy = storage.whole_copy();
                    copy.corrupt(&path, at as u64, 1 << random.below(8));
                    exercise(&copy, strings, false, &format!("{kind:?}: byte {at} of {path}"));
                    let copy = storage.whole_copy();
                    copy.truncate(&path, at as u64);
                    exercise(&copy, strings, false, &format!("{kind:?}: {path} cut to {at}"));
                }
            }
        }
    }
}

/// Some bits of each file are flipped, and each file is truncated to some lengths.
fn flipped_bits_and_cut_files(kind: Kind) {
    let mut random = Random(5);
    for (strings, sealed) in [(false, true), (true, true), (false, false), (true, false)] {
        let storage = store(kind, strings, Codec::None, sealed);
        for path in ["segments", "runs", "lanes"].iter().flat_map(|folder| storage.files(folder)) {
            let len = storage.read(&path).len();
            for turn in 0..kind.tries(80) {
                if len == 0 {
                    break;
                }
                let copy = storage.whole_copy();
                let at = random.below(len);
                let what = if turn % 4 == 0 {
                    copy.truncate(&path, at as u64);
                    format!("{path} cut to {at}")
                } else {
                    let bit = random.below(8);
                    copy.corrupt(&path, at as u64, 1 << bit);
                    format!("{path}, bit {bit} of byte {at}")
                };
                exercise(&copy, strings, false, &what);
            }
        }
    }
}
