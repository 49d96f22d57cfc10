//! Bad input is a typed error with advice. Nothing is partially written, and nothing is lost.

use std::process::Command;

use tensorcask::{Codec, Dtype, Error, Key, Lane, Options, Reader, Store, Tensor, Value};

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    store.put_rows(&["a", "b"], &[2], &[1.0_f32, 2.0, 3.0, 4.0]).unwrap();
    (dir, store)
}

fn says<T: std::fmt::Debug>(result: Result<T, Error>, words: &[&str]) {
    let message = result.unwrap_err().to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{message:?} lacks one of {words:?}");
}

#[test]
fn counts_and_lengths_must_fit() {
    let (_dir, store) = open();
    let value = Value::Int(1);
    says(store.put_batch(&["x", "y"], &[value]), &["2 keys", "1 values"]);
    says(store.put_rows(&["x", "y"], &[2], &[1.0_f32; 3]), &["2 keys", "8 bytes each", "12 bytes", "contiguous"]);
    says(store.put_rows(&["x"], &[usize::MAX, 2], &[1.0_f32]), &["overflows"]);
    let (mut out, mut found) = ([0.0_f32; 4], [false; 2]);
    says(store.get_batch_into(&["a", "b"], &[3], &mut out, &mut found), &["12 bytes each", "has 16"]);
    says(store.get_batch_into(&["a", "b"], &[2], &mut out, &mut found[..1]), &["found mask of 1"]);
    says(Tensor::from_slice(&[2, 2], &[1.0_f32]), &["16 bytes", "4"]);
    assert_eq!(store.len().unwrap(), 2);
}

#[test]
fn rows_of_another_shape_do_not_fit_the_buffer() {
    let (_dir, store) = open();
    let (mut out, mut found) = ([0.0_f64; 2], [false; 1]);
    says(store.get_batch_into(&["a"], &[2], &mut out, &mut found), &["F32", "F64", "get_batch"]);
    store.put("t", &Value::Null).unwrap();
    let mut out = [0.0_f32; 2];
    assert!(matches!(
        store.get_batch_into(&["t"], &[2], &mut out, &mut found),
        Err(Error::Item(item)) if matches!(item.error, Error::Mismatch { .. })
    ));
}

#[test]
fn keys_are_of_one_kind() {
    let (dir, store) = open();
    says(store.put(7_u64, Value::Int(1)), &["keys are str", "u64 key"]);
    says(store.get(7_u64), &["keys are str"]);
    says(store.contains(&b"a"[..]), &["keys are str", "bytes"]);
    says(store.put_batch(&[Key::Str("a".into()), Key::U64(1)], &[Value::Null, Value::Null]), &["str", "u64"]);
    says(store.range(1_u64..2_u64).collect::<Result<Vec<_>, _>>(), &["keys are str"]);
    says(store.count_prefix(1_u64), &["no prefixes", "range"]);
    store.close().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    says(store.put(7_u64, Value::Int(1)), &["keys are str"]);
    says(store.put("k".repeat(70_000), Value::Int(1)), &["the key's length in bytes", "hash it", "65536"]);
    assert_eq!(store.len().unwrap(), 2);
}

#[test]
fn booleans_are_0_or_1() {
    for codec in [Codec::None, Codec::Zstd { level: 1 }] {
        let dir = tempfile::tempdir().unwrap();
        let store = Options::new().codec(codec).open(dir.path(), "m").unwrap();
        let good = Tensor::new(Dtype::Bool, &[2, 2], vec![0, 1, 1, 0]).unwrap();
        let bad = Tensor::new(Dtype::Bool, &[2, 2], vec![0, 1, 2, 0]).unwrap();
        let words = ["byte 2", "BOOL", "is 2", "U8"];
        says(store.put("a", &bad), &words);
        let nested = Value::List(vec![Value::Int(1), bad.into()]);
        says(store.put_batch(&["a", "b"], &[good.clone().into(), nested]), &words);
        says(
            store.put_rows_bytes(&["a", "b"], Dtype::Bool, &[2], &[0, 1, 255, 0]),
            &["key \"b\" at position 1: ", "byte 0", "is 255"],
        );
        store.flush().unwrap();
        assert!(store.is_empty().unwrap());
        assert_eq!(store.stats().unwrap().bytes_written, 0);
        store.put("a", &good).unwrap();
        store.put_rows_bytes(&["b", "c"], Dtype::Bool, &[2], &[0, 1, 1, 0]).unwrap();
        assert_eq!(store.get("a").unwrap(), Some(Value::Tensor(good)));
        store.close().unwrap();
    }
}

