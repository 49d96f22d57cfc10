//! Deleting keys, and compaction.

use tensorcask::{Options, Reader};

use crate::support::{code, names, ok, run, store_with, text};

fn json(arguments: &[&str]) -> serde_json::Value {
    serde_json::from_str(&ok(&[arguments, &["--format", "json"][..]].concat())).unwrap()
}

#[test]
fn deleted_and_overwritten_rows_are_dropped() {
    let options = Options::new().segment_rows(100).compaction_live_share(0.0);
    let (dir, store) = store_with(options, |store| {
        for version in 0..2_u8 {
            let keys: Vec<String> = (0..400).map(|key| format!("{}/{key:03}", key % 2)).collect();
            store.put_rows(&keys, &[512], &vec![version; 400 * 512]).unwrap();
        }
    });
    let path = text(&store);
    assert_eq!(ok(&["rm", path, "--prefix", "0/", "--dry-run"]), "200 keys would be deleted\n");
    assert_eq!(ok(&["rm", path, "--prefix", "0/"]), "200 keys deleted\n");
    assert_eq!(json(&["rm", path, "1/001", "1/003"])["deleted"], 2);
    let (found, message) = code(&["rm", path, "1/001", "1/005"]);
    assert_eq!((found, message.contains("there is no key 1/001")), (1, true), "{message}");
    let stats = json(&["stats", path]);
    assert_eq!((stats["keys"].as_u64(), stats["dead_rows"].as_u64()), (Some(197), Some(800 - 197 + 203)), "{stats}");
    assert!(ok(&["stats", path]).contains("dead           806 rows, about "));

    let before = names(&store.join("segments"));
    let dry = json(&["compact", path, "--dry-run"]);
    assert_eq!((dry["live_rows"].as_u64(), dry["dry_run"].as_bool()), (Some(197), Some(true)), "{dry}");
    assert_eq!(names(&store.join("segments")), before);
    let said = ok(&["compact", path]);
    assert!(said.contains("rows dropped") && said.contains(" freed"), "{said}");
    let stats = json(&["stats", path]);
    assert_eq!((stats["dead_rows"].as_u64(), stats["rows_sealed"].as_u64()), (Some(0), Some(197)), "{stats}");
    assert!(ok(&["verify", path]).contains("0 damaged places"));
    let reader = Reader::open(dir.path(), "m").unwrap();
    for key in (0..400).filter(|key| key % 2 == 1 && ![1, 3, 5].contains(key)) {
        let tensor = reader.get(format!("1/{key:03}")).unwrap().unwrap().into_tensor().unwrap();
        assert_eq!(tensor.data()[..], [1; 512]);
    }
    let sizes = ["zstd", "none"].map(|codec| {
        let report = json(&["compact", path, "--codec", codec]);
        assert_eq!(report["rows_recoded"], 197, "{report}");
        assert_eq!(json(&["compact", path, "--codec", codec])["segments_rewritten"], 0);
        json(&["stats", path])["segment_bytes"].as_u64().unwrap()
    });
    assert!(sizes[0] < sizes[1] / 4, "{sizes:?}");
    let tensor = Reader::open(dir.path(), "m").unwrap().get("1/007").unwrap().unwrap().into_tensor().unwrap();
    assert_eq!(tensor.data()[..], [1; 512]);
    assert_eq!(json(&["compact", path, "--sort"])["rows_sorted"], 0, "they were put in this order");
    let order = dir.path().join("order.txt");
    std::fs::write(&order, "1/399\n1/101\n").unwrap();
    assert_eq!(json(&["compact", path, "--order", text(&order)])["rows_sorted"], 197);
    let first: Vec<String> =
        Reader::open(dir.path(), "m").unwrap().keys().take(3).map(|key| key.unwrap().to_string()).collect();
    assert_eq!(first, ["1/399", "1/101", "1/007"]);
    assert!(ok(&["compact", path, "--sort"]).contains("197 rows sorted"));
    let (found, message) = code(&["compact", path, "--order", "no such file"]);
    assert_eq!((found, message.contains("no such file")), (3, true), "{message}");
    for share in ["1.5", "-0.1", "NaN"] {
        let output = run(&["compact", path, &format!("--live-share={share}")]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
    }
}
