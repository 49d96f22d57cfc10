//! The error type of the crate.
//!
//! Every variant says what went wrong, where, what was expected and found, and what to do about it. Nothing is retried
//! silently, and no error is dropped.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong.
///
/// Errors are cheap to clone: a failure of the background writer is reported to every later caller.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// An operation on a file or folder failed.
    Io {
        /// What was attempted, as a verb phrase (`"append to"`, `"rename"`).
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: Arc<std::io::Error>,
    },
    /// Bytes on disk are damaged.
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Byte offset in the file at which the damaged part starts.
        offset: u64,
        /// Which part, what was expected, and what was found.
        what: String,
    },
    /// One item of a batch failed; [`Error::cause`] tells why.
    Item(Box<ItemError>),
    /// Some rows of a batch are damaged; all other rows of the call were served.
    DamagedRows {
        /// The damaged rows, in order of position.
        rows: Vec<ItemError>,
    },
    /// A sealed segment is missing.
    MissingSegment {
        /// Where it should be.
        path: PathBuf,
        /// What is missing, how that is known, and what to do.
        what: String,
    },
    /// The file was written by a newer version of the format than this library knows.
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The newest version this library reads.
        supported: u32,
    },
    /// An argument cannot be used.
    Invalid {
        /// What is wrong with it, what was expected, and what to do.
        what: String,
    },
    /// A key is of another kind than the store's keys.
    KeyKind {
        /// The kind that the store's first write fixed.
        expected: &'static str,
        /// The kind that was passed.
        found: &'static str,
    },
    /// Stores that are to be merged have different values for the same keys. Nothing was merged.
    Conflict {
        /// The number of such keys.
        keys: u64,
        /// The first of them, as messages show it.
        first: String,
    },
    /// The stored value does not have the dtype or shape of the caller's buffer.
    Mismatch {
        /// What the caller's buffer holds.
        expected: String,
        /// What is stored.
        found: String,
    },
    /// Something exceeds a limit of the format or of the options.
    TooLarge {
        /// What it is.
        what: String,
        /// Its size.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// Another writer holds the lane.
    LaneBusy {
        /// The lane's number.
        lane: u16,
        /// The lock file.
        path: PathBuf,
    },
    /// A cap of the store is reached, and nothing could be evicted. Nothing was put; reads and deletes work.
    Full {
        /// What the cap limits: `"bytes on disk"` or `"rows"`.
        what: &'static str,
        /// How much there is, with what waits to be written.
        used: u64,
        /// How much the call would add.
        wanted: u64,
        /// The cap.
        limit: u64,
        /// Why nothing was evicted, and what to do.
        why: String,
    },
    /// The store, or this handle of it, cannot write.
    ReadOnly {
        /// Why not, and what to do.
        why: String,
    },
    /// The writer stopped after a failure; reads still work.
    Poisoned {
        /// The failure.
        cause: Arc<Error>,
    },
    /// A computation that the caller passed failed.
    Compute {
        /// Its error.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A computation asked for its own result.
    Recursion {
        /// What it asked for, and what to do.
        what: String,
    },
    /// The store was opened by the parent of this forked process.
    Forked,
    /// The store is closed.
    Closed,
    /// An impossible state: a bug of this library.
    Internal {
        /// What was found.
        what: String,
    },
}

/// What is wrong with one item of a batch.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ItemError {
    /// Position in the caller's batch.
    pub position: usize,
    /// The key, shortened, as messages show it: a string in quotation marks, bytes in hexadecimal.
    pub key: String,
    /// What is wrong.
    pub error: Error,
}

impl fmt::Display for ItemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} at position {}: {}", self.key, self.position, self.error)
    }
}

impl Error {
    /// The underlying error: that of the item for an [`Error::Item`], otherwise the error itself.
    #[must_use]
    pub fn cause(&self) -> &Self {
        match self {
            Self::Item(item) => item.error.cause(),
            other => other,
        }
    }

    /// As [`Error::cause`], for a call with one key, which its caller knows.
    pub(crate) fn into_cause(self) -> Self {
        match self {
            Self::Item(item) => item.error,
            other => other,
        }
    }

    /// As the error of a call with the keys at `positions` of a batch: the error of the batch, with its positions.
    #[must_use]
    pub fn at_positions(self, positions: &[usize]) -> Self {
        match self {
            Self::Item(mut item) => {
                item.position = positions.get(item.position).copied().unwrap_or(item.position);
                Self::Item(item)
            }
            other => other,
        }
    }