#[test]
fn module_ids_name_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    for id in ["", ".", "..", "a/b", "a\\b", "a\nb"] {
        says(Store::open(dir.path(), id), &["module id"]);
        says(Reader::open(dir.path(), id), &["module id"]);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn something_else_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("m"), "a file").unwrap();
    says(Store::open(dir.path(), "m"), &["m", "choose another folder"]);
    says(Store::open(dir.path().join("m"), "x"), &["choose another folder"]);
    assert!(Reader::open(dir.path(), "absent").unwrap_err().is_not_found());
    assert_eq!(std::fs::read(dir.path().join("m")).unwrap(), b"a file");
}

#[test]
fn a_read_only_folder_can_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, store) = open();
    store.close().unwrap();
    drop(store);
    let root = dir.path().join("m");
    let mode = |mode: u32| {
        for folder in ["segments", "runs", "lanes", "quarantine", ""] {
            std::fs::set_permissions(root.join(folder), std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    mode(0o555);
    if std::fs::write(root.join("probe"), "").is_ok() {
        println!("\n*** this user may write everywhere: the read-only folder was NOT tested ***\n");
    } else {
        std::fs::remove_file(root.join("lanes/0000.lock")).unwrap_err();
        says(Options::new().lane(Lane::Number(7)).open(dir.path(), "m"), &["make it writable", "Reader::open"]);
    }
    assert_eq!(Reader::open(dir.path(), "m").unwrap().len().unwrap(), 2);
    mode(0o755);
}

#[test]
fn newer_formats_are_refused() {
    let (dir, store) = open();
    store.close().unwrap();
    drop(store);
    let identity = dir.path().join("m/store.json");
    let json = std::fs::read_to_string(&identity).unwrap();
    let store_id = json.split("\"store\":\"").nth(1).unwrap().split('"').next().unwrap();
    let crc = crc32fast::hash(format!("4 {store_id} 0").as_bytes());
    std::fs::write(&identity, format!("{{\"format\":4,\"store\":\"{store_id}\",\"hash\":0,\"crc32\":{crc}}}")).unwrap();
    says(Store::open(dir.path(), "m"), &["version 4", "version 3", "newer"]);
    std::fs::write(&identity, json).unwrap();
    let segment = std::fs::read_dir(dir.path().join("m/segments")).unwrap().next().unwrap().unwrap().path();
    let good = std::fs::read(&segment).unwrap();
    let at = good.windows(8).rposition(|window| window == b"TCSEAL\r\n").unwrap();
    let mut newer = good.clone();
    newer[at + 8] = 9;
    let crc = crc32fast::hash(&newer[at..at + 252]).to_le_bytes();
    newer[at + 252..at + 256].copy_from_slice(&crc);
    std::fs::write(&segment, &newer).unwrap();
    says(Store::open(dir.path(), "m"), &["version 9"]);
    says(Reader::open(dir.path(), "m"), &["version 9"]);
    std::fs::write(&segment, &good).unwrap();
    assert_eq!(Store::open(dir.path(), "m").unwrap().len().unwrap(), 2);
}

#[test]
fn a_lane_has_one_writer() {
    let (dir, store) = open();
    says(Store::open(dir.path(), "m"), &["lane 0", "Lane::Auto"]);
    let second = Options::new().lane(Lane::Auto).open(dir.path(), "m").unwrap();
    assert_eq!((store.lane(), second.lane()), (0, 1));
    // A second process is refused too.
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "bad_input::child_that_wants_the_lane", "--nocapture"])
        .env("TENSORCASK_LANE_CHILD", dir.path())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&child.stdout).contains("lane 0 has a writer"), "{child:?}");
    store.close().unwrap();
    second.close().unwrap();
    assert!(Store::open(dir.path(), "m").is_ok());
}

/// Not a test: the code of the child process of the test above.
#[test]
fn child_that_wants_the_lane() {
    if let Ok(dir) = std::env::var("TENSORCASK_LANE_CHILD") {
        println!("{}", Store::open(dir, "m").unwrap_err());
    }
}

