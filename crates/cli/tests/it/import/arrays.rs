//! `.npy` and `.npz` files.

use std::io::Write;

use tensorcask::{Dtype, Value};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::{Place, floats, header, npy, npy_of_version, path_text as text, rows3};

const SIX: [f32; 6] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];

/// A description, the file, and the dtype, shape and bytes of its rows.
type Case<'a> = (&'a str, Vec<u8>, Dtype, &'a [usize], Vec<u8>);

/// Spellings of the header, and element types.
fn headers_and_types<'a>() -> Vec<Case<'a>> {
    let data = floats(&SIX);
    let plain = header("<f4", false, &[3, 2]);
    let nan: Vec<u8> = [0x7fc0_0000_u32, 0x7f80_0001, 0xffc1_2345].iter().flat_map(|bits| bits.to_le_bytes()).collect();
    vec![
        ("plain", npy(&plain, &data), Dtype::F32, &[2], data.clone()),
        ("version 2", npy_of_version(2, &plain, &data), Dtype::F32, &[2], data.clone()),
        ("version 3", npy_of_version(3, &plain, &data), Dtype::F32, &[2], data.clone()),
        ("native", npy(&header("=f4", false, &[3, 2]), &data), Dtype::F32, &[2], data.clone()),
        (
            "Python 2",
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 2L), }", &data),
            Dtype::F32,
            &[2],
            data.clone(),
        ),
        (
            "double quotes",
            npy(r#"{"shape":(3,2),"fortran_order":False,"descr":"<f4"}"#, &data),
            Dtype::F32,
            &[2],
            data.clone(),
        ),
        (
            "no comma",
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (6)}", &data),
            Dtype::F32,
            &[],
            data.clone(),
        ),
        ("bool", npy(&header("|b1", false, &[3]), &[0, 1, 1]), Dtype::Bool, &[], vec![0, 1, 1]),
        ("half", npy(&header("<f2", false, &[2]), &[1, 2, 3, 4]), Dtype::F16, &[], vec![1, 2, 3, 4]),
        ("NaN", npy(&header("<f4", false, &[1, 3]), &nan), Dtype::F32, &[3], nan.clone()),
        ("by name", npy(&header("bfloat16", false, &[2]), &[1, 2, 3, 4]), Dtype::BF16, &[], vec![1, 2, 3, 4]),
        (
            "rank 33",
            npy(&header("<u2", false, &[[2].as_slice(), &[1; 32]].concat()), &[1, 2, 3, 4]),
            Dtype::U16,
            &[1; 32],
            vec![1, 2, 3, 4],
        ),
        ("no elements", npy(&header("<f4", false, &[5, 0]), &[]), Dtype::F32, &[0], vec![]),
    ]
}

/// Byte orders, and C and Fortran order.
fn orders<'a>() -> Vec<Case<'a>> {
    let data = floats(&SIX);
    let turned = |numbers: &[f32]| numbers.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<u8>>();
    vec![
        ("big-endian", npy(&header(">f4", false, &[3, 2]), &turned(&SIX)), Dtype::F32, &[2], data.clone()),
        ("big-endian i2", npy(&header(">i2", false, &[2]), &[1, 2, 3, 4]), Dtype::I16, &[], vec![2, 1, 4, 3]),
        ("big-endian u1", npy(&header(">u1", false, &[2]), &[1, 2]), Dtype::U8, &[], vec![1, 2]),
        ("big-endian c8", npy(&header(">c8", false, &[3]), &turned(&SIX)), Dtype::C64, &[], data.clone()),
        (
            "fortran",
            npy(&header("<f4", true, &[3, 2]), &floats(&[0.0, 2.0, 4.0, 1.0, 3.0, 5.0])),
            Dtype::F32,
            &[2],
            data.clone(),
        ),
        (
            "fortran big-endian",
            npy(&header(">f4", true, &[3, 2]), &turned(&[0.0, 2.0, 4.0, 1.0, 3.0, 5.0])),
            Dtype::F32,
            &[2],
            data.clone(),
        ),
        ("fortran 1-d", npy(&header("<f4", true, &[6]), &data), Dtype::F32, &[], data.clone()),
        ("fortran column", npy(&header("<f4", true, &[6, 1]), &data), Dtype::F32, &[1], data.clone()),
        ("fortran row", npy(&header("<f4", true, &[1, 6]), &data), Dtype::F32, &[6], data.clone()),
        (
            "fortran one row of two",
            npy(&header("|u1", true, &[1, 2, 3]), &[0, 3, 1, 4, 2, 5]),
            Dtype::U8,
            &[2, 3],
            vec![0, 1, 2, 3, 4, 5],
        ),
        (
            "fortran 3-d",
            npy(&header("|u1", true, &[2, 2, 2]), &[0, 4, 2, 6, 1, 5, 3, 7]),
            Dtype::U8,
            &[2, 2],
            (0..8).collect(),
        ),
    ]
}

