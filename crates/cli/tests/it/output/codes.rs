//! Exit codes.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use crate::support::{code, names, run, store, text};

fn damaged(m: &Path, byte: u8) {
    let segment = std::fs::read_dir(m.join("segments")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(64).position(|window| window == [byte; 64]).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
}

/// A store of 100 rows of 512 bytes; all bytes of row `i` are `i`.
fn bytes_store() -> (tempfile::TempDir, PathBuf) {
    store(|store| {
        let rows: Vec<u8> = (0..100 * 512).map(|i| (i / 512) as u8).collect();
        store.put_rows(&(0..100_u64).collect::<Vec<_>>(), &[512], &rows).unwrap();
    })
}

#[test]
fn a_path_that_is_not_a_store_is_wrong_input() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, folder, absent) = (dir.path().join("plain"), dir.path().join("folder"), dir.path().join("absent"));
    std::fs::write(&plain, "no store").unwrap();
    std::fs::create_dir(&folder).unwrap();
    let below = plain.join("below");
    for place in [&absent, &plain, &folder, &below].map(|path| text(path)) {
        for command in
            ["stats", "ls", "schemas", "get", "verify", "preload", "bench", "report", "rm", "compact", "export"]
        {
            let mut arguments = vec![command, place];
            arguments.extend(match command {
                "get" | "rm" => &["1"][..],
                "export" => &["x.npy"],
                "report" => &["-o", "x.html"],
                _ => &[],
            });
            let (found, message) = code(&arguments);
            assert_eq!((found, message.contains(place)), (3, true), "{command}: {message}");
        }
        let (found, message) = code(&["stats", place, "--format", "json"]);
        assert_eq!((found, serde_json::from_str::<Json>(&message).unwrap()["code"].as_i64()), (3, Some(3)));
    }
    assert_eq!(names(&dir.path().join("folder")).len(), 0, "looking makes nothing");
}

#[test]
fn errors_end_with_the_exit_codes_of_the_table() {
    let (dir, m) = bytes_store();
    let (out, absent) = (dir.path().join("out.npy"), dir.path().join("absent"));
    let (m, out, absent) = (text(&m), text(&out), text(&absent));
    let cases: &[(&[&str], i32)] = &[
        (&["stats", m], 0),
        (&["--help"], 0),
        (&["--version"], 0),
        (&["export", "--help"], 0),
        (&["get", m, "100"], 1),
        (&["get", m, "ten"], 3),
        (&["get", m, "-1"], 3),
        (&["get", m, "18446744073709551616"], 3),
        (&["get", m], 3),
        (&["get", m, "1", "--npy", out, "--head", "3"], 3),
        (&["get", m, "1", "--max-value-bytes", "511"], 3),
        (&["get", m, "1", "--max-value-bytes", "0"], 3),
        (&["get", m, "1", "--max-value-bytes", "512"], 0),
        (&["no-such-command"], 3),
        (&[], 3),
        (&["stats", m, "--format", "xml"], 3),
        (&["ls", m, "--prefix", "1"], 3),
        (&["ls", m, "--from", "1"], 0),
        (&["ls", m, "--from", "1", "--prefix", "1"], 3),
        (&["ls", m, "--from", "1", "--to", "5", "--prefix", "1"], 3),
        (&["ls", m, "--limit", "-1"], 3),
        (&["export", m, "out.csv"], 3),
        (&["export", m, "out"], 3),
        (&["export", m, out, "--plain"], 3),
        (&["export", m, out, "--stream"], 3),
        (&["export", m, "x.safetensors", "--plain"], 3),
        (&["export", m, "x.safetensors", "--keys-out", "k"], 3),
        (&["export", m, "x.arrow", "--keys-out", "k"], 3),
        (&["export", m, "x.arrow", "--max-value-bytes", "511"], 3),
        (&["export", m, out, "--keys-out", out], 3),
        (&["export", m, out, "--prefix", "1"], 3),
        (&["import", m, "x.csv"], 3),
        (&["import", m, absent, "--lane", "65536"], 3),
        (&["import", m, absent, "--lane", "first"], 3),
        (&["stats", ".."], 3),
    ];
    for (arguments, expected) in cases {
        let output = run(arguments);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(*expected), "{arguments:?}: {message}");
        assert!(!message.contains("::") && !message.contains("use range"), "{arguments:?}: {message}");
        // With --format json, every error is an object.
        if *expected != 0 {
            let mut arguments = arguments.to_vec();
            let had_format = arguments.contains(&"--format");
            arguments.extend(["--format", "json"]);
            let output = run(&arguments);
            let said: Json =
                serde_json::from_slice(&output.stderr).unwrap_or_else(|error| json!(format!("{error}: {output:?}")));
            assert!(had_format || said["code"] == json!(expected), "{arguments:?}: {said}");
            assert!(output.stdout.is_empty());
        }
    }
    assert!(!Path::new(out).exists());
}

#[test]
fn damage_has_its_own_exit_code() {
    let (dir, m) = bytes_store();
    let (m, out) = (text(&m), dir.path().join("out.npy"));
    let out = text(&out);
    damaged(Path::new(m), 77);
    for (arguments, expected) in [
        (&["verify", m][..], 2),
        (&["get", m, "77"], 2),
        (&["get", m, "78"], 0),
        (&["export", m, out], 2),
        (&["export", m, "x.arrow"], 2),
        (&["export", m, "x.safetensors"], 2),
    ] {
        assert_eq!(code(arguments).0, expected, "{arguments:?}");
    }
    let lines = run(&["verify", m, "--format", "json"]).stdout;
    for line in String::from_utf8(lines).unwrap().lines() {
        serde_json::from_str::<Json>(line).unwrap();
    }
    assert!(!Path::new(out).exists() && !Path::new("x.arrow").exists());
}
