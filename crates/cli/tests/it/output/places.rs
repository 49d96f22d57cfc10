//! Targets of exports: replacing files, permissions, pipes.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value as Json, json};
use tensorcask::{Options, Value};

use crate::support::{code, names, ok, run, store, store_with, tensor, text};

#[test]
fn a_refused_export_leaves_the_earlier_file() {
    let (dir, m) = store(|store| {
        for key in 0..3000_u64 {
            store.put(key, tensor(&[2], &[key as f32; 2])).unwrap();
        }
        // Rows of other structures, which are read at different times.
        store.put(3000_u64, tensor(&[2], &[1_i64; 2])).unwrap();
        store.put(3001_u64, Value::Str("text".into())).unwrap();
    });
    let out = tempfile::tempdir().unwrap();
    for name in ["a.npy", "a.npy.keys", "a.arrow", "a.arrows", "a.safetensors", "one.npy"] {
        std::fs::write(out.path().join(name), "precious").unwrap();
    }
    let before = names(out.path());
    for name in ["a.npy", "a.arrow", "a.arrows", "a.safetensors"] {
        let (found, message) = code(&["export", text(&m), text(&out.path().join(name))]);
        assert_eq!(found, 3, "{message}");
    }
    assert_eq!(code(&["get", text(&m), "3001", "--npy", text(&out.path().join("one.npy"))]).0, 3);
    for name in &before {
        assert_eq!(std::fs::read(out.path().join(name)).unwrap(), b"precious", "{name}");
    }
    assert_eq!(names(out.path()), before);
    // A refused export creates no file.
    let empty = tempfile::tempdir().unwrap();
    for name in ["b.npy", "b.arrow", "b.arrows", "b.safetensors"] {
        assert_eq!(code(&["export", text(&m), text(&empty.path().join(name))]).0, 3);
    }
    assert!(names(empty.path()).is_empty());
    drop(dir);
}

#[test]
fn replacing_a_file_is_reported() {
    let (dir, m) = store(|store| store.put("k", tensor(&[1], &[1.0_f32])).unwrap());
    for name in ["a.npy", "a.arrow", "a.arrows", "a.safetensors"] {
        let out = dir.path().join(name);
        let said = ok(&["export", text(&m), text(&out)]);
        assert_eq!(said, format!("1 values to {}\n", out.display()));
        let said = ok(&["export", text(&m), text(&out)]);
        assert_eq!(said, format!("1 values to {}, replacing an existing file\n", out.display()));
        let said: Json = serde_json::from_str(&ok(&["export", text(&m), text(&out), "--format", "json"])).unwrap();
        assert_eq!(
            said,
            json!({ "values": 1, "path": text(&out), "replaced": true, "left_out_files": 0, "shapes_lost": 0 })
        );
    }
}

#[test]
fn targets_that_cannot_be_written_are_named() {
    let (dir, m) = store(|store| store.put("k", tensor(&[1], &[1.0_f32])).unwrap());
    std::fs::write(dir.path().join("plain"), "").unwrap();
    for kind in ["npy", "arrow", "arrows", "safetensors"] {
        let folder = dir.path().join(format!("folder.{kind}"));
        std::fs::create_dir(&folder).unwrap();
        for out in [dir.path().join(format!("absent/a.{kind}")), dir.path().join(format!("plain/a.{kind}")), folder] {
            let (found, message) = code(&["export", text(&m), text(&out)]);
            assert_eq!((found, message.contains(text(&out))), (3, true), "{message}");
        }
    }
    let (found, message) = code(&["get", text(&m), "k", "--npy", text(&dir.path().join("absent/one.npy"))]);
    assert_eq!((found, message.contains("one.npy")), (3, true), "{message}");
    let (found, message) = code(&["export", text(&m), text(&dir.path().join("a.npy")), "--keys-out", "/no/keys"]);
    assert_eq!((found, message.contains("/no/keys")), (3, true), "{message}");
    assert!(!dir.path().join("a.npy").exists());
    // A full disk.
    if Path::new("/dev/full").exists() {
        for kind in ["arrow", "arrows", "safetensors"] {
            let (found, message) = code(&["export", text(&m), "/dev/full", "--to", kind]);
            assert_eq!((found, message.contains("/dev/full")), (4, true), "{message}");
        }
        assert!(!std::fs::metadata("/dev/full").unwrap().is_file());
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let printed =
            Command::new(env!("CARGO_BIN_EXE_tensorcask")).args(["ls", text(&m)]).stdout(full).output().unwrap();
        assert_eq!(printed.status.code(), Some(4));
    }
}

