//! `tensorcask why-miss`.

use std::fs;
use std::path::Path;

use serde_json::Value as Json;
use tensorcask::Store;

use crate::support::{run, store, text};

/// The lines that the command prints, and its exit code.
fn why(arguments: &[&str]) -> (Vec<Json>, i32) {
    let output = run(&[&["why-miss", "--format", "json"], arguments].concat());
    let lines = String::from_utf8(output.stdout).unwrap();
    (lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), output.status.code().unwrap())
}

fn state(arguments: &[&str]) -> (String, i32) {
    let (lines, code) = why(arguments);
    (lines[0]["state"].as_str().unwrap().to_owned(), code)
}

#[test]
fn a_store_tells_what_it_knows_of_a_key() {
    let (_dir, path) = store(|store| {
        let keys: Vec<String> = (0..50).map(|key| format!("sample/{key:08}")).collect();
        store.put_rows(&keys, &[4], &(0..200).map(|x| x as f32).collect::<Vec<f32>>()).unwrap();
        store.flush().unwrap();
        assert!(store.delete("sample/00000003").unwrap());
    });
    let store = text(&path);
    let expect =
        |key: &str, expected: &str, code: i32| assert_eq!(state(&[store, key]), (expected.into(), code), "{key}");
    expect("sample/00000001", "present", 0);
    expect("sample/00000003", "deleted", 1);
    expect("sample/1", "absent", 1);
    let (lines, _) = why(&[store, "sample/00000001"]);
    assert!(lines[0]["segment"].as_str().unwrap().ends_with("0000-0000000001.arrow"), "{lines:?}");
    assert!(lines[0]["committed_s"].as_f64().unwrap() > 1.7e9, "{lines:?}");
    let said = String::from_utf8(run(&["why-miss", store, "sample/00000003"]).stdout).unwrap();
    assert!(said.contains("was deleted") && said.contains("UTC"), "{said}");

    let segment = path.join("segments/0000-0000000001.arrow");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(4).position(|window| window == 25.0_f32.to_le_bytes()).unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    expect("sample/00000006", "damaged", 2);
    expect("sample/00000007", "present", 0);
    // Without the segment, its keys may or may not have been there.
    fs::remove_file(&segment).unwrap();
    expect("sample/00000007", "absent", 2);
}

#[test]
fn keys_of_another_kind_are_told_apart() {
    let (_dir, path) = store(|store| store.put_rows(&[1_u64, 2], &[1], &[1.0_f32; 2]).unwrap());
    assert_eq!(state(&[text(&path), "1"]), ("present".into(), 0));
    assert_eq!(state(&[text(&path), "one"]), ("other_kind".into(), 1));
    let (_dir, empty) = store(|_| {});
    assert_eq!(state(&[text(&empty), "1"]), ("empty".into(), 1));
    let (_dir, other) = store(|_| {});
    for arguments in [[text(other.parent().unwrap()), "1"], [text(&other.join("segments")), "1"]] {
        assert_eq!(run(&[&["why-miss"], &arguments[..]].concat()).status.code(), Some(3), "{arguments:?}");
    }
    assert_eq!(run(&["why-miss", text(&path), "1", "--identity", "x"]).status.code(), Some(3));
}

const OLD: &str = "0123456789abcdef0123456789abcdef";
const NEW: &str = "fedcba9876543210fedcba9876543210";

/// An identity as a wrapped module leaves it.
fn identity(module: &Path, id: &str, version: &str, keys: &[&str]) {
    let folder = module.join(id);
    let store = Store::open(&folder, "str").unwrap();
    store.put_rows(keys, &[1], &vec![0.0_f32; keys.len()]).unwrap();
    store.close().unwrap();
    let record = format!(
        r#"{{"encoding": 2, "version": "{version}", "arguments": {{}}, "instance": "", "cache_dtype": "", "weights_count": true, "weights": {{"w": "00"}}}}"#
    );
    fs::write(folder.join("identity.json"), record).unwrap();
}

#[test]
fn an_identity_that_has_the_sample_is_named_with_the_difference() {
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("encoder");
    identity(&module, OLD, "1", &["a", "b"]);
    identity(&module, NEW, "2", &["a"]);
    let (lines, code) = why(&[text(&module), "b", "--identity", NEW]);
    assert_eq!((code, lines[0]["state"].as_str(), lines[1]["identity"].as_str()), (1, Some("absent"), Some(OLD)));
    assert_eq!(lines[1]["differences"], serde_json::json!(["version: \"2\" here, \"1\" there"]));
    // The same by the identity's own folder.
    assert_eq!(why(&[text(&module.join(NEW)), "b"]).0, lines);
    assert_eq!(why(&[text(&module), "a", "--identity", NEW]).1, 0);
    let (lines, code) = why(&[text(&module), "c", "--identity", NEW]);
    assert_eq!((code, lines.len()), (1, 1), "{lines:?}");
    fs::write(module.join(NEW).join("full.json"), "{}").unwrap();
    assert_eq!(why(&[text(&module), "c", "--identity", NEW]).0[1]["full"], true);
    assert_eq!(run(&["why-miss", text(&module), "a", "--identity", "none"]).status.code(), Some(3));
}
