//! The shell commands of `docs/operations.md` run as they stand there, one after the other.

use std::path::Path;
use std::process::Command;

use crate::support::{ok, text};

#[test]
fn commands_of_the_operations_page_run() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let blocks: Vec<&str> = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 9, "{}", blocks.len());
    let dir = tempfile::tempdir().unwrap();
    let features = dir.path().join("features.npy");
    // As numpy writes it: 500 rows of 64 floats.
    let mut header = "{'descr': '<f4', 'fortran_order': False, 'shape': (500, 64), }".to_owned();
    header += &" ".repeat(127 - 10 - header.len());
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend((0..500 * 64).flat_map(|at| (at as f32).to_le_bytes()));
    std::fs::write(&features, bytes).unwrap();
    ok(&["import", text(&dir.path().join("cache/vit")), text(&features)]);

    let tool = Path::new(env!("CARGO_BIN_EXE_tensorcask")).parent().unwrap().to_path_buf();
    let path = std::env::split_paths(&std::env::var_os("PATH").unwrap()).collect::<Vec<_>>();
    let path = std::env::join_paths(std::iter::once(tool).chain(path)).unwrap();
    let script = format!("set -euo pipefail\n{}", blocks.concat());
    let output = Command::new("bash").args(["-c", &script]).current_dir(dir.path()).env("PATH", path).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    // What the page says of them.
    for words in ["exit code 2", "(1 rows)", "1000 (u64)", "exit code 1", "7 is there", "vit.html"] {
        assert!(out.contains(words), "{words}: {out}{err}");
    }
    assert!(out.trim_end().lines().filter(|line| line.contains(", 0 damaged places")).count() >= 3, "{out}");
}
