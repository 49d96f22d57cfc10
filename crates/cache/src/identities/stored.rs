//! An identity on disk, and the reasons why it is not removed.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::identity::record::Identity;

/// An identity whose outputs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredIdentity {
    /// The name of its folder: 32 hexadecimal digits.
    pub id: String,
    /// Its folder: `<id>`, or `<id>.pruned` if its removal was interrupted.
    pub folder: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// The number of outputs; `None` if one of its stores cannot be read.
    pub rows: Option<u64>,
    /// When it was last opened for writing, or written to. Reading does not count.
    pub last_used: Option<SystemTime>,
    /// Its differences, one line per part: from the given module, or else from the last used identity.
    pub differences: Vec<String>,
    /// The JSON text of its `identity.json`, which lists its parts; `None` if it cannot be read.
    pub record: Option<String>,
}

impl StoredIdentity {
    /// The parts in which `other` differs, one line each: "here" is this identity, "there" the other.
    #[must_use]
    pub fn differences_to(&self, other: &Self) -> Vec<String> {
        let parsed = |identity: &Self| serde_json::from_str::<Identity>(identity.record.as_deref()?).ok();
        match (parsed(self), parsed(other)) {
            (Some(ours), Some(theirs)) => ours.differences(&theirs),
            _ => vec!["a record cannot be read".to_owned()],
        }
    }
}

/// Why an identity was not removed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stays {
    /// A writer of any process, or a handle of this process, has it open.
    Open(String),
    /// Its folder holds a file that tensorcask did not make, or that a store has quarantined.
    Foreign(String),
    /// The file system failed. If the removal had begun, the remains are in `<id>.pruned`.
    Failed(String),
}

impl std::fmt::Display for Stays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Open(why) | Self::Foreign(why) | Self::Failed(why)) = self;
        f.write_str(why)
    }
}
