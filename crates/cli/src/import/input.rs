//! Input files: listing them, recognising their formats, and reading bytes at offsets.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tensorcask::Bytes;
use tensorcask::storage::{DiskStorage, ReadFile, Storage};

use crate::failure::Failure;

/// Reads up to this length are copies; longer ones are slices of the memory map. If a mapped file is truncated, SIGBUS
/// ends the process, so the map is used only for values that are too large to copy.
const MOST_COPIED_BYTES: usize = 8 << 20;

/// A kind of input file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One numpy array.
    Npy,
    /// Several numpy arrays in a zip archive.
    Npz,
    /// Tensors by name.
    Safetensors,
    /// An Arrow IPC file or stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

impl Format {
    /// The format by the extension of `path`, ignoring case.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "npy" => Self::Npy,
            "npz" => Self::Npz,
            "safetensors" => Self::Safetensors,
            "arrow" | "arrows" | "ipc" | "feather" => Self::Arrow,
            "parquet" | "pq" => Self::Parquet,
            _ => return None,
        })
    }

    /// The name of the format.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Npy => ".npy",
            Self::Npz => ".npz",
            Self::Safetensors => ".safetensors",
            Self::Arrow => "Arrow",
            Self::Parquet => "Parquet",
        }
    }
}

/// The failure to read `path`: a file that cannot be opened is wrong input, a later IO error is a failure of the disk.
pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => Failure::input(format!("{}: there is no such file", path.display())),
        ErrorKind::PermissionDenied => {
            Failure::input(format!("{}: this user does not have permission to read it", path.display()))
        }
        ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidInput | ErrorKind::InvalidFilename => {
            Failure::input(format!("{}: {error}", path.display()))
        }
        ErrorKind::UnexpectedEof => Failure::input(format!("{}: it became shorter during the import", path.display())),
        _ => Failure::io(path, error),
    }
}

/// An open input file.
#[derive(Debug)]
pub(crate) struct InputFile {
    /// Its path as given.
    pub path: PathBuf,
    /// Its length when it was opened.
    pub len_bytes: u64,
    file: File,
    /// Whether the file can be opened again by its path.
    named: bool,
    map: OnceLock<Arc<dyn ReadFile>>,
}

impl InputFile {
    /// Opens a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let metadata = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        // A pipe would block and cannot be read at offsets.
        if !metadata.is_file() {
            return Err(Failure::input(format!(
                "{}: it is not a regular file: save the data to a file first",
                path.display()
            )));
        }
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        Ok(Self { path: path.to_path_buf(), len_bytes: metadata.len(), file, named: true, map: OnceLock::new() })
    }

    /// An unlinked file, called `path` in messages.
    pub(crate) fn unnamed(path: &Path, file: File, len_bytes: u64) -> Self {
        Self { path: path.to_path_buf(), len_bytes, file, named: false, map: OnceLock::new() }
    }

    /// The failure of a file that cannot be imported.
    pub(crate) fn refuse(&self, what: impl std::fmt::Display) -> Failure {
        Failure::input(format!("{}: {what}", self.path.display()))
    }

    /// Opens a second handle on the file, positioned at its start.
    pub(crate) fn stream(&self) -> Result<File, Failure> {
        let fail = |error: std::io::Error| unreadable(&self.path, &error);
        let mut file = File::open(&self.path).map_err(fail)?;
        file.seek(SeekFrom::Start(0)).map_err(fail)?;
        Ok(file)
    }

    /// Fills `bytes` from `offset` on.
    pub(crate) fn read_into(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        self.file.read_exact_at(bytes, offset).map_err(|error| unreadable(&self.path, &error))
    }

    /// A copy of `len_bytes` bytes from `offset` on.
    pub(crate) fn copy(&self, offset: u64, len_bytes: usize) -> Result<Vec<u8>, Failure> {
        // A header may claim more bytes than there are.
        if offset.checked_add(len_bytes as u64).is_none_or(|end| end > self.len_bytes) {
            return Err(self.refuse(format!(
                "expected {len_bytes} bytes at byte {offset}, but the file ends at byte {}",
                self.len_bytes
            )));
        }
        let mut bytes = vec![0; len_bytes];
        self.read_into(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// `len_bytes` bytes from `offset` on: a copy, or a slice of the memory map if it is long.
    pub(crate) fn bytes(&self, offset: u64, len_bytes: usize) -> Result<Bytes, Failure> {
        if len_bytes <= MOST_COPIED_BYTES || !self.named {
            return self.copy(offset, len_bytes).map(Bytes::from);
        }
        self.read_ahead(offset, len_bytes)?;
        Ok(self.map()?.bytes(offset, len_bytes)?)
    }

    /// The whole file as a memory map.
    pub(crate) fn mapped(&self) -> Result<Bytes, Failure> {
        let len_bytes = usize::try_from(self.len_bytes).map_err(|_| self.refuse("it is too large for this machine"))?;
        Ok(self.map()?.bytes(0, len_bytes)?)
    }

    fn map(&self) -> Result<&Arc<dyn ReadFile>, Failure> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        let name = Path::new(self.path.file_name().unwrap_or_default());
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let opened = DiskStorage::new(folder).open(name, 0)?;
        Ok(self.map.get_or_init(|| opened))
    }

    /// Reads a range into the page cache. The map is advised MADV_RANDOM, so faults would read it page by page.
    pub(crate) fn read_ahead(&self, offset: u64, len_bytes: usize) -> Result<(), Failure> {
        let mut block = vec![0; len_bytes.min(1 << 20)];
        let mut at = 0;
        while at < len_bytes {
            let len = block.len().min(len_bytes - at);
            self.read_into(offset + at as u64, block.get_mut(..len).unwrap_or_default())?;
            at += len;
        }
        Ok(())
    }

    /// The first bytes, at most `most`.
    pub(crate) fn start(&self, most: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::with_capacity(most);
        self.stream()?.take(most as u64).read_to_end(&mut bytes).map_err(|error| unreadable(&self.path, &error))?;
        Ok(bytes)
    }

    /// The failure of a file that is not of `format`; says what it is, if its first bytes are known.
    pub(crate) fn not_a(&self, format: Format) -> Failure {
        let start = self.start(512).unwrap_or_default();
        let article = if format == Format::Arrow { "an" } else { "a" };
        self.refuse(format!("it is not {article} {} file{}", format.name(), looks_like(&start)))
    }
}

