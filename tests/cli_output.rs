//! What the command line tool writes: exports, values, messages, and exit codes.
#![cfg(feature = "cli")]
#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as expected"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value as Json, json};
use tensorcask::half::{bf16, f16};
use tensorcask::{Codec, Dtype, Element, Options, Store, Tensor, Value};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tensorcask")).args(arguments).output().unwrap()
}

fn ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn code(arguments: &[&str]) -> (i32, String) {
    let output = run(arguments);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A store in a folder of its own, with what `fill` puts.
fn store(fill: impl FnOnce(&Store)) -> (tempfile::TempDir, PathBuf) {
    store_with(Options::new(), fill)
}

fn store_with(options: Options, fill: impl FnOnce(&Store)) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let store = options.open(dir.path(), "m").unwrap();
    fill(&store);
    store.close().unwrap();
    let path = dir.path().join("m");
    (dir, path)
}

fn tensor<T: Element>(shape: &[usize], elements: &[T]) -> Value {
    Value::Tensor(Tensor::from_slice(shape, elements).unwrap())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A .npy file as numpy reads it: descr, shape, data.
fn read_npy(path: &Path) -> (String, Vec<usize>, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00", "{}", path.display());
    let len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!((10 + len) % 64, 0);
    let header = std::str::from_utf8(&bytes[10..10 + len]).unwrap();
    assert!(header.ends_with('\n') && header.contains("'fortran_order': False"), "{header}");
    let descr = header.split("'descr': '").nth(1).unwrap().split('\'').next().unwrap();
    let dims = header.split("'shape': (").nth(1).unwrap().split(')').next().unwrap();
    let shape = dims.split(", ").filter(|dim| !dim.is_empty()).map(|dim| dim.parse().unwrap()).collect();
    (descr.to_owned(), shape, bytes[10 + len..].to_vec())
}

/// Dtypes that numpy has.
const NUMPY: &[(Dtype, &str)] = &[
    (Dtype::Bool, "|b1"),
    (Dtype::U8, "|u1"),
    (Dtype::I8, "|i1"),
    (Dtype::U16, "<u2"),
    (Dtype::I16, "<i2"),
    (Dtype::U32, "<u4"),
    (Dtype::I32, "<i4"),
    (Dtype::U64, "<u8"),
    (Dtype::I64, "<i8"),
    (Dtype::F16, "<f2"),
    (Dtype::F32, "<f4"),
    (Dtype::F64, "<f8"),
    (Dtype::C64, "<c8"),
];

/// Exports `rows` rows of `shape` as .npy, and compares every byte.
fn npy_of(dtype: Dtype, descr: &str, shape: &[usize], rows: usize) {
    let len = dtype.tensor_len_bytes(shape).unwrap() * rows;
    let data: Vec<u8> = (0..len).map(|at| if dtype == Dtype::Bool { (at % 2) as u8 } else { at as u8 }).collect();
    let (dir, m) = store(|store| {
        store.put_rows_bytes(&(0..rows as u64).collect::<Vec<_>>(), dtype, shape, &data).unwrap();
    });
    let out = dir.path().join("out.npy");
    ok(&["export", text(&m), text(&out)]);
    let dims: Vec<usize> = std::iter::once(rows).chain(shape.iter().copied()).collect();
    let keys: String = std::fs::read_to_string(dir.path().join("out.npy.keys")).unwrap();
    let found = read_npy(&out);
    let width = len / rows;
    // Keys are listed in no order: the rows are compared by them.
    let mut ordered = vec![0; len];
    for (at, key) in keys.lines().enumerate() {
        let key: usize = key.parse().unwrap();
        ordered[key * width..(key + 1) * width].copy_from_slice(&found.2[at * width..(at + 1) * width]);
    }
    assert_eq!((found.0.as_str(), found.1, found.2.len()), (descr, dims, len), "{dtype}{shape:?} × {rows}");
    assert!(ordered == data, "{dtype}{shape:?} × {rows}");
}

#[test]
fn npy_exports_of_every_rank_are_right() {
    for rank in 0..=32 {
        npy_of(Dtype::F32, "<f4", &vec![1; rank], 2);
    }
    // Around each length at which the header gets longer, with any number of digits in the rows.
    for rank in 0..16 {
        for rows in [1, 9, 10, 99, 100, 999, 1000] {
            npy_of(Dtype::U8, "|u1", &vec![1; rank], rows);
        }
    }
}

#[test]
fn npy_exports_of_every_dtype_are_right() {
    for (dtype, descr) in NUMPY {
        for shape in [&[][..], &[3], &[2, 3], &[0], &[100, 1, 1, 1, 1, 1]] {
            npy_of(*dtype, descr, shape, 7);
        }
    }
    npy_of(Dtype::U8, "|u1", &[1], 100_000);
    for dtype in Dtype::ALL.iter().filter(|dtype| !NUMPY.iter().any(|(known, _)| known == *dtype)) {
        let (dir, m) = store(|store| {
            let value = Tensor::new(*dtype, &[8], vec![0; dtype.bits()]).unwrap();
            store.put("k", &Value::Tensor(value)).unwrap();
        });
        let out = dir.path().join("out.npy");
        for arguments in [&["export", text(&m), text(&out)][..], &["get", text(&m), "k", "--npy", text(&out)]] {
            let (found, message) = code(arguments);
            assert_eq!((found, message.contains("numpy has no")), (3, true), "{dtype}: {message}");
        }
        assert_eq!(names(dir.path()), ["m"]);
    }
}

#[test]
fn one_value_as_npy_is_right_for_every_rank() {
    for rank in 0..=32 {
        let shape: Vec<usize> = (0..rank).map(|dim| if dim == 3 { 2 } else { 1 }).collect();
        let data: Vec<u8> = (0..Dtype::I16.tensor_len_bytes(&shape).unwrap() as u8).collect();
        let value = Value::Tensor(Tensor::new(Dtype::I16, &shape, data.clone()).unwrap());
        let (dir, m) = store(|store| store.put("k", &value).unwrap());
        let out = dir.path().join("one.npy");
        ok(&["get", text(&m), "k", "--npy", text(&out)]);
        assert_eq!(read_npy(&out), ("<i2".to_owned(), shape, data));
    }
}

#[test]
fn a_refused_export_leaves_the_earlier_file() {
    let (dir, m) = store(|store| {
        for key in 0..3000_u64 {
            store.put(key, &tensor(&[2], &[key as f32; 2])).unwrap();
        }
        // Whatever is read last, it does not fit the others.
        store.put(3000_u64, &tensor(&[2], &[1_i64; 2])).unwrap();
        store.put(3001_u64, &Value::Str("text".into())).unwrap();
    });
    let out = tempfile::tempdir().unwrap();
    for name in ["a.npy", "a.npy.keys", "a.arrow", "a.arrows", "a.safetensors", "one.npy"] {
        std::fs::write(out.path().join(name), "precious").unwrap();
    }
    let before = names(out.path());
    for name in ["a.npy", "a.arrow", "a.arrows", "a.safetensors"] {
        let (found, message) = code(&["export", text(&m), text(&out.path().join(name))]);
        assert_eq!(found, 3, "{message}");
    }
    assert_eq!(code(&["get", text(&m), "3001", "--npy", text(&out.path().join("one.npy"))]).0, 3);
    for name in &before {
        assert_eq!(std::fs::read(out.path().join(name)).unwrap(), b"precious", "{name}");
    }
    assert_eq!(names(out.path()), before);
    // None appears where there was none.
    let empty = tempfile::tempdir().unwrap();
    for name in ["b.npy", "b.arrow", "b.arrows", "b.safetensors"] {
        assert_eq!(code(&["export", text(&m), text(&empty.path().join(name))]).0, 3);
    }
    assert!(names(empty.path()).is_empty());
    drop(dir);
}

#[test]
fn what_was_replaced_is_said() {
    let (dir, m) = store(|store| store.put("k", &tensor(&[1], &[1.0_f32])).unwrap());
    for name in ["a.npy", "a.arrow", "a.arrows", "a.safetensors"] {
        let out = dir.path().join(name);
        let said = ok(&["export", text(&m), text(&out)]);
        assert_eq!(said, format!("1 values to {}\n", out.display()));
        let said = ok(&["export", text(&m), text(&out)]);
        assert_eq!(said, format!("1 values to {}, in place of an earlier file\n", out.display()));
        let said: Json = serde_json::from_str(&ok(&["export", text(&m), text(&out), "--format", "json"])).unwrap();
        assert_eq!(said, json!({ "values": 1, "path": text(&out), "replaced": true, "left_out_files": 0 }));
    }
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let (dir, m) = store(|store| store.put("k", &tensor(&[1], &[1.0_f32])).unwrap());
    std::fs::write(dir.path().join("plain"), "").unwrap();
    for kind in ["npy", "arrow", "arrows", "safetensors"] {
        let folder = dir.path().join(format!("folder.{kind}"));
        std::fs::create_dir(&folder).unwrap();
        for out in [dir.path().join(format!("absent/a.{kind}")), dir.path().join(format!("plain/a.{kind}")), folder] {
            let (found, message) = code(&["export", text(&m), text(&out)]);
            assert_eq!((found, message.contains(text(&out))), (3, true), "{message}");
        }
    }
    let (found, message) = code(&["get", text(&m), "k", "--npy", text(&dir.path().join("absent/one.npy"))]);
    assert_eq!((found, message.contains("one.npy")), (3, true), "{message}");
    let (found, message) = code(&["export", text(&m), text(&dir.path().join("a.npy")), "--keys-out", "/no/keys"]);
    assert_eq!((found, message.contains("/no/keys")), (3, true), "{message}");
    assert!(!dir.path().join("a.npy").exists());
    // A full disk.
    if Path::new("/dev/full").exists() {
        for kind in ["arrow", "arrows", "safetensors"] {
            let (found, message) = code(&["export", text(&m), "/dev/full", "--to", kind]);
            assert_eq!((found, message.contains("/dev/full")), (4, true), "{message}");
        }
        assert!(!std::fs::metadata("/dev/full").unwrap().is_file());
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let printed =
            Command::new(env!("CARGO_BIN_EXE_tensorcask")).args(["ls", text(&m)]).stdout(full).output().unwrap();
        assert_eq!(printed.status.code(), Some(4));
    }
}

#[test]
fn safetensors_names_never_collide() {
    let one = || tensor(&[1], &[1.0_f32]);
    let map = |name: &str, value: Value| Value::Map(vec![(name.into(), value)]);
    let collisions: Vec<Vec<(&str, Value)>> = vec![
        vec![("a", map("b/c", one())), ("a/b", map("c", one()))],
        vec![("a/b", one()), ("a", map("b", one()))],
        vec![("a", Value::Map(vec![("b/c".into(), one()), ("b".into(), map("c", one()))]))],
        vec![("a", Value::List(vec![one()])), ("a/0", one())],
    ];
    for rows in collisions {
        let (dir, m) = store(|store| rows.iter().for_each(|(key, value)| store.put(*key, value).unwrap()));
        let (found, message) = code(&["export", text(&m), text(&dir.path().join("a.safetensors"))]);
        assert_eq!(found, 3, "{message}");
        assert!(message.contains("both be named") && message.contains("\"a"), "{message}");
        assert_eq!(names(dir.path()), ["m"]);
    }
    // A name that the format keeps for itself, and values without a tensor.
    for (key, value) in
        [("__metadata__", one()), ("k", Value::List(vec![])), ("k", Value::Null), ("k", map("x", Value::Tuple(vec![])))]
    {
        let (dir, m) = store(|store| store.put(key, &value).unwrap());
        let (found, message) = code(&["export", text(&m), text(&dir.path().join("a.safetensors"))]);
        assert_eq!((found, message.contains(key)), (3, true), "{message}");
    }
}

#[test]
fn safetensors_files_hold_every_dtype_and_any_name() {
    let mut values: Vec<(String, Tensor)> = Vec::new();
    for (at, dtype) in Dtype::ALL.iter().enumerate() {
        for shape in [&[8][..], &[], &[0, 3], &[2, 4]] {
            if let Some(len) = dtype.tensor_len_bytes(shape) {
                let data: Vec<u8> = (0..len).map(|byte| (byte + at) as u8 & 1).collect();
                values.push((format!("{dtype}{shape:?}"), Tensor::new(*dtype, shape, data).unwrap()));
            }
        }
    }
    for name in ["new\nline", "quote\"", "back\\slash", "nul\0", "größe ☃", "", "\u{feff}bom", "a/b", "x\u{7f}"] {
        values.push((name.into(), Tensor::from_slice(&[1], &[name.len() as f32]).unwrap()));
    }
    for codec in [Codec::None, Codec::ShuffleZstd { level: 3 }] {
        let (dir, m) = store_with(Options::new().codec(codec), |store| {
            for (key, tensor) in &values {
                store.put(key, &Value::Tensor(tensor.clone())).unwrap();
            }
            let pair = Value::Map(vec![("x".into(), tensor(&[1], &[5_u8])), ("y".into(), tensor(&[1], &[6.0_f64]))]);
            store.put("tree", &Value::List(vec![pair])).unwrap();
        });
        let out = dir.path().join("a.safetensors");
        ok(&["export", text(&m), text(&out)]);
        let bytes = std::fs::read(&out).unwrap();
        let found = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(found.len(), values.len() + 2);
        for (key, tensor) in &values {
            let view = found.tensor(key).unwrap();
            let dtype = Dtype::try_from(view.dtype()).unwrap();
            assert_eq!((dtype, view.shape(), view.data()), (tensor.dtype(), tensor.shape(), &tensor.data()[..]));
            assert!((view.data().as_ptr() as usize - bytes.as_ptr() as usize).is_multiple_of(dtype.bits().div_ceil(8)));
        }
        assert_eq!(found.tensor("tree/0/x").unwrap().data(), [5]);
        assert_eq!(found.tensor("tree/0/y").unwrap().data(), 6.0_f64.to_le_bytes());
    }
}

#[test]
fn keys_that_are_no_lines_are_refused() {
    for key in ["new\nline", "return\r", "mid\rdle", "", "\u{feff}bom"] {
        let (dir, m) = store(|store| store.put(key, &tensor(&[1], &[1.0_f32])).unwrap());
        let (found, message) = code(&["export", text(&m), text(&dir.path().join("a.npy"))]);
        assert_eq!((found, message.contains(&format!("{key:?}"))), (3, true), "{key:?}: {message}");
        assert_eq!(names(dir.path()), ["m"]);
        ok(&["export", text(&m), text(&dir.path().join("a.arrow"))]);
    }
    for key in ["nul\0", "tab\t", " spaces ", "größe"] {
        let (dir, m) = store(|store| store.put(key, &tensor(&[1], &[1.0_f32])).unwrap());
        ok(&["export", text(&m), text(&dir.path().join("a.npy"))]);
        assert_eq!(std::fs::read_to_string(dir.path().join("a.npy.keys")).unwrap(), format!("{key}\n"));
    }
    // Bytes are written in hexadecimal.
    let (dir, m) = store(|store| store.put(&b"\xff\n\0"[..], &tensor(&[1], &[1.0_f32])).unwrap());
    ok(&["export", text(&m), text(&dir.path().join("a.npy"))]);
    assert_eq!(std::fs::read_to_string(dir.path().join("a.npy.keys")).unwrap(), "ff0a00\n");
}

#[test]
fn keys_and_names_stay_on_their_line() {
    let (_dir, m) = store(|store| {
        store.put("a\nb\u{1b}[2J", &Value::Map(vec![("x\ny".into(), Value::Int(1))])).unwrap();
        store.put("plain \"key\"", &Value::Int(2)).unwrap();
    });
    assert_eq!(ok(&["ls", text(&m), "--prefix", ""]), "\"a\\nb\\u{1b}[2J\"\nplain \"key\"\n");
    assert_eq!(ok(&["ls", text(&m), "--prefix", "a", "-l"]).lines().count(), 1);
    assert_eq!(ok(&["get", text(&m), "a\nb\u{1b}[2J"]), "\"x\\ny\": 1\n");
    let lines = ok(&["ls", text(&m), "--prefix", "", "--format", "json"]);
    let keys: Vec<Json> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(keys, [json!({ "key": "a\nb\u{1b}[2J" }), json!({ "key": "plain \"key\"" })]);
}

fn shown(value: &Value) -> (String, Json) {
    let (_dir, m) = store(|store| store.put("k", value).unwrap());
    let human = ok(&["get", text(&m), "k", "--head", "100000"]);
    let json = serde_json::from_str(&ok(&["get", text(&m), "k", "--head", "100000", "--format", "json"])).unwrap();
    (human.trim_end().to_owned(), json)
}

/// The elements that `get` prints, as people see them, and in JSON.
fn elements(value: &Value) -> (Vec<String>, Vec<Json>) {
    let (human, json) = shown(value);
    let list = human.split_once("] [").unwrap().1.trim_end_matches(']');
    (list.split(", ").map(str::to_owned).collect(), json["head"].as_array().unwrap().clone())
}

#[test]
fn numbers_read_back() {
    let floats = [0.1_f32, 1.0, -0.0, 1e-45, 3.4028235e38, 16777216.0, 1.0 / 3.0, f32::MIN_POSITIVE, 1e10, -2.5e-7];
    let (human, json) = elements(&tensor(&[10], &floats));
    assert_eq!((human[0].as_str(), json[0].to_string().as_str()), ("0.1", "0.1"));
    for ((float, human), json) in floats.iter().zip(&human).zip(&json) {
        assert_eq!(human.parse::<f32>().unwrap().to_bits(), float.to_bits());
        assert_eq!((json.as_f64().unwrap() as f32).to_bits(), float.to_bits());
    }
    let doubles = [0.1_f64, 1e300, 5e-324, -0.0, f64::MAX, 1.0 / 3.0];
    let (human, json) = elements(&tensor(&[6], &doubles));
    for ((double, human), json) in doubles.iter().zip(&human).zip(&json) {
        assert_eq!(human.parse::<f64>().unwrap().to_bits(), double.to_bits());
        assert_eq!(json.as_f64().unwrap().to_bits(), double.to_bits());
    }
    let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let words = json!(["NaN", "Infinity", "-Infinity"]);
    for value in [
        tensor(&[3], &special),
        tensor(&[3], &special.map(f64::from)),
        tensor(&[3], &special.map(f16::from_f32)),
        tensor(&[3], &special.map(bf16::from_f32)),
    ] {
        let (human, json) = elements(&value);
        assert_eq!((human, Json::Array(json)), (["NaN", "inf", "-inf"].map(String::from).to_vec(), words.clone()));
    }
    assert_eq!(shown(&tensor(&[1], &[[0.1_f32, f32::NAN]])).1["head"], json!([[0.1, "NaN"]]));
    assert_eq!(shown(&Value::Float(f64::NAN)), ("NaN".into(), json!("NaN")));
    assert_eq!(
        shown(&Value::List(vec![Value::Float(f64::NEG_INFINITY), Value::Float(0.1)])).1,
        json!(["-Infinity", 0.1])
    );
    assert_eq!(shown(&Value::Float(1e300)).0, "1e300");
}

#[test]
fn every_half_reads_back() {
    let halves: Vec<f16> = (0..=u16::MAX).step_by(7).map(f16::from_bits).filter(|half| half.is_finite()).collect();
    let (human, json) = elements(&tensor(&[halves.len()], &halves));
    for ((half, human), json) in halves.iter().zip(&human).zip(&json) {
        assert_eq!(f16::from_f64(human.parse().unwrap()).to_bits(), half.to_bits(), "{human}");
        assert_eq!(f16::from_f32(human.parse().unwrap()).to_bits(), half.to_bits(), "{human}");
        assert_eq!(f16::from_f64(json.as_f64().unwrap()).to_bits(), half.to_bits(), "{json}");
    }
    let brains: Vec<bf16> = (0..=u16::MAX).step_by(7).map(bf16::from_bits).filter(|half| half.is_finite()).collect();
    let (human, json) = elements(&tensor(&[brains.len()], &brains));
    for ((half, human), json) in brains.iter().zip(&human).zip(&json) {
        assert_eq!(bf16::from_f64(human.parse().unwrap()).to_bits(), half.to_bits(), "{human}");
        assert_eq!(bf16::from_f64(json.as_f64().unwrap()).to_bits(), half.to_bits(), "{json}");
    }
    let tenth = |value: Value| shown(&value).0;
    assert_eq!(tenth(tensor(&[2], &[0.1, 1.5].map(f16::from_f32))), "F16 [2] [0.1, 1.5]");
    assert_eq!(tenth(tensor(&[2], &[0.1, 1.5].map(bf16::from_f32))), "BF16 [2] [0.1, 1.5]");
}

#[test]
fn large_integers_are_exact() {
    let large = [u64::MAX, (1 << 53) + 1];
    let (human, json) = elements(&tensor(&[2], &large));
    assert_eq!(human, large.map(|number| number.to_string()));
    assert_eq!(json.iter().map(|number| number.as_u64().unwrap()).collect::<Vec<_>>(), large);
    let large = [i64::MIN, i64::MAX, -(1 << 53) - 1];
    let (human, json) = elements(&tensor(&[3], &large));
    assert_eq!(human, large.map(|number| number.to_string()));
    assert_eq!(json.iter().map(|number| number.as_i64().unwrap()).collect::<Vec<_>>(), large);
    assert_eq!(shown(&Value::Int(i64::MIN)), (i64::MIN.to_string(), json!(i64::MIN)));
    let (_dir, m) = store(|store| store.put(u64::MAX, &Value::Null).unwrap());
    assert_eq!(ok(&["ls", text(&m), "--format", "json"]), format!("{{\"key\":{}}}\n", u64::MAX));
}

#[test]
fn only_as_much_as_asked_for_is_shown() {
    let (_dir, m) = store(|store| store.put("k", &tensor(&[3], &[1_u8, 2, 3])).unwrap());
    for (head, expected) in [("0", "U8 [3] […]\n"), ("2", "U8 [3] [1, 2, …]\n"), ("3", "U8 [3] [1, 2, 3]\n")] {
        assert_eq!(ok(&["get", text(&m), "k", "--head", head]), expected);
    }
    let packed = Value::Tensor(Tensor::new(Dtype::F4, &[4], vec![1, 2]).unwrap());
    assert_eq!(shown(&packed).0, "F4 [4] [1, 2]");
}

fn damaged(m: &Path, byte: u8) {
    let segment = std::fs::read_dir(m.join("segments")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(64).position(|window| window == [byte; 64]).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
}

#[test]
fn every_command_ends_with_the_code_of_the_table() {
    let (dir, m) = store(|store| {
        let rows: Vec<u8> = (0..100 * 512).map(|i| (i / 512) as u8).collect();
        store.put_rows(&(0..100_u64).collect::<Vec<_>>(), &[512], &rows).unwrap();
    });
    let (plain, folder, out) = (dir.path().join("plain"), dir.path().join("folder"), dir.path().join("out.npy"));
    std::fs::write(&plain, "no store").unwrap();
    std::fs::create_dir(&folder).unwrap();
    let (m, out) = (text(&m).to_owned(), text(&out).to_owned());
    let (absent, plain, folder) = (dir.path().join("absent"), text(&plain).to_owned(), text(&folder).to_owned());
    let absent = text(&absent);

    for place in [absent, &plain, &folder, &format!("{plain}/below")] {
        for command in ["stats", "ls", "get", "verify", "warm", "export"] {
            let mut arguments = vec![command, place];
            arguments.extend(match command {
                "get" => &["1"][..],
                "export" => &["x.npy"],
                _ => &[],
            });
            let (found, message) = code(&arguments);
            assert_eq!((found, message.contains(place)), (3, true), "{command}: {message}");
        }
        let (found, message) = code(&["stats", place, "--format", "json"]);
        assert_eq!((found, serde_json::from_str::<Json>(&message).unwrap()["code"].as_i64()), (3, Some(3)));
    }
    assert_eq!(names(&dir.path().join("folder")).len(), 0, "looking makes nothing");

    let cases: &[(&[&str], i32)] = &[
        (&["stats", &m], 0),
        (&["--help"], 0),
        (&["--version"], 0),
        (&["export", "--help"], 0),
        (&["get", &m, "100"], 1),
        (&["get", &m, "ten"], 3),
        (&["get", &m, "-1"], 3),
        (&["get", &m, "18446744073709551616"], 3),
        (&["get", &m], 3),
        (&["get", &m, "1", "--npy", &out, "--head", "3"], 3),
        (&["get", &m, "1", "--max-value-bytes", "511"], 3),
        (&["get", &m, "1", "--max-value-bytes", "0"], 3),
        (&["get", &m, "1", "--max-value-bytes", "512"], 0),
        (&["no-such-command"], 3),
        (&[], 3),
        (&["stats", &m, "--format", "xml"], 3),
        (&["ls", &m, "--prefix", "1"], 3),
        (&["ls", &m, "--from", "1"], 3),
        (&["ls", &m, "--from", "1", "--to", "5", "--prefix", "1"], 3),
        (&["ls", &m, "--limit", "-1"], 3),
        (&["export", &m, "out.csv"], 3),
        (&["export", &m, "out"], 3),
        (&["export", &m, &out, "--plain"], 3),
        (&["export", &m, &out, "--stream"], 3),
        (&["export", &m, "x.safetensors", "--plain"], 3),
        (&["export", &m, "x.safetensors", "--keys-out", "k"], 3),
        (&["export", &m, "x.arrow", "--keys-out", "k"], 3),
        (&["export", &m, "x.arrow", "--max-value-bytes", "511"], 3),
        (&["export", &m, &out, "--keys-out", &out], 3),
        (&["export", &m, &out, "--prefix", "1"], 3),
        (&["import", &m, "x.csv"], 3),
        (&["import", &m, absent, "--lane", "65536"], 3),
        (&["import", &m, absent, "--lane", "first"], 3),
        (&["stats", ".."], 3),
    ];
    for (arguments, expected) in cases {
        let output = run(arguments);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(*expected), "{arguments:?}: {message}");
        assert!(!message.contains("::") && !message.contains("scan_range"), "{arguments:?}: {message}");
        // Whatever goes wrong, programs can read it.
        if *expected != 0 {
            let mut arguments = arguments.to_vec();
            let had_format = arguments.contains(&"--format");
            arguments.extend(["--format", "json"]);
            let output = run(&arguments);
            let said: Json = serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{output:?}"));
            assert!(had_format || said["code"] == json!(expected), "{arguments:?}: {said}");
            assert!(output.stdout.is_empty());
        }
    }
    assert!(!Path::new(&out).exists());

    damaged(Path::new(&m), 77);
    for (arguments, expected) in [
        (&["verify", &m][..], 2),
        (&["get", &m, "77"], 2),
        (&["get", &m, "78"], 0),
        (&["export", &m, &out], 2),
        (&["export", &m, "x.arrow"], 2),
        (&["export", &m, "x.safetensors"], 2),
    ] {
        assert_eq!(code(arguments).0, expected, "{arguments:?}");
    }
    let lines = run(&["verify", &m, "--format", "json"]).stdout;
    for line in String::from_utf8(lines).unwrap().lines() {
        serde_json::from_str::<Json>(line).unwrap();
    }
    assert!(!Path::new(&out).exists() && !Path::new("x.arrow").exists());
}

#[test]
fn a_store_is_written_as_asked() {
    let (dir, m) = store(|store| store.put_rows(&[0_u64], &[4], &[0.0_f32; 4]).unwrap());
    let array = dir.path().join("one.npy");
    ok(&["get", text(&m), "0", "--npy", text(&array)]);
    let keys = dir.path().join("keys.txt");
    std::fs::write(&keys, "7\n8\n9\n10\n").unwrap();
    let import = |more: &[&str]| {
        let fixed = ["import", text(&m), text(&array), "--keys", text(&keys), "--key-kind", "u64"];
        code(&[&fixed[..], more].concat())
    };
    let busy = Options::new().open(dir.path(), "m").unwrap();
    let (found, message) = import(&[]);
    assert_eq!((found, message.contains("--lane auto")), (4, true), "{message}");
    assert_eq!(import(&["--lane", "auto"]), (0, String::new()));
    assert_eq!(import(&["--lane", "5"]).0, 0);
    let lanes = names(&m.join("lanes"));
    assert!(["0001.lock", "0005.lock"].iter().all(|lane| lanes.contains(&(*lane).to_owned())), "{lanes:?}");
    assert_eq!(import(&["--lane", "3", "--allow-network"]).0, 0);
    drop(busy);
    let (found, message) = import(&["--max-value-bytes", "3"]);
    assert_eq!((found, message.contains("--max-value-bytes")), (3, true), "{message}");
}

#[cfg(unix)]
#[test]
fn a_group_shares_a_store() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, m) = store(|store| store.put_rows(&[0_u64], &[4], &[0.0_f32; 4]).unwrap());
    let array = dir.path().join("one.npy");
    ok(&["get", text(&m), "0", "--npy", text(&array)]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let shared_folder = dir.path().join("shared");
    std::fs::create_dir(&shared_folder).unwrap();
    std::fs::set_permissions(&shared_folder, std::fs::Permissions::from_mode(0o2770)).unwrap();
    for (parent, option) in [(dir.path(), " --group-writable"), (&shared_folder, "")] {
        let store = parent.join("store");
        let command = format!(
            "umask 077; exec '{}' import '{}' '{}'{option}",
            env!("CARGO_BIN_EXE_tensorcask"),
            store.display(),
            array.display()
        );
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
        assert_eq!(mode(&store) & 0o2070, 0o2070);
        let mut files = 0;
        for folder in ["segments", "runs", "lanes", "quarantine"] {
            assert_eq!(mode(&store.join(folder)) & 0o2070, 0o2070, "{folder}");
            for name in names(&store.join(folder)) {
                assert_eq!(mode(&store.join(folder).join(&name)) & 0o060, 0o060, "{name}");
                files += 1;
            }
        }
        assert_eq!(mode(&store.join("store.json")) & 0o060, 0o060);
        assert!(files >= 3, "a segment, a lock, marks");
    }
    let private = dir.path().join("private");
    let command = format!(
        "umask 077; exec '{}' import '{}' '{}'",
        env!("CARGO_BIN_EXE_tensorcask"),
        private.display(),
        array.display()
    );
    assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    assert_eq!((mode(&private), mode(&private.join("store.json"))), (0o700, 0o600));
}

