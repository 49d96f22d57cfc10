//! Every engine returns what was stored, in both orders and at both durability levels.

use std::path::Path;

use tensorcask_peers::Fallible;
use tensorcask_peers::engine::{self, EngineId, KeyForm, Opening, Order};
use tensorcask_peers::results::Quartiles;
use tensorcask_peers::rows;

const ROWS: usize = 5000;

fn keeps(id: EngineId, dir: &Path, row_bytes: usize, order: Order, durable: bool, keys: KeyForm) -> Fallible {
    let dir = dir.join(format!("{id}-{row_bytes}-{order:?}-{durable}-{keys:?}"));
    std::fs::create_dir_all(&dir)?;
    let opening = Opening { dir, row_bytes, rows: ROWS, order, durable, keys };
    let mut loaded = engine::create(id, &opening)?;
    let mut values = Vec::new();
    for numbers in rows::load_order(ROWS, order).chunks(1700) {
        let keys: Vec<u64> = numbers.iter().map(|number| rows::key(*number as usize)).collect();
        rows::fill(&keys, row_bytes, &mut values);
        loaded.prepare(&keys);
        loaded.load(&keys, &values)?;
    }
    loaded.close()?;
    assert!(engine::disk_bytes(&opening.dir)? >= opening.data_bytes());

    let mut opened = engine::open(id, &opening)?;
    let mut random = rows::Random(3);
    let keys: Vec<u64> = (0..256).map(|_| rows::key(random.below(ROWS))).collect();
    let mut out = vec![0; keys.len() * row_bytes];
    opened.place(&keys)?;
    assert_eq!(opened.get_batch(&keys, &mut out)?, keys.len());
    rows::check(&keys, row_bytes, &out, true)?;
    if id.has_keys() {
        let absent: Vec<u64> = (0..256).map(rows::absent_key).collect();
        let before = out.clone();
        opened.prepare(&absent);
        assert_eq!(opened.get_batch(&absent, &mut out)?, 0);
        assert_eq!(out, before);
    }
    opened.close()
}

#[test]
fn every_engine_keeps_rows() -> Fallible {
    let dir = tempfile::tempdir()?;
    for id in EngineId::built() {
        for row_bytes in [128, 3072] {
            for order in [Order::Sorted, Order::Shuffled] {
                for durable in [true, false] {
                    for keys in [KeyForm::Number, KeyForm::Text] {
                        if keys == KeyForm::Number || id.takes_text() {
                            keeps(id, dir.path(), row_bytes, order, durable, keys)
                                .map_err(|error| format!("{id}, {row_bytes} B, {order:?}, durable {durable}: {error}"))?;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn another_row_is_noticed() {
    let mut values = Vec::new();
    rows::fill(&[2, 4], 128, &mut values);
    assert!(rows::check(&[2, 4], 128, &values, true).is_ok());
    assert!(rows::check(&[4, 2], 128, &values, false).is_err());
    values[64] ^= 1;
    assert!(rows::check(&[2, 4], 128, &values, false).is_ok());
    assert!(rows::check(&[2, 4], 128, &values, true).is_err());
}

#[test]
fn a_shuffled_order_has_every_row_once() {
    let mut order = rows::load_order(1000, Order::Shuffled);
    assert!(!order.is_sorted());
    order.sort_unstable();
    assert_eq!(order, rows::load_order(1000, Order::Sorted));
}

#[test]
fn quartiles_lie_between_samples() {
    assert_eq!(Quartiles::of(&[]), None);
    let quartiles = Quartiles::of(&[4.0, 1.0, 3.0, 2.0, 5.0]);
    assert_eq!(quartiles, Some(Quartiles { low: 2.0, median: 3.0, high: 4.0 }));
}
