//! `import-torchcachex`: caches in the layout of torchcachex.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Float32Array, Int64Array, ListArray, RecordBatch, StringArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{Field, Schema};
use arrow::ipc::writer::FileWriter;
use serde_json::{Value as Json, json};
use tensorcask::{Dtype, Options, Value};

use super::{Place, path_text as text};
use crate::support::{code, ok, tensor};

/// A list column, with one list a row.
fn lists(values: ArrayRef, lengths: &[usize]) -> ArrayRef {
    let item = Arc::new(Field::new("item", values.data_type().clone(), true));
    Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(lengths.iter().copied()), values, None))
}

fn floats(rows: &[&[f32]]) -> ArrayRef {
    let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
    lists(Arc::new(Float32Array::from(rows.concat())), &lengths)
}

fn shapes(rows: &[&[i64]]) -> ArrayRef {
    let lengths: Vec<usize> = rows.iter().map(|row| row.len()).collect();
    lists(Arc::new(Int64Array::from(rows.concat())), &lengths)
}

fn keys(keys: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(keys.to_vec()))
}

fn blobs(rows: usize) -> ArrayRef {
    // A pickle that would make a folder if it were loaded.
    Arc::new(BinaryArray::from(vec![&b"cos\nmkdir\n(S'/tmp/pwned'\ntR."[..]; rows]))
}

/// Writes a segment of a cache, and returns its path.
fn segment(place: &Place, number: u32, metadata: &[(&str, &str)], columns: Vec<(&str, ArrayRef)>) -> PathBuf {
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    let batch =
        RecordBatch::try_new(Arc::clone(&schema), columns.into_iter().map(|(_, column)| column).collect()).unwrap();
    let path = place.file(&format!("cache/m/segments/segment_{number:06}.arrow"), "");
    let mut writer = FileWriter::try_new(File::create(&path).unwrap(), &schema).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    path
}

/// A segment of tensors of two elements.
fn pairs(place: &Place, number: u32, rows: &[(&str, [f32; 2])]) -> PathBuf {
    let names: Vec<&str> = rows.iter().map(|(key, _)| *key).collect();
    let data: Vec<&[f32]> = rows.iter().map(|(_, pair)| pair.as_slice()).collect();
    let shape: Vec<&[i64]> = rows.iter().map(|_| [2].as_slice()).collect();
    let columns = vec![("key", keys(&names)), ("data", floats(&data)), ("shape", shapes(&shape))];
    segment(place, number, &[("torch_dtype", "torch.float32")], columns)
}

fn import(place: &Place, options: &[&str]) -> Json {
    let folder = place.store("m");
    let arguments = [&["--format", "json", "import-torchcachex", text(&folder)], options].concat();
    serde_json::from_str(&ok(&arguments)).unwrap()
}

fn refused(place: &Place, options: &[&str]) -> String {
    let folder = place.store("m");
    let (exit, message) = code(&[&["import-torchcachex", text(&folder)], options].concat());
    assert_eq!(exit, 3, "{message}");
    message
}

#[test]
fn tensors_are_imported_into_the_folder_of_the_cache() {
    let place = Place::new();
    pairs(&place, 0, &[("a", [1.0, 2.0]), ("b", [3.0, 4.0])]);
    let ragged = vec![
        ("key", keys(&["c", "d"])),
        ("data", floats(&[&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[7.0]])),
        ("shape", shapes(&[&[2, 3], &[]])),
    ];
    segment(&place, 1, &[], ragged);
    let said = import(&place, &[]);
    let expected = [("segments", 2), ("rows", 4), ("imported", 4), ("bytes", 44), ("existing", 0), ("duplicates", 0)];
    expected.iter().for_each(|(name, number)| assert_eq!(said[*name], json!(*number), "{name}"));
    assert_eq!(place.get("m", "b"), Some(tensor(&[2], &[3.0_f32, 4.0])));
    assert_eq!(place.get("m", "c"), Some(tensor(&[2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0])));
    assert_eq!(place.get("m", "d"), Some(tensor(&[], &[7.0_f32])));
    // A second import finds all keys.
    let said = import(&place, &[]);
    assert_eq!((&said["imported"], &said["existing"], &said["bytes"]), (&json!(0), &json!(4), &json!(0)));
    assert!(place.path("cache/m/segments/segment_000001.arrow").exists(), "the old segments stay");
}

