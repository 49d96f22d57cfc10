//! Copies, merges and the doctor.

use std::process::Command;

use tensorcask::{Options, Reader, Store, Value};

use crate::support::{code, names, ok, store, store_with, text};

fn json(arguments: &[&str]) -> serde_json::Value {
    serde_json::from_str(&ok(&[arguments, &["--format", "json"][..]].concat())).unwrap()
}

fn some(range: std::ops::Range<u32>, version: i64) -> impl Fn(&Store) {
    move |store| {
        for key in range.clone() {
            store.put(format!("k{key:03}"), Value::Int(version)).unwrap();
        }
    }
}

#[test]
fn a_store_is_copied_and_restored() {
    let (dir, path) = store_with(Options::new().segment_rows(40), some(0..100, 1));
    std::fs::write(path.join("metadata.json"), r#"{"made":"by a test"}"#).unwrap();
    let (copy, restored) = (dir.path().join("backups/copy"), dir.path().join("restored"));
    // A writer that has not closed.
    let writer = Store::open(dir.path(), "m").unwrap();
    some(100..110, 1)(&writer);
    writer.flush().unwrap();
    let report = json(&["copy", text(&path), text(&copy), "--verify"]);
    assert_eq!((report["rows"].as_u64(), report["rows_verified"].as_u64()), (Some(110), Some(110)), "{report}");
    assert_eq!(report["segments"], report["segments_linked"]);
    assert!(ok(&["copy", text(&copy), text(&restored), "--no-link"]).contains(", 0 of them linked"));
    assert_eq!(ok(&["ls", text(&restored)]).lines().count(), 110);
    assert!(ok(&["stats", text(&restored)]).contains("by a test"));
    assert!(ok(&["verify", text(&restored)]).contains("0 damaged places"));
    let (found, said) = code(&["copy", text(&path), text(&copy)]);
    assert_eq!((found, said.contains("is not empty")), (3, true), "{said}");
    let (found, said) = code(&["copy", text(&path), text(&path.join("inside"))]);
    assert_eq!((found, said.contains("choose another folder")), (3, true), "{said}");
    assert_eq!(code(&["copy", text(&dir.path().join("absent")), text(&dir.path().join("x"))]).0, 3);

    let damaged = restored.join("segments/0000-0000000001.arrow");
    std::fs::remove_file(&damaged).unwrap();
    let target = dir.path().join("of-damaged");
    let (found, said) = code(&["copy", text(&restored), text(&target)]);
    assert_eq!((found, said.contains("--damaged")), (2, true), "{said}");
    assert_eq!(names(dir.path()), ["backups", "m", "restored"]);
    assert_eq!(code(&["copy", text(&restored), text(&target), "--damaged"]).0, 2);
    assert_eq!(code(&["verify", text(&target)]).0, 2, "the copy tells of it");
}

#[test]
fn a_full_disk_leaves_no_copy() {
    let (dir, path) = store(|store| {
        store.put_rows(&(0..1000_u64).collect::<Vec<_>>(), &[256], &vec![1.0_f32; 256_000]).unwrap();
    });
    let limited = |command: &str| {
        // Files of at most 100 blocks of 512 or 1024 bytes.
        let script = format!("ulimit -f 100; {} {command}", env!("CARGO_BIN_EXE_tensorcask"));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let target = dir.path().join("copy");
    let (found, said) = limited(&format!("copy --no-link {} {}", path.display(), target.display()));
    assert_eq!((found, said.contains("ulimit -f")), (Some(4), true), "{said}");
    assert_eq!(names(dir.path()), ["m"]);
    let (found, said) = limited(&format!("merge {} --into {}", path.display(), target.display()));
    assert_eq!((found, said.contains("ulimit -f")), (Some(4), true), "{said}");
    assert_eq!(json(&["merge", text(&path), "--into", text(&target)])["rows_merged"].as_u64(), Some(1000));
    assert!(ok(&["verify", text(&target)]).contains("0 damaged places"));
    assert_eq!(json(&["stats", text(&target)])["rows_sealed"].as_u64(), Some(1000), "no row is there twice");
}

#[test]
fn stores_are_merged() {
    let (dir, one) = store(some(0..60, 1));
    let (_other, two) = store(some(40..100, 2));
    let (_third, three) = store(|store| store.put(7_u64, Value::Int(3)).unwrap());
    let into = dir.path().join("all");
    let merge = |more: &[&'static str]| {
        let all = ["merge", text(&one), text(&two), "--into", text(&into)];
        all.into_iter().chain(more.iter().copied()).collect::<Vec<&str>>()
    };
    let dry = json(&merge(&["--dry-run"]));
    assert_eq!((dry["rows_merged"].as_u64(), dry["conflicts"].as_u64()), (Some(100), Some(20)), "{dry}");
    let (found, said) = code(&merge(&["--fail-on-conflict"]));
    assert_eq!((found, said.contains("omit --fail-on-conflict")), (3, true), "{said}");
    let (found, said) = code(&["merge", text(&one), text(&three), "--into", text(&into)]);
    assert_eq!((found, said.contains("are u64")), (3, true), "{said}");
    assert!(!into.exists(), "what is refused makes nothing");

    std::fs::write(one.join("metadata.json"), r#"{"model":"a"}"#).unwrap();
    std::fs::write(two.join("metadata.json"), r#"{"model":"b"}"#).unwrap();
    assert_eq!(code(&merge(&[])).0, 3);
    std::fs::write(two.join("metadata.json"), r#"{"model":"a","more":"c"}"#).unwrap();
    let said = ok(&merge(&[]));
    assert!(said.starts_with("100 of 120 rows merged into "), "{said}");
    let reader = Reader::open(dir.path(), "all").unwrap();
    for key in 0..100 {
        let version = if key < 40 { 1 } else { 2 };
        assert_eq!(reader.get(format!("k{key:03}")).unwrap(), Some(Value::Int(version)));
    }
    assert!(ok(&["stats", text(&into)]).contains("\"more\""));
    assert_eq!(json(&merge(&[]))["rows_merged"].as_u64(), Some(0));
    let (found, said) = code(&["merge", text(&one), "--into", text(&one)]);
    assert_eq!((found, said.contains("into itself")), (3, true), "{said}");

    // Stores of different identities of a cached module.
    std::fs::write(one.parent().unwrap().join("identity.json"), r#"{"version":"1"}"#).unwrap();
    std::fs::write(two.parent().unwrap().join("identity.json"), r#"{"version":"2"}"#).unwrap();
    let (found, said) = code(&["merge", text(&two), "--into", text(&one)]);
    assert_eq!((found, said.contains("identity.json")), (3, true), "{said}");
}

#[test]
fn a_merge_that_is_killed_is_completed_by_the_next() {
    let (dir, one) = store(some(0..300, 1));
    let (_other, two) = store_with(Options::new().segment_rows(100), |store| {
        store
            .put_rows(
                &(0..20_000).map(|key| format!("k{key:05}")).collect::<Vec<_>>(),
                &[64],
                &vec![2.0_f32; 1_280_000],
            )
            .unwrap();
    });
    let before = names(&one.join("segments"));
    let mut killed = 0;
    for turn in 0..12 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tensorcask"))
            .args(["merge", text(&two), "--into", text(&one)])
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20 + turn * 40));
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(code(&["verify", text(&one)]).0, 0);
        let there = names(&one.join("segments"));
        assert!(before.iter().all(|name| there.contains(name)), "old files stay");
    }
    assert!(killed > 0);
    ok(&["merge", text(&two), "--into", text(&one)]);
    let stats = json(&["stats", text(&one)]);
    assert_eq!((stats["keys"].as_u64(), stats["rows_sealed"].as_u64()), (Some(20_300), Some(20_300)), "{stats}");
    assert_eq!(Reader::open(dir.path(), "m").unwrap().get("k007").unwrap(), Some(Value::Int(1)));
}

fn checks(path: &std::path::Path) -> (i32, Vec<(String, String)>) {
    let output = crate::support::run(&["doctor", text(path), "--format", "json"]);
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let field = |line: &serde_json::Value, name: &str| line[name].as_str().unwrap().to_owned();
    (output.status.code().unwrap(), lines.map(|line| (field(&line, "check"), field(&line, "level"))).collect())
}

#[test]
fn the_doctor_checks_everything_and_leaves_nothing() {
    let (dir, path) = store(some(0..50, 1));
    let all = |path: &std::path::Path| {
        let folders = ["", "segments", "runs", "lanes", "quarantine"];
        folders.map(|folder| names(&path.join(folder)))
    };
    let before = all(&path);
    let level = |checks: &[(String, String)], name: &str| {
        checks.iter().find(|(check, _)| check == name).map(|(_, level)| level.clone()).unwrap_or_default()
    };
    let (found, healthy) = checks(&path);
    assert_eq!(found, 0, "{healthy:?}");
    for check in ["store", "locks", "memory maps", "clock", "damage", "writers", "other files", "descriptors"] {
        assert_eq!(level(&healthy, check), "ok", "{check}");
    }
    assert!(
        ["file system", "free space", "free inodes", "syncs", "hard links", "map count"]
            .iter()
            .all(|check| !level(&healthy, check).is_empty())
    );
    assert_eq!(all(&path), before);

    let writer = Store::open(dir.path(), "m").unwrap();
    let said = ok(&["doctor", text(&path)]);
    assert!(said.contains("locks are held: 0000"), "{said}");
    writer.close().unwrap();
    std::fs::write(path.join("segments/notes.txt"), "x").unwrap();
    assert_eq!((checks(&path).0, level(&checks(&path).1, "other files")), (0, "warn".to_owned()));
    std::fs::remove_file(path.join("segments/0000-0000000001.arrow")).unwrap();
    let (found, damaged) = checks(&path);
    assert_eq!((found, level(&damaged, "damage")), (2, "bad".to_owned()), "{damaged:?}");
    assert_eq!(code(&["verify", text(&path), "--forget"]).0, 0);
    assert_eq!(checks(&path).0, 0);
    assert_eq!(code(&["doctor", text(&dir.path().join("absent"))]).0, 3);
    // A folder in which stores are to be made.
    let (found, empty) = checks(dir.path());
    assert_eq!((found, level(&empty, "store")), (0, "ok".to_owned()), "{empty:?}");
}

#[test]
fn a_clock_that_is_behind_is_bad() {
    let far = Options::new().clock(|| 4_000_000_000_000_000);
    let (_dir, path) = store_with(far, some(0..5, 1));
    let (found, checks) = checks(&path);
    assert!(found == 4 && checks.contains(&("clock".to_owned(), "bad".to_owned())), "{checks:?}");
}

#[test]
fn a_folder_copied_over_another_is_damage() {
    let (_dir, one) = store(some(0..50, 1));
    let (_other, two) = store(some(50..60, 2));
    let copied = Command::new("cp").args(["-r", &format!("{}/.", text(&two)), text(&one)]).status().unwrap();
    assert!(copied.success());
    let (found, _) = code(&["verify", text(&one)]);
    assert_eq!(found, 2);
    assert!(code(&["ls", text(&one)]).1.contains("left out"));
    assert_eq!(checks(&one).0, 2);
    assert_eq!(code(&["verify", text(&one), "--forget"]).0, 0);
    assert_eq!(code(&["verify", text(&one)]).0, 0);
}
