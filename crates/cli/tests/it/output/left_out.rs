//! Every command reports files that are left out of a store.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::support::{code, names, ok, run, store, tensor, text};

/// Two stores of one row each; the second one also has a segment file of the first.
fn with_foreign() -> (tempfile::TempDir, tempfile::TempDir, PathBuf) {
    let (from, other) = store(|store| store.put("of another", tensor(&[2], &[1.0_f32, 2.0])).unwrap());
    let (to, m) = store(|store| store.put("a", tensor(&[2], &[3.0_f32, 4.0])).unwrap());
    std::fs::copy(other.join("segments/0000-0000000001.arrow"), m.join("segments/0000-0000000009.arrow")).unwrap();
    (from, to, m)
}

fn json(arguments: &[&str]) -> (i32, Vec<Json>, String) {
    let output = run(&[&["--format", "json"], arguments].concat());
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code().unwrap(), lines, String::from_utf8(output.stderr).unwrap())
}

/// The bytes of all segment files, including those in quarantine.
fn files(m: &Path) -> HashSet<Vec<u8>> {
    let folders = [m.join("segments"), m.join("quarantine")];
    let paths = folders.iter().flat_map(|folder| names(folder).into_iter().map(|name| folder.join(name)));
    paths.filter(|path| path.extension().unwrap() == "arrow").map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn a_file_of_another_store_is_reported_until_it_is_acknowledged() {
    let (_from, to, m) = with_foreign();
    let before = files(&m);
    for (arguments, expected) in [
        (&["ls", text(&m)][..], 0),
        (&["stats", text(&m)], 0),
        (&["get", text(&m), "a"], 0),
        (&["get", text(&m), "of another"], 1),
        (&["export", text(&m), text(&to.path().join("a.arrow"))], 2),
        (&["export", text(&m), text(&to.path().join("a.npy"))], 2),
        (&["export", text(&m), text(&to.path().join("a.safetensors"))], 2),
    ] {
        let (found, message) = code(arguments);
        assert_eq!((found, message.contains("warning: 1 file(s)")), (expected, true), "{arguments:?}: {message}");
    }
    let (found, lines, _) = json(&["verify", text(&m)]);
    assert_eq!((found, &lines[0]["rows"], lines[0]["what"].is_string()), (2, &Json::Null, true), "{lines:?}");
    let said = String::from_utf8(run(&["verify", text(&m)]).stdout).unwrap();
    assert!(said.contains("unknown number of rows") && said.contains("belongs to store"), "{said}");
    assert!(!said.contains("tensorcask verify"), "{said}");

    assert_eq!(json(&["verify", text(&m), "--forget"]).1.last().unwrap()["acknowledged"], 1);
    assert_eq!(json(&["verify", text(&m), "--forget"]).1.last().unwrap()["acknowledged"], 0);
    assert!(ok(&["verify", text(&m)]).contains("0 damaged places"));
    assert_eq!(code(&["ls", text(&m)]), (0, String::new()));
    assert_eq!(code(&["export", text(&m), text(&to.path().join("a.arrow"))]), (0, String::new()));
    assert!(files(&m) == before && before.len() == 2);
}

#[test]
fn a_store_with_an_exchanged_identity_is_no_empty_store() {
    let (from, other) = store(|store| store.put("b", tensor(&[1], &[1_u8])).unwrap());
    let (to, m) = store(|store| store.put("a", tensor(&[1], &[2_u8])).unwrap());
    std::fs::copy(other.join("store.json"), m.join("store.json")).unwrap();
    for name in ["a.arrow", "a.arrows", "a.npy", "a.safetensors"] {
        let (found, message) = code(&["export", text(&m), text(&to.path().join(name))]);
        assert_eq!((found, message.contains("none of the store's rows can be read")), (2, true), "{message}");
    }
    assert_eq!(names(to.path()), ["m"]);
    let (found, message) = code(&["ls", text(&m)]);
    assert_eq!((found, message.contains("warning: 1 file(s)")), (0, true), "{message}");
    drop(from);
}

#[test]
fn segments_are_named_as_their_files_are() {
    let (_dir, m) = store(|store| store.put("a", tensor(&[1], &[2_u8])).unwrap());
    let segments = m.join("segments");
    std::fs::rename(segments.join("0000-0000000001.arrow"), segments.join("0001-0000000001.arrow")).unwrap();
    let output = run(&["verify", text(&m)]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("0000-0000000001, not 0001-0000000001") && !said.contains("SegmentId"), "{said}");
}

#[test]
fn a_damaged_place_is_listed_once() {
    let (_dir, m) = store(|store| store.put("a", tensor(&[1], &[2_u8])).unwrap());
    let segment = m.join("segments/0000-0000000001.arrow");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[100] ^= 4;
    std::fs::write(&segment, bytes).unwrap();
    let (found, lines, _) = json(&["verify", text(&m)]);
    assert_eq!(
        (found, lines.len(), &lines[0]["rows"], &lines[1]["damaged"]),
        (2, 2, &0.into(), &1.into()),
        "{lines:?}"
    );
    // No rows are lost, so no keys are listed.
    assert!(!lines[0]["what"].to_string().contains("put the affected rows"), "{lines:?}");
}
