//! Random operations, compared with a `BTreeMap`: after any order of puts, overwrites, deletes, flushes, merges and
//! reopenings, the store answers as the map does.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use tensorcask::storage::{MemoryStorage, Storage};
use tensorcask::{Codec, Key, Options, Store, Tensor, Value};

#[derive(Debug, Clone)]
enum Op {
    Put(Vec<(u16, u8)>),
    PutRows(Vec<u16>, u8),
    Delete(Vec<u16>),
    Get(Vec<u16>),
    GetInto(Vec<u16>),
    Scan(u16, u16),
    Flush,
    Merge,
    Reopen,
    DropAndReopen,
    CheckAll,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let keys = || prop::collection::vec(0..400_u16, 0..40);
    let op = prop_oneof![
        4 => prop::collection::vec((0..400_u16, any::<u8>()), 0..40).prop_map(Op::Put),
        4 => (keys(), any::<u8>()).prop_map(|(keys, seed)| Op::PutRows(keys, seed)),
        2 => keys().prop_map(Op::Delete),
        3 => keys().prop_map(Op::Get),
        2 => keys().prop_map(Op::GetInto),
        1 => (0..400_u16, 0..400_u16).prop_map(|(from, to)| Op::Scan(from, to)),
        1 => Just(Op::Flush),
        1 => Just(Op::Merge),
        1 => Just(Op::Reopen),
        1 => Just(Op::DropAndReopen),
        1 => Just(Op::CheckAll),
    ];
    prop::collection::vec(op, 1..60)
}

