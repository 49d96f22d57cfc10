//! Arrow and Parquet files, including exports and segments.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, DictionaryArray, FixedSizeListArray, Float32Array, Int32Array, Int64Array,
    LargeStringArray, ListArray, RecordBatch, StringArray, StructArray, UInt64Array, new_null_array,
};
use arrow::datatypes::{DataType, Field, Float32Type, Int32Type, Schema};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use parquet::arrow::ArrowWriter;
use tensorcask::{Codec, Compaction, Dtype, Key, Options, Order, Store, Tensor, Value};

use super::{Place, path_text as text};
use crate::support::{code, ok};

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

fn fixed(numbers: &[f32], width: i32) -> ArrayRef {
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    Arc::new(FixedSizeListArray::new(item, width, Arc::new(Float32Array::from(numbers.to_vec())), None))
}

/// Writes batches in each of the formats.
fn write_all(place: &Place, name: &str, batches: &[RecordBatch]) -> Vec<PathBuf> {
    let schema = batches.first().unwrap().schema();
    let path = |extension: &str| place.path(&format!("{name}.{extension}"));
    let packed = |kind| IpcWriteOptions::default().try_with_compression(Some(kind)).unwrap();
    for (extension, options) in [
        ("arrow", IpcWriteOptions::default()),
        ("lz4.feather", packed(CompressionType::LZ4_FRAME)),
        ("zstd.ipc", packed(CompressionType::ZSTD)),
    ] {
        let mut writer =
            FileWriter::try_new_with_options(File::create(path(extension)).unwrap(), &schema, options).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.finish().unwrap();
    }
    let mut writer = StreamWriter::try_new(File::create(path("stream.arrows")).unwrap(), &schema).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path("parquet")).unwrap(), Arc::clone(&schema), None).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.close().unwrap();
    ["arrow", "lz4.feather", "zstd.ipc", "stream.arrows", "parquet"].map(path).into()
}

fn numbers(value: &Value) -> (Vec<usize>, Vec<f32>) {
    let tensor = value.as_tensor().unwrap();
    (tensor.shape().to_vec(), tensor.to_vec::<f32>().unwrap())
}

#[test]
fn a_column_of_keys_and_one_of_values() {
    let place = Place::new();
    let keys =
        |from: i64| Arc::new(StringArray::from_iter_values((from..from + 2).map(|i| format!("k{i}")))) as ArrayRef;
    let batches = [
        batch(vec![("key", keys(0)), ("emb", fixed(&[1.0, 2.0, 3.0, 4.0], 2))]),
        batch(vec![("key", keys(2)), ("emb", fixed(&[5.0, 6.0, 7.0, 8.0], 2))]),
    ];
    for (at, file) in write_all(&place, "in", &batches).iter().enumerate() {
        let store = format!("s{at}");
        let said = place.import(&store, &[text(file)]);
        assert_eq!((&said["values"], &said["new"]), (&4.into(), &4.into()), "{}", file.display());
        for (key, expected) in [("k0", [1.0, 2.0]), ("k3", [7.0, 8.0])] {
            assert_eq!(numbers(&place.get(&store, key).unwrap()), (vec![2], expected.to_vec()), "{}", file.display());
        }
        // Several files in order.
        let copy = place.path(&format!("copy.{}", file.extension().unwrap().to_str().unwrap()));
        std::fs::copy(file, &copy).unwrap();
        let said = place.import(&format!("both{at}"), &[text(file), text(&copy)]);
        assert_eq!((&said["values"], &said["duplicates"]), (&8.into(), &4.into()));
    }
    let keys = place.file("keys.txt", "a\nb\nc\nd\n");
    let message = place.refused(&[text(&place.path("in.arrow")), "--keys", text(&keys)]);
    assert!(message.contains("\"key\""), "{message}");
}

