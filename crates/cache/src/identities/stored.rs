//! An identity that is kept, and why it stays.

use std::path::PathBuf;
use std::time::SystemTime;

/// An identity whose outputs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredIdentity {
    /// 32 hexadecimal digits: the name of its folder.
    pub id: String,
    /// Its folder: `<id>`, or `<id>.pruned` if its removal was interrupted.
    pub folder: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// Outputs that are kept; `None` if a store of it cannot be read.
    pub rows: Option<u64>,
    /// When it was last opened for writing, or written to. Reading leaves no trace.
    pub last_used: Option<SystemTime>,
    /// How it differs, one line a part: from the module that was asked, or else from the identity that was used last.
    pub differences: Vec<String>,
    /// What it is made of: the JSON text of its `identity.json`; `None` if that cannot be read.
    pub record: Option<String>,
}

/// Why an identity stays.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stays {
    /// Something has it open: a writer of any process, or a handle of this one.
    Open(String),
    /// It holds something that neither a store nor the caching layer made, or that a store has set aside.
    Foreign(String),
    /// The file system failed. What is left of the identity is in `<id>.pruned` if its removal had begun.
    Failed(String),
}

impl std::fmt::Display for Stays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Open(why) | Self::Foreign(why) | Self::Failed(why)) = self;
        f.write_str(why)
    }
}
