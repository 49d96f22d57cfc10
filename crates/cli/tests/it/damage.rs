//! `verify` on a damaged store.

use tensorcask::Store;

use crate::support::{run, text};

/// A damaged row ends `verify` with exit code 2 and names the key; after the row is put again, `verify` ends with 0.
#[test]
fn verify_names_what_to_put_again() {
    let dir = tempfile::tempdir().unwrap();
    let put = |store: &Store, rows: std::ops::Range<usize>| {
        let keys: Vec<String> = rows.clone().map(|row| format!("sample/{row:08}")).collect();
        let values: Vec<f32> = rows.flat_map(|row| (0..4).map(move |x| (row * 3 + x) as f32)).collect();
        store.put_rows(&keys, &[4], &values).unwrap();
    };
    let store = Store::open(dir.path(), "m").unwrap();
    put(&store, 0..50);
    store.close().unwrap();
    drop(store);
    let path = dir.path().join("m/segments/0000-0000000001.arrow");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(15).position(|window| window == b"sample/00000007").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let verify = |format: &str| {
        let output = run(&["--format", format, "verify", text(&dir.path().join("m"))]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = verify("human");
    assert!(code == Some(2) && said.contains("(1 rows)") && said.contains("put again: sample/00000007"), "{said}");
    let (code, said) = verify("json");
    assert!(code == Some(2) && said.contains(r#""keys":["sample/00000007"]"#), "{said}");
    let store = Store::open(dir.path(), "m").unwrap();
    put(&store, 7..8);
    store.close().unwrap();
    let (code, said) = verify("human");
    assert!(code == Some(0) && said.contains("0 damaged places"), "{said}");
}