#[test]
fn columns_of_every_kind() {
    let place = Place::new();
    let ragged = ListArray::from_iter_primitive::<Float32Type, _, _>([
        Some(vec![Some(1.0)]),
        Some(vec![Some(2.0), Some(3.0)]),
        Some(vec![]),
    ]);
    let words: DictionaryArray<Int32Type> = ["x", "y", "x"].into_iter().collect();
    let inner = Field::new("n", DataType::Int64, false);
    let nested = StructArray::from(vec![(Arc::new(inner), Arc::new(Int64Array::from(vec![7, 8, 9])) as ArrayRef)]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(UInt64Array::from(vec![3, 1, u64::MAX]))),
        ("emb", fixed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2)),
        ("ragged", Arc::new(ragged)),
        ("flag", Arc::new(BooleanArray::from(vec![true, false, true]))),
        ("count", Arc::new(Int64Array::from(vec![-1, 0, i64::MAX]))),
        ("small", Arc::new(Int32Array::from(vec![-1, 0, 1]))),
        ("text", Arc::new(LargeStringArray::from(vec!["a", "", "c"]))),
        ("word", Arc::new(words)),
        ("bytes", Arc::new(BinaryArray::from(vec![&b"\xff"[..], b"", b"c"]))),
        ("nested", Arc::new(nested)),
    ];
    for (at, file) in write_all(&place, "in", &[batch(columns)]).iter().enumerate() {
        let (store, name) = (format!("s{at}"), file.display());
        place.import(&store, &[text(file), "--key-column", "id"]);
        assert_eq!(place.keys(&store), [Key::U64(1), Key::U64(3), Key::U64(u64::MAX)]);
        let value = place.get(&store, 1).unwrap();
        let get = |column: &str| value.get(column).unwrap().clone();
        assert_eq!(numbers(&get("emb")), (vec![2], vec![3.0, 4.0]), "{name}");
        assert_eq!(numbers(&get("ragged")), (vec![2], vec![2.0, 3.0]), "{name}");
        assert_eq!(get("flag"), Value::Bool(false));
        assert_eq!(get("count"), Value::Int(0));
        assert_eq!(get("small"), Tensor::from_slice(&[], &[0_i32]).unwrap().into());
        assert_eq!((get("text"), get("word")), (Value::Str(String::new()), Value::Str("y".into())));
        assert_eq!(get("bytes"), Value::Bytes(tensorcask::Bytes::new()));
        assert_eq!(get("nested"), Value::Map(vec![("n".into(), Value::Int(8))]));
        // One column of values, with text keys and with row numbers.
        place.import(&format!("text{at}"), &[text(file), "--key-column", "text", "--tensor", "ragged"]);
        assert_eq!(numbers(&place.get(&format!("text{at}"), "c").unwrap()), (vec![0], vec![]));
        place.import(&format!("rows{at}"), &[text(file), "--tensor", "emb", "--first-key", "5"]);
        assert_eq!(numbers(&place.get(&format!("rows{at}"), 7).unwrap()), (vec![2], vec![5.0, 6.0]));
        place.import(
            &format!("decimal{at}"),
            &[text(file), "--key-column", "id", "--key-kind", "str", "--tensor", "emb"],
        );
        assert!(place.get(&format!("decimal{at}"), "18446744073709551615").is_some());
        for (arguments, what) in [
            (&["--key-column", "count"][..], "\"count\", row 0: -1 cannot be a key"),
            (&["--key-column", "emb"], "--key-column"),
            (&["--key-column", "x"], "there are id, emb"),
            (&["--tensor", "x"], "there are id, emb"),
            (&["--key-column", "text", "--key-kind", "bytes"], "--key-kind"),
            (&["--key-column", "text", "--key-kind", "u64"], "row 0: \"a\" cannot be a key"),
            (&["--dtype", "BF16"], "--dtype"),
        ] {
            let message = place.refused(&[&[text(file)], arguments].concat());
            assert!(message.contains(what), "{name} {arguments:?}: {message}");
        }
    }
}

