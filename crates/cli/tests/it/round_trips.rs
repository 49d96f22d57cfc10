//! Importing, reading and exporting values; exit codes.

use std::path::Path;

use tensorcask::{Dtype, Key, Options, Reader, Store, Tensor, Value};

use crate::support::{code, ok, tensor, text};

/// Writes a .npy file of `rows` × 3 floats, without the code under test.
fn npy(path: &Path, rows: usize) -> Vec<f32> {
    let values: Vec<f32> = (0..rows * 3).map(|i| i as f32 * 0.5).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 3), }}");
    header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
    values
}

#[test]
fn imported_rows_are_exported_again() {
    let dir = tempfile::tempdir().unwrap();
    let (array, keys) = (dir.path().join("in.npy"), dir.path().join("keys.txt"));
    let store = dir.path().join("cache/words");
    let values = npy(&array, 1000);
    std::fs::write(&keys, (0..1000).map(|i| format!("word/{i:04}\n")).collect::<String>()).unwrap();
    let said = ok(&["import", text(&store), text(&array), "--keys", text(&keys)]);
    assert!(said.starts_with("1000 values, 11.7 KiB"), "{said}");

    assert_eq!(ok(&["ls", text(&store), "--prefix", "word/000", "--limit", "2"]), "word/0000\nword/0001\n");
    assert_eq!(
        ok(&["ls", text(&store), "--from", "word/0998", "--to", "x", "-l"]),
        "word/0998\tF32[3]\nword/0999\tF32[3]\n"
    );
    assert_eq!(ok(&["ls", text(&store), "--from", "word/0998"]), "word/0998\nword/0999\n");
    assert_eq!(ok(&["ls", text(&store), "--to", "word/0001"]), "word/0000\n");
    assert_eq!(ok(&["get", text(&store), "word/0001"]), "F32 [3] [1.5, 2.0, 2.5]\n");
    assert!(ok(&["preload", text(&store)]).starts_with("in memory: "));
    let preloaded: serde_json::Value =
        serde_json::from_str(&ok(&["preload", text(&store), "--limit-bytes", "100", "--format", "json"])).unwrap();
    assert!(preloaded["left_bytes"].as_u64() > Some(0) && preloaded["segment_bytes"] == 100, "{preloaded}");
    let stats: serde_json::Value = serde_json::from_str(&ok(&["stats", text(&store), "--format", "json"])).unwrap();
    assert_eq!((stats["keys"].as_u64(), stats["segments"].as_u64()), (Some(1000), Some(1)));
    assert!(ok(&["stats", text(&store)]).contains("1000 (str)"));
    assert!(ok(&["verify", text(&store)]).contains("0 damaged places"));

    // Export to .npy and import again.
    let out = dir.path().join("out.npy");
    ok(&["export", text(&store), text(&out)]);
    let again = dir.path().join("cache/again");
    ok(&["import", text(&again), text(&out), "--keys", &format!("{}.keys", text(&out)), "--codec", "shuffle-zstd"]);
    let reader = Reader::open(dir.path().join("cache"), "again").unwrap();
    for (i, row) in values.chunks(3).enumerate() {
        let tensor = reader.get(format!("word/{i:04}")).unwrap().unwrap().into_tensor().unwrap();
        assert_eq!(tensor.to_vec::<f32>().unwrap(), row);
    }

    // Export to safetensors, one tensor per key, and import again.
    let out = dir.path().join("out.safetensors");
    ok(&["export", text(&again), text(&out), "--prefix", "word/00"]);
    let third = dir.path().join("cache/third");
    ok(&["import", text(&third), text(&out)]);
    assert_eq!(ok(&["ls", text(&third), "--prefix", ""]).lines().count(), 100);
    assert_eq!(ok(&["get", text(&third), "word/0001"]), "F32 [3] [1.5, 2.0, 2.5]\n");
}