/// Runs the tool as a user that is not root: for root, permissions are no bar.
#[cfg(unix)]
fn as_nobody(program: &Path, arguments: &[&str]) -> (i32, String, String) {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command.args(arguments);
    if rustix_is_root() {
        command.uid(65_534).gid(65_534);
    }
    let output = command.output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.code().unwrap(), out, err)
}

#[cfg(unix)]
fn rustix_is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::metadata(folder.path()).unwrap().uid() == 0
}

#[cfg(unix)]
#[test]
fn what_a_user_may_not_read_or_write_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let set_mode = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let (dir, m) = store_with(Options::new().segment_rows(2), |store| {
        for key in 0..4_u64 {
            store.put_rows(&[key], &[2], &[key as f32; 2]).unwrap();
            store.flush().unwrap();
        }
    });
    // Where the tool was built, another user may not go.
    let program = dir.path().join("tensorcask");
    std::fs::copy(env!("CARGO_BIN_EXE_tensorcask"), &program).unwrap();
    let segment = m.join("segments").join(&names(&m.join("segments"))[0]);
    for path in [dir.path(), &program, &m, &m.join("segments"), &m.join("runs"), &m.join("lanes")] {
        set_mode(path, 0o755);
    }
    set_mode(&segment, 0);
    let m = text(&m);
    let (found, out, err) = as_nobody(&program, &["verify", m]);
    assert_eq!((found, out.contains("--group-writable"), err.as_str()), (2, true, ""), "{out}");
    assert!(out.contains(text(&segment)) && !out.contains("::"), "{out}");
    let (found, out, err) = as_nobody(&program, &["ls", m]);
    assert_eq!((found, out.lines().count(), err.contains("warning: 1 file")), (0, 2, true), "{err}");
    // What is written without them is not the whole store, and says so.
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    set_mode(&open, 0o777);
    let (found, out, err) = as_nobody(&program, &["export", m, text(&open.join("a.npy")), "--format", "json"]);
    assert_eq!((found, serde_json::from_str::<Json>(&out).unwrap()["left_out_files"].as_i64()), (2, Some(1)), "{err}");
    assert!(serde_json::from_str::<Json>(&err).unwrap()["warning"].is_string());

    let private = dir.path().join("private");
    std::fs::create_dir(&private).unwrap();
    set_mode(&private, 0o555);
    let (found, _, err) = as_nobody(&program, &["export", m, text(&private.join("a.npy"))]);
    assert_eq!((found, err.contains("a.npy")), (4, true), "{err}");
    let (found, _, err) = as_nobody(&program, &["get", m, "3", "--npy", text(&private.join("a.npy"))]);
    assert_eq!((found, err.contains("a.npy")), (4, true), "{err}");
    set_mode(Path::new(m), 0o700);
    let (found, _, err) = as_nobody(&program, &["stats", m]);
    assert_eq!((found, err.contains(m)), (if rustix_is_root() { 4 } else { 0 }, rustix_is_root()), "{err}");
    set_mode(&segment, 0o644);
}