#[test]
fn cells_that_cannot_be_values_are_refused() {
    let place = Place::new();
    let keys = || ("key", Arc::new(StringArray::from(vec!["a", "b"])) as ArrayRef);
    let lists = |rows: [Option<Vec<Option<f32>>>; 2]| {
        Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(rows)) as ArrayRef
    };
    let times = |kind: &DataType| new_null_array(kind, 2);
    let cases: Vec<(Vec<(&str, ArrayRef)>, &str)> = vec![
        (
            vec![keys(), ("v", Arc::new(Float32Array::from(vec![Some(1.0), None])))],
            "column \"v\", row 1: the cell is null",
        ),
        (vec![keys(), ("v", lists([Some(vec![Some(1.0)]), None]))], "column \"v\", row 1: the cell is null"),
        (
            vec![keys(), ("v", lists([Some(vec![Some(1.0)]), Some(vec![None])]))],
            "column \"v\", row 1: a list contains a null",
        ),
        (
            vec![("key", Arc::new(StringArray::from(vec![Some("a"), None]))), ("v", fixed(&[1.0, 2.0], 1))],
            "column \"key\", row 1: the key is null",
        ),
        (vec![("key", fixed(&[1.0, 2.0], 1)), ("v", fixed(&[1.0, 2.0], 1))], "--key-column"),
        (vec![keys(), ("v", times(&DataType::Date32))], "\"v\""),
        (vec![keys()], "no column of values"),
    ];
    for (columns, what) in cases {
        for file in write_all(
            &place,
            "in",
            &[RecordBatch::try_from_iter_with_nullable(
                columns.iter().map(|(name, column)| (*name, Arc::clone(column), true)),
            )
            .unwrap()],
        ) {
            let message = place.refused(&[text(&file)]);
            assert!(message.contains(what), "{}: expected {what:?}: {message}", file.display());
        }
    }
}

/// Reads all values of a store.
fn values() -> Vec<(String, Value)> {
    let tensor = |dtype: Dtype, shape: &[usize], row: usize| {
        let len = dtype.tensor_len_bytes(shape).unwrap();
        let byte = |i: usize| if dtype == Dtype::Bool { ((row + i) % 2) as u8 } else { (row * 31 + i * 7) as u8 };
        Value::Tensor(Tensor::new(dtype, shape, (0..len).map(byte).collect::<Vec<u8>>()).unwrap())
    };
    let value = |row: usize| {
        let dtypes = Dtype::ALL.iter().map(|dtype| (dtype.name().to_owned(), tensor(*dtype, &[4, 2], row)));
        let mut items: Vec<(String, Value)> = dtypes.collect();
        items.push((
            "list".into(),
            Value::List(vec![Value::Int(row as i64), Value::Float(0.1), Value::Bool(row.is_multiple_of(2))]),
        ));
        items.push(("a/b~c".into(), Value::Map(vec![("text".into(), Value::Str("x\n".into()))])));
        items.push(("bytes".into(), Value::Bytes(vec![row as u8; row].into())));
        Value::Map(items)
    };
    (0..20).map(|row| (format!("key/{row:02}"), value(row))).collect()
}

fn fill(place: &Place, store: &str, options: Options, values: &[(String, Value)]) {
    let store: Store = options.open(place.path("cache"), store).unwrap();
    for (key, value) in values {
        store.put(key.as_str(), value).unwrap();
    }
    store.close().unwrap();
}

fn same(place: &Place, store: &str, values: &[(String, Value)]) {
    assert_eq!(place.keys(store).len(), values.len());
    for (key, value) in values {
        assert_eq!(place.get(store, key.as_str()).as_ref(), Some(value), "{store} {key}");
    }
}

