//! Options, exit codes, memory, and failures of the store or the disk.

use std::process::Command;

use tensorcask::half::f16;
use tensorcask::{Dtype, Options, Reader};

use super::{Place, floats, header, npy, path_text as text, rows3, safetensors};
use crate::support::{code, ok};

#[test]
fn options_that_do_not_apply_are_refused() {
    let place = Place::new();
    let array = place.file("in.npy", rows3());
    let keys = place.file("keys.txt", "a\nb\nc\n");
    let t = r#"{"t":{"dtype":"I32","shape":[3,1],"data_offsets":[0,12]}}"#;
    let tensors = place.file("in.safetensors", safetensors(t, &[0; 12]));
    let (array, keys, tensors) = (text(&array), text(&keys), text(&tensors));
    let cases: &[(&[&str], &str)] = &[
        (&[array, "--tensor", "x"], "--tensor"),
        (&[array, "--key-column", "x"], "--key-column"),
        (&[array, "--key-kind", "u64"], "--key-kind"),
        (&[array, "--keys", keys, "--first-key", "1"], "--first-key"),
        (&[array, "--keys", keys, "--key-kind", "u64"], "line 1"),
        (&[array, "--keys", keys, "--key-column", "x"], "--key-column"),
        (&[array, "--keys", array], "one dimension"),
        (&[array, "--keys", tensors], "not .safetensors files"),
        (&[array, "--keys", keys, "--keys", keys], "2 files of keys were given for 1"),
        (&[array, "--dtype", "I32"], "--dtype"),
        (&[tensors, "--keys", keys], "--keys"),
        (&[tensors, "--first-key", "1"], "--first-key"),
        (&[tensors, "--key-kind", "u64"], "its name is no key"),
        (&[tensors, "--key-column", "t"], "--key-column"),
        (&[tensors, "--dtype", "BF16"], "--dtype"),
        (&[tensors, "--store-as", "F16"], "--store-as"),
        (&[tensors, "--tensor", "t", "--store-as", "BF16"], "--store-as"),
        (&[array, "--store-as", "F32"], "--store-as"),
        (&[array, tensors], "one format"),
        (&[], "required"),
        (&["x.csv"], "no such file"),
    ];
    for (arguments, what) in cases {
        let message = place.refused(arguments);
        assert!(message.contains(what), "{arguments:?}: {message}");
    }
    let other = place.file("in.csv", "1,2\n");
    assert!(place.refused(&[text(&other)]).contains(".parquet"));
    place.import("rows", &[tensors, "--tensor", "t", "--keys", keys]);
    assert_eq!(place.tensor("rows", "b").data()[..], [0; 4]);
}

#[test]
fn folders_and_shards() {
    let place = Place::new();
    let shard = |name: &str, first: u8, rows: usize| {
        place.file(name, npy(&header("|u1", false, &[rows]), &(first..first + rows as u8).collect::<Vec<_>>()))
    };
    let (b, a) = (shard("d/b.npy", 3, 2), shard("d/a.npy", 0, 3));
    let all = |store: &str| (0..5).map(|key| place.tensor(store, key as u64).data()[0]).collect::<Vec<_>>();
    place.import("folder", &[text(&place.path("d"))]);
    assert_eq!(all("folder"), [0, 1, 2, 3, 4]);
    place.import("files", &[text(&b), text(&a)]);
    assert_eq!(all("files"), [3, 4, 0, 1, 2]);
    let keys =
        [place.file("a.txt", "a\nb\nc\n"), place.file("b.txt", "d\ne\n"), place.file("all.txt", "a\nb\nc\nd\ne\n")];
    place.import("once", &[text(&place.path("d")), "--keys", text(&keys[2])]);
    assert_eq!(place.tensor("once", "e").data()[..], [4]);
    place.import("each", &[text(&place.path("d")), "--keys", text(&keys[0]), "--keys", text(&keys[1])]);
    assert_eq!(place.tensor("each", "d").data()[..], [3]);
    // The total number of keys fits, but not the number for each file.
    let message = place.refused(&[text(&place.path("d")), "--keys", text(&keys[1]), "--keys", text(&keys[0])]);
    assert!(message.contains("b.txt: expected 3 keys for the 3 rows of") && message.contains("a.npy"), "{message}");
    let wide = place.file("wide.npy", rows3());
    let message = place.refused(&[text(&a), text(&wide)]);
    assert!(message.contains("U8[]") && message.contains("F32[2]"), "{message}");
    shard("d/c.npy", 0, 1);
    std::fs::write(place.path("d/c.npy"), "x").unwrap();
    assert!(place.refused(&[text(&place.path("d"))]).contains("c.npy"));
    std::fs::create_dir(place.path("empty")).unwrap();
    assert!(place.refused(&[text(&place.path("empty"))]).contains("no .npy"));
    // A store is not a folder of input files.
    let message = place.refused(&[text(&place.store("folder"))]);
    assert!(message.contains("tensorcask export"), "{message}");
}

