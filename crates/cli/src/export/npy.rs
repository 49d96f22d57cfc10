//! Values as one `.npy` array, with their keys in a text file, one per line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tensorcask::Key;

use super::rows::Rows;
use super::written::{Written, nothing};
use crate::failure::Failure;
use crate::new_file::{NewFile, is_same_place};
use crate::npy_file::RowsWriter;
use crate::output::one_line;

/// Writes all rows to `path` and their keys to `keys_out` (default: `path` with `.keys` appended).
pub(crate) fn write(
    path: &Path,
    keys_out: Option<&Path>,
    rows: &mut Rows,
    progress: &mut dyn FnMut(u64),
) -> Result<Written, Failure> {
    let keys_path = keys_out.map_or_else(|| default_keys_path(path), Path::to_path_buf);
    if is_same_place(&keys_path, path) {
        return Err(Failure::input(format!(
            "--keys-out {} is also the file of the array: name another",
            path.display()
        )));
    }
    let mut keys = NewFile::create(&keys_path)?;
    let mut array: Option<RowsWriter> = None;
    let mut count = 0;
    loop {
        let batch = rows.next()?;
        if batch.is_empty() {
            break;
        }
        for (key, value) in &batch {
            let Some(tensor) = value.as_tensor() else {
                return Err(Failure::input(format!(
                    "the value of {} is not a single tensor: export to Arrow",
                    shown(key)
                )));
            };
            let writer = match &mut array {
                Some(writer) => writer,
                None => array.insert(RowsWriter::create(path, tensor.dtype(), tensor.shape())?),
            };
            let (dtype, shape) = writer.row();
            if (tensor.dtype(), tensor.shape()) != (dtype, shape) {
                return Err(Failure::input(format!(
                    "the value of {} is {}{:?}, but others are {dtype}{shape:?}: export to Arrow",
                    shown(key),
                    tensor.dtype(),
                    tensor.shape()
                )));
            }
            writer.push(tensor)?;
            keys.put(line(key, count == 0)?.as_bytes())?;
            count += 1;
        }
        progress(batch.len() as u64);
    }
    let array = array.ok_or_else(nothing)?.done()?;
    let replaced = array.replaces();
    // The array is renamed last: if it is the new one, so are its keys.
    keys.finish()?;
    array.finish()?;
    Ok(Written { rows: count, replaced, shapes_lost: 0 })
}

/// `path` with `.keys` appended.
fn default_keys_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".keys");
    name.into()
}

fn shown(key: &Key) -> String {
    one_line(&key.to_string()).into_owned()
}

/// A key as a line of the key file. Refuses keys that importing the line would not give back.
fn line(key: &Key, is_first: bool) -> Result<String, Failure> {
    let text = key.to_string();
    if text.is_empty() && matches!(key, Key::Bytes(_)) {
        return Ok("0x\n".into());
    }
    let why = if text.contains(['\n', '\r']) {
        "has a line break"
    } else if text.contains('\0') {
        "has a NUL"
    } else if text.is_empty() {
        "is empty"
    } else if is_first && text.starts_with('\u{feff}') {
        "starts with a byte order mark"
    } else {
        return Ok(text + "\n");
    };
    Err(Failure::input(format!(
        "the key {text:?} {why}, so it cannot be a line of a key file: export to Arrow or safetensors"
    )))
}