/// Each array is imported bit for bit.
#[test]
fn arrays_of_every_writer() {
    let place = Place::new();
    for (at, (name, bytes, dtype, shape, expected)) in [headers_and_types(), orders()].concat().iter().enumerate() {
        let file = place.file(if at % 2 == 0 { "in.npy" } else { "IN.NPY" }, bytes);
        let store = format!("s{at}");
        let said = place.import(&store, &[text(&file)]);
        let rows = said["values"].as_u64().unwrap();
        let mut found = Vec::new();
        for row in 0..rows {
            let tensor = place.tensor(&store, row);
            assert_eq!((tensor.dtype(), tensor.shape()), (*dtype, *shape), "{name}");
            found.extend_from_slice(tensor.data());
        }
        assert_eq!(&found, expected, "{name}");
    }
    for shape in [&[0][..], &[0, 4]] {
        let file = place.file("in.npy", npy(&header("<f4", false, shape), &[]));
        assert_eq!(place.import("none", &[text(&file)])["values"], 0);
    }
}

#[test]
fn arrays_that_are_refused() {
    let place = Place::new();
    let data = floats(&SIX);
    let with = |descr: &str| npy(&header(descr, false, &[3, 2]), &data);
    let shaped = |shape: &str| npy(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"), &data);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (with("<V4"), "a type that the file does not name"),
        (with("|O"), "Python objects"),
        (with("<c16"), "complex64"),
        (with("<f16"), "float64"),
        (with("<M8[ns]"), "int64"),
        (with("<U1"), "text"),
        (with("|S4"), "text"),
        (
            npy("{'descr': [('id', '<i8'), ('x', '<f4', (3,))], 'fortran_order': False, 'shape': (2,), }", &data),
            "structured",
        ),
        (npy(&header("<V2", false, &[3]), &data[..6]), "--dtype BF16"),
        (npy(&header("|V1", false, &[3]), &data[..3]), "--dtype F8_E4M3"),
        (npy(&header("<f1", false, &[3]), &data[..3]), "--dtype F8_E5M2"),
        (npy(&header("|b1", false, &[2, 2]), &[0, 255, 2, 1]), "boolean 1 has the byte 255"),
        (npy(&header("<f4", false, &[]), &data[..4]), "no dimensions"),
        (npy(&header("<f4", false, &[[2].as_slice(), &[1; 39]].concat()), &data[..8]), "39 dimensions"),
        (shaped("(-1, 2)"), "dimension -1"),
        (shaped("(4611686018427387904, 2)"), "larger than memory"),
        (shaped("(99999999999999999999999999999999999999999999, 2)"), "not an integer"),
        (shaped("'(3, 2)'"), "not a tuple"),
        (shaped("(3.0, 2)"), "cannot be read"),
        (shaped("(4, 2)"), "takes 32 bytes, but 24 follow"),
        (shaped("(2, 2)"), "takes 16 bytes, but 24 follow"),
        (npy("{'descr': '<f4', 'shape': (3, 2), }", &data), "fortran_order"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), 'x': 1, }", &data), "\"x\""),
        (npy("__import__('os')", &data), "cannot be read"),
        (npy_of_version(9, &header("<f4", false, &[3, 2]), &data), "version 9.0"),
        (b"\x93NUMPY\x01\x00\xff\xff{}".to_vec(), "inside the header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}".to_vec(), "claims"),
        (b"\x93NUMPY".to_vec(), "inside the header"),
        (Vec::new(), "is empty"),
        (b"PK\x03\x04 and more".to_vec(), ".npz"),
        (b"\x80\x04\x95 pickle".to_vec(), "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid".to_vec(), "git lfs pull"),
        (b"<!DOCTYPE html><html>".to_vec(), "HTML"),
        (vec![0; 100], "zeros"),
        (b"a,b\n1,2\n".to_vec(), "not a .npy file"),
    ];
    for (bytes, what) in cases {
        let file = place.file("in.npy", &bytes);
        let message = place.refused(&[text(&file)]);
        assert!(message.contains(what) && message.contains("in.npy"), "expected {what:?}: {message}");
        assert!(!message.contains("::"), "{message}");
    }
    assert!(place.refused(&[text(&place.path("absent.npy"))]).contains("no such file"));
    assert!(place.refused(&["/dev/null.npy"]).contains("no such file"));
}

