//! Metadata of a store: strings by name, taken from imported files and kept in `metadata.json` in the store's folder.
//!
//! The engine does not read this file. It is replaced atomically.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use crate::failure::Failure;
use crate::new_file::NewFile;

const NAME: &str = "metadata.json";

/// Strings by name.
pub(crate) type Metadata = BTreeMap<String, String>;

/// The metadata of the store in `folder`; empty if it has none.
pub(crate) fn load(folder: &Path) -> Result<Metadata, Failure> {
    let path = folder.join(NAME);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Metadata::new()),
        Err(error) => return Err(Failure::io(&path, &error)),
    };
    serde_json::from_slice(&text).map_err(|error| {
        Failure::input(format!(
            "{}: it is not a JSON object of strings ({error}): repair it or move it away",
            path.display()
        ))
    })
}

/// Replaces the metadata of the store in `folder`.
pub(crate) fn save(folder: &Path, metadata: &Metadata) -> Result<(), Failure> {
    let path = folder.join(NAME);
    let text = serde_json::to_vec_pretty(metadata).map_err(|error| Failure::io(&path, &error.into()))?;
    let mut file = NewFile::create(&path)?;
    file.share_with_group()?;
    file.put(&text)?;
    file.finish()
}
