//! Opening the store that a command names.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tensorcask::{Lane, Options, Reader, Store};

use crate::failure::Failure;
use crate::output::Output;

/// The default limit of a value in bytes, the same as the engine's.
const MOST_VALUE_BYTES: usize = 1 << 30;

/// Arguments of commands that read a store.
#[derive(Debug, clap::Args)]
pub(crate) struct ReadArguments {
    /// The store's folder.
    #[arg(value_hint = clap::ValueHint::DirPath)]
    pub store: PathBuf,
    /// Refuses to read values that are larger than this many bytes after decompression (default: 1 GiB).
    #[arg(long, value_name = "N")]
    max_value_bytes: Option<usize>,
}

/// Arguments of commands that write to a store.
#[derive(Debug, clap::Args)]
pub(crate) struct WriteArguments {
    /// The lane to write to: a number, or auto for the first lane without a writer.
    #[arg(long, value_name = "auto|N", default_value = "0", value_parser = parse_lane)]
    lane: Lane,
    /// Allows writing on network file systems, where locks and memory maps may be unreliable.
    #[arg(long)]
    allow_network: bool,
    /// Refuses values that are larger than this many bytes (default: 1 GiB).
    #[arg(long, value_name = "N")]
    max_value_bytes: Option<usize>,
    /// Makes every new file of the store readable and writable for the group of its folder, regardless of the umask.
    /// Without this option, new files are shared if the group may write the folder.
    #[arg(long)]
    group_writable: bool,
}

impl ReadArguments {
    /// Reads `store` with the limit that `write` has.
    pub(crate) fn of(store: &Path, write: &WriteArguments) -> Self {
        Self { store: store.to_path_buf(), max_value_bytes: write.max_value_bytes }
    }
}

impl WriteArguments {
    /// The largest allowed value in bytes.
    pub(crate) fn most_value_bytes(&self) -> usize {
        self.max_value_bytes.unwrap_or(MOST_VALUE_BYTES)
    }
}

fn parse_lane(text: &str) -> Result<Lane, String> {
    match text {
        "auto" => Ok(Lane::Auto),
        number => number.parse().map(Lane::Number).map_err(|_| "expected auto, or a number from 0 to 65535".into()),
    }
}

/// Splits a store's folder into cache dir and module id.
pub(crate) fn split(store: &Path) -> Result<(PathBuf, String), Failure> {
    // `.` and `..` have no file name: resolve them.
    let resolved = if store.file_name().is_none() { store.canonicalize().ok() } else { None };
    let store = resolved.as_deref().unwrap_or(store);
    let module = store.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Failure::input(format!("{} does not name a store: give its folder, <cache dir>/<module id>", store.display()))
    })?;
    let parent = store.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent.to_path_buf(), module.to_owned()))
}

/// Checks that `store` is a valid name of a store.
pub(crate) fn check_name(store: &Path) -> Result<(), Failure> {
    split(store).map(|_| ())
}

/// Opens a store for reading, and warns if files are left out.
pub(crate) fn reader(arguments: &ReadArguments, output: &Output) -> Result<Reader, Failure> {
    let reader = open(arguments)?;
    let left_out = left_out(&reader);
    if left_out > 0 {
        output.warn(&format!(
            "{left_out} file(s) of {} are left out, so rows may be missing: `tensorcask verify` lists them with the \
             reasons",
            arguments.store.display()
        ));
    }
    Ok(reader)
}

/// The number of files that may hold rows of the store but are missing or not fully readable.
pub(crate) fn left_out(reader: &Reader) -> u64 {
    let report = reader.open_report();
    let files = report.quarantined.iter().filter(|file| file.rows_lost != Some(0)).count() as u64;
    files + report.missing.iter().map(|missing| missing.segments).sum::<u64>()
}

/// Opens a store for reading without the warning, for a command that itself reports files that are left out.
pub(crate) fn open(arguments: &ReadArguments) -> Result<Reader, Failure> {
    let store = &arguments.store;
    let (cache_dir, module) = split(store)?;
    check_folder(store)?;
    let mut options = Options::new();
    if let Some(most) = arguments.max_value_bytes {
        options = options.max_value_bytes(most);
    }
    options.open_reader(cache_dir, &module).map_err(|error| Failure::opening(&error))
}

/// Opens a store for writing, with `options` and those in `arguments`; creates it if it does not exist.
pub(crate) fn writer(store: &Path, arguments: &WriteArguments, options: Options) -> Result<Store, Failure> {
    let (cache_dir, module) = split(store)?;
    let mut options =
        options.lane(arguments.lane).allow_network(arguments.allow_network).group_writable(arguments.group_writable);
    if let Some(most) = arguments.max_value_bytes {
        options = options.max_value_bytes(most);
    }
    options.open(cache_dir, &module).map_err(|error| Failure::opening(&error))
}

/// Opens an existing store for writing, in the first free lane. Closing it compacts nothing.
pub(crate) fn any_lane(store: &Path) -> Result<Store, Failure> {
    let (cache_dir, module) = split(store)?;
    check_folder(store)?;
    let options = Options::new().lane(Lane::Auto).compaction_live_share(0.0);
    options.open(cache_dir, &module).map_err(|error| Failure::opening(&error))
}

/// Checks that a store exists at `store` or can be created there.
pub(crate) fn check_place(store: &Path) -> Result<(), Failure> {
    match std::fs::metadata(store) {
        Ok(found) if !found.is_dir() => Err(Failure::input(format!(
            "{} is not a folder: expected a store, <cache dir>/<module id>, or the name of a new one",
            store.display()
        ))),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::io(store, &error)),
        _ => Ok(()),
    }
}

/// Checks that `store` is the folder of a store, so that a wrong path is not reported as a failure of a store.
fn check_folder(store: &Path) -> Result<(), Failure> {
    let refuse = |what: &str| Err(Failure::input(format!("{} {what}", store.display())));
    match std::fs::metadata(store) {
        Err(error) if error.kind() == ErrorKind::NotFound => return refuse("does not exist: expected a store"),
        Err(error) => return Err(Failure::io(store, &error)),
        Ok(found) if !found.is_dir() => return refuse("is not a folder: expected a store, <cache dir>/<module id>"),
        Ok(_) => {}
    }
    let segments = store.join("segments");
    match std::fs::metadata(&segments) {
        Ok(found) if found.is_dir() => Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::io(&segments, &error)),
        _ => refuse("is not a store, since it has no folder `segments`: give the folder <cache dir>/<module id>"),
    }
}
