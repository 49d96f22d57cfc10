//! Exports to Arrow files and streams.

use std::path::Path;
use std::process::Command;

use tensorcask::half::bf16;
use tensorcask::{Codec, Dtype, Options, Tensor, Value};

use crate::support::{code, names, ok, store, store_with, tensor, text};

/// Reads the schema and the batches of an Arrow file or stream.
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
fn ragged_values_become_lists() {
    use arrow::array::{Array, ListArray, StringArray, UInt16Array};
    // The first row of another shape comes late, after batches have been written.
    let shapes = |row: usize| if row < 9000 { [2, 3] } else { [row % 4, row % 3] };
    let (dir, m) = store(|store| {
        for row in 0..9100_usize {
            let shape = shapes(row);
            let items: Vec<u16> = (0..shape[0] * shape[1]).map(|at| (row + at) as u16).collect();
            store.put(format!("{row:05}"), tensor(&shape, &items)).unwrap();
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
    // Rows of one column cannot differ in rank or dtype.
    for other in [tensor(&[1], &[1_u16]), tensor(&[2, 3], &[1_i16; 6]), Value::Int(1)] {
        let (dir, m) = store(|store| {
            store.put("a", tensor(&[2, 3], &[1_u16; 6])).unwrap();
            store.put("b", &other).unwrap();
        });
        assert_eq!(code(&["export", text(&m), text(&dir.path().join("a.arrow"))]).0, 3);
        assert_eq!(names(dir.path()), ["m"]);
    }
    // A shape without elements that would need far too many lists.
    let (dir, m) = store(|store| store.put("a", tensor::<f32>(&[1 << 40, 0], &[])).unwrap());
    let (found, message) = code(&["export", text(&m), text(&dir.path().join("a.arrow")), "--plain"]);
    assert_eq!((found, message.contains("too large")), (3, true), "{message}");
}

#[test]
fn plain_exports_have_no_extension_types_or_metadata() {
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
    let (dir, m) = store(|store| (0..5).for_each(|row| store.put(u64::from(row), value(row)).unwrap()));
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
    // A stream with the extension of a file, as `datasets` stores it.
    ok(&["export", text(&m), text(&out), "--plain", "--f16-as-f32", "--stream"]);
    assert_ne!(&std::fs::read(&out).unwrap()[..6], b"ARROW1");
    for dtype in [Dtype::F8E4M3, Dtype::F4] {
        let (dir, m) = store(|store| {
            let value = Tensor::new(dtype, &[8], vec![0; dtype.bits()]).unwrap();
            store.put("k", Value::Tensor(value)).unwrap();
        });
        let out = dir.path().join("a.arrow");
        assert_eq!(code(&["export", text(&m), text(&out), "--plain", "--f16-as-f32"]).0, 3);
        ok(&["export", text(&m), text(&out)]);
    }
}

/// Exports under a limit of private memory; file maps do not count.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_bounded_by_bytes() {
    for codec in [Codec::None, Codec::Zstd { level: 1 }] {
        let (dir, m) = store_with(Options::new().codec(codec), |store| {
            // Small rows first, which do not predict the size of the large ones.
            for row in 0..2000_u64 {
                store.put(row, tensor(&[4], &[row as f32; 4])).unwrap();
            }
            store.flush().unwrap();
            let mut large = vec![0_u8; 1 << 20];
            for row in 2000..2096_u64 {
                large.iter_mut().zip(row..).step_by(97).for_each(|(byte, value)| *byte = value as u8);
                store.put(row, tensor(&[1 << 18], bytemuck::cast_slice::<u8, f32>(&large))).unwrap();
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
        // The limit is effective.
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
            store.put(format!("{row:02}"), &value).unwrap();
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
    let (_deep, d) = store(|store| store.put("k", tensor(&shape, &[1.0_f32, 2.0, 3.0])).unwrap());
    ok(&["get", text(&d), "k", "--npy", text(&deep)]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/export_check.py");
    let output = Command::new(python).arg(script).arg(dir.path()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    println!("{out}");
    drop(fixed);
}

/// The queries in the README are run as they stand there, on a store of that name.
#[test]
fn queries_of_the_readme_run() {
    let Ok(python) = std::env::var("TENSORCASK_INTEROP_PYTHON") else {
        println!("\n*** TENSORCASK_INTEROP_PYTHON is not set: DuckDB and polars were NOT run ***\n");
        return;
    };
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let block =
        readme.split("<!-- A test runs this block. -->\n```python\n").nth(1).unwrap().split("```").next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = tensorcask::Store::open(dir.path().join("cache"), "minilm-l6-v2").unwrap();
    let keys: Vec<String> = (0..30).map(|row| format!("{}/{row}", ["test", "train"][usize::from(row > 9)])).collect();
    let rows: Vec<f32> = (0..30).flat_map(|row| [row as f32 - 9.0, 0.0]).collect();
    store.put_rows(&keys, &[2], &rows).unwrap();
    store.close().unwrap();
    ok(&["export", text(&dir.path().join("cache/minilm-l6-v2")), text(&dir.path().join("minilm.arrow")), "--plain"]);
    // Means: of -9 to 0 and of 1 to 20, halved by the zeros.
    let check = "\nassert part == [('test', 10, -2.25), ('train', 20, 5.25)], part\n\
                 assert means.rows() == part, means\nassert count == [(20,)], count\nprint('duckdb', duckdb.__version__)\n";
    std::fs::write(dir.path().join("block.py"), format!("{block}{check}")).unwrap();
    let tool = Path::new(env!("CARGO_BIN_EXE_tensorcask")).parent().unwrap();
    let path = std::env::join_paths(
        std::iter::once(tool.to_path_buf()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let mut python = Command::new(python);
    let output = python.arg("block.py").current_dir(dir.path()).env("PATH", path.unwrap()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    println!("{out}");
}

/// Lists, tuples, maps whose names are numbers, nulls, and empty lists and maps are restored exactly.
#[test]
fn structures_are_restored_exactly() {
    let t = || tensor(&[2], &[1.0_f32, 2.0]);
    let map = |items: &[(&str, Value)]| {
        Value::Map(items.iter().map(|(name, item)| ((*name).to_owned(), item.clone())).collect())
    };
    let values = [
        Value::Null,
        Value::Tuple(vec![t(), Value::Int(1)]),
        Value::List(vec![t(), Value::Null]),
        map(&[("0", t()), ("1", Value::Float(0.5))]),
        map(&[("a", Value::Null), ("b", t()), ("", Value::List(Vec::new()))]),
        map(&[("a/b", Value::Tuple(vec![Value::Null])), ("~", map(&[]))]),
        Value::List(Vec::new()),
        map(&[("value", Value::Tuple(Vec::new()))]),
    ];
    for value in &values {
        let (dir, m) = store(|store| {
            store.put("a", value).unwrap();
            store.put("b", value).unwrap();
        });
        for name in ["a.arrow", "a.arrows"] {
            let (out, again) = (dir.path().join(name), dir.path().join(format!("again-{}", name.replace('.', "-"))));
            ok(&["export", text(&m), text(&out)]);
            ok(&["import", text(&again), text(&out)]);
            let module = again.file_name().unwrap().to_str().unwrap();
            let reader = tensorcask::Reader::open(dir.path(), module).unwrap();
            for key in ["a", "b"] {
                assert_eq!(reader.get(key).unwrap().as_ref(), Some(value), "{name}: {value:?}");
            }
        }
    }
    // Plain columns refuse values that they cannot express.
    for (value, expected) in [(&values[4], 3), (&values[6], 3), (&values[2], 0)] {
        let (dir, m) = store(|store| store.put("a", value).unwrap());
        assert_eq!(code(&["export", text(&m), text(&dir.path().join("a.arrows")), "--plain"]).0, expected, "{value:?}");
    }
    // Equal names of leaves do not make structures equal.
    let null = map(&[("a", Value::Null), ("b", t())]);
    for (one, other) in [(&null, map(&[("b", t())])), (&null, map(&[("a", Value::Int(1)), ("b", t())]))] {
        let (dir, m) = store(|store| {
            store.put("a", one).unwrap();
            store.put("b", &other).unwrap();
        });
        assert_eq!(code(&["export", text(&m), text(&dir.path().join("a.arrow"))]).0, 3, "{other:?}");
    }
}
