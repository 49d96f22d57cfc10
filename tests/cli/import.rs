//! `import`: what goes in, and what is refused.

use crate::{code, npy, ok, text};

#[test]
fn keys_of_every_kind() {
    let dir = tempfile::tempdir().unwrap();
    let (array, keys) = (dir.path().join("in.npy"), dir.path().join("keys.txt"));
    npy(&array, 2);
    std::fs::write(&keys, "00ff\n0a0b\n").unwrap();
    let store = dir.path().join("bytes");
    ok(&["import", text(&store), text(&array), "--keys", text(&keys), "--key-kind", "bytes"]);
    assert_eq!(ok(&["ls", text(&store), "--prefix", "0a"]), "0a0b\n");
    assert_eq!(ok(&["get", text(&store), "0x00ff", "--head", "1"]), "F32 [3] [0.0, …]\n");
    let numbers = dir.path().join("numbers");
    ok(&["import", text(&numbers), text(&array)]);
    assert_eq!(
        ok(&["ls", text(&numbers), "--from", "0", "--to", "9", "--format", "json"]),
        "{\"key\":0}\n{\"key\":1}\n"
    );
    let out = dir.path().join("one.npy");
    ok(&["get", text(&numbers), "1", "--npy", text(&out)]);
    assert_eq!(std::fs::read(&out).unwrap().len() % 64, 12);
    std::fs::write(&keys, "00ff\n").unwrap();
    let (found, message) = code(&["import", text(&dir.path().join("short")), text(&array), "--keys", text(&keys)]);
    assert_eq!((found, message.contains("expected 2 keys, found 1")), (3, true), "{message}");
}
