//! Output files that replace their target atomically.
//!
//! A file is written without a name (`O_TMPFILE`) or under a temporary name in the same folder, synced, and renamed. If
//! anything fails before the rename, an existing file stays as it was and no other file is left.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::failure::Failure;

/// The most symbolic links that are followed to the target.
const MOST_LINKS: usize = 40;

/// Where the data is until the file is finished.
#[derive(Debug)]
enum Place {
    /// In a file without a name, so that even a killed process leaves nothing.
    Nameless,
    /// In a file of this temporary name.
    Temporary(PathBuf),
    /// In the target itself, which is a pipe or a device.
    Target,
}

/// A file that is being written.
#[derive(Debug)]
pub(crate) struct NewFile {
    named: PathBuf,
    target: PathBuf,
    place: Place,
    out: BufWriter<File>,
    replaces: Option<fs::Metadata>,
    /// Permission bits for the folder's group, added to those that the umask leaves.
    group_rights: u32,
}

impl NewFile {
    /// Starts a new file that will be at `path`.
    ///
    /// # Errors
    /// The folder cannot be written to, or `path` is a folder.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let io = |error: std::io::Error| Failure::io(path, &error);
        let replaces = match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                return Err(Failure::input(format!("{} is a folder: name a file", path.display())));
            }
            Ok(found) => Some(found),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(io(error)),
        };
        let is_kept = replaces.as_ref().is_none_or(fs::Metadata::is_file);
        let target = if is_kept { behind_links(path) } else { path.to_path_buf() };
        let (file, place) = if !is_kept {
            (OpenOptions::new().write(true).open(path).map_err(io)?, Place::Target)
        } else if let Some(file) = nameless(folder_of(&target)) {
            (file, Place::Nameless)
        } else {
            let (file, name) = temporary(folder_of(&target)).map_err(io)?;
            (file, Place::Temporary(name))
        };
        Ok(Self { named: path.to_path_buf(), target, place, out: BufWriter::new(file), replaces, group_rights: 0 })
    }

    /// Makes the file readable and writable for the group if the group may write the folder, as the engine does for the
    /// store's files.
    pub(crate) fn share_with_group(&mut self) -> Result<(), Failure> {
        let io = |error: std::io::Error| self.failure(&error);
        let folder = fs::metadata(folder_of(&self.target)).map_err(io)?;
        let file = self.out.get_ref().metadata().map_err(io)?;
        // In a folder with the sticky bit, users must not change the files of others.
        if folder.mode() & 0o1020 == 0o020 && folder.gid() == file.gid() {
            self.group_rights = 0o060;
        }
        Ok(())
    }

    /// Refuses a pipe or a device, for formats whose header is written last.
    pub(crate) fn check_seekable(&mut self) -> Result<(), Failure> {
        match self.out.get_mut().stream_position() {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::input(format!(
                "{} is a pipe, which cannot be written in this format: name a file, or write a stream with --to arrows",
                self.named.display()
            ))),
        }
    }

    /// Whether an existing file will be replaced.
    pub(crate) fn replaces(&self) -> bool {
        self.replaces.as_ref().is_some_and(fs::Metadata::is_file)
    }

    /// The failure of an operation on the file.
    pub(crate) fn failure(&self, error: &std::io::Error) -> Failure {
        Failure::io(&self.named, error)
    }

    /// Writes all `bytes`.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| self.failure(&error))
    }

    /// Syncs the file and gives it its name.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        self.publish().map_err(|error| self.failure(&error))
    }

    fn publish(&mut self) -> std::io::Result<()> {
        self.out.flush()?;
        if matches!(self.place, Place::Target) {
            return Ok(());
        }
        let file = self.out.get_ref();
        if let Some(earlier) = &self.replaces {
            file.set_permissions(earlier.permissions())?;
        }
        if self.group_rights != 0 {
            let mode = file.metadata()?.mode();
            file.set_permissions(fs::Permissions::from_mode(mode | self.group_rights))?;
        }
        file.sync_all()?;
        if matches!(self.place, Place::Nameless) {
            self.place = Place::Temporary(link(file, folder_of(&self.target))?);
        }
        if let Place::Temporary(name) = &self.place {
            fs::rename(name, &self.target)?;
            self.place = Place::Target;
        }
        File::open(folder_of(&self.target))?.sync_all()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Place::Temporary(name) = &self.place {
            // The command has already failed; that failure is the one to report.
            let _ = fs::remove_file(name);
        }
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

impl Seek for NewFile {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.out.seek(to)
    }
}

/// Whether both paths lead to the same file.
pub(crate) fn is_same_place(one: &Path, other: &Path) -> bool {
    one == other || full(one).is_some_and(|one| full(other) == Some(one))
}

