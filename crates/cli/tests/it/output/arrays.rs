//! Exports to `.npy` and `.safetensors`.

use std::path::Path;

use tensorcask::{Codec, Dtype, Options, Tensor, Value};

use crate::support::{code, names, ok, store, store_with, tensor, text};

/// Reads a .npy file: descr, shape, data.
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

/// The dtypes that numpy supports.
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
    // Keys are in no particular order: sort the rows by key.
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
    // Around every length at which the header grows, with different numbers of digits in the row count.
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
            store.put("k", Value::Tensor(value)).unwrap();
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
fn keys_that_cannot_be_lines_are_refused() {
    for key in ["new\nline", "return\r", "mid\rdle", "", "\u{feff}bom", "nul\0"] {
        let (dir, m) = store(|store| store.put(key, tensor(&[1], &[1.0_f32])).unwrap());
        let (found, message) = code(&["export", text(&m), text(&dir.path().join("a.npy"))]);
        assert_eq!((found, message.contains(&format!("{key:?}"))), (3, true), "{key:?}: {message}");
        assert_eq!(names(dir.path()), ["m"]);
        ok(&["export", text(&m), text(&dir.path().join("a.arrow"))]);
    }
    for key in ["tab\t", " spaces ", "größe"] {
        let (dir, m) = store(|store| store.put(key, tensor(&[1], &[1.0_f32])).unwrap());
        ok(&["export", text(&m), text(&dir.path().join("a.npy"))]);
        assert_eq!(std::fs::read_to_string(dir.path().join("a.npy.keys")).unwrap(), format!("{key}\n"));
    }
    // Keys that are bytes are written in hexadecimal.
    for (key, line) in [(&b"\xff\n\0"[..], "ff0a00\n"), (b"", "0x\n")] {
        let (dir, m) = store(|store| store.put(key, tensor(&[1], &[1.0_f32])).unwrap());
        ok(&["export", text(&m), text(&dir.path().join("a.npy"))]);
        assert_eq!(std::fs::read_to_string(dir.path().join("a.npy.keys")).unwrap(), line);
        assert!(ok(&["get", text(&m), line.trim_end()]).starts_with("F32 [1]"));
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
    // The reserved name, and values without tensors.
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
                store.put(key, Value::Tensor(tensor.clone())).unwrap();
            }
            let pair = Value::Map(vec![("x".into(), tensor(&[1], &[5_u8])), ("y".into(), tensor(&[1], &[6.0_f64]))]);
            store.put("tree", Value::List(vec![pair])).unwrap();
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
