//! What the command line tool writes: exports, values, messages, and exit codes.
#![cfg(feature = "cli")]
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as expected"
)]

mod arrays;
mod codes;
mod columns;
mod left_out;
mod places;
mod values;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tensorcask::{Element, Options, Store, Tensor, Value};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tensorcask")).args(arguments).output().unwrap()
}

fn ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn code(arguments: &[&str]) -> (i32, String) {
    let output = run(arguments);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A store in a folder of its own, with what `fill` puts.
fn store(fill: impl FnOnce(&Store)) -> (tempfile::TempDir, PathBuf) {
    store_with(Options::new(), fill)
}

fn store_with(options: Options, fill: impl FnOnce(&Store)) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let store = options.open(dir.path(), "m").unwrap();
    fill(&store);
    store.close().unwrap();
    let path = dir.path().join("m");
    (dir, path)
}

fn tensor<T: Element>(shape: &[usize], elements: &[T]) -> Value {
    Value::Tensor(Tensor::from_slice(shape, elements).unwrap())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