#[test]
fn options_for_writing_apply() {
    let (dir, m) = store(|store| store.put_rows(&[0_u64], &[4], &[0.0_f32; 4]).unwrap());
    let array = dir.path().join("one.npy");
    ok(&["get", text(&m), "0", "--npy", text(&array)]);
    let keys = dir.path().join("keys.txt");
    std::fs::write(&keys, "7\n8\n9\n10\n").unwrap();
    let import = |more: &[&str]| {
        let fixed = ["import", text(&m), text(&array), "--keys", text(&keys), "--key-kind", "u64"];
        code(&[&fixed[..], more].concat())
    };
    let busy = Options::new().open(dir.path(), "m").unwrap();
    let (found, message) = import(&[]);
    assert_eq!((found, message.contains("--lane auto")), (4, true), "{message}");
    assert_eq!(import(&["--lane", "auto"]), (0, String::new()));
    assert_eq!(import(&["--lane", "5"]).0, 0);
    let lanes = names(&m.join("lanes"));
    assert!(["0001.lock", "0005.lock"].iter().all(|lane| lanes.contains(&(*lane).to_owned())), "{lanes:?}");
    assert_eq!(import(&["--lane", "3", "--allow-network"]).0, 0);
    drop(busy);
    let (found, message) = import(&["--max-value-bytes", "3"]);
    assert_eq!((found, message.contains("--max-value-bytes")), (3, true), "{message}");
}

#[cfg(unix)]
#[test]
fn a_group_shares_a_store() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, m) = store(|store| store.put_rows(&[0_u64], &[4], &[0.0_f32; 4]).unwrap());
    let array = dir.path().join("one.npy");
    ok(&["get", text(&m), "0", "--npy", text(&array)]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let shared_folder = dir.path().join("shared");
    std::fs::create_dir(&shared_folder).unwrap();
    std::fs::set_permissions(&shared_folder, std::fs::Permissions::from_mode(0o2770)).unwrap();
    for (parent, option) in [(dir.path(), " --group-writable"), (&shared_folder, "")] {
        let store = parent.join("store");
        let command = format!(
            "umask 077; exec '{}' import '{}' '{}'{option}",
            env!("CARGO_BIN_EXE_tensorcask"),
            store.display(),
            array.display()
        );
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
        assert_eq!(mode(&store) & 0o2070, 0o2070);
        let mut files = 0;
        for folder in ["segments", "runs", "lanes", "quarantine"] {
            assert_eq!(mode(&store.join(folder)) & 0o2070, 0o2070, "{folder}");
            for name in names(&store.join(folder)) {
                assert_eq!(mode(&store.join(folder).join(&name)) & 0o060, 0o060, "{name}");
                files += 1;
            }
        }
        assert_eq!(mode(&store.join("store.json")) & 0o060, 0o060);
        assert!(files >= 3, "a segment, a lock, marks");
    }
    let private = dir.path().join("private");
    let command = format!(
        "umask 077; exec '{}' import '{}' '{}'",
        env!("CARGO_BIN_EXE_tensorcask"),
        private.display(),
        array.display()
    );
    assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    assert_eq!((mode(&private), mode(&private.join("store.json"))), (0o700, 0o600));
}

/// Runs the tool as a user other than root, because root passes all permission checks.
#[cfg(unix)]
fn as_nobody(program: &Path, arguments: &[&str]) -> (i32, String, String) {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command.args(arguments);
    if is_root() {
        command.uid(65_534).gid(65_534);
    }
    let output = command.output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.code().unwrap(), out, err)
}

#[cfg(unix)]
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::metadata(folder.path()).unwrap().uid() == 0
}

