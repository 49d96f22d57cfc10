//! `tensorcask identities`

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tensorcask::Options;

use crate::output::{Failure, Output, bytes};

/// Arguments of `identities`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folder of a module of the torch layer: <cache dir>/<module id>.
    folder: PathBuf,
}

/// Lists the weights, versions and configurations of a module whose outputs are kept, the last used one first.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let folder = &arguments.folder;
    let entries = std::fs::read_dir(folder).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::input(format!("{} is not there", folder.display())),
        _ => Failure::io(folder, &error),
    })?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| tensorcask::Error::io("list", folder, error))?;
        let id = entry.file_name().to_string_lossy().into_owned();
        let is_id = id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
        if is_id && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(look(id, &entry.path()));
        }
    }
    found.sort_by(|a, b| b.last_used_s.cmp(&a.last_used_s).then_with(|| a.id.cmp(&b.id)));
    if found.is_empty() {
        return Err(Failure::input(format!(
            "{} has no identities of a wrapped module: give the folder <cache dir>/<module id>",
            folder.display()
        )));
    }
    found.iter().try_for_each(|identity| output.line(|| identity.human(), || identity.json()))
}

struct Identity {
    id: String,
    len_bytes: u64,
    rows: Option<u64>,
    last_used_s: Option<u64>,
    record: Value,
}

fn look(id: String, folder: &Path) -> Identity {
    let path = folder.join("identity.json");
    let modified = std::fs::metadata(&path).and_then(|file| file.modified()).ok();
    let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).ok();
    let record = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Value::Null);
    let stores = ["str", "u64", "bytes"].into_iter().filter(|name| folder.join(name).is_dir());
    let rows = stores.map(|name| Options::new().open_reader(folder, name).and_then(|reader| reader.len()).ok()).sum();
    Identity { id, len_bytes: len_bytes(folder), rows, last_used_s: modified.and_then(since), record }
}

fn len_bytes(folder: &Path) -> u64 {
    let Ok(list) = std::fs::read_dir(folder) else { return 0 };
    let len = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => len_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    list.flatten().map(len).sum()
}

impl Identity {
    fn human(&self) -> String {
        let text = |name: &str| self.record.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let named = ["version", "instance", "cache_dtype", "structure"].into_iter();
        let parts = named.filter_map(|name| text(name).map(|text| format!(", {name} {text:?}")));
        let arguments = self.record.get("arguments").filter(|map| map.as_object().is_some_and(|map| !map.is_empty()));
        let arguments = arguments.map(|map| format!(", arguments {map}")).unwrap_or_default();
        let weights = self.record.get("weights").and_then(Value::as_object).map_or(0, serde_json::Map::len);
        let rows = self.rows.map_or("rows unknown".to_owned(), |rows| format!("{rows} rows"));
        let parts = parts.collect::<String>();
        format!("{}  {rows}, {}{parts}{arguments}, {weights} weights", self.id, bytes(self.len_bytes))
    }

    fn json(&self) -> Value {
        json!({
            "id": self.id,
            "rows": self.rows,
            "bytes": self.len_bytes,
            "last_used_s": self.last_used_s,
            "identity": self.record,
        })
    }
}