/// A value under each key, whatever its structure.
fn read_arrow(path: &Path) -> (arrow::datatypes::SchemaRef, Vec<arrow::array::RecordBatch>) {
    let file = std::fs::File::open(path).unwrap();
    if path.extension().unwrap() == "arrows" {
        let reader = arrow::ipc::reader::StreamReader::try_new(file, None).unwrap();
        return (reader.schema(), reader.map(Result::unwrap).collect());
    }
    let reader = arrow::ipc::reader::FileReader::try_new(file, None).unwrap();
    (reader.schema(), reader.map(Result::unwrap).collect())
}

#[test]
fn ragged_values_are_lists_wherever_they_begin() {
    use arrow::array::{Array, ListArray, StringArray, UInt16Array};
    // The first of another shape comes late, so that much is written when it is met.
    let shapes = |row: usize| if row < 9000 { [2, 3] } else { [row % 4, row % 3] };
    let (dir, m) = store(|store| {
        for row in 0..9100_usize {
            let shape = shapes(row);
            let items: Vec<u16> = (0..shape[0] * shape[1]).map(|at| (row + at) as u16).collect();
            store.put(&format!("{row:05}"), &tensor(&shape, &items)).unwrap();
        }
    });
    for (name, options) in [("a.arrow", &[][..]), ("a.arrows", &["--plain"]), ("b.arrows", &[])] {
        let out = dir.path().join(name);
        ok(&[&["export", text(&m), text(&out)], options].concat());
        let (schema, batches) = read_arrow(&out);
        assert!(!schema.field(1).metadata().contains_key("ARROW:extension:name"));
        assert_eq!(schema.field(1).metadata().contains_key("dtype"), options.is_empty());
        let mut rows = 0;
        for batch in batches {
            let keys = batch.column(0).as_any().downcast_ref::<StringArray>().unwrap();
            let lists = batch.column(1).as_any().downcast_ref::<ListArray>().unwrap();
            for at in 0..batch.num_rows() {
                let row: usize = keys.value(at).parse().unwrap();
                let outer = lists.value(at);
                let outer = outer.as_any().downcast_ref::<ListArray>().unwrap();
                assert_eq!(outer.len(), shapes(row)[0]);
                let mut next = row as u16;
                for inner in outer.iter() {
                    let inner = inner.unwrap();
                    let expected: Vec<u16> = (next..).take(shapes(row)[1]).collect();
                    assert_eq!(inner.as_any().downcast_ref::<UInt16Array>().unwrap().values(), &expected[..]);
                    next += shapes(row)[1] as u16;
                }
                rows += 1;
            }
        }
        assert_eq!(rows, 9100);
    }
    // Other ranks and other dtypes are no rows of one column.
    for other in [tensor(&[1], &[1_u16]), tensor(&[2, 3], &[1_i16; 6]), Value::Int(1)] {
        let (dir, m) = store(|store| {
            store.put("a", &tensor(&[2, 3], &[1_u16; 6])).unwrap();
            store.put("b", &other).unwrap();
        });
        assert_eq!(code(&["export", text(&m), text(&dir.path().join("a.arrow"))]).0, 3);
        assert_eq!(names(dir.path()), ["m"]);
    }
    // A shape without elements that would need endless lists.
    let (dir, m) = store(|store| store.put("a", &tensor::<f32>(&[1 << 40, 0], &[])).unwrap());
    let (found, message) = code(&["export", text(&m), text(&dir.path().join("a.arrow")), "--plain"]);
    assert_eq!((found, message.contains("too large")), (3, true), "{message}");
}