#[cfg(unix)]
#[test]
fn missing_permissions_are_reported() {
    use std::os::unix::fs::PermissionsExt;
    let set_mode = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let (dir, m) = store_with(Options::new().segment_rows(2), |store| {
        for key in 0..4_u64 {
            store.put_rows(&[key], &[2], &[key as f32; 2]).unwrap();
            store.flush().unwrap();
        }
    });
    // Another user may not have access to the build folder.
    let program = dir.path().join("tensorcask");
    std::fs::copy(env!("CARGO_BIN_EXE_tensorcask"), &program).unwrap();
    let segment = m.join("segments").join(&names(&m.join("segments"))[0]);
    for path in [dir.path(), &program, &m, &m.join("segments"), &m.join("runs"), &m.join("lanes")] {
        set_mode(path, 0o755);
    }
    set_mode(&segment, 0);
    let m = text(&m);
    let (found, out, err) = as_nobody(&program, &["verify", m]);
    assert_eq!((found, out.contains("--group-writable"), err.as_str()), (2, true, ""), "{out}");
    assert!(out.contains(text(&segment)) && !out.contains("::"), "{out}");
    let (found, out, err) = as_nobody(&program, &["ls", m]);
    assert_eq!((found, out.lines().count(), err.contains("warning: 1 file")), (0, 2, true), "{err}");
    // The export is incomplete and says so.
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    set_mode(&open, 0o777);
    let (found, out, err) = as_nobody(&program, &["export", m, text(&open.join("a.npy")), "--format", "json"]);
    assert_eq!((found, serde_json::from_str::<Json>(&out).unwrap()["left_out_files"].as_i64()), (2, Some(1)), "{err}");
    assert!(serde_json::from_str::<Json>(&err).unwrap()["warning"].is_string());

    let private = dir.path().join("private");
    std::fs::create_dir(&private).unwrap();
    set_mode(&private, 0o555);
    let (found, _, err) = as_nobody(&program, &["export", m, text(&private.join("a.npy"))]);
    assert_eq!((found, err.contains("a.npy")), (4, true), "{err}");
    let (found, _, err) = as_nobody(&program, &["get", m, "3", "--npy", text(&private.join("a.npy"))]);
    assert_eq!((found, err.contains("a.npy")), (4, true), "{err}");
    set_mode(Path::new(m), 0o700);
    let (found, _, err) = as_nobody(&program, &["stats", m]);
    assert_eq!((found, err.contains(m)), (if is_root() { 4 } else { 0 }, is_root()), "{err}");
    set_mode(&segment, 0o644);
}

#[cfg(unix)]
#[test]
fn users_of_one_store_write_in_lanes_of_their_own() {
    use std::os::unix::fs::PermissionsExt;
    if !is_root() {
        println!("\n*** only root can run a command as another user: NOT run ***\n");
        return;
    }
    let set_mode = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // A store of one user: only that user may write its files, but everybody may write its folders.
    let (dir, m) = store(|store| store.put_rows(&[0_u64], &[4], &[0.0_f32; 4]).unwrap());
    let (program, array, keys) =
        (dir.path().join("tensorcask"), dir.path().join("one.npy"), dir.path().join("keys.txt"));
    std::fs::copy(env!("CARGO_BIN_EXE_tensorcask"), &program).unwrap();
    ok(&["get", text(&m), "0", "--npy", text(&array)]);
    std::fs::write(&keys, "7\n8\n9\n10\n").unwrap();
    for folder in ["segments", "runs", "lanes", "quarantine"].map(|name| m.join(name)).iter().chain([&m]) {
        set_mode(folder, 0o777);
        for name in names(folder).iter().map(|name| folder.join(name)).filter(|path| path.is_file()) {
            set_mode(&name, 0o644);
        }
    }
    set_mode(dir.path(), 0o755);
    set_mode(&program, 0o755);
    let import = |lane: &str| {
        let arguments = ["import", text(&m), text(&array), "--keys", text(&keys), "--key-kind", "u64", "--lane", lane];
        as_nobody(&program, &arguments)
    };
    let (found, _, err) = import("0");
    assert_eq!((found, err.contains("0000.lock")), (4, true), "{err}");
    let (found, _, err) = import("auto");
    assert_eq!((found, err.as_str()), (0, ""));
    // If no lane can be created, the error says that, not that all lanes have writers.
    std::fs::remove_file(m.join("lanes/0001.lock")).unwrap();
    set_mode(&m.join("lanes"), 0o755);
    let (found, _, err) = import("auto");
    assert_eq!((found, err.contains("0001.lock")), (4, true), "{err}");
    // Each user reads what the other one wrote.
    assert_eq!(as_nobody(&program, &["ls", text(&m)]).1.lines().count(), 5);
    assert_eq!(ok(&["ls", text(&m)]).lines().count(), 5);
}

/// Runs a bash script with the tool as `$0`.
fn script(script: &str, arguments: &[&str]) -> Output {
    let program = [env!("CARGO_BIN_EXE_tensorcask")];
    Command::new("bash").arg("-c").arg(script).args(program.iter().chain(arguments)).output().unwrap()
}