/// Values of several structures, dtypes and shapes.
fn value(seed: u8) -> Value {
    let tensor = |shape: &[usize]| {
        let len = shape.iter().product();
        Value::Tensor(Tensor::from_slice(shape, &vec![f32::from(seed) + 0.5; len]).unwrap())
    };
    match seed % 8 {
        0 => tensor(&[4]),
        1 => tensor(&[usize::from(seed) / 8, 2]),
        2 => Value::Map(vec![("a".into(), tensor(&[3])), ("n".into(), Value::Int(seed.into()))]),
        3 => Value::Tuple(vec![Value::Str("x".repeat(seed.into())), Value::Bool(seed & 8 == 0), Value::Null]),
        4 => Value::Bytes(vec![seed; 5].into()),
        5 => Value::Tensor(Tensor::from_slice(&[], &[i64::from(seed)]).unwrap()),
        6 => Value::Float(f64::from(seed)),
        _ => Value::Null,
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Str,
    U64,
    Bytes,
}

fn key(kind: Kind, number: u16) -> Key {
    match kind {
        Kind::Str => Key::Str(format!("key/{number:03}")),
        Kind::U64 => Key::U64(number.into()),
        Kind::Bytes => Key::Bytes(number.to_be_bytes().to_vec()),
    }
}

struct Harness {
    storage: Arc<dyn Storage>,
    options: Options,
    kind: Kind,
    store: Option<Store>,
    model: BTreeMap<Key, Value>,
}

impl Harness {
    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn keys(&self, numbers: &[u16]) -> Vec<Key> {
        numbers.iter().map(|number| key(self.kind, *number)).collect()
    }

    fn reopen(&mut self, close: bool) {
        if close {
            self.store().close().unwrap();
        }
        self.store = None;
        self.store = Some(self.options.clone().open_on(Arc::clone(&self.storage)).unwrap());
        assert!(self.store().open_report().is_clean(), "{:?}", self.store().open_report());
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Put(items) => {
                let keys = self.keys(&items.iter().map(|(key, _)| *key).collect::<Vec<_>>());
                let values: Vec<Value> = items.iter().map(|(_, seed)| value(*seed)).collect();
                self.store().put_batch(&keys, &values).unwrap();
                self.model.extend(keys.into_iter().zip(values));
            }
            Op::PutRows(numbers, seed) => {
                let keys = self.keys(numbers);
                let rows: Vec<f32> = (0..keys.len() * 4).map(|i| f32::from(*seed) + (i / 4) as f32 / 64.0).collect();
                self.store().put_rows(&keys, &[4], &rows).unwrap();
                let values = rows.chunks(4).map(|row| Value::Tensor(Tensor::from_slice(&[4], row).unwrap()));
                self.model.extend(keys.into_iter().zip(values));
            }
            Op::Delete(numbers) => {
                let keys = self.keys(numbers);
                let there = keys.iter().filter(|key| self.model.remove(key).is_some()).count();
                assert_eq!(self.store().delete_batch(&keys).unwrap(), there);
            }
            Op::Get(numbers) => {
                let keys = self.keys(numbers);
                let values = self.store().get_batch(&keys).unwrap();
                for (key, value) in keys.iter().zip(values) {
                    assert_eq!(value.unwrap().as_ref(), self.model.get(key), "{key}");
                }
                let there = self.store().contains_batch(&keys).unwrap();
                assert!(keys.iter().zip(there).all(|(key, there)| self.model.contains_key(key) == there));
            }
            Op::GetInto(numbers) => self.get_into(numbers),
            Op::Scan(from, to) => {
                let (from, to) = (key(self.kind, *from), key(self.kind, *to));
                let found: Vec<Key> = self.store().range::<Key>(&from..&to).collect::<Result<_, _>>().unwrap();
                let expected: Vec<Key> = self.model.keys().filter(|key| **key >= from && **key < to).cloned().collect();
                assert_eq!(found, expected);
            }
            Op::Flush => self.store().flush().unwrap(),
            Op::Merge => self.store().merge_index().unwrap(),
            Op::Reopen => self.reopen(true),
            Op::DropAndReopen => self.reopen(false),
            Op::CheckAll => self.check_all(),
        }
        assert_eq!(self.store().len().unwrap(), self.model.len() as u64, "after {op:?}");
    }

    fn get_into(&self, numbers: &[u16]) {
        let keys: Vec<Key> = self
            .keys(numbers)
            .into_iter()
            .filter(|key| self.model.get(key).is_none_or(|value| value.as_tensor().is_some_and(|t| t.shape() == [4])))
            .collect();
        let (mut rows, mut found) = (vec![-1.0_f32; keys.len() * 4], vec![true; keys.len()]);
        self.store().get_batch_into(&keys, &[4], &mut rows, &mut found).unwrap();
        for ((key, row), found) in keys.iter().zip(rows.chunks(4)).zip(found) {
            let expected = self.model.get(key).map(|value| value.as_tensor().unwrap().to_vec::<f32>().unwrap());
            assert_eq!(found, expected.is_some());
            assert_eq!(row, expected.unwrap_or(vec![-1.0; 4]));
        }
    }

    fn check_all(&self) {
        let mut keys: Vec<Key> = self.store().keys().collect::<Result<_, _>>().unwrap();
        keys.sort();
        assert_eq!(keys, self.model.keys().cloned().collect::<Vec<_>>());
        let mut entries: Vec<(Key, Value)> = self.store().iter().collect::<Result<_, _>>().unwrap();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        assert!(entries.iter().map(|(key, value)| (key, value)).eq(self.model.iter()));
        if let Kind::Str = self.kind {
            let expected: Vec<Key> =
                self.model.keys().filter(|key| key.to_string().starts_with("key/1")).cloned().collect();
            assert_eq!(self.store().count_prefix("key/1").unwrap(), expected.len() as u64);
            assert_eq!(self.store().prefix("key/1").collect::<Result<Vec<_>, _>>().unwrap(), expected);
        }
        for (key, value) in &self.model {
            assert_eq!(self.store().get(key).unwrap().as_ref(), Some(value));
        }
        let report = self.store().verify(&mut |_, _| {}).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

fn run(ops: &[Op], storage: Arc<dyn Storage>, kind: Kind, options: Options) {
    // Small limits, so that seals, runs and merges happen often.
    let options =
        options.segment_rows(64).memtable_keys(100).flush_every(16, 2048).refresh_interval(std::time::Duration::ZERO);
    let store = Some(options.clone().open_on(Arc::clone(&storage)).unwrap());
    let mut harness = Harness { storage, options, kind, store, model: BTreeMap::new() };
    ops.iter().for_each(|op| harness.apply(op));
    harness.reopen(true);
    harness.check_all();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn strings_in_memory(ops in ops()) {
        run(&ops, Arc::new(MemoryStorage::new()), Kind::Str, Options::new().synchronous(true));
    }

    #[test]
    fn integers_with_colliding_hashes(ops in ops()) {
        run(&ops, Arc::new(MemoryStorage::new()), Kind::U64, Options::new().synchronous(true).hash_bits(8));
    }

    #[test]
    fn bytes_packed_and_threaded(ops in ops()) {
        let options = Options::new().codec(Codec::ShuffleZstd { level: 1 });
        run(&ops, Arc::new(MemoryStorage::new()), Kind::Bytes, options);
    }

    #[test]
    fn strings_on_disk_with_a_value_cache(ops in ops()) {
        let dir = tempfile::tempdir().unwrap();
        let storage = tensorcask::storage::DiskStorage::new(dir.path().join("m"));
        run(&ops, Arc::new(storage), Kind::Str, Options::new().value_cache_bytes(20_000));
    }
}
