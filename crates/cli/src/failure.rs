//! Why commands fail: the table of exit codes, and the library's errors in terms of command line options.

use std::io::ErrorKind;
use std::path::Path;

use tensorcask::Error;

/// The kind of failure. Its number is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The reader closed the pipe. This counts as success.
    Closed = 0,
    /// The key does not exist.
    NoSuchKey = 1,
    /// Damage was found.
    Damage = 2,
    /// The input or the arguments are wrong.
    Input = 3,
    /// The store or the disk failed.
    Disk = 4,
}

impl Kind {
    /// The kind of a library error: the table of exit codes.
    fn of(error: &Error) -> Self {
        match error.cause() {
            Error::Corrupt { .. } | Error::DamagedRows { .. } | Error::MissingSegment { .. } => Self::Damage,
            Error::Invalid { .. }
            | Error::KeyKind { .. }
            | Error::Mismatch { .. }
            | Error::Conflict { .. }
            | Error::TooLarge { .. }
            | Error::NewerFormat { .. } => Self::Input,
            Error::Poisoned { cause } => Self::of(cause),
            // The path is one of the store's own files, not one from the command line.
            _ => Self::Disk,
        }
    }

    /// The kind of an IO error on a file that was named on the command line.
    fn of_named_file(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::AlreadyExists
            | ErrorKind::InvalidFilename
            | ErrorKind::InvalidInput
            | ErrorKind::NotSeekable
            | ErrorKind::InvalidData
            | ErrorKind::UnexpectedEof => Self::Input,
            // Full, read-only, no permission, a device error.
            _ => Self::Disk,
        }
    }
}

/// Why a command ends early.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: Option<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.message.as_deref().unwrap_or("damage was found"))
    }
}

impl Failure {
    /// The key does not exist.
    pub(crate) fn missing(message: String) -> Self {
        Self { kind: Kind::NoSuchKey, message: Some(message) }
    }

    /// Damage was found and has been listed.
    pub(crate) fn damage() -> Self {
        Self { kind: Kind::Damage, message: None }
    }

    /// A file that was named on the command line is damaged.
    pub(crate) fn damaged(message: String) -> Self {
        Self { kind: Kind::Damage, message: Some(message) }
    }

    /// The input or the arguments are wrong.
    pub(crate) fn input(message: String) -> Self {
        Self { kind: Kind::Input, message: Some(message) }
    }

    /// The store or the disk failed.
    pub(crate) fn disk(message: String) -> Self {
        Self { kind: Kind::Disk, message: Some(message) }
    }

    /// An IO error on `what`, a path that was named on the command line.
    pub(crate) fn io(what: &Path, error: &std::io::Error) -> Self {
        Self { kind: Kind::of_named_file(error.kind()), message: Some(format!("{}: {error}", what.display())) }
    }

    /// An error on opening the store that was named on the command line.
    pub(crate) fn opening(error: &Error) -> Self {
        let kind = match error.cause() {
            Error::Io { source, .. } => Kind::of_named_file(source.kind()),
            error => Kind::of(error),
        };
        Self { kind, message: Some(message(error)) }
    }

    /// Writing to standard output failed.
    pub(crate) fn standard_output(error: &std::io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe {
            return Self { kind: Kind::Closed, message: None };
        }
        Self { kind: Kind::Disk, message: Some(format!("standard output: {error}")) }
    }

    /// Appends `more` to the message.
    pub(crate) fn and(self, more: &str) -> Self {
        Self { message: self.message.map(|message| message + more), ..self }
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.kind as u8
    }

    /// Whether the store or the disk failed, or permission is missing.
    pub(crate) fn is_of_disk(&self) -> bool {
        self.kind == Kind::Disk
    }

    /// The message, if there is one.
    pub(crate) fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { kind: Kind::of(&error), message: Some(message(&error)) }
    }
}

/// Names of the library in its messages, and the command line options that replace them.
const WORDS: &[(&str, &str)] = &[
    ("the option max_value_bytes", "--max-value-bytes"),
    ("Options::allow_network(true)", "--allow-network"),
    ("Options::max_value_bytes", "--max-value-bytes"),
    ("Options::group_writable", "--group-writable"),
    ("use Lane::Auto", "give --lane auto"),
    ("Lane::Auto", "--lane auto"),
    ("merge with Merge::fail_on_conflict(false)", "omit --fail-on-conflict"),
    ("use range", "give --from and --to"),
    ("Reader::open", "a command that only reads"),
    ("this handle cannot write", "the store cannot be written to"),
];