#[test]
fn arrow_files_are_readable_by_others() {
    use arrow::array::{Array, FixedSizeListArray, Float32Array, StringArray};
    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().store_as(Dtype::F16).open(dir.path(), "m").unwrap();
    for i in 0..3000 {
        let tensor = Tensor::from_slice(&[2, 2], &[i as f32; 4]).unwrap();
        let value = Value::Map(vec![("x".into(), tensor.into()), ("n".into(), Value::Int(i))]);
        store.put(format!("{i:05}"), &value).unwrap();
    }
    store.close().unwrap();
    let out = dir.path().join("out.arrow");
    ok(&["export", text(&dir.path().join("m")), text(&out), "--f16-as-f32", "--prefix", "0"]);
    let reader = arrow::ipc::reader::FileReader::try_new(std::fs::File::open(&out).unwrap(), None).unwrap();
    let mut row = 0;
    for batch in reader {
        let batch = batch.unwrap();
        let keys = batch.column(0).as_any().downcast_ref::<StringArray>().unwrap();
        let lists = batch.column(1).as_any().downcast_ref::<FixedSizeListArray>().unwrap();
        for at in 0..batch.num_rows() {
            assert_eq!(keys.value(at), format!("{row:05}"));
            let list = lists.value(at);
            let floats = list.as_any().downcast_ref::<Float32Array>().unwrap();
            let expected = tensorcask::half::f16::from_f32(row as f32).to_f32();
            assert_eq!(floats.values(), &[expected; 4]);
            row += 1;
        }
    }
    assert_eq!(row, 3000);
}

#[test]
fn commands_end_with_their_exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    let rows: Vec<u8> = (0..100 * 512).map(|i| (i / 512) as u8).collect();
    store.put_rows(&(0..100_u64).collect::<Vec<_>>(), &[512], &rows).unwrap();
    store.close().unwrap();
    drop(store);
    let m = dir.path().join("m");

    let (found, message) = code(&["get", text(&m), "100"]);
    assert_eq!((found, message.contains("no key 100")), (1, true));
    assert_eq!(code(&["get", text(&m), "ten"]).0, 3);
    assert_eq!(code(&["no-such-command"]).0, 3);
    assert_eq!(code(&["stats", text(&dir.path().join("absent"))]).0, 3);
    assert_eq!(code(&["import", text(&m), "x.csv"]).0, 3);
    let (found, message) = code(&["get", text(&m), "100", "--format", "json"]);
    assert_eq!(found, 1);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&message).unwrap()["code"], 1);

    let segment = std::fs::read_dir(m.join("segments")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(64).position(|window| window == [77; 64]).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    assert_eq!(code(&["verify", text(&m)]).0, 2);
    assert_eq!(code(&["get", text(&m), "77"]).0, 2);
    assert_eq!(code(&["get", text(&m), "78"]).0, 0);
}

/// Keys of one kind, for four rows.
fn keys_of(kind: &str) -> Vec<Key> {
    match kind {
        "u64" => [0, 7, u64::MAX, 1 << 40].map(Key::from).to_vec(),
        "bytes" => [&[0_u8, 255, 10][..], b"abc", &[7; 16], &[1]].map(|key| Key::from(key.to_vec())).to_vec(),
        _ => ["a", "große Katze.jpg", "dir/0001", " blank "].map(Key::from).to_vec(),
    }
}

/// Four values of one structure each, by name.
fn value_sets() -> Vec<(&'static str, Vec<Value>)> {
    let tensors = |dtype: Dtype, shape: [usize; 2]| -> Vec<Value> {
        let len = dtype.tensor_len_bytes(&shape).unwrap();
        let of = |row: usize| {
            (0..len).map(|at| (at * 5 + row) as u8 % if dtype == Dtype::Bool { 2 } else { 251 }).collect::<Vec<u8>>()
        };
        (0..4).map(|row| Value::Tensor(Tensor::new(dtype, &shape, of(row)).unwrap())).collect()
    };
    let each = |make: &dyn Fn(i64) -> Value| (0..4).map(make).collect::<Vec<Value>>();
    let map = |row: i64| {
        Value::Map(vec![
            ("z".into(), tensor(&[2], &[row as f32, -0.0])),
            (
                "a/b~".into(),
                Value::List(vec![Value::Int(row), Value::Tuple(vec![Value::Null, Value::Str("x\n".into())])]),
            ),
            ("".into(), Value::Bytes(vec![row as u8; row as usize].into())),
        ])
    };
    let mut sets = vec![
        ("scalar tensors", each(&|row| tensor(&[], &[row as f32]))),
        ("no elements", each(&|_| tensor::<f32>(&[0, 3], &[]))),
        ("ragged", each(&|row| tensor(&[row as usize + 1, 2], &vec![row as i32; row as usize * 2 + 2]))),
        ("ragged without elements", each(&|row| tensor(&[1, row as usize], &vec![row as i32; row as usize]))),
        ("integers", each(&|row| Value::Int(row << 40))),
        ("floats", each(&|row| Value::Float(row as f64 / 3.0))),
        ("flags", each(&|row| Value::Bool(row % 2 == 0))),
        ("texts", each(&|row| Value::Str(format!("{row}\n")))),
        ("bytes", each(&|row| Value::Bytes(vec![row as u8; 3].into()))),
        ("nothing", each(&|_| Value::Null)),
        ("trees", each(&map)),
    ];
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::I8, Dtype::U64, Dtype::Bool, Dtype::C64] {
        sets.push((dtype.name(), tensors(dtype, [2, 4])));
    }
    for dtype in [Dtype::F8E4M3, Dtype::F8E5M2, Dtype::F4] {
        sets.push((dtype.name(), tensors(dtype, [2, 4])));
    }
    sets
}

