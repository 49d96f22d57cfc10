//! `tensorcask bench`.

use serde_json::Value as Json;
use tensorcask::{Options, Value};

use crate::support::{code, names, ok, run, store, store_with, tensor, text};

fn measured(arguments: &[&str]) -> Json {
    serde_json::from_str(&ok(&[&["bench", "--seconds", "0.2", "--format", "json"], arguments].concat())).unwrap()
}

/// Checks that a measurement is one: positive rates, ordered quantiles, and a ratio that follows from both.
fn check(measured: &Json) {
    for pass in ["random", "in_order"] {
        let pass = &measured[pass];
        for timing in [&pass["reads"], &pass["raw_copy"]] {
            let at = |name: &str| timing[name].as_f64().unwrap();
            assert!(timing["batches"].as_u64().unwrap() > 0 && at("rows_per_s") > 0.0 && at("bytes_per_s") > 0.0);
            assert!(at("p50_s") > 0.0 && at("p50_s") <= at("p99_s"), "{timing}");
            assert!(at("p99_s") <= at("p999_s") && at("p999_s") <= at("max_s"), "{timing}");
        }
        let ratio = pass["reads"]["p50_s"].as_f64().unwrap() / pass["raw_copy"]["p50_s"].as_f64().unwrap();
        assert!((pass["times_raw"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-6, "{pass}");
    }
}

#[test]
fn reads_are_measured_and_nothing_is_written() {
    let (_dir, path) = store(|store| {
        let keys: Vec<String> = (0..3000).map(|key| format!("k{key}")).collect();
        store.put_rows(&keys, &[100], &vec![1.0_f32; 300_000]).unwrap();
        store.delete_prefix("k12").unwrap();
    });
    let before = (names(&path.join("segments")), names(&path.join("runs")), names(&path.join("lanes")));
    let found = measured(&[text(&path), "--batch", "64"]);
    check(&found);
    let live = 3000 - 111;
    assert_eq!((found["keys"].as_u64(), found["sampled_keys"].as_u64()), (Some(live), Some(live)), "{found}");
    assert_eq!((found["structure"].as_str(), found["row_bytes"].as_f64()), (Some("F32[100]"), Some(400.0)));
    assert_eq!((found["call"].as_str(), found["batch"].as_u64()), (Some("get_batch_into"), Some(64)));
    let few = measured(&[text(&path), "--sample", "300", "--batch", "1000"]);
    check(&few);
    assert!(few["sampled_keys"].as_u64().unwrap() <= 300, "{few}");
    assert_eq!((names(&path.join("segments")), names(&path.join("runs")), names(&path.join("lanes"))), before);

    let said = ok(&["bench", text(&path), "--seconds", "0.1", "--cold"]);
    for words in ["2889 keys, F32[100] of 400 B a row", "p99.9", "raw copy, random", "x raw", "first pass"] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn values_of_several_structures_are_measured_as_values() {
    let (_dir, path) = store(|store| {
        for key in 0..200_u64 {
            let value = match key % 3 {
                0 => tensor(&[4], &[1_u8; 4]),
                1 => Value::from([("a", tensor(&[2], &[1.0_f64; 2])), ("n", Value::Int(key as i64))]),
                _ => Value::Str("text".into()),
            };
            store.put(key, value).unwrap();
        }
    });
    let found = measured(&[text(&path)]);
    check(&found);
    assert!(found["call"].as_str().unwrap().starts_with("get_batch, "), "{found}");
    assert!(found["structure"].as_str().unwrap().contains("2 more structure(s)"), "{found}");
}

#[test]
fn empty_and_damaged_stores_are_not_reported_as_fast() {
    let (_dir, empty) = store(|_| {});
    let (found, message) = code(&["bench", text(&empty)]);
    assert_eq!((found, message.contains("has no keys")), (3, true), "{message}");
    for arguments in [["--seconds", "0"], ["--seconds", "NaN"], ["--batch", "0"], ["--sample", "0"]] {
        assert_eq!(code(&[&["bench", text(&empty)][..], &arguments[..]].concat()).0, 3, "{arguments:?}");
    }

    let (_dir, path) = store_with(Options::new(), |store| {
        let keys: Vec<u64> = (0..500).collect();
        let rows: Vec<u64> = (0..500).flat_map(|key| [key + 0x1122_3344_0000_0000; 4]).collect();
        store.put_rows(&keys, &[4], &rows).unwrap();
    });
    let segment = path.join("segments/0000-0000000001.arrow");
    let mut bytes = std::fs::read(&segment).unwrap();
    let row = 0x1122_3344_0000_0007_u64.to_le_bytes();
    let at = bytes.windows(8).position(|window| window == row).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let output = run(&["bench", text(&path), "--seconds", "0.1", "--format", "json"]);
    let found: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), found["damaged"].as_u64(), found["sampled_keys"].as_u64()),
        (Some(2), Some(1), Some(499))
    );
}