#[test]
fn overflows_are_reported() {
    let place = Place::new();
    let numbers = [1.0, 65_519.0, 65_520.0, -1e30, f32::INFINITY, f32::NAN];
    let array = place.file("in.npy", npy(&header("<f4", false, &[3, 2]), &floats(&numbers)));
    let said = place.import("m", &[text(&array), "--store-as", "F16"]);
    assert_eq!(said["infinite"], 2);
    assert!(said["warnings"][0].as_str().unwrap().starts_with("2 finite values"), "{said}");
    assert_eq!(place.tensor("m", 1).to_vec::<f16>().unwrap(), [f16::INFINITY, f16::NEG_INFINITY]);
    let (found, message) = code(&["import", text(&place.store("n")), text(&array), "--store-as", "F16"]);
    assert!(found == 0 && message.contains("warning: 2 finite values are too large for F16"), "{message}");
    assert_eq!(place.import("b", &[text(&array), "--store-as", "BF16"])["infinite"], 0);
    assert_eq!(place.import("f", &[text(&array)])["infinite"], 0);
    let doubles: Vec<u8> = [1e300_f64, 1.0].iter().flat_map(|n| n.to_le_bytes()).collect();
    let t = r#"{"t":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}}"#;
    let tensors = place.file("in.safetensors", safetensors(t, &doubles));
    assert_eq!(place.import("d", &[text(&tensors), "--store-as", "BF16"])["infinite"], 1);
    assert_eq!(place.tensor("d", "t").dtype(), Dtype::BF16);
}

#[test]
fn a_failing_store_is_not_wrong_input() {
    let place = Place::new();
    let array = place.file("in.npy", rows3());
    let held = Options::new().open(place.path("cache"), "m").unwrap();
    let (found, message) = code(&["import", text(&place.store("m")), text(&array)]);
    assert!(found == 4 && message.contains("lane 0 already has a writer"), "{message}");
    held.close().unwrap();
    drop(held);
    assert_eq!(code(&["import", text(&place.store("m")), text(&array)]).0, 0);
    // A file is at the path of the store.
    place.file("cache/file", "x");
    let (found, message) = code(&["import", text(&place.store("file")), text(&array)]);
    assert_eq!((found, message.contains("is not a folder")), (3, true), "{message}");
    assert!(!message.contains("metadata.json"), "{message}");
    assert_eq!(std::fs::read(place.store("file")).unwrap(), b"x");
}

/// A disk that fills up during the import: the number of stored rows is reported, and they can be read.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_says_how_many_rows_were_stored() {
    let place = Place::new();
    let rows = 4000_usize;
    let data: Vec<u8> = (0..rows).flat_map(|row| [row as u8; 8192]).collect();
    let array = place.file("in.npy", npy(&header("|u1", false, &[rows, 8192]), &data));
    // The file size limit, in blocks of 1,024 bytes, simulates a full disk.
    let script = format!(
        "trap '' XFSZ; ulimit -f 16384; exec '{}' import '{}' '{}'",
        env!("CARGO_BIN_EXE_tensorcask"),
        text(&place.store("m")),
        text(&array)
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{message}");
    let (_, told) = message.split_once("; ").and_then(|_| message.rsplit_once("; ")).unwrap();
    let stored: u64 = told.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{message}"));
    assert!(stored > 0 && told.contains("of 4000 rows were stored before that and are kept"), "{message}");
    let reader = Reader::open(place.path("cache"), "m").unwrap();
    assert_eq!(reader.len().unwrap(), stored);
    for key in 0..stored {
        let tensor = reader.get(key).unwrap().unwrap().into_tensor().unwrap();
        assert!(tensor.data().iter().all(|byte| *byte == key as u8));
    }
    drop(reader);
    // Without the limit, the same import succeeds.
    let (found, message) = code(&["import", text(&place.store("m")), text(&array)]);
    assert!(found == 3 && message.contains("--overwrite"), "{message}");
    let said = place.import("m", &[text(&array), "--overwrite"]);
    assert_eq!((said["new"].as_u64(), said["replaced"].as_u64()), (Some(4000 - stored), Some(stored)));
}

/// Anonymous memory, sampled every millisecond while the command runs, does not grow with the file.
#[test]
#[cfg(target_os = "linux")]
fn memory_is_bounded() {
    let place = Place::new();
    let len = 192 << 20;
    let header_of = |shape: &str| format!(r#"{{"t":{{"dtype":"U8","shape":{shape},"data_offsets":[0,{len}]}}}}"#);
    for (store, shape, arguments) in [
        ("whole", format!("[{len}]"), &[][..]),
        ("rows", format!("[{},4096]", len / 4096), &["--tensor", "t"]),
        ("long rows", format!("[3,{}]", len / 3), &["--tensor", "t"]),
    ] {
        // The file is sparse.
        let file = place.file("in.safetensors", safetensors(&header_of(&shape), &[]));
        let handle = std::fs::File::options().write(true).open(&file).unwrap();
        handle.set_len(8 + header_of(&shape).len() as u64 + len).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tensorcask"))
            .args(["import", text(&place.store(store)), text(&file)])
            .args(arguments)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut most_kib = 0;
        while child.try_wait().unwrap().is_none() {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            let found = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            most_kib = most_kib.max(found.unwrap_or_default());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(child.wait().unwrap().success());
        assert!(most_kib > 0 && most_kib < 64 << 10, "{store}: {most_kib} KiB of anonymous memory");
        std::fs::remove_dir_all(place.store(store)).unwrap();
    }
    ok(&["--version"]);
}
