//! `tensorcask identities`: listing, and removing without touching files that tensorcask did not create.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tensorcask::Store;

use crate::support::{code, ok, run, text};

const A: &str = "0123456789abcdef0123456789abcdef";
const B: &str = "fedcba9876543210fedcba9876543210";
const C: &str = "00112233445566778899aabbccddeeff";

/// An identity as a wrapped module leaves it: a store of three rows, and its record.
fn identity(module: &Path, id: &str) -> PathBuf {
    let folder = module.join(id);
    let store = Store::open(&folder, "u64").unwrap();
    store.put_rows(&[1_u64, 2, 3], &[2], &[0.0_f32; 6]).unwrap();
    store.close().unwrap();
    let record = r#"{"version": "7", "arguments": {"depth": "12"}, "weights": {"w": "Float [2] 00"}}"#;
    fs::write(folder.join("identity.json"), record).unwrap();
    folder
}

/// All paths in a folder, with the bytes of files.
fn tree(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.push((path.clone(), Vec::new()));
            found.extend(tree(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap_or_default()));
        }
    }
    found.sort();
    found
}

/// The JSON objects that a command prints, and its exit code.
fn objects(arguments: &[&str]) -> (Vec<serde_json::Value>, i32) {
    let output = run(&[arguments, &["--format", "json"]].concat());
    let lines = String::from_utf8(output.stdout).unwrap();
    (lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), output.status.code().unwrap())
}

/// Sets the modification time of all files in an identity to `age` ago.
fn age(folder: &Path, age: Duration) {
    for (path, _) in tree(folder).into_iter().filter(|(path, _)| path.is_file()) {
        fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }
}

#[test]
fn identities_of_a_wrapped_module_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("encoder");
    identity(&module, A);
    fs::create_dir(module.join("other")).unwrap();
    let said = ok(&["identities", text(&module)]);
    assert_eq!(said.lines().count(), 1);
    assert!(said.starts_with(A) && said.contains("3 rows") && said.contains("version \"7\""), "{said}");
    assert!(said.contains("arguments {\"depth\":\"12\"}, 1 weights"), "{said}");
    let json: serde_json::Value =
        serde_json::from_str(&ok(&["identities", text(&module), "--format", "json"])).unwrap();
    assert_eq!((json["id"].as_str(), json["rows"].as_u64()), (Some(A), Some(3)));
    assert_eq!(json["identity"]["arguments"]["depth"], "12");
    assert_eq!(code(&["identities", text(dir.path())]).0, 3);
    assert_eq!(code(&["identities", text(&dir.path().join("nothing"))]).0, 3);
}

#[test]
fn named_identities_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("encoder");
    let (a, b, c) = (identity(&module, A), identity(&module, B), identity(&module, C));
    fs::write(module.join("notes.txt"), "mine").unwrap();
    fs::write(a.join("timing.json"), "0.1").unwrap();
    fs::write(a.join("full.0123456789abcdef0123456789abcdef.part"), "[1").unwrap();
    fs::write(a.join("u64/metadata.json"), "{}").unwrap();
    fs::write(c.join("full.json"), "[1, 2]").unwrap();
    let before = tree(&module);
    let bytes: usize =
        before.iter().filter(|(path, _)| path.starts_with(&a) || path.starts_with(&b)).map(|(_, b)| b.len()).sum();

    // Wrong arguments change nothing.
    let (found, message) = code(&["identities", text(&module), "--prune", A, &A.to_uppercase()]);
    assert!(found == 3 && message.contains("no identity") && message.contains("nothing was removed"), "{message}");
    for wrong in [
        &["--dry-run"][..],
        &["--prune"],
        &["--prune", A, "--prune-unused-s", "1"],
        &["--prune-unused-s", "-1"],
        &["--prune", "../encoder"],
        &["--prune", "notes.txt"],
    ] {
        assert_eq!(code(&[&["identities", text(&module)], wrong].concat()).0, 3, "{wrong:?}");
    }
    let (said, found) = objects(&["identities", text(&module), "--prune", A, B, "--dry-run"]);
    assert!(found == 0 && said.len() == 3, "{said:?}");
    assert!(said[0]["removed"] == false && said[2]["freed_bytes"] == bytes, "{said:?}");
    assert!(ok(&["identities", text(&module), "--prune", A, "--dry-run"]).contains("would be removed, 3 rows"));
    assert!(tree(&module) == before, "a dry run changed something");

    let (said, found) = objects(&["identities", text(&module), "--prune", A, "--prune", B]);
    assert_eq!((found, &said[2]["freed_bytes"], &said[2]["identities"]), (0, &bytes.into(), &2.into()));
    assert!(said[..2].iter().all(|line| line["removed"] == true && line["rows"] == 3), "{said:?}");
    // Everything else is unchanged, except that disk space was freed.
    let rest = before
        .into_iter()
        .filter(|(path, _)| !path.starts_with(&a) && !path.starts_with(&b) && !path.ends_with("full.json"));
    assert!(tree(&module) == rest.collect::<Vec<_>>());
    assert_eq!(code(&["identities", text(&module), "--prune", A]).0, 3);
}