#[test]
fn exports_are_restored_exactly() {
    let place = Place::new();
    let values = values();
    fill(&place, "m", Options::new(), &values);
    let out = place.path("out.arrow");
    ok(&["export", text(&place.store("m")), text(&out)]);
    place.import("again", &[text(&out)]);
    same(&place, "again", &values);
    // One tensor per key, of every dtype.
    for &dtype in Dtype::ALL {
        let name = dtype.name();
        let one: Vec<(String, Value)> =
            values.iter().map(|(key, value)| (key.clone(), value.get(name).unwrap().clone())).collect();
        fill(&place, name, Options::new(), &one);
        let out = place.path(&format!("{name}.arrow"));
        ok(&["export", text(&place.store(name)), text(&out)]);
        place.import(&format!("{name}-again"), &[text(&out)]);
        let stored = place.get(&format!("{name}-again"), "key/03").unwrap();
        let (stored, expected) = (stored.as_tensor().unwrap().clone(), one[3].1.as_tensor().unwrap());
        assert_eq!(&stored, expected);
    }
}

#[test]
fn sealed_segments_can_be_imported() {
    let place = Place::new();
    let mut values = values();
    // Structures that only the header records: tuples, nulls, lists of one item, shapes of rows.
    for (row, (_, value)) in values.iter_mut().enumerate() {
        let tuple = Value::Tuple(vec![Value::Null, Value::List(vec![Value::Int(1)]), value.clone()]);
        let shape = [row + 1, 3];
        let tensor = Tensor::from_slice(&shape, &vec![row as i16; 3 * (row + 1)]).unwrap();
        *value = if row < 10 { tuple } else { Value::Map(vec![("t".into(), tensor.into())]) };
    }
    for (at, codec) in [Codec::None, Codec::Zstd { level: 1 }, Codec::ShuffleZstd { level: 1 }].into_iter().enumerate()
    {
        let store = format!("m{at}");
        fill(&place, &store, Options::new().codec(codec), &values);
        for order in ["put", "sorted"] {
            if order == "sorted" {
                let store = Options::new().open(place.path("cache"), &store).unwrap();
                let backwards = values.iter().rev().map(|(key, _)| Key::from(key.as_str())).collect();
                let report = store.compact(&Compaction::new().sort(Order::Given(backwards))).unwrap();
                assert!(report.rows_sorted > 0);
                store.close().unwrap();
            }
            let (again, mut files) = (format!("{order}{at}"), 0);
            for entry in std::fs::read_dir(place.store(&store).join("segments")).unwrap() {
                place.import(&again, &[text(&entry.unwrap().path())]);
                files += 1;
            }
            assert!(files > 1);
            same(&place, &again, &values);
        }
    }
    a_damaged_segment_is_told(&place);
    let store = Options::new().open(place.path("cache"), "m0").unwrap();
    store.delete("key/00").unwrap();
    store.close().unwrap();
    let segments = std::fs::read_dir(place.store("m0").join("segments")).unwrap();
    let newest = segments.map(|entry| entry.unwrap().path()).max().unwrap();
    assert!(place.refused(&[text(&newest)]).contains("deleted keys"));
}

/// A flipped bit in a row is damage, even in a column that is not imported.
fn a_damaged_segment_is_told(place: &Place) {
    let values: Vec<(String, Value)> = (0..50)
        .map(|row| {
            let tensor = Tensor::from_slice(&[16], &[row as f32 + 0.25; 16]).unwrap();
            (format!("key/{row:02}"), Value::Map(vec![("x".into(), tensor.into()), ("n".into(), Value::Int(row))]))
        })
        .collect();
    fill(place, "whole", Options::new(), &values);
    let segment = std::fs::read_dir(place.store("whole").join("segments")).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&segment).unwrap();
    let whole = place.file("whole.arrow", &bytes);
    place.import("again", &[text(&whole), "--tensor", "value/n"]);
    assert_eq!(place.get("again", "key/07"), Some(Value::Int(7)));
    let row = 7.25_f32.to_le_bytes().repeat(16);
    let at = bytes.windows(row.len()).position(|window| window == row).unwrap();
    let mut bytes = bytes;
    *bytes.get_mut(at + 5).unwrap() ^= 1;
    let damaged = place.file("damaged.arrow", &bytes);
    for arguments in [&[][..], &["--tensor", "value/n"]] {
        let store = place.store("damaged");
        let (found, message) = code(&[&["import", text(&store), text(&damaged)], arguments].concat());
        assert!(found == 2 && message.contains("row 7 is damaged") && !store.exists(), "{found}: {message}");
    }
}