/// --dtype gives the dtype of elements that numpy cannot name.
#[test]
fn dtypes_are_named() {
    let place = Place::new();
    let bytes = [1, 2, 3, 4];
    for (at, (descr, dtype)) in [
        ("<V2", "BF16"),
        ("|V1", "F8_E4M3"),
        ("<f1", "f8_e5m2"),
        ("<u2", "BF16"),
        ("|u1", "F8_E8M0"),
        ("|b1", "U8"),
        ("bfloat16", "BF16"),
    ]
    .into_iter()
    .enumerate()
    {
        let size = if dtype.to_uppercase() == "BF16" { 2 } else { 1 };
        let file = place.file("in.npy", npy(&header(descr, false, &[4 / size]), &bytes));
        let store = format!("s{at}");
        place.import(&store, &[text(&file), "--dtype", dtype]);
        let tensor = place.tensor(&store, 1);
        assert_eq!(tensor.dtype().name(), dtype.to_uppercase());
        assert_eq!(tensor.data()[..], bytes[size..2 * size], "{descr}");
    }
    for (descr, dtype, what) in [
        ("<f4", "I32", "does not apply"),
        ("<V4", "BF16", "has 16 bits"),
        ("<i4", "BF16", "does not apply"),
        ("<V4", "F128", "expected one of"),
    ] {
        let file = place.file("in.npy", npy(&header(descr, false, &[1]), &bytes));
        assert!(place.refused(&[text(&file), "--dtype", dtype]).contains(what), "{descr} {dtype}");
    }
}