/// A text for a message, truncated if it is long.
pub(crate) fn shown(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_owned() } else { text.chars().take(80).chain(['…']).collect() }
}

/// The kind of file that starts with these bytes, as the end of a sentence; empty if unknown.
pub(crate) fn looks_like(start: &[u8]) -> String {
    let text = std::str::from_utf8(start).unwrap_or_default().trim_start().to_ascii_lowercase();
    let found = if start.is_empty() {
        "is empty"
    } else if start.starts_with(b"version https://git-lfs") {
        "is a Git LFS pointer: fetch the file itself with `git lfs pull`"
    } else if text.starts_with("<!doctype html") || text.starts_with("<html") {
        "is an HTML page, likely the error page of a failed download: download it again"
    } else if text.starts_with("<?xml") {
        "is an XML document, likely the error message of a failed download: download it again"
    } else if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        "is a zip archive: if numpy.savez wrote it, name it .npz; if it is a PyTorch file, save it as .safetensors"
    } else if start.starts_with(b"\x1f\x8b") || start.starts_with(b"\x28\xb5\x2f\xfd") || start.starts_with(b"BZh") {
        "is compressed: unpack it first"
    } else if start.starts_with(b"\x93NUMPY") {
        "is a numpy array: name it .npy"
    } else if start.starts_with(b"ARROW1") {
        "is an Arrow file: name it .arrow"
    } else if start.starts_with(b"PAR1") {
        "is a Parquet file: name it .parquet"
    } else if start.starts_with(b"\x89HDF") {
        "is an HDF5 file: save its datasets as .npy or .npz"
    } else if start.starts_with(b"\x80") && start.get(1).is_some_and(|version| (2..=5).contains(version)) {
        "is a Python pickle, which can run code: save it as .npy, .npz or .safetensors"
    } else if start.iter().all(|byte| *byte == 0) {
        "begins with zeros, as after an interrupted copy or download: copy it again"
    } else {
        return String::new();
    };
    format!(": it {found}")
}

/// The input files, with folders replaced by the files in them.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    /// The files, in order.
    pub files: Vec<PathBuf>,
    /// The format of all files.
    pub format: Option<Format>,
    /// Entries of the folders that are not input files.
    pub left_out: Vec<PathBuf>,
}

impl Inputs {
    /// Replaces folders by their files, sorted by name, without hidden files and subfolders.
    pub(crate) fn list(given: &[PathBuf]) -> Result<Self, Failure> {
        let mut inputs = Self::default();
        for path in given {
            if path.is_dir() {
                inputs.list_folder(path)?;
            } else {
                inputs.add(path.clone())?;
            }
        }
        Ok(inputs)
    }

    fn list_folder(&mut self, folder: &Path) -> Result<(), Failure> {
        if folder.join("store.json").is_file() {
            return Err(Failure::input(format!(
                "{}: it is a store: export its values with `tensorcask export` and import that file",
                folder.display()
            )));
        }
        let fail = |error: std::io::Error| unreadable(folder, &error);
        let mut entries = std::fs::read_dir(folder).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        let before = self.files.len();
        for path in entries.into_iter().map(|entry| entry.path()) {
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if path.is_file() && Format::of(&path).is_some() && !hidden {
                self.add(path)?;
            } else {
                self.left_out.push(path);
            }
        }
        if self.files.len() == before {
            return Err(Failure::input(format!(
                "{}: this folder has no .npy, .npz, .safetensors, Arrow or Parquet file",
                folder.display()
            )));
        }
        Ok(())
    }

    fn add(&mut self, path: PathBuf) -> Result<(), Failure> {
        let Some(format) = Format::of(&path) else {
            // A file that does not exist is reported as such, not for its extension.
            std::fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
            return Err(Failure::input(format!(
                "{}: its extension is not that of a known format: give .npy, .npz, .safetensors, .arrow, .ipc, \
                 .feather or .parquet files, or a folder of them",
                path.display()
            )));
        };
        let first = *self.format.get_or_insert(format);
        if first != format {
            return Err(Failure::input(format!(
                "{}: it is of the format {}, but the files before it are of the format {}: import one format at a time",
                path.display(),
                format.name(),
                first.name()
            )));
        }
        self.files.push(path);
        Ok(())
    }
}
