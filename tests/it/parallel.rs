//! A batch that is split over several threads gives the same result as on one thread, including damage.

use std::path::Path;
use std::sync::Arc;

use tensorcask::storage::{MemoryStorage, Storage};
use tensorcask::{Error, Options};

const ROWS: usize = 6000;
const WIDTH: usize = 2048;

type Answer = (Vec<u8>, Vec<bool>, Result<usize, Vec<usize>>);

fn answer(storage: &MemoryStorage, threads: usize, keys: &[u64]) -> Answer {
    let reader = Options::new().read_threads(threads).open_reader_on(Arc::new(storage.clone())).unwrap();
    let mut last = None;
    // A batch is split only after reads have found the store to be in memory.
    for _ in 0..8 {
        let (mut out, mut found) = (vec![9_u8; keys.len() * WIDTH], vec![true; keys.len()]);
        let result = reader.get_batch_into(keys, &[WIDTH], &mut out, &mut found);
        let result = result.map_err(|error| match error {
            Error::DamagedRows { rows } => rows.into_iter().map(|row| row.position).collect(),
            other => panic!("{other}"),
        });
        last = Some((out, found, result));
    }
    let stats = reader.stats().unwrap();
    assert_eq!(stats.hits + stats.misses + stats.damaged, 8 * keys.len() as u64);
    last.unwrap()
}

#[test]
fn shared_batches_are_as_unshared_ones() {
    let storage = MemoryStorage::new();
    let store = Options::new().segment_bytes(1 << 20).open_on(Arc::new(storage.clone())).unwrap();
    for first in (0..ROWS).step_by(500) {
        let bytes: Vec<u8> =
            (first * WIDTH..(first + 500) * WIDTH).map(|at| (at / WIDTH * 31 + at % 251) as u8).collect();
        let keys: Vec<u64> = (first as u64..first as u64 + 500).collect();
        store.put_rows(&keys, &[WIDTH], &bytes).unwrap();
    }
    store.close().unwrap();
    // Every third key is missing, and the keys are in no order.
    let keys: Vec<u64> = (0..ROWS as u64 * 3 / 2).map(|position| position * 1013 % (ROWS as u64 * 3 / 2)).collect();
    let whole = answer(&storage, 1, &keys);
    assert_eq!(whole.2, Ok(ROWS));
    for threads in [2, 4, 100] {
        assert!(answer(&storage, threads, &keys) == whole, "{threads} threads");
    }
    for segment in storage.list(Path::new("segments")).unwrap() {
        let path = Path::new("segments").join(&segment.name);
        storage.corrupt(&path, storage.len_bytes(&path).unwrap() / 2, 4).unwrap();
    }
    let damaged = answer(&storage, 1, &keys);
    assert!(damaged.2.as_ref().is_err_and(|positions| positions.len() > 1 && positions.is_sorted()), "{:?}", damaged.2);
    for threads in [2, 4, 100] {
        assert!(answer(&storage, threads, &keys) == damaged, "{threads} threads");
    }
}