#[test]
fn plain_means_that_nothing_has_to_be_known() {
    use arrow::datatypes::DataType;
    let value = |row: u8| {
        Value::Map(vec![
            ("scalar".into(), tensor(&[], &[f32::from(row)])),
            ("flags".into(), Value::Tensor(Tensor::from_bools(&[2], &[row > 1, true]).unwrap())),
            ("matrix".into(), tensor(&[2, 1], &[row, 9])),
            ("complex".into(), tensor(&[1], &[[1.0_f32, 2.0]])),
            ("half".into(), tensor(&[2], &[1.5, -0.5].map(bf16::from_f32))),
            ("label".into(), Value::Str(format!("row {row}"))),
        ])
    };
    let (dir, m) = store(|store| (0..5).for_each(|row| store.put(u64::from(row), &value(row)).unwrap()));
    let out = dir.path().join("a.arrow");
    let (found, message) = code(&["export", text(&m), text(&out), "--plain"]);
    assert_eq!((found, message.contains("--f16-as-f32")), (3, true), "{message}");
    ok(&["export", text(&m), text(&out), "--plain", "--f16-as-f32"]);
    let (schema, _) = read_arrow(&out);
    let list = |item: DataType| DataType::new_list(item, false);
    let expected = [
        ("key", DataType::UInt64),
        ("value/scalar", DataType::Float32),
        ("value/flags", list(DataType::Boolean)),
        ("value/matrix", list(list(DataType::UInt8))),
        ("value/complex", list(list(DataType::Float32))),
        ("value/half", list(DataType::Float32)),
        ("value/label", DataType::Utf8),
    ];
    let found: Vec<_> =
        schema.fields().iter().map(|field| (field.name().as_str(), field.data_type().clone())).collect();
    assert_eq!(found, expected);
    assert!(schema.fields().iter().all(|field| field.metadata().is_empty()));
    // A stream under the name of a file, as `datasets` keeps it.
    ok(&["export", text(&m), text(&out), "--plain", "--f16-as-f32", "--stream"]);
    assert_ne!(&std::fs::read(&out).unwrap()[..6], b"ARROW1");
    for dtype in [Dtype::F8E4M3, Dtype::F4] {
        let (dir, m) = store(|store| {
            let value = Tensor::new(dtype, &[8], vec![0; dtype.bits()]).unwrap();
            store.put("k", &Value::Tensor(value)).unwrap();
        });
        let out = dir.path().join("a.arrow");
        assert_eq!(code(&["export", text(&m), text(&out), "--plain", "--f16-as-f32"]).0, 3);
        ok(&["export", text(&m), text(&out)]);
    }
}