#[test]
fn values_have_limits() {
    let (dir, store) = open();
    let mut deep = Value::Null;
    (0..33).for_each(|_| deep = Value::List(vec![deep.clone()]));
    says(store.put("deep", &deep), &["nesting", "32"]);
    let twice = Value::Map(vec![("n".into(), Value::Null), ("n".into(), Value::Null)]);
    says(store.put("twice", &twice), &["name \"n\" twice"]);
    says(store.put("wide", Value::List(vec![Value::Int(0); 5000])), &["leaves", "4096"]);
    store.close().unwrap();
    drop(store);
    let store = Options::new().max_value_bytes(100).open(dir.path(), "m").unwrap();
    says(store.put("big", Value::Bytes(vec![0; 101].into())), &["a value in bytes is 101", "100"]);
    says(store.put_rows_bytes(&["big"], Dtype::U8, &[101], &[0; 101]), &["101"]);
    // If one value of a batch is refused, nothing of the batch is put.
    says(store.put_batch(&["ok", "bad"], &[Value::Null, twice]), &["twice"]);
    assert!(!store.contains("ok").unwrap());
    assert_eq!(store.len().unwrap(), 2);
}

#[test]
fn options_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    says(Options::new().segment_bytes(0).open(dir.path(), "m"), &["segment_bytes", "0"]);
    says(Options::new().store_as(Dtype::I8).open(dir.path(), "m"), &["I8", "F16"]);
    let store = Options::new().codec(tensorcask::Codec::Zstd { level: 999 }).open(dir.path(), "m").unwrap();
    says(store.put_rows(&["a"], &[1], &[1.0_f32]), &["999"]);
}

#[test]
fn closed_stores_refuse_writes_and_still_read() {
    let (_dir, store) = open();
    store.close().unwrap();
    store.close().unwrap();
    assert!(matches!(store.put("c", &Value::Null), Err(Error::Closed)));
    assert!(matches!(store.flush(), Err(Error::Closed)));
    assert!(store.get("a").unwrap().is_some());
}

#[test]
fn duplicate_keys_in_one_batch_last_wins() {
    let (_dir, store) = open();
    store.put_rows(&["x", "y", "x"], &[1], &[1_i32, 2, 3]).unwrap();
    let read = |store: &Store| store.get("x").unwrap().unwrap().into_tensor().unwrap().to_vec::<i32>().unwrap();
    assert_eq!((read(&store), store.len().unwrap()), (vec![3], 4));
    store.flush().unwrap();
    assert_eq!(read(&store), [3]);
}

#[test]
fn a_copied_or_moved_store_opens() {
    let (dir, store) = open();
    store.close().unwrap();
    drop(store);
    std::fs::rename(dir.path().join("m"), dir.path().join("moved elsewhere")).unwrap();
    let store = Store::open(dir.path(), "moved elsewhere").unwrap();
    assert!(store.open_report().is_clean());
    assert_eq!(store.len().unwrap(), 2);
}

#[test]
fn many_keys_one_key_no_key() {
    let (_dir, store) = open();
    let keys: Vec<String> = (0..10_000).map(|i| format!("many/{i}")).collect();
    store.put_rows(&keys, &[2], &vec![1.0_f32; 20_000]).unwrap();
    let (mut out, mut found) = (vec![0.0_f32; 20_000], vec![false; 10_000]);
    assert_eq!(store.get_batch_into(&keys, &[2], &mut out, &mut found).unwrap(), 10_000);
    assert_eq!(store.get_batch(&keys).unwrap().len(), 10_000);
    let none: [&str; 0] = [];
    store.put_rows::<f32>(&none, &[2], &[]).unwrap();
    store.put_batch(&none, &[] as &[Value]).unwrap();
    assert_eq!(store.get_batch_into::<f32>(&none, &[2], &mut [], &mut []).unwrap(), 0);
    assert!(store.get_batch(&none).unwrap().is_empty());
    assert!(store.contains_batch(&none).unwrap().is_empty());
    assert_eq!(store.delete_batch(&none).unwrap(), 0);
    assert_eq!(store.delete_batch(&keys).unwrap(), 10_000);
    assert_eq!(store.len().unwrap(), 2);
}