/// The options with which an export is imported again.
fn import_options(format: &str, kind: &str, out: &Path, set: &str) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    if format == "npy" {
        options.extend(["--keys".into(), format!("{}.keys", text(out))]);
        if ["BF16", "F8_E4M3", "F8_E5M2"].contains(&set) {
            options.extend(["--dtype".into(), set.to_owned()]);
        }
    }
    if ["npy", "safetensors"].contains(&format) && kind != "str" {
        options.extend(["--key-kind".into(), kind.to_owned()]);
    }
    options
}

#[test]
fn what_is_exported_is_imported_with_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let mut refused = Vec::new();
    for kind in ["str", "u64", "bytes"] {
        let keys = keys_of(kind);
        // The values do not depend on the kind of keys.
        let few = |set: &str| kind == "str" || ["F32", "ragged", "trees"].contains(&set);
        for (set, values) in value_sets().into_iter().filter(|(set, _)| few(set)) {
            let from = format!("{kind}-{set}");
            let store = Store::open(&cache, &from).unwrap();
            store.put_batch(&keys, &values).unwrap();
            store.close().unwrap();
            for format in ["arrow", "arrows", "safetensors", "npy"] {
                let out = dir.path().join(format!("{from}.{format}"));
                let name = format!("{from}-{format}");
                let (found, said) = code(&["export", text(&cache.join(&from)), text(&out)]);
                if found != 0 {
                    assert_eq!(found, 3, "{name}: {said}");
                    assert!(!out.exists());
                    refused.push(name);
                    continue;
                }
                let to = cache.join(&name);
                let options = import_options(format, kind, &out, set);
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                let (found, said) = code(&[&["import", text(&to), text(&out)], &options[..]].concat());
                assert_eq!(found, 0, "{name}: {said}");
                let reader = Reader::open(&cache, &name).unwrap();
                assert_eq!(reader.key_kind().map(|kind| kind.name()), Some(kind), "{name}");
                assert_eq!(reader.len().unwrap(), 4, "{name}");
                for (key, value) in keys.iter().zip(&values) {
                    assert_eq!(reader.get(key).unwrap().as_ref(), Some(value), "{name}: {key}");
                }
            }
        }
    }
    // Every structure is restored from Arrow files, with every kind of keys.
    assert!(refused.iter().all(|name| !name.contains("-arrow")), "{refused:?}");
    // Names that are no keys of the kind that is asked for.
    let out = dir.path().join("str-F32.safetensors");
    for kind in ["u64", "bytes"] {
        let to = cache.join("refused");
        let (found, said) = code(&["import", text(&to), text(&out), "--key-kind", kind]);
        assert_eq!((found, said.contains("its name is no key"), to.exists()), (3, true, false), "{said}");
    }
}

#[test]
fn shapes_that_lists_do_not_tell_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "m").unwrap();
    let shapes = [[0, 2], [1, 2], [0, 0], [3, 0]];
    for shape in shapes {
        store.put(format!("{shape:?}"), tensor(&shape, &vec![1_u8; shape[0] * shape[1]])).unwrap();
    }
    store.close().unwrap();
    let m = dir.path().join("m");
    for (name, lost) in [("a.arrow", 1), ("a.arrows", 1), ("a.safetensors", 0)] {
        let out = dir.path().join(name);
        let output = crate::support::run(&["export", text(&m), text(&out), "--format", "json"]);
        let warned = String::from_utf8(output.stderr).unwrap().contains("read back as [0, 0]");
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((said["shapes_lost"].as_u64(), warned), (Some(lost), lost > 0), "{said}");
        ok(&["import", text(&dir.path().join(name.replace('.', "-"))), text(&out)]);
        let reader = Reader::open(dir.path(), &name.replace('.', "-")).unwrap();
        for shape in shapes {
            let found = reader.get(format!("{shape:?}")).unwrap().unwrap().into_tensor().unwrap();
            let expected = if lost > 0 && shape == [0, 2] { [0, 0] } else { shape };
            assert_eq!(found.shape(), expected, "{name}");
        }
    }
}
