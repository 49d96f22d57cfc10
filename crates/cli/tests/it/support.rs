//! Runs the tool as a script would, and makes stores to run it on.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tensorcask::{Element, Options, Store, Tensor, Value};

pub(crate) fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tensorcask")).args(arguments).output().unwrap()
}

pub(crate) fn ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn code(arguments: &[&str]) -> (i32, String) {
    let output = run(arguments);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Creates a store in a temporary folder; `fill` puts its values.
pub(crate) fn store(fill: impl FnOnce(&Store)) -> (tempfile::TempDir, PathBuf) {
    store_with(Options::new(), fill)
}

pub(crate) fn store_with(options: Options, fill: impl FnOnce(&Store)) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let store = options.open(dir.path(), "m").unwrap();
    fill(&store);
    store.close().unwrap();
    let path = dir.path().join("m");
    (dir, path)
}

pub(crate) fn tensor<T: Element>(shape: &[usize], elements: &[T]) -> Value {
    Value::Tensor(Tensor::from_slice(shape, elements).unwrap())
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