/// Refuses a `path` inside the folder of the store that is read: it could overwrite one of the store's files.
pub(crate) fn check_outside(path: &Path, store: &Path) -> Result<(), Failure> {
    let inside = store.canonicalize().ok().zip(full(path)).is_some_and(|(store, path)| path.starts_with(store));
    if !inside {
        return Ok(());
    }
    Err(Failure::input(format!(
        "{} is inside the folder of the store {}, which only the store may write to: choose another folder",
        path.display(),
        store.display()
    )))
}

/// The absolute path with links resolved; `None` if its folder does not exist.
fn full(path: &Path) -> Option<PathBuf> {
    let target = behind_links(path);
    Some(folder_of(&target).canonicalize().ok()?.join(target.file_name()?))
}

/// Whether `path` is the pipe or terminal of standard output: other output there would be mixed with the data.
pub(crate) fn is_standard_output(path: &Path) -> bool {
    let (Ok(found), Ok(output)) = (fs::metadata(path), rustix::fs::fstat(std::io::stdout())) else { return false };
    !found.is_file() && (found.dev(), found.ino()) == (output.st_dev, output.st_ino)
}

/// Follows symbolic links: the link stays, and the file that it leads to is replaced.
fn behind_links(path: &Path) -> PathBuf {
    let mut target = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&target) {
            Ok(next) => target = folder_of(&target).join(next),
            Err(_) => break,
        }
    }
    target
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A temporary name in `folder`, unique among running processes and within this one.
fn free_name(folder: &Path) -> PathBuf {
    static MADE: AtomicU32 = AtomicU32::new(0);
    folder.join(format!(".tensorcask-{}-{}.tmp", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed)))
}

fn temporary(folder: &Path) -> std::io::Result<(File, PathBuf)> {
    loop {
        let name = free_name(folder);
        match OpenOptions::new().read(true).write(true).create_new(true).open(&name) {
            // Left by a killed process of the same id.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(file) => return Ok((file, name)),
        }
    }
}

/// A file in `folder` without a name, if the system supports that and can link it later.
#[cfg(target_os = "linux")]
fn nameless(folder: &Path) -> Option<File> {
    use rustix::fs::{Mode, OFlags};
    if !Path::new("/proc/self/fd").is_dir() {
        return None;
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::from_raw_mode(0o666)).ok().map(File::from)
}

#[cfg(not(target_os = "linux"))]
fn nameless(_folder: &Path) -> Option<File> {
    None
}

#[cfg(target_os = "linux")]
fn link(file: &File, folder: &Path) -> std::io::Result<PathBuf> {
    use std::os::fd::AsRawFd;

    use rustix::fs::{AtFlags, CWD};
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    loop {
        let name = free_name(folder);
        match rustix::fs::linkat(CWD, open.as_str(), CWD, &name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => return Ok(name),
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn link(_file: &File, _folder: &Path) -> std::io::Result<PathBuf> {
    Err(ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_appears_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut file = NewFile::create(&path).unwrap();
        file.put(b"new").unwrap();
        assert!(!path.exists() && !file.replaces());
        file.finish().unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(folder.path())), (b"new".to_vec(), vec!["file".to_owned()]));

        let mut abandoned = NewFile::create(&path).unwrap();
        abandoned.put(&[1; 100_000]).unwrap();
        assert!(abandoned.replaces());
        drop(abandoned);
        assert_eq!((fs::read(&path).unwrap(), names(folder.path()).len()), (b"new".to_vec(), 1));
    }

    #[test]
    fn temporary_files_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, name) = temporary(folder.path()).unwrap();
        assert_eq!(names(folder.path()).len(), 1);
        let target = folder.path().join("file");
        let named = NewFile {
            named: target.clone(),
            target,
            place: Place::Temporary(name),
            out: BufWriter::new(file),
            replaces: None,
            group_rights: 0,
        };
        drop(named);
        assert!(names(folder.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn links_and_permissions_are_kept() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let (real, linked) = (folder.path().join("real"), folder.path().join("linked"));
        fs::write(&real, b"old").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("real", &linked).unwrap();
        let mut file = NewFile::create(&linked).unwrap();
        file.put(b"new").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&linked).unwrap().is_symlink());
    }

    #[test]
    fn targets_that_cannot_be_written_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let code = |path: &Path| NewFile::create(path).unwrap_err().code();
        assert_eq!(code(folder.path()), 3);
        assert_eq!(code(&folder.path().join("absent/file")), 3);
        fs::write(folder.path().join("plain"), b"").unwrap();
        assert_eq!(code(&folder.path().join("plain/file")), 3);
    }
}