/// A `.npz` file of these entries, compressed or not.
fn npz(entries: &[(&str, Vec<u8>)], packed: bool) -> Vec<u8> {
    let method = if packed { CompressionMethod::Deflated } else { CompressionMethod::Stored };
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method).large_file(true)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn archives() {
    let place = Place::new();
    let turned = npy(
        &header(">f4", true, &[3, 2]),
        &[0.0_f32, 2.0, 4.0, 1.0, 3.0, 5.0].iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<_>>(),
    );
    let labels = npy(&header("|u1", false, &[3]), &[7, 8, 9]);
    let ids = npy(&header("<i8", false, &[3]), &[5_i64, 6, 7].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
    let row = |place: &Place, store: &str, key: u64| place.tensor(store, key).to_vec::<f32>().unwrap();
    for packed in [false, true] {
        let store = |name: &str| format!("{name}{packed}");
        let one = place.file("one.npz", npz(&[("arr_0.npy", rows3())], packed));
        place.import(&store("one"), &[text(&one)]);
        assert_eq!(row(&place, &store("one"), 2), [4.0, 5.0]);
        let two = place.file("two.npz", npz(&[("x.npy", turned.clone()), ("y.npy", labels.clone())], packed));
        place.import(&store("two"), &[text(&two)]);
        let value = place.get(&store("two"), 1).unwrap();
        assert_eq!(value.get("x").unwrap().as_tensor().unwrap().to_vec::<f32>().unwrap(), [2.0, 3.0]);
        assert_eq!(value.get("y").unwrap().as_tensor().unwrap().to_vec::<u8>().unwrap(), [8]);
        place.import(&store("x"), &[text(&two), "--tensor", "x"]);
        assert_eq!(row(&place, &store("x"), 2), [4.0, 5.0]);
        let keyed = place.file("keyed.npz", npz(&[("key.npy", ids.clone()), ("x.npy", rows3())], packed));
        place.import(&store("keyed"), &[text(&keyed)]);
        assert_eq!(row(&place, &store("keyed"), 7), [4.0, 5.0]);
        let named = place.file("named.npz", npz(&[("x.npy", rows3()), ("ids.npy", ids.clone())], packed));
        place.import(&store("named"), &[text(&named), "--key-column", "ids"]);
        assert_eq!(row(&place, &store("named"), 5), [0.0, 1.0]);
        assert!(place.refused(&[text(&named), "--tensor", "z"]).contains("there are x, ids"));
        assert!(place.refused(&[text(&named), "--key-column", "z"]).contains("--key-column"));
        assert!(place.refused(&[text(&keyed), "--first-key", "4"]).contains("--first-key"));
        let uneven = place.file(
            "uneven.npz",
            npz(&[("x.npy", rows3()), ("y.npy", npy(&header("|u1", false, &[2]), &[1, 2]))], packed),
        );
        assert!(place.refused(&[text(&uneven)]).contains("--tensor"));
        let mut damaged = std::fs::read(&two).unwrap();
        let at = damaged.len() / 3;
        damaged[at] ^= 0x55;
        let damaged = place.file("damaged.npz", damaged);
        place.refused(&[text(&damaged)]);
    }
    let cut = npz(&[("x.npy", rows3())], false);
    let refused: [(Vec<u8>, &str); 4] = [
        (cut[..cut.len() - 30].to_vec(), "damaged or truncated"),
        (npz(&[("archive/data.pkl", vec![1, 2])], false), "PyTorch"),
        (rows3(), "not a .npz file"),
        (npz(&[("x.npy", b"no array".to_vec())], false), "numpy array"),
    ];
    for (bytes, what) in refused {
        let file = place.file("in.npz", bytes);
        let message = place.refused(&[text(&file)]);
        assert!(message.contains(what), "{message}");
    }
}

/// Arrays of many chunks, in C and Fortran order.
#[test]
fn long_arrays_in_any_order() {
    let place = Place::new();
    let (rows, a, b) = (5000_usize, 17, 19);
    let number = |row: usize, i: usize, j: usize| (row * a * b + i * b + j) as u32;
    let mut fortran = Vec::new();
    for j in 0..b {
        for i in 0..a {
            (0..rows).for_each(|row| fortran.extend_from_slice(&number(row, i, j).to_be_bytes()));
        }
    }
    let file = place.file("in.npy", npy(&header(">u4", true, &[rows, a, b]), &fortran));
    place.import("m", &[text(&file)]);
    for row in [0, 1, 3245, 3246, 4999] {
        let expected: Vec<u32> = (0..a * b).map(|at| number(row, at / b, at % b)).collect();
        let Some(Value::Tensor(ref tensor)) = place.get("m", row as u64) else { panic!("no row {row}") };
        assert_eq!((tensor.shape(), tensor.to_vec::<u32>().unwrap()), (&[a, b][..], expected));
    }
}