#[test]
fn unused_identities_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("encoder");
    let (a, b, c) = (identity(&module, A), identity(&module, B), identity(&module, C));
    [&a, &b, &c].iter().for_each(|folder| age(folder, Duration::from_secs(5000)));
    // One recent file counts as use.
    let timing = b.join("timing.json");
    fs::write(&timing, "0.1").unwrap();
    let writer = Store::open(&c, "u64").unwrap();
    age(&c, Duration::from_secs(5000));
    assert_eq!(ok(&["identities", text(&module), "--prune-unused-s", "9000"]).matches("kept: it was used").count(), 3);
    let said = ok(&["identities", text(&module), "--prune-unused-s", "4000", "--dry-run"]);
    assert!(said.contains(&format!("{A}  would be removed")) && a.exists(), "{said}");
    let said = ok(&["identities", text(&module), "--prune-unused-s", "4000"]);
    assert!(said.contains(&format!("{A}  removed")) && said.contains("1 removed, "), "{said}");
    assert!(said.contains(&format!("{B}  kept: it was used ")), "{said}");
    assert!(said.contains(&format!("{C}  kept: a writer has it open")), "{said}");
    assert!(!a.exists() && b.exists() && c.exists());
    writer.close().unwrap();
}

#[test]
fn an_identity_with_foreign_files_is_kept() {
    type Put = fn(&Path);
    let puts: [(&str, Put); 16] = [
        ("notes.txt", |a| fs::write(a.join("notes.txt"), "mine").unwrap()),
        ("notes.part", |a| fs::write(a.join("notes.part"), "mine").unwrap()),
        ("f32", |a| fs::create_dir(a.join("f32")).unwrap()),
        ("timing.json", |a| fs::create_dir(a.join("timing.json")).unwrap()),
        ("str", |a| fs::write(a.join("str"), "mine").unwrap()),
        ("bytes", |a| std::os::unix::fs::symlink(a.parent().unwrap(), a.join("bytes")).unwrap()),
        ("u64/notes.txt", |a| fs::write(a.join("u64/notes.txt"), "mine").unwrap()),
        ("u64/notes", |a| fs::create_dir(a.join("u64/notes")).unwrap()),
        ("u64/segments/0000-0000000009.arrow.bak", |a| {
            fs::write(a.join("u64/segments/0000-0000000009.arrow.bak"), "mine").unwrap();
        }),
        ("u64/segments/0000-0000000009.arrow", |a| {
            std::os::unix::fs::symlink("/dev/null", a.join("u64/segments/0000-0000000009.arrow")).unwrap();
        }),
        ("u64/segments/mine", |a| fs::create_dir(a.join("u64/segments/mine")).unwrap()),
        ("u64/runs/x.run", |a| fs::write(a.join("u64/runs/x.run"), "mine").unwrap()),
        ("u64/lanes/my.lock", |a| fs::write(a.join("u64/lanes/my.lock"), "mine").unwrap()),
        ("u64/lanes/7.lock", |a| fs::write(a.join("u64/lanes/7.lock"), "mine").unwrap()),
        ("u64/quarantine/0000-0000000001.arrow", |a| {
            fs::write(a.join("u64/quarantine/0000-0000000001.arrow"), "damaged").unwrap();
        }),
        ("nothing in it tells", |a| {
            fs::remove_dir_all(a).unwrap();
            fs::create_dir(a).unwrap();
        }),
    ];
    for (name, put) in puts {
        let dir = tempfile::tempdir().unwrap();
        let module = dir.path().join("encoder");
        let (a, b) = (identity(&module, A), identity(&module, B));
        put(&a);
        let before = tree(&a);
        let (said, found) = objects(&["identities", text(&module), "--prune", A, B, "--dry-run"]);
        assert_eq!((found, said.len(), b.exists()), (3, 3, true), "{name}: {said:?}");
        let output = run(&["identities", text(&module), "--prune", A, B]);
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(3), "{name}: {said}");
        assert!(said.contains(&format!("{A}  kept: {name}")), "{name}: {said}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("was not removed"), "{name}");
        assert!(said.contains(&format!("{B}  removed")) && !b.exists(), "{name}: {said}");
        assert!(tree(&a) == before, "{name}");
        assert!(!module.join(format!("{A}.pruned")).exists());
    }
}

