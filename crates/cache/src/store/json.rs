//! Small derived files next to the stores.

use std::path::Path;

use crate::identity::names;
use tensorcask::{Error, Result};

/// Replaces a small file atomically. Its content is derived: readers work without it.
pub fn write_json(path: &Path, content: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(content).map_err(|error| Error::invalid(error.to_string()))?;
    let part = names::part(path, uuid::Uuid::new_v4());
    let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path));
    written.map_err(|error| {
        let _nothing_left_behind = std::fs::remove_file(&part);
        Error::io("write", path, error)
    })
}

/// The content of such a file; `None` if it is missing or damaged.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