    /// An IO failure while doing `action` to `path`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source: Arc::new(source) }
    }

    /// Damage found in `path` at byte `offset`.
    pub fn corrupt(path: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.into(), offset, what: what.into() }
    }

    /// An unusable argument.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }

    /// The error of a computation that is passed to [`Store::get_or_compute_rows`](crate::Store::get_or_compute_rows).
    pub fn compute(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Compute { source: Arc::from(source.into()) }
    }

    /// An impossible state. Fails an assertion in debug builds.
    #[cold]
    #[track_caller]
    pub(crate) fn internal(what: impl Into<String>) -> Self {
        let what = what.into();
        debug_assert!(false, "{what}");
        Self::Internal { what }
    }

    /// Whether bytes on disk are damaged (rather than missing, refused or unreachable).
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        match self.cause() {
            Self::Corrupt { .. } | Self::DamagedRows { .. } | Self::MissingSegment { .. } => true,
            Self::Poisoned { cause } => cause.is_corrupt(),
            _ => false,
        }
    }

    /// Whether a file or folder does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self.cause(), Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }

    /// Whether this user lacks the permission for what was attempted.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self.cause(), Self::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied)
    }

    /// Whether a read failed because the file was truncated meanwhile: its writer cuts off zeros, and the lane's next
    /// writer cuts off a torn tail.
    pub(crate) fn is_cut(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::UnexpectedEof,
            error => error.is_corrupt(),
        }
    }

    /// Whether another process held a lock for too long.
    pub(crate) fn is_timed_out(&self) -> bool {
        matches!(self.cause(), Self::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut)
    }

    /// Whether the error says that a name expected to be a file is something else.
    pub(crate) fn is_no_file(&self) -> bool {
        use std::io::ErrorKind::{AlreadyExists, InvalidInput, IsADirectory};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), IsADirectory | InvalidInput | AlreadyExists))
    }

    /// The file or folder concerned, if there is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self.cause() {
            Self::Io { path, .. }
            | Self::Corrupt { path, .. }
            | Self::MissingSegment { path, .. }
            | Self::NewerFormat { path, .. }
            | Self::LaneBusy { path, .. } => Some(path),
            Self::Poisoned { cause } => cause.path(),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { action, path, source } => {
                write!(f, "could not {action} {}: {source}", path.display())?;
                match source.kind() {
                    std::io::ErrorKind::StorageFull => {
                        write!(f, "; free space on that file system and open the store again")
                    }
                    std::io::ErrorKind::PermissionDenied if *action == "open" => {
                        write!(f, "; its owner has to let you read it, or share the store: Options::group_writable")
                    }
                    std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                        write!(f, "; make it writable, or open the store with Reader::open")
                    }
                    std::io::ErrorKind::NotADirectory | std::io::ErrorKind::AlreadyExists => {
                        write!(f, "; something else lies at that path: move it away or choose another folder")
                    }
                    _ => Ok(()),
                }
            }
            Self::Corrupt { path, offset, what } => write!(
                f,
                "{} is damaged at byte {offset}: {what}; run `tensorcask verify`, then put the affected rows again",
                path.display()
            ),
            Self::Item(item) => item.fmt(f),
            Self::DamagedRows { rows } => {
                write!(f, "{} row(s) of the batch are damaged", rows.len())?;
                rows.first().map_or(Ok(()), |first| write!(f, "; first: {first}"))
            }
            Self::NewerFormat { path, found, supported } => write!(
                f,
                "{} has format version {found}, but this library reads up to version {supported}: use a newer tensorcask",
                path.display()
            ),
            Self::Invalid { what } | Self::Recursion { what } | Self::MissingSegment { what, .. } => f.write_str(what),
            Self::Compute { source } => write!(f, "the computation failed, and nothing of it was put: {source}"),
            Self::KeyKind { expected, found } => write!(
                f,
                "the store's keys are {expected}, but a {found} key was passed; a store keeps the kind of its first key: \
                 convert the key, or use another module id"
            ),
            Self::Conflict { keys, first } => write!(
                f,
                "{keys} key(s) have differing values in the stores, {first} for example; nothing was merged: merge with \
                 Merge::fail_on_conflict(false) to keep the newest value of each"
            ),
            Self::Mismatch { expected, found } => write!(
                f,
                "the row is {found}, but the buffer expects {expected}; use get_batch for stores of mixed values"
            ),
            Self::TooLarge { what, found, limit } => write!(f, "{what} is {found}, more than the limit of {limit}"),
            Self::LaneBusy { lane, path } => write!(
                f,
                "lane {lane} has a writer already (lock {}); close it, choose another lane, or use Lane::Auto",
                path.display()
            ),
            Self::Full { what, used, wanted, limit, why } => {
                write!(f, "the store is full: {used} {what}, {wanted} more wanted, at most {limit} allowed: {why}")
            }
            Self::ReadOnly { why } => write!(f, "this handle cannot write: {why}"),
            Self::Poisoned { cause } => write!(
                f,
                "the writer stopped after a failure ({cause}); reads still work; rows not flushed before it are lost: open the store again"
            ),
            Self::Forked => f.write_str(
                "the store was opened by the parent of this forked process, whose other threads may hold its locks for ever: \
                 open it again in the child (to write, in a lane of its own: Lane::Auto)",
            ),
            Self::Closed => f.write_str("the store is closed; open it again"),
            Self::Internal { what } => write!(f, "internal error, please report it: {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source.as_ref()),
            Self::Poisoned { cause } => Some(cause.as_ref()),
            Self::Item(item) => Some(&item.error),
            Self::Compute { source } => Some(source.as_ref()),
            _ => None,
        }
    }
}