#[test]
fn dicts_and_sequences_keep_their_structure() {
    let place = Place::new();
    let part = |name: &str, value: f32| {
        let of = |suffix: &str| -> &'static str { format!("{name}_{suffix}").leak() };
        [(of("data"), floats(&[&[value]])), (of("shape"), shapes(&[&[1]]))]
    };
    let with_key = |key: &str, parts: [[(&'static str, ArrayRef); 2]; 2]| {
        [vec![("key", keys(&[key]))], parts.into_iter().flatten().collect()].concat()
    };
    let one = |value: f32| tensor(&[1], &[value]);
    segment(&place, 0, &[("tensor_keys", r#"["x", "y"]"#)], with_key("dict", [part("y", 1.0), part("x", 2.0)]));
    segment(&place, 1, &[], with_key("items", [part("item0", 3.0), part("item1", 4.0)]));
    segment(&place, 2, &[("num_tensors", "2")], with_key("tensors", [part("tensor_0", 5.0), part("tensor_1", 6.0)]));
    assert_eq!(import(&place, &[])["imported"], 3);
    let dict = Value::Map(vec![("x".into(), one(2.0)), ("y".into(), one(1.0))]);
    assert_eq!(place.get("m", "dict"), Some(dict));
    assert_eq!(place.get("m", "items"), Some(Value::Tuple(vec![one(3.0), one(4.0)])));
    assert_eq!(place.get("m", "tensors"), Some(Value::Tuple(vec![one(5.0), one(6.0)])));

    let said = import(&place, &["--overwrite", "--sequences", "list"]);
    assert_eq!((&said["imported"], &said["existing"]), (&json!(3), &json!(3)));
    assert_eq!(place.get("m", "items"), Some(Value::List(vec![one(3.0), one(4.0)])));
    place.file("cache/m/schema.json", r#"{"output_structure": "list"}"#);
    import(&place, &["--to", text(&place.store("other"))]);
    assert_eq!(place.get("other", "items"), Some(Value::List(vec![one(3.0), one(4.0)])));
}

#[test]
fn element_types_are_kept() {
    let place = Place::new();
    let flags = lists(Arc::new(BooleanArray::from(vec![true, false, true, true])), &[3, 1]);
    let columns = vec![("key", keys(&["a", "b"])), ("data", flags), ("shape", shapes(&[&[3], &[1]]))];
    segment(&place, 0, &[("torch_dtype", "torch.bool")], columns);
    let wide = lists(Arc::new(Int64Array::from(vec![1, -2])), &[1, 1]);
    segment(&place, 1, &[], vec![("key", keys(&["c", "d"])), ("data", wide), ("shape", shapes(&[&[1], &[1]]))]);
    import(&place, &[]);
    assert_eq!(place.tensor("m", "a").dtype(), Dtype::Bool);
    assert_eq!(place.tensor("m", "b").data().as_ref(), [1]);
    assert_eq!(place.get("m", "d"), Some(tensor(&[1], &[-2_i64])));
}

#[test]
fn the_newest_row_of_a_key_is_imported() {
    let place = Place::new();
    pairs(&place, 2, &[("a", [3.0, 3.0])]);
    pairs(&place, 10, &[("a", [10.0, 0.0]), ("b", [0.0, 0.0]), ("a", [10.0, 1.0])]);
    pairs(&place, 9, &[("a", [9.0, 9.0]), ("c", [9.0, 9.0])]);
    for options in [vec![], vec!["--overwrite"]] {
        let said = import(&place, &options);
        assert_eq!((&said["rows"], &said["duplicates"]), (&json!(6), &json!(3)), "{options:?}");
        assert_eq!(place.get("m", "a"), Some(tensor(&[2], &[10.0_f32, 1.0])), "{options:?}");
    }
}

#[test]
fn values_of_the_store_are_kept_unless_overwritten() {
    let place = Place::new();
    pairs(&place, 0, &[("a", [1.0, 1.0]), ("b", [2.0, 2.0])]);
    let store = Options::new().open(place.path("cache"), "m").unwrap();
    store.put("a", tensor(&[1], &[5.0_f32])).unwrap();
    store.close().unwrap();
    let said = import(&place, &[]);
    assert_eq!((&said["imported"], &said["existing"]), (&json!(1), &json!(1)));
    assert_eq!(place.get("m", "a"), Some(tensor(&[1], &[5.0_f32])));
    import(&place, &["--overwrite"]);
    assert_eq!(place.get("m", "a"), Some(tensor(&[2], &[1.0_f32, 1.0])));
}

#[test]
fn pickled_parts_are_never_read() {
    let place = Place::new();
    let columns = vec![
        ("key", keys(&["a", "b"])),
        ("x_data", floats(&[&[1.0], &[2.0]])),
        ("x_shape", shapes(&[&[1], &[1]])),
        ("label_blob", blobs(2)),
    ];
    segment(&place, 0, &[("tensor_keys", r#"["x"]"#)], columns);
    segment(&place, 1, &[], vec![("key", keys(&["c"])), ("blob", blobs(1))]);
    place.file("cache/m/index.pkl", "cos\nmkdir\n(S'/tmp/pwned'\ntR.");
    let said = import(&place, &[]);
    assert_eq!((&said["imported"], &said["pickled"], &said["rows"]), (&json!(0), &json!(3), &json!(3)));
    assert!(said["warnings"][0].as_str().unwrap().contains("--without-pickled"), "{said}");
    let said = import(&place, &["--without-pickled"]);
    assert_eq!((&said["imported"], &said["pickled"]), (&json!(2), &json!(1)));
    assert_eq!(place.get("m", "b"), Some(Value::Map(vec![("x".into(), tensor(&[1], &[2.0_f32]))])));
    assert!(place.get("m", "c").is_none() && !std::path::Path::new("/tmp/pwned").exists());
}

#[test]
fn rows_that_lack_a_part_are_skipped() {
    let place = Place::new();
    let with_null = |list: ArrayRef| -> ArrayRef {
        let list = list.as_any().downcast_ref::<ListArray>().unwrap().clone();
        let (item, offsets, values, _) = list.into_parts();
        let nulls = NullBuffer::from(vec![true, true, true, false]);
        Arc::new(ListArray::new(item, offsets, values, Some(nulls)))
    };
    let columns = vec![
        ("key", keys(&["whole", "short", "empty", "null"])),
        ("data", with_null(floats(&[&[1.0, 2.0], &[1.0], &[], &[]]))),
        ("shape", shapes(&[&[2], &[2], &[], &[2]])),
    ];
    segment(&place, 0, &[], columns);
    let said = import(&place, &[]);
    assert_eq!((&said["imported"], &said["incomplete"]), (&json!(1), &json!(3)));
    assert_eq!(place.keys("m"), ["whole".into()]);
}

#[test]
fn damaged_segments_refuse_the_import_or_are_skipped() {
    let place = Place::new();
    pairs(&place, 0, &[("a", [1.0, 1.0])]);
    let cut = pairs(&place, 1, &[("b", [2.0, 2.0])]);
    let content = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &content[..content.len() - 20]).unwrap();
    segment(&place, 2, &[], vec![("key", keys(&["c"])), ("value", floats(&[&[1.0]]))]);
    let message = refused(&place, &[]);
    assert!(message.contains("segment_000001.arrow") && message.contains("--skip-damaged"), "{message}");
    assert!(!place.path("cache/m/store.json").exists(), "a refused import stores nothing");
    let said = import(&place, &["--skip-damaged"]);
    assert_eq!((&said["imported"], &said["segments"]), (&json!(1), &json!(1)));
    let skipped = said["skipped_segments"].as_array().unwrap();
    assert!(skipped.len() == 2 && skipped[1]["why"].as_str().unwrap().contains("\"value\""), "{said}");
}

#[test]
fn every_cut_and_flipped_bit_is_an_error_or_a_whole_import() {
    let place = Place::new();
    let path = pairs(&place, 0, &[("a", [1.0, 1.0]), ("b", [2.0, 2.0])]);
    let content = std::fs::read(&path).unwrap();
    for at in (0..content.len()).step_by(29) {
        let mut flipped = content.clone();
        flipped[at] ^= 0x41;
        for damaged in [&content[..at], &flipped] {
            std::fs::write(&path, damaged).unwrap();
            let (exit, message) = code(&["import-torchcachex", text(&place.store("m")), "--dry-run"]);
            assert!(exit == 0 || exit == 3 && message.contains("segment_000000"), "byte {at}: {exit} {message}");
        }
    }
}

#[test]
fn a_dry_run_counts_and_stores_nothing() {
    let place = Place::new();
    pairs(&place, 0, &[("a", [1.0, 1.0]), ("b", [2.0, 2.0]), ("a", [3.0, 3.0])]);
    let said = import(&place, &["--dry-run"]);
    let numbers = (&said["imported"], &said["duplicates"], &said["dry_run"]);
    assert_eq!(numbers, (&json!(2), &json!(1), &json!(true)));
    assert!(!place.path("cache/m/store.json").exists());
    import(&place, &[]);
    pairs(&place, 1, &[("c", [1.0, 1.0])]);
    let said = import(&place, &["--dry-run"]);
    assert_eq!((&said["imported"], &said["existing"]), (&json!(1), &json!(2)));
    assert!(ok(&["import-torchcachex", text(&place.store("m")), "--dry-run"]).contains("would be imported"));
}

#[test]
fn prefixes_of_keys_are_removed() {
    let place = Place::new();
    pairs(&place, 0, &[("m:1", [1.0, 1.0]), ("m:2", [2.0, 2.0])]);
    let said = import(&place, &["--dry-run"]);
    assert!(said["warnings"][0].as_str().unwrap().contains("--strip-prefix \"m:\""), "{said}");
    let said = import(&place, &["--strip-prefix", "m:"]);
    assert_eq!((&said["imported"], &said["warnings"]), (&json!(2), &json!([])));
    assert_eq!(place.keys("m"), ["1".into(), "2".into()]);
    pairs(&place, 1, &[("m:", [1.0, 1.0])]);
    assert!(refused(&place, &["--strip-prefix", "m:"]).contains("prefix itself"));
}

#[test]
fn other_folders_and_stores_are_refused() {
    let place = Place::new();
    assert!(refused(&place, &[]).contains("no folder `segments`"));
    place.file("cache/m/segments/segment_x.arrow", "");
    place.file("cache/m/segments/segment_000001.arrow.tmp", "");
    assert!(refused(&place, &[]).contains("no segments of torchcachex"));
    pairs(&place, 0, &[("a", [1.0, 1.0])]);
    let store = Options::new().open(place.path("cache"), "numbers").unwrap();
    store.put(7_u64, tensor(&[1], &[5.0_f32])).unwrap();
    store.close().unwrap();
    for dry_run in [&["--dry-run"][..], &[]] {
        let message = refused(&place, &[&["--to", text(&place.store("numbers"))], dry_run].concat());
        assert!(message.contains("are u64") && message.contains("--to"), "{message}");
    }
    let message = refused(&place, &["--max-value-bytes", "4"]);
    assert!(message.contains("--max-value-bytes"), "{message}");
}

#[test]
fn links_to_segments_of_the_store_are_no_segments_of_torchcachex() {
    let place = Place::new();
    pairs(&place, 0, &[("a", [1.0, 1.0])]);
    import(&place, &[]);
    let segments = place.path("cache/m/segments");
    let own = crate::support::names(&segments).into_iter().find(|name| name.starts_with("0000-")).unwrap();
    std::os::unix::fs::symlink(own, segments.join("segment_000001.arrow")).unwrap();
    // A link to a segment that lies elsewhere counts.
    let elsewhere = place.path("elsewhere.arrow");
    std::fs::rename(pairs(&place, 2, &[("b", [2.0, 2.0])]), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, segments.join("segment_000002.arrow")).unwrap();
    let said = import(&place, &[]);
    assert_eq!((&said["segments"], &said["imported"], &said["existing"]), (&json!(2), &json!(1), &json!(1)));
}

#[test]
fn large_segments_are_imported_in_parts() {
    let place = Place::new();
    let names: Vec<String> = (0..3000).map(|n| format!("k{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let elements: Vec<f32> = (0..3000 * 1000).map(|n| n as f32).collect();
    let data = lists(Arc::new(Float32Array::from(elements)), &vec![1000; 3000]);
    let shape = lists(Arc::new(Int64Array::from(vec![10; 9000])), &vec![3; 3000]);
    segment(&place, 0, &[], vec![("key", keys(&names)), ("data", data), ("shape", shape)]);
    let said = import(&place, &["--codec", "zstd"]);
    assert_eq!((&said["imported"], &said["bytes"]), (&json!(3000), &json!(12_000_000)));
    let found = place.tensor("m", "k2999");
    assert_eq!((found.shape(), found.to_vec::<f32>().unwrap()[999]), (&[10, 10, 10][..], 2_999_999.0));
}