/// Exports under a limit of the memory that is written to; maps of files do not count.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_bounded_by_bytes() {
    for codec in [Codec::None, Codec::Zstd { level: 1 }] {
        let (dir, m) = store_with(Options::new().codec(codec), |store| {
            // Small rows first, from which the size of the large ones cannot be guessed.
            for row in 0..2000_u64 {
                store.put(row, &tensor(&[4], &[row as f32; 4])).unwrap();
            }
            store.flush().unwrap();
            let mut large = vec![0_u8; 1 << 20];
            for row in 2000..2160_u64 {
                large.iter_mut().zip(row..).step_by(97).for_each(|(byte, value)| *byte = value as u8);
                store.put(row, &tensor(&[1 << 18], bytemuck::cast_slice::<u8, f32>(&large))).unwrap();
            }
        });
        let export = |kib: u32, name: &str, options: &str| {
            let command = format!(
                "ulimit -d {kib}; exec '{}' export '{}' '{}' {options}",
                env!("CARGO_BIN_EXE_tensorcask"),
                m.display(),
                dir.path().join(name).display()
            );
            Command::new("sh").args(["-c", &command]).output().unwrap()
        };
        for (name, options) in [("a.arrow", ""), ("a.arrows", "--plain"), ("a.safetensors", "")] {
            let output = export(64 << 10, name, options);
            assert!(output.status.success(), "{codec:?} {name}: {output:?}");
        }
        // The limit is one.
        assert!(!export(2 << 10, "b.arrow", "").status.success());
    }
}

