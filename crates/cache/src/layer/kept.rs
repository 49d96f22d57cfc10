//! Lists and prunes the identities of a wrapped module.

use std::path::{Path, PathBuf};

use tensorcask::folder::check_module_id;

use crate::error::{Result, invalid};
use crate::framework::Framework;
use crate::identities::{self, Pruned, StoredIdentity, list, list_beside, prune_listed};
use crate::layer::cached::Cached;
use crate::layer::options::CacheOptions;
use crate::store::space::Place;

impl<F: Framework> CacheOptions<F> {
    /// The identities of the module id in the folder, the last used one first.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] without a folder and a module id; IO errors.
    pub fn identities(&self) -> Result<Vec<StoredIdentity>> {
        Ok(list(self.module_folder()?)?)
    }

    /// Removes the identities of the module id that `remove` selects. Identities that a writer of any process or a
    /// handle of this process has open stay, and so do folders with foreign files; see [`crate::identities::prune`],
    /// which also has a dry run. No other process may read the identities meanwhile.
    ///
    /// # Errors
    /// As [`CacheOptions::identities`].
    pub fn prune_identities(&self, remove: impl FnMut(&StoredIdentity) -> bool) -> Result<Pruned> {
        Ok(identities::prune(self.module_folder()?, false, remove)?)
    }

    fn module_folder(&self) -> Result<PathBuf> {
        match (&self.place, &self.module_id) {
            (Place::Folder(folder), Some(module_id)) => {
                check_module_id(module_id)?;
                Ok(folder.join(module_id))
            }
            _ => Err(invalid("identities are kept in a folder under a module id: set both")),
        }
    }
}

impl<F: Framework> Cached<F> {
    /// All identities of the module id in the folder, and how each differs from this module's.
    ///
    /// # Errors
    /// IO errors.
    pub fn identities(&self) -> Result<Vec<StoredIdentity>> {
        let folder = self.folder();
        let module = folder.as_deref().and_then(Path::parent);
        Ok(module.map_or(Ok(Vec::new()), |module| list_beside(module, Some(&self.identity())))?)
    }

    /// [`CacheOptions::prune_identities`]. This module's own identity is open and therefore stays.
    ///
    /// # Errors
    /// IO errors.
    pub fn prune_identities(&self, remove: impl FnMut(&StoredIdentity) -> bool) -> Result<Pruned> {
        let folder = self.folder();
        let Some(module) = folder.as_deref().and_then(Path::parent) else { return Ok(Pruned::default()) };
        let pruned = prune_listed(module, self.identities()?, false, remove)?;
        if pruned.is_more_room() {
            self.inner().opening.used.reopen();
        }
        Ok(pruned)
    }
}
