//! `.npz` files: zip archives of `.npy` files.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use tensorcask::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::input::{Format, InputFile, looks_like};
use super::key_array::KeyArray;
use super::npy::{Header, numbers, read_header};
use super::source::Arrays;
use super::table::Wanted;
use crate::failure::Failure;

/// An array in the archive.
struct Member {
    name: String,
    file: Arc<InputFile>,
    header: Header,
}

/// Opens the arrays of the archive in `file`.
pub(crate) fn open(file: &Arc<InputFile>, wanted: Wanted<'_>, dtype: Option<Dtype>) -> Result<Arrays, Failure> {
    let (names, members) = members(file, wanted)?;
    let missing = |option: &str, name: &str| {
        file.refuse(format!("there is no array {name:?} for {option}; there are {}", names.join(", ")))
    };
    let key_name = match wanted.key_column {
        Some(name) if !names.iter().any(|found| found == name) => return Err(missing("--key-column", name)),
        Some(name) => Some(name),
        None => Some("key").filter(|name| names.iter().any(|found| found == name)),
    };
    if let Some(name) = key_name.filter(|_| !wanted.default_key && wanted.key_column.is_none()) {
        return Err(file.refuse(format!(
            "it has an array {name:?} of keys: leave out --keys and --first-key, or rename the array"
        )));
    }
    if let Some(name) = wanted.tensor.filter(|name| !names.iter().any(|found| found == name)) {
        return Err(missing("--tensor", name));
    }
    let (mut arrays, mut keys) = (Vec::new(), None);
    for member in members {
        let Member { name, file, header } = member;
        let in_array = format!(", in the array {name:?}");
        if key_name == Some(name.as_str()) {
            keys = Some(KeyArray::new(&file, header, wanted.key_kind, in_array)?);
        } else if wanted.tensor.is_none_or(|tensor| tensor == name) {
            arrays.push((name, numbers(&file, header, dtype, in_array)?));
        }
    }
    let maps = wanted.tensor.is_none() && arrays.len() > 1;
    if arrays.is_empty() {
        return Err(file.refuse("it has no array of values"));
    }
    Ok(Arrays { path: file.path.clone(), arrays, maps, keys, metadata: Default::default() })
}

/// The names of all arrays, and the arrays that are wanted.
fn members(file: &Arc<InputFile>, wanted: Wanted<'_>) -> Result<(Vec<String>, Vec<Member>), Failure> {
    if !file.start(4)?.starts_with(b"PK") {
        let found = looks_like(&file.start(512)?);
        return Err(file.refuse(format!("it is not a .npz file{found}")));
    }
    let damaged = |error: &dyn std::fmt::Display| file.refuse(format!("it is damaged or truncated: {error}"));
    let mut archive = ZipArchive::new(file.stream()?).map_err(|error| damaged(&error))?;
    let (mut names, mut members) = (Vec::<String>::new(), Vec::new());
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| damaged(&error))?;
        let full = entry.name().map_err(|error| damaged(&error))?.into_owned();
        let Some(name) = full.strip_suffix(".npy").map(str::to_owned) else {
            return Err(file.refuse(format!(
                "it holds {full:?}, which is not an array: a .npz file may hold only .npy files{}",
                if full.ends_with(".pkl") { " (save PyTorch tensors as .safetensors)" } else { "" }
            )));
        };
        if names.contains(&name) {
            return Err(file.refuse(format!("it has two arrays called {name:?}")));
        }
        names.push(name.clone());
        let key = wanted.key_column.unwrap_or("key") == name;
        if wanted.tensor.is_some_and(|tensor| tensor != name) && !key {
            continue;
        }
        let in_array = format!(", in the array {name:?}");
        let stored = entry.compression() == CompressionMethod::Stored;
        let (own, start, len_bytes) = match entry.data_start().filter(|_| stored && !entry.encrypted()) {
            Some(start) => {
                // Reading to the end compares the checksum.
                std::io::copy(&mut entry, &mut std::io::sink()).map_err(|error| damaged(&error))?;
                (Arc::clone(file), start, entry.size())
            }
            None => {
                let (unpacked, len_bytes) = unpack(&mut entry, file, &name)?;
                (Arc::new(InputFile::unnamed(&file.path, unpacked, len_bytes)), 0, len_bytes)
            }
        };
        let header = read_header(&own, Format::Npz, start, len_bytes, &in_array)?;
        members.push(Member { name, file: own, header });
    }
    Ok((names, members))
}

/// Decompresses an array into an unlinked file in the system's temporary folder.
fn unpack(entry: &mut impl Read, file: &InputFile, name: &str) -> Result<(File, u64), Failure> {
    let folder = std::env::temp_dir();
    let path = folder.join(format!("tensorcask-{}", uuid::Uuid::new_v4()));
    let fail = |error: &std::io::Error| Failure::io(Path::new(&path), error);
    let mut unpacked =
        File::options().read(true).write(true).create_new(true).open(&path).map_err(|error| fail(&error))?;
    std::fs::remove_file(&path).map_err(|error| fail(&error))?;
    let len_bytes = std::io::copy(entry, &mut unpacked).map_err(|error| match error.kind() {
        std::io::ErrorKind::StorageFull => fail(&error),
        _ => file.refuse(format!("the array {name:?} is damaged: {error}")),
    })?;
    unpacked.seek(SeekFrom::Start(0)).map_err(|error| fail(&error))?;
    Ok((unpacked, len_bytes))
}