/// The message of `error`, with command line options in place of library options, and a hint where one helps.
fn message(error: &Error) -> String {
    let text = match error {
        Error::Io { action, path, source } => {
            let hint = match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    "; free space on that file system and run the command again"
                }
                ErrorKind::PermissionDenied => {
                    "; this user does not have permission (--group-writable shares a store with a group)"
                }
                ErrorKind::FileTooLarge => "; this exceeds the limit of the file system, or of the process (ulimit -f)",
                ErrorKind::ReadOnlyFilesystem => "; choose a folder on a writable file system",
                ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                    "; another file is at that path: move it or choose another folder"
                }
                _ => "",
            };
            format!("could not {action} {}: {source}{hint}", path.display())
        }
        Error::LaneBusy { lane, path } => format!(
            "lane {lane} already has a writer (lock {}): wait for it, or give --lane auto or another lane",
            path.display()
        ),
        Error::TooLarge { what, .. } if what.contains("value in bytes") => {
            format!("{error}: give a larger --max-value-bytes")
        }
        Error::Poisoned { cause } => format!("writing stopped: {}", message(cause)),
        // The position is one in a batch of the command's own.
        Error::Item(item) => return format!("key {}: {}", item.key, message(&item.error)),
        error => error.to_string(),
    };
    in_words(&text)
}

/// Replaces names of the library by command line options.
pub(crate) fn in_words(text: &str) -> String {
    WORDS.iter().fold(text.to_owned(), |text, (library, command)| text.replace(library, command))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    fn io_error(kind: ErrorKind) -> Error {
        Error::io("open", "store/file", io::Error::from(kind))
    }

    /// Every row of the table: an error, its exit code during a command, and its exit code at opening.
    fn table() -> Vec<(Error, u8, u8)> {
        let poisoned = |cause: Error| Error::Poisoned { cause: Arc::new(cause) };
        let invalid = || Error::invalid("it is wrong");
        vec![
            (Error::corrupt("f", 0, "bits"), 2, 2),
            (Error::DamagedRows { rows: Vec::new() }, 2, 2),
            (poisoned(Error::corrupt("f", 0, "bits")), 2, 2),
            (invalid(), 3, 3),
            (poisoned(invalid()), 3, 3),
            (Error::KeyKind { expected: "str", found: "u64" }, 3, 3),
            (Error::Mismatch { expected: "a".into(), found: "b".into() }, 3, 3),
            (Error::TooLarge { what: "a value in bytes".into(), found: 2, limit: 1 }, 3, 3),
            (Error::Conflict { keys: 2, first: "a".into() }, 3, 3),
            (Error::NewerFormat { path: "f".into(), found: 9, supported: 1 }, 3, 3),
            (Error::LaneBusy { lane: 0, path: "lock".into() }, 4, 4),
            (Error::ReadOnly { why: "give Options::allow_network(true)".into() }, 4, 4),
            (Error::Closed, 4, 4),
            (io_error(ErrorKind::StorageFull), 4, 4),
            (poisoned(io_error(ErrorKind::StorageFull)), 4, 4),
            (io_error(ErrorKind::QuotaExceeded), 4, 4),
            (io_error(ErrorKind::PermissionDenied), 4, 4),
            (io_error(ErrorKind::ReadOnlyFilesystem), 4, 4),
            (io_error(ErrorKind::Other), 4, 4),
            (io_error(ErrorKind::NotFound), 4, 3),
            (io_error(ErrorKind::NotADirectory), 4, 3),
            (io_error(ErrorKind::IsADirectory), 4, 3),
            (io_error(ErrorKind::AlreadyExists), 4, 3),
            (io_error(ErrorKind::InvalidFilename), 4, 3),
        ]
    }

    #[test]
    fn every_error_has_its_exit_code() {
        for (error, within, opening) in table() {
            assert_eq!(Failure::opening(&error).code(), opening, "opening: {error:?}");
            assert_eq!(Failure::from(error.clone()).code(), within, "{error:?}");
        }
        for (kind, code) in [
            (ErrorKind::NotFound, 3),
            (ErrorKind::IsADirectory, 3),
            (ErrorKind::UnexpectedEof, 3),
            (ErrorKind::InvalidData, 3),
            (ErrorKind::InvalidInput, 3),
            (ErrorKind::PermissionDenied, 4),
            (ErrorKind::StorageFull, 4),
            (ErrorKind::ReadOnlyFilesystem, 4),
            (ErrorKind::FileTooLarge, 4),
        ] {
            assert_eq!(Failure::io(Path::new("f"), &io::Error::from(kind)).code(), code, "{kind}");
        }
        assert_eq!(Failure::standard_output(&ErrorKind::BrokenPipe.into()).code(), 0);
        assert_eq!(Failure::standard_output(&ErrorKind::StorageFull.into()).code(), 4);
        assert_eq!((Failure::missing(String::new()).code(), Failure::damage().code()), (1, 2));
    }

    #[test]
    fn messages_name_options_of_the_command() {
        for (error, ..) in table() {
            let said = Failure::from(error.clone()).message().unwrap_or_default().to_owned();
            assert!(!said.contains("::") && !said.contains("get_batch_into"), "{error:?}: {said}");
        }
        let said = |error: Error| message(&error);
        assert!(said(Error::ReadOnly { why: "x, or Options::allow_network(true)".into() }).contains("--allow-network"));
        assert!(said(Error::LaneBusy { lane: 0, path: "lock".into() }).contains("--lane auto"));
        let large = Error::TooLarge { what: "a decoded value in bytes".into(), found: 2, limit: 1 };
        assert!(said(large).contains("--max-value-bytes"));
        let zero = Error::invalid("the option max_value_bytes is 0: give at least 1");
        assert_eq!(said(zero), "--max-value-bytes is 0: give at least 1");
    }
}
