//! Files written by numpy, pyarrow and polars, if `TENSORCASK_INTEROP_PYTHON` names a Python that has them.

use std::process::Command;

use tensorcask::{Key, Value};

use super::{Place, path_text as text};
use crate::support::ok;

/// Writes three rows of two floats, (0, 1), (2, 3) and (4, 5), with the keys a, b and c, in many formats.
const SCRIPT: &str = r#"
import sys, numpy as np, pyarrow as pa, pyarrow.parquet as pq, pyarrow.feather as feather, polars as pl
out = sys.argv[1]
x = np.arange(6, dtype=np.float32).reshape(3, 2)
ids = np.array(["a", "b", "c"])
np.save(f"{out}/keys.npy", ids)
np.save(f"{out}/c.npy", x)
np.save(f"{out}/f.npy", np.asfortranarray(x))
np.save(f"{out}/big.npy", x.astype(">f4"))
np.savez(f"{out}/stored.npz", x=x, key=ids)
np.savez_compressed(f"{out}/packed.npz", x=np.asfortranarray(x), key=ids)
flat = pa.array(x.reshape(-1))
fixed = pa.FixedSizeListArray.from_arrays(flat, 2)
columns = {
    "fixed": fixed,
    "list": pa.array(x.tolist(), pa.list_(pa.float32())),
    "large": pa.array(x.tolist(), pa.large_list(pa.float32())),
    "tensor": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]), fixed),
}
keys = {
    "string": pa.array(ids.tolist()),
    "dictionary": pa.array(ids.tolist()).dictionary_encode(),
    "view": pa.array(ids.tolist()).cast(pa.string_view()),
}
for name, column in columns.items():
    table = pa.table({"key": keys["string"], "x": column})
    with pa.ipc.new_file(f"{out}/{name}.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    with pa.ipc.new_stream(f"{out}/{name}.arrows", table.schema) as writer:
        writer.write_table(table)
    for codec in ["none", "snappy", "gzip", "zstd", "lz4"]:
        pq.write_table(table, f"{out}/{name}-{codec}.parquet", compression=codec, row_group_size=2)
for name, key in keys.items():
    table = pa.table({"key": key, "x": fixed})
    with pa.ipc.new_stream(f"{out}/key-{name}.arrows", table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, f"{out}/key-{name}.parquet")
table = pa.table({"key": keys["string"], "x": fixed})
feather.write_feather(table, f"{out}/lz4.feather", compression="lz4")
feather.write_feather(table, f"{out}/zstd.feather", compression="zstd")
frame = pl.DataFrame({"key": ids.tolist(), "x": x}, schema_overrides={"x": pl.Array(pl.Float32, 2)})
frame.write_parquet(f"{out}/polars.parquet")
frame.write_ipc(f"{out}/polars.arrow")
"#;

#[test]
fn files_of_other_programs() {
    let Ok(python) = std::env::var("TENSORCASK_INTEROP_PYTHON") else {
        println!("\n*** TENSORCASK_INTEROP_PYTHON is not set: numpy, pyarrow and polars were NOT run ***\n");
        return;
    };
    let place = Place::new();
    let out = place.path("out");
    std::fs::create_dir(&out).unwrap();
    let made = Command::new(python).args(["-c", SCRIPT, text(&out)]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let keys = out.join("keys.npy");
    let mut files = 0;
    for entry in std::fs::read_dir(&out).unwrap() {
        let path = entry.unwrap().path();
        if path == keys {
            continue;
        }
        let store = format!("s{files}");
        let arguments: &[&str] = if path.extension().unwrap() == "npy" { &["--keys", text(&keys)] } else { &[] };
        place.import(&store, &[&[text(&path)], arguments].concat());
        assert_eq!(place.keys(&store), ["a", "b", "c"].map(|key| Key::Str(key.into())), "{}", path.display());
        for (key, expected) in [("a", [0.0, 1.0]), ("b", [2.0, 3.0]), ("c", [4.0, 5.0])] {
            let Some(Value::Tensor(ref tensor)) = place.get(&store, key) else { panic!("{} {key}", path.display()) };
            assert_eq!(
                (tensor.shape(), tensor.to_vec::<f32>().unwrap()),
                (&[2][..], expected.into()),
                "{}",
                path.display()
            );
        }
        files += 1;
    }
    assert!(files > 30, "{files}");
    assert_eq!(ok(&["get", text(&place.store("s0")), "b"]), "F32 [2] [2.0, 3.0]\n");
}
