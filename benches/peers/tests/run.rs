//! The whole program, on stores of a few rows.

use std::process::Command;

use tensorcask_peers::Fallible;

#[test]
fn a_small_run_writes_its_report_twice() -> Fallible {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    let program = env!("CARGO_BIN_EXE_tensorcask-peers");
    let status = Command::new(program)
        .args(["--keys", "600", "--row-bytes", "128", "--engines", "raw,tensorcask,bitcask,lmdb"])
        .args(["--loads", "2", "--rounds", "3", "--batches", "2", "--dir"])
        .arg(dir.path().join("stores"))
        .arg("--out")
        .arg(&out)
        .status()?;
    assert!(status.success());
    let report = std::fs::read_to_string(out.join("peers.md"))?;
    let target = "| batched reads in memory, 128 B | 600 | lmdb | 10.0 × |";
    for part in ["## Where peers win", "| lmdb |", "| raw |", "600 rows of 128 B", target] {
        assert!(report.contains(part), "{part} is not in the report");
    }
    assert!(!report.contains(&dir.path().display().to_string()), "a path of this machine is in the report");
    assert!(std::fs::read_to_string(out.join("peers-read.svg"))?.contains("tensorcask"));
    assert!(!dir.path().join("stores").exists());

    let again = dir.path().join("again");
    let status = Command::new(program).arg("--from").arg(out.join("peers.json")).arg("--out").arg(&again).status()?;
    assert!(status.success());
    assert_eq!(std::fs::read_to_string(again.join("peers.md"))?, report);
    Ok(())
}

#[test]
fn options_that_are_none_are_refused() -> Fallible {
    let output = Command::new(env!("CARGO_BIN_EXE_tensorcask-peers")).args(["--speed", "high"]).output()?;
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr)?.contains("--speed is no option"));
    Ok(())
}