#[test]
fn a_pipe_gets_a_complete_file_or_nothing() {
    let (dir, m) = store(|store| store.put_rows(&[1_u64, 2], &[3], &[1.0_f32; 6]).unwrap());
    // The header of an array is written last, which a pipe does not allow.
    let pipe = dir.path().join("a.npy");
    let output = script(
        "mkfifo \"$2\"; (cat \"$2\" | wc -c) & \"$0\" export \"$1\" \"$2\"; code=$?; wait; exit $code",
        &[text(&m), text(&pipe)],
    );
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stdout).unwrap().trim()), (Some(3), "0"), "{message}");
    assert!(message.contains("is a pipe"), "{message}");
    assert_eq!(names(dir.path()), ["a.npy", "m"]);
    // Messages are not mixed with data on standard output.
    for (kind, format) in [("arrows", "human"), ("arrows", "json"), ("safetensors", "human"), ("arrow", "human")] {
        let file = dir.path().join("b");
        ok(&["export", text(&m), text(&file), "--to", kind]);
        let output = run(&["export", text(&m), "/dev/stdout", "--to", kind, "--format", format]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stdout == std::fs::read(&file).unwrap(), "{kind}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("/dev/stdout"));
    }
}

#[test]
fn targets_that_would_overwrite_input_are_refused() {
    let (dir, m) = store(|store| store.put_rows(&[1_u64, 2], &[3], &[1.0_f32; 6]).unwrap());
    let segment = m.join("segments").join(&names(&m.join("segments"))[0]);
    let before = std::fs::read(&segment).unwrap();
    let linked = dir.path().join("linked.arrow");
    std::os::unix::fs::symlink(&segment, &linked).unwrap();
    for target in [&segment, &linked, &m.join("store.json"), &m.join("x.arrow"), &dir.path().join("./m/../m/y")] {
        for arguments in [
            &["export", text(&m), text(target), "--to", "arrow"][..],
            &["export", text(&m), text(&dir.path().join("a.npy")), "--keys-out", text(target)],
            &["get", text(&m), "1", "--npy", text(target)],
        ] {
            let (found, message) = code(arguments);
            assert_eq!((found, message.contains("inside the folder of the store")), (3, true), "{message}");
        }
    }
    assert_eq!(std::fs::read(&segment).unwrap(), before);
    // The same path for keys and array, written in two ways.
    let array = dir.path().join("a.npy");
    std::os::unix::fs::symlink("a.npy", dir.path().join("keys")).unwrap();
    for keys in ["a.npy", "./a.npy", "m/../a.npy", "keys"] {
        let (found, message) = code(&["export", text(&m), text(&array), "--keys-out", text(&dir.path().join(keys))]);
        assert_eq!((found, message.contains("name another")), (3, true), "{keys}: {message}");
    }
    assert_eq!(names(dir.path()), ["keys", "linked.arrow", "m"]);
}

/// SIGXFSZ would end the process before it can report the error.
#[test]
#[cfg(target_os = "linux")]
fn exceeding_the_file_size_limit_is_an_error() {
    let (dir, m) = store(|store| {
        let keys: Vec<u64> = (0..3000).collect();
        store.put_rows(&keys, &[256], &vec![1.0_f32; 3000 * 256]).unwrap();
    });
    for name in ["a.npy", "a.arrow", "a.arrows", "a.safetensors"] {
        let out = dir.path().join(name);
        std::fs::write(&out, "precious").unwrap();
        let output = script("ulimit -f 1000; exec \"$0\" export \"$1\" \"$2\"", &[text(&m), text(&out)]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), message.contains(name)), (Some(4), true), "{message}");
        assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    }
    assert_eq!(names(dir.path()), ["a.arrow", "a.arrows", "a.npy", "a.safetensors", "m"]);
}

#[test]
fn metadata_has_the_permissions_of_the_store() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, m) = store(|store| store.put("k", tensor(&[1], &[1.0_f32])).unwrap());
    let set_mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let header = br#"{"__metadata__":{"model":"x"},"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}      "#;
    let file = dir.path().join("a.safetensors");
    std::fs::write(&file, [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat()).unwrap();
    for (folder_mode, expected) in [(0o770, 0o660), (0o750, 0o600), (0o1770, 0o600)] {
        set_mode(&m, folder_mode);
        let output = script("umask 077; exec \"$0\" import \"$1\" \"$2\"", &[text(&m), text(&file)]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let metadata = m.join("metadata.json");
        assert_eq!(std::fs::metadata(&metadata).unwrap().permissions().mode() & 0o777, expected, "{folder_mode:o}");
        std::fs::remove_file(metadata).unwrap();
    }
    // Unreadable metadata fails only the commands that need it.
    std::fs::write(m.join("metadata.json"), "{").unwrap();
    let (found, message) = code(&["stats", text(&m)]);
    assert_eq!((found, message.contains("warning") && message.contains("metadata.json")), (0, true), "{message}");
    assert_eq!(code(&["import", text(&m), text(&file)]).0, 3);
    assert_eq!(code(&["export", text(&m), text(&file)]).0, 3);
}