#[test]
fn other_programs_read_plain_exports() {
    let Ok(python) = std::env::var("TENSORCASK_INTEROP_PYTHON") else {
        println!("\n*** TENSORCASK_INTEROP_PYTHON is not set: pyarrow, polars and numpy were NOT run ***\n");
        return;
    };
    let rows = |row: usize| vec![row as f32 + 0.5; (row % 3 + 1) * 2];
    let (dir, m) = store(|store| {
        for row in 0..50_usize {
            let value = Value::Map(vec![
                ("tokens".into(), tensor(&[row % 3 + 1, 2], &rows(row))),
                ("vector".into(), tensor(&[3], &[row as f32, 0.1, -1.0].map(bf16::from_f32))),
                ("label".into(), Value::Int(row as i64)),
            ]);
            store.put(&format!("{row:02}"), &value).unwrap();
        }
    });
    for (name, options) in
        [("a.arrows", &["--plain"][..]), ("b.arrow", &["--plain", "--stream"]), ("c.arrow", &["--plain"])]
    {
        ok(&[&["export", text(&m), text(&dir.path().join(name)), "--f16-as-f32"], options].concat());
    }
    let (fixed, f) = store(|store| {
        let keys: Vec<u64> = (0..200).collect();
        store.put_rows(&keys, &[2, 3], &(0..1200).map(|at| at as f32).collect::<Vec<_>>()).unwrap();
    });
    for name in ["d.npy", "d.safetensors", "d.arrow"] {
        ok(&["export", text(&f), text(&dir.path().join(name))]);
    }
    let deep = dir.path().join("deep.npy");
    let mut shape = [1; 14];
    shape[5] = 3;
    let (_deep, d) = store(|store| store.put("k", &tensor(&shape, &[1.0_f32, 2.0, 3.0])).unwrap());
    ok(&["get", text(&d), "k", "--npy", text(&deep)]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/export_check.py");
    let output = Command::new(python).arg(script).arg(dir.path()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    println!("{out}");
    drop(fixed);
}
