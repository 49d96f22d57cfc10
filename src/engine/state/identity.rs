//! The identity that all files of a store share: its id, the hash of its keys, and their kind.

use std::path::Path;
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::key::{KeyHasher, KeyKind};
use crate::names::SegmentId;
use crate::segment::scan::Front;
use crate::segment::writer::StoreIdentity;

/// The identity of the store.
#[derive(Debug)]
pub(crate) struct Identity {
    recorded: StoreIdentity,
    hasher: KeyHasher,
    /// Fixed by the first write.
    key_kind: OnceLock<KeyKind>,
}

impl Identity {
    /// # Errors
    /// [`Error::Invalid`] for a hash that this version does not know.
    pub(crate) fn new(recorded: StoreIdentity) -> Result<Self> {
        let hasher = KeyHasher::new(recorded.hash_id, recorded.hash_seed)
            .ok_or_else(|| Error::invalid(format!("key hash {} is not known", recorded.hash_id)))?;
        Ok(Self { recorded, hasher, key_kind: OnceLock::new() })
    }

    /// The identity as `store.json` and segment headers record it.
    pub(crate) fn recorded(&self) -> StoreIdentity {
        self.recorded
    }

    /// The store's UUID.
    pub(crate) fn store(&self) -> &uuid::Uuid {
        &self.recorded.store
    }

    /// The hash of keys.
    #[inline]
    pub(crate) fn hasher(&self) -> KeyHasher {
        self.hasher
    }

    /// The kind of the store's keys, once a first write has fixed it.
    pub(crate) fn key_kind(&self) -> Option<KeyKind> {
        self.key_kind.get().copied()
    }

    /// Fixes the kind of keys, or checks it.
    ///
    /// # Errors
    /// [`Error::KeyKind`] if it is another.
    pub(crate) fn fix_key_kind(&self, kind: KeyKind) -> Result<()> {
        self.key_kind.get_or_init(|| kind).expect(kind)
    }

    /// Checks that a segment belongs to this store: that it has its identity and its kind of keys.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it has another.
    pub(crate) fn check_belongs(&self, front: &Front, path: &Path) -> Result<()> {
        let header = &front.header;
        if StoreIdentity::of(header) != self.recorded {
            return Err(Error::corrupt(
                path,
                0,
                format!("it belongs to store {}, not to {}", header.store, self.recorded.store),
            ));
        }
        self.fix_key_kind(header.schema.key).map_err(|error| Error::corrupt(path, 0, error.to_string()))
    }

    /// As [`Identity::check_belongs`], and checks that it is segment `id`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is not.
    pub(crate) fn check_is(&self, front: &Front, id: SegmentId, path: &Path) -> Result<()> {
        self.check_belongs(front, path)?;
        let found = front.header.id();
        if found == id {
            Ok(())
        } else {
            Err(Error::corrupt(path, 0, format!("it is segment {found}, not {id} as its name says")))
        }
    }
}
