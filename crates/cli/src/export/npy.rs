//! Values as one `.npy` array, and their keys in a file of lines beside it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tensorcask::Key;

use super::rows::Rows;
use super::written::{Written, nothing};
use crate::failure::Failure;
use crate::new_file::{NewFile, is_same_place};
use crate::npy_file::RowsWriter;
use crate::output::one_line;

/// Writes all rows to `path` and their keys to `keys_out`, by default beside it.
pub(crate) fn write(
    path: &Path,
    keys_out: Option<&Path>,
    rows: &mut Rows<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<Written, Failure> {
    let keys_path = keys_out.map_or_else(|| beside(path), Path::to_path_buf);
    if is_same_place(&keys_path, path) {
        return Err(Failure::input(format!("--keys-out {} is the file of the array: name another", path.display())));
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
                return Err(Failure::input(format!("{} is no single tensor: export to Arrow", shown(key))));
            };
            let writer = match &mut array {
                Some(writer) => writer,
                None => array.insert(RowsWriter::create(path, tensor.dtype(), tensor.shape())?),
            };
            let (dtype, shape) = writer.row();
            if (tensor.dtype(), tensor.shape()) != (dtype, shape) {
                return Err(Failure::input(format!(
                    "{} is {}{:?}, but others are {dtype}{shape:?}: export to Arrow",
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
    // The array last: where it is new, its keys are.
    keys.finish()?;
    array.finish()?;
    Ok(Written { rows: count, replaced })
}

/// The file's name and `.keys`.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".keys");
    name.into()
}

fn shown(key: &Key) -> String {
    one_line(&key.to_string()).into_owned()
}

/// A key as a line of the file of keys, from which it has to be read again.
fn line(key: &Key, is_first: bool) -> Result<String, Failure> {
    let text = key.to_string();
    if text.is_empty() && matches!(key, Key::Bytes(_)) {
        return Ok("0x\n".into());
    }
    let why = if text.contains(['\n', '\r']) {
        "has a line break"
    } else if text.contains('\0') {
        "has a NUL, as no text has"
    } else if text.is_empty() {
        "is empty"
    } else if is_first && text.starts_with('\u{feff}') {
        "starts with a byte order mark"
    } else {
        return Ok(text + "\n");
    };
    Err(Failure::input(format!(
        "the key {text:?} {why}, so it cannot be a line of a file of keys: export to Arrow or safetensors"
    )))
}