#[test]
fn an_open_identity_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("encoder");
    let a = identity(&module, A);
    // The same for a writer in another lane, and while the store is being opened.
    let lanes = [(0, "0000.lock"), (7, "0007.lock")];
    for (lane, _) in lanes {
        let store = tensorcask::Options::new().lane(tensorcask::Lane::Number(lane)).open(&a, "u64").unwrap();
        let (found, message) = code(&["identities", text(&module), "--prune", A]);
        assert!(found == 4 && message.contains("a writer has it open"), "{message}");
        assert_eq!(code(&["identities", text(&module), "--prune", A, "--dry-run"]).0, 4);
        store.put_rows(&[9_u64], &[2], &[1.0_f32; 2]).unwrap();
        store.close().unwrap();
    }
    let opening = fs::File::open(a.join("u64/lanes/open.lock")).unwrap();
    opening.lock().unwrap();
    assert_eq!(code(&["identities", text(&module), "--prune", A]).0, 4);
    drop(opening);
    assert!(ok(&["identities", text(&module)]).contains("4 rows"));
    assert!(ok(&["identities", text(&module), "--prune", A]).contains("1 removed"));
    assert_eq!(tree(&module), []);
}

#[test]
fn the_next_removal_finishes_an_interrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("encoder");
    let (a, b) = (identity(&module, A), identity(&module, B));
    let away = module.join(format!("{A}.pruned"));
    fs::rename(&a, &away).unwrap();
    fs::remove_dir_all(away.join("u64/segments")).unwrap();
    assert!(ok(&["identities", text(&module)]).contains("left by an interrupted removal"));
    let (said, _) = objects(&["identities", text(&module)]);
    assert!(said.len() == 2 && said[1]["id"] == A && said[1]["interrupted"] == true, "{said:?}");
    let said = ok(&["identities", text(&module), "--prune", B, "--dry-run"]);
    assert!(said.contains("2 would be removed") && away.exists(), "{said}");
    // Foreign files are kept, and so is a new identity of the same name.
    fs::write(away.join("notes.txt"), "mine").unwrap();
    let a = identity(&module, A);
    assert_eq!(code(&["identities", text(&module), "--prune", A]).0, 3);
    assert!(a.join("u64/segments").exists() && away.join("notes.txt").exists() && b.exists());
    fs::remove_file(away.join("notes.txt")).unwrap();
    assert!(ok(&["identities", text(&module), "--prune", A]).contains("2 removed"));
    assert!(!away.exists() && !a.exists() && b.exists());
    fs::create_dir(&away).unwrap();
    assert!(ok(&["identities", text(&module), "--prune", A]).contains("1 removed"));
    assert!(!away.exists() && b.exists());
}
