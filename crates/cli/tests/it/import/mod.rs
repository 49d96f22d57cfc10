//! `import`.

mod arrays;
mod keys;
mod options;
mod others;
mod tables;
mod tensors;
mod torchcachex;

use std::path::{Path, PathBuf};

use tensorcask::{Key, Reader, Tensor, Value};

use crate::support::{code, ok, text};

/// A folder of input files and stores.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes an input file.
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The folder of a store.
    fn store(&self, name: &str) -> PathBuf {
        self.path("cache").join(name)
    }

    /// The value of a key of a store.
    fn get(&self, store: &str, key: impl Into<AnyKey>) -> Option<Value> {
        let reader = Reader::open(self.path("cache"), store).unwrap();
        reader.get(&key.into().0).unwrap()
    }

    fn tensor(&self, store: &str, key: impl Into<AnyKey>) -> Tensor {
        self.get(store, key).unwrap().into_tensor().unwrap()
    }

    /// All keys of a store, in order.
    fn keys(&self, store: &str) -> Vec<Key> {
        let reader = Reader::open(self.path("cache"), store).unwrap();
        let mut keys: Vec<Key> = reader.keys().map(Result::unwrap).collect();
        keys.sort();
        keys
    }

    /// Imports into `store`; returns the output as JSON.
    fn import(&self, store: &str, arguments: &[&str]) -> serde_json::Value {
        let store = self.store(store);
        let said = ok(&[&["import", text(&store)], arguments, &["--format", "json"]].concat());
        serde_json::from_str(&said).unwrap()
    }

    /// Runs an import that must end with exit code 3 and create no store; returns the message.
    fn refused(&self, arguments: &[&str]) -> String {
        let store = self.store("refused");
        let (found, message) = code(&[&["import", text(&store)], arguments].concat());
        assert_eq!(found, 3, "{arguments:?}: {message}");
        assert!(!store.exists(), "{arguments:?} left a store behind: {message}");
        message
    }
}

struct AnyKey(Key);

impl From<&str> for AnyKey {
    fn from(text: &str) -> Self {
        Self(Key::Str(text.into()))
    }
}

impl From<u64> for AnyKey {
    fn from(number: u64) -> Self {
        Self(Key::U64(number))
    }
}

impl From<&[u8]> for AnyKey {
    fn from(bytes: &[u8]) -> Self {
        Self(Key::Bytes(bytes.into()))
    }
}

/// A `.npy` file with this header.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    npy_of_version(1, header, data)
}

fn npy_of_version(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
    let mut header = header.to_owned();
    let lead = if version == 1 { 10 } else { 12 };
    header.push_str(&" ".repeat(63 - (lead + header.len()) % 64));
    header.push('\n');
    let len = (header.len() as u32).to_le_bytes();
    let len = if version == 1 { &len[..2] } else { &len[..] };
    [b"\x93NUMPY", &[version, 0][..], len, header.as_bytes(), data].concat()
}

/// The header of an array.
fn header(descr: &str, fortran: bool, shape: &[usize]) -> String {
    let dims: String = shape.iter().map(|dim| format!("{dim}, ")).collect();
    let order = if fortran { "True" } else { "False" };
    format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({dims}), }}")
}

/// A `.safetensors` file with this header.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Little-endian floats.
fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Three rows of two floats.
fn rows3() -> Vec<u8> {
    npy(&header("<f4", false, &[3, 2]), &floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
}

fn path_text(path: &Path) -> &str {
    text(path)
}
