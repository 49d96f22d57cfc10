//! Pruning by age, size, number of rows and prefix, and of identities.

use tensorcask::{Lane, Options, Store};

use crate::support::{code, names, ok, store_with, text};

fn json(arguments: &[&str]) -> serde_json::Value {
    serde_json::from_str(&ok(&[arguments, &["--format", "json"][..]].concat())).unwrap()
}

fn put(store: &Store, from: u64, to: u64) {
    for first in (from..to).step_by(100) {
        let keys: Vec<String> = (first..first + 100).map(|key| format!("{}/{key:04}", key % 2)).collect();
        store.put_rows(&keys, &[512], &vec![1_u8; 100 * 512]).unwrap();
        store.flush().unwrap();
    }
}

#[test]
fn the_oldest_segments_go_until_the_limit_holds() {
    let options = || Options::new().segment_rows(100);
    let (dir, store) = store_with(options(), |store| put(store, 0, 1000));
    let path = text(&store);
    let before = names(&store.join("segments"));
    let dry = ok(&["prune", path, "--to-rows", "400", "--dry-run"]);
    assert!(dry.starts_with("6 of 10 segments would be removed, 600 keys would be gone, about "), "{dry}");
    assert_eq!(names(&store.join("segments")), before);
    let report = json(&["prune", path, "--to-rows", "400"]);
    assert_eq!((report["keys_evicted"].as_u64(), report["reached"].as_bool()), (Some(600), Some(true)), "{report}");
    assert_eq!(json(&["stats", path])["keys"], 400);
    let limit = json(&["stats", path])["disk_bytes"].as_u64().unwrap() / 2;
    ok(&["prune", path, "--to-bytes", &limit.to_string()]);
    assert!(json(&["stats", path])["disk_bytes"].as_u64().unwrap() <= limit);
    assert_eq!(json(&["prune", path, "--older-than", "1d"])["segments_evicted"], 0);
    assert!(ok(&["verify", path]).contains("0 damaged places"));

    // Another writer has its lane: the command says what it could not do.
    let other = options().lane(Lane::Number(0)).open(dir.path(), "m").unwrap();
    let (found, message) = code(&["prune", path, "--older-than", "0s"]);
    assert_eq!((found, message.contains("in use by other writers")), (4, true), "{message}");
    other.close().unwrap();
    ok(&["prune", path, "--older-than", "0s"]);
    assert_eq!(json(&["stats", path])["keys"], 0);
}

#[test]
fn keys_with_a_prefix_go_and_their_space_with_them() {
    let (_dir, store) = store_with(Options::new().segment_rows(100), |store| put(store, 0, 400));
    let path = text(&store);
    let dry = json(&["prune", path, "--prefix", "0/", "--dry-run"]);
    assert_eq!((dry["deleted"].as_u64(), json(&["stats", path])["keys"].as_u64()), (Some(200), Some(400)), "{dry}");
    let done = json(&["prune", path, "--prefix", "0/"]);
    assert!(done["bytes_freed"].as_u64().unwrap() > 200 * 512 / 2, "{done}");
    assert_eq!(json(&["stats", path])["rows_sealed"], 200);
}

#[test]
fn wrong_limits_are_refused() {
    let (_dir, store) = store_with(Options::new(), |store| put(store, 0, 100));
    let path = text(&store);
    for wrong in [
        &["prune", path][..],
        &["prune", path, "--to-bytes", "many"],
        &["prune", path, "--older-than", "30"],
        &["prune", path, "--prefix", "0/", "--to-rows", "1"],
        &["prune", path, "--identity", "0123"],
    ] {
        assert_eq!(code(wrong).0, 3, "{wrong:?}");
    }
    assert_eq!(json(&["stats", path])["keys"], 100);
}