/// With any bytes flipped or truncated, an import ends with an exit code of the table and a message.
#[test]
fn damaged_tables_do_not_panic() {
    let place = Place::new();
    let words: DictionaryArray<Int32Type> = ["x", "y"].into_iter().collect();
    let batches = [batch(vec![
        ("key", Arc::new(StringArray::from(vec!["a", "b"])) as ArrayRef),
        ("emb", fixed(&[1.0, 2.0, 3.0, 4.0], 2)),
        ("word", Arc::new(words)),
    ])];
    let mut refused = 0;
    for file in write_all(&place, "in", &batches) {
        let whole = std::fs::read(&file).unwrap();
        let extension = file.extension().unwrap().to_str().unwrap();
        let bad = place.path(&format!("bad.{extension}"));
        let step = (whole.len() / 24).max(1) | 1;
        for at in (0..whole.len()).step_by(step) {
            for cut in [false, true] {
                let mut bytes = whole.clone();
                if cut {
                    bytes.truncate(at);
                } else {
                    bytes[at] ^= 0xff;
                }
                std::fs::write(&bad, bytes).unwrap();
                refused += usize::from(ends_well(&place, &bad));
            }
        }
    }
    assert!(refused > 100, "{refused}");
    for (name, bytes, what) in [
        ("x.arrow", &b"a,b,c,d,e,f\n"[..], "not an Arrow file"),
        ("x.arrow", b"", "is empty"),
        ("x.arrow", b"ARROW1\0\0", "truncated"),
        ("x.feather", b"FEA1....FEA1", "version 1"),
        ("x.arrow", b"PAR1....", "name it .parquet"),
        ("x.parquet", b"ARROW1\0\0", "name it .arrow"),
        ("x.parquet", b"PAR1....PAR1", "damaged or truncated"),
        ("x.parquet", b"PARE....PARE", "encrypted"),
    ] {
        let file = place.file(name, bytes);
        let message = place.refused(&[text(&file)]);
        assert!(message.contains(what), "{name}: {message}");
    }
}

/// Whether the import of `file` was refused.
fn ends_well(place: &Place, file: &Path) -> bool {
    let store = place.store("damaged");
    let (found, message) = code(&["import", text(&store), text(file)]);
    assert!(found == 0 || found == 3 && message.contains("bad."), "{found}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    assert_eq!(found == 0, store.exists(), "{message}");
    if found == 0 {
        std::fs::remove_dir_all(&store).unwrap();
    }
    found == 3
}

#[test]
fn a_schema_is_the_same_in_all_shards() {
    let place = Place::new();
    let write = |name: &str, batch: &RecordBatch| {
        let path = place.path(name);
        let mut writer = FileWriter::try_new(File::create(&path).unwrap(), &batch.schema()).unwrap();
        writer.write(batch).unwrap();
        writer.finish().unwrap();
        path
    };
    let a = write("a.arrow", &batch(vec![("v", fixed(&[1.0, 2.0], 2))]));
    let b = write("b.arrow", &batch(vec![("v", fixed(&[1.0, 2.0], 1))]));
    assert!(place.refused(&[text(&a), text(&b)]).contains("b.arrow"));
    let schema = Schema::empty();
    let path = place.path("none.arrow");
    FileWriter::try_new(File::create(&path).unwrap(), &schema).unwrap().finish().unwrap();
    assert!(place.refused(&[text(&path)]).contains("no column of values"));
}
