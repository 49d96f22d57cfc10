//! The options of copying and merging stores.

/// Options of [`Reader::backup_with`](crate::Reader::backup_with).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    pub(crate) link: bool,
    pub(crate) verify: bool,
    pub(crate) damaged: bool,
}

impl Default for Backup {
    fn default() -> Self {
        Self { link: true, verify: false, damaged: false }
    }
}

impl Backup {
    /// Links files where possible, does not read the copied rows again, and refuses a store that has lost rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether published files become hard links (default: on). Linked files take no space and no time, but a damaged
    /// sector damages both stores. If off, or on another file system, all bytes are copied.
    #[must_use]
    pub fn link(mut self, link: bool) -> Self {
        self.link = link;
        self
    }

    /// Whether all rows of the copy are compared with their checksums before it gets its name (default: off).
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Whether a store that has lost rows is copied (default: off). The copy has its damaged files and notes too, so
    /// opening it reports the same losses.
    #[must_use]
    pub fn damaged(mut self, damaged: bool) -> Self {
        self.damaged = damaged;
        self
    }
}

/// Options of [`Store::merge_from`](crate::Store::merge_from).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merge {
    pub(crate) dry_run: bool,
    pub(crate) fail_on_conflict: bool,
    pub(crate) damaged: bool,
}

impl Merge {
    /// Merges, lets the newest value of each key win, and fails if a source has lost rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only reports what would be merged, and changes nothing (default: off).
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Whether keys with differing values are an error, found before anything is merged (default: off).
    #[must_use]
    pub fn fail_on_conflict(mut self, fail: bool) -> Self {
        self.fail_on_conflict = fail;
        self
    }

    /// Whether sources that have lost rows are merged, without the rows that cannot be read (default: off).
    #[must_use]
    pub fn damaged(mut self, damaged: bool) -> Self {
        self.damaged = damaged;
        self
    }
}
