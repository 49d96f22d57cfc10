//! `tensorcask schemas`

use serde_json::{Value as Json, json};
use tensorcask::{Codec, Dtype, Options, Value};

use crate::support::{ok, store_with, tensor, text};

#[test]
fn every_structure_is_listed_once_with_its_rows() {
    let options = Options::new().codec(Codec::Zstd { level: 1 }).store_as(Dtype::F16);
    let (_dir, m) = store_with(options, |store| {
        for key in 0..5_u64 {
            let value = [("a/b", tensor(&[2, 3], &[key as f32; 6])), ("n\n", Value::Int(1))];
            store.put(key, Value::from(value)).unwrap();
        }
        store.put(5_u64, Value::List(vec![Value::Null, "text".into(), Value::Tuple(vec![true.into()])])).unwrap();
        // The overwritten row counts until it is compacted.
        store.put(5_u64, Value::Int(5)).unwrap();
        store.delete(4_u64).unwrap();
    });
    let human = ok(&["schemas", text(&m)]);
    let lines: Vec<&str> = human.lines().collect();
    assert_eq!(lines[0], r#"5 rows in 1 segments: {"a/b": F16 [2, 3] (put as F32) (zstd), "n\n": int}"#);
    assert!(lines.contains(&"1 rows in 1 segments: int"), "{human}");
    let lines = ok(&["schemas", text(&m), "--format", "json"]);
    let lines: Vec<Json> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines[0],
        json!({
            "rows": 5,
            "segments": 1,
            "tree": { "map": [["a/b", { "leaf": 0 }], ["n\n", { "leaf": 1 }]] },
            "leaves": [
                { "path": "value/a~1b", "type": "tensor", "dtype": "F16", "shape": [2, 3], "source_dtype": "F32", "codec": "zstd" },
                { "path": "value/n\n", "type": "int" },
            ],
        })
    );
}
