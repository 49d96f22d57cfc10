//! The identities of a module whose outputs are kept: those of former weights, versions and configurations stay until they
//! are pruned.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::cache::CachedModule;
use super::error::invalid;
use super::fingerprint::Identity;
use super::options::CacheOptions;
use super::space::{IDENTITY, Place, TIMING, is_open, recorded};
use super::used::{FULL, folder_len_bytes};
use crate::error::{Error, Result};
use crate::key::KeyKind;
use crate::store::options::Options;

const KINDS: [KeyKind; 3] = [KeyKind::Str, KeyKind::U64, KeyKind::Bytes];

/// The extension of a folder that is being removed.
const AWAY: &str = "pruned";

/// An identity whose outputs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredIdentity {
    /// 32 hexadecimal digits: the name of its folder.
    pub id: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// Outputs that are kept; `None` if a store of it cannot be read.
    pub rows: Option<u64>,
    /// When it was last opened for writing, or written to.
    pub last_used: Option<SystemTime>,
    /// How it differs, one line a part: from the module that was asked, or else from the identity that was used last.
    pub differences: Vec<String>,
}

/// What pruning did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Identities whose folders were removed.
    pub removed: Vec<StoredIdentity>,
    /// Identities that were to be removed but stay, each with the reason.
    pub kept: Vec<(StoredIdentity, String)>,
}

impl CacheOptions {
    /// The identities of the module id that are kept in the folder, the last used one first.
    ///
    /// # Errors
    /// [`Error::Invalid`] without a folder and a module id; IO errors.
    pub fn identities(&self) -> Result<Vec<StoredIdentity>> {
        list(&self.module_folder()?, None)
    }

    /// Removes the identities of the module id that `remove` chooses. Those that a writer of any process or a handle of
    /// this one has open stay, and so do folders with files that are not of this crate. No other process may read them.
    ///
    /// # Errors
    /// As [`CacheOptions::identities`].
    pub fn prune_identities(&self, remove: impl FnMut(&StoredIdentity) -> bool) -> Result<Pruned> {
        prune(&self.module_folder()?, self.identities()?, remove)
    }

    fn module_folder(&self) -> Result<PathBuf> {
        match (&self.place, &self.module_id) {
            (Place::Folder(folder), Some(module_id)) => {
                crate::names::check_module_id(module_id)?;
                Ok(folder.join(module_id))
            }
            _ => Err(invalid("identities were asked for without a folder and a module id: only a folder keeps them")),
        }
    }
}

impl CachedModule {
    /// The identities of the module id that are kept beside this module's, and its own: how each differs from it.
    ///
    /// # Errors
    /// IO errors.
    pub fn identities(&self) -> Result<Vec<StoredIdentity>> {
        let folder = self.folder();
        let module = folder.as_deref().and_then(Path::parent);
        module.map_or(Ok(Vec::new()), |module| list(module, Some(&self.identity())))
    }

    /// [`CacheOptions::prune_identities`]; never this module's own, which is open.
    ///
    /// # Errors
    /// IO errors.
    pub fn prune_identities(&self, remove: impl FnMut(&StoredIdentity) -> bool) -> Result<Pruned> {
        let Some(module) = self.folder().and_then(|folder| folder.parent().map(Path::to_path_buf)) else {
            return Ok(Pruned::default());
        };
        let pruned = prune(&module, self.identities()?, remove)?;
        if !pruned.removed.is_empty() {
            self.inner().opening.used.reopen();
        }
        Ok(pruned)
    }
}

fn list(module: &Path, ours: Option<&Identity>) -> Result<Vec<StoredIdentity>> {
    let entries = match std::fs::read_dir(module) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", module, error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("list", module, error))?;
        let id = entry.file_name().to_string_lossy().into_owned();
        if !is_id(&id) || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let folder = entry.path();
        let modified = |name: &str| std::fs::metadata(folder.join(name)).and_then(|file| file.modified()).ok();
        let (bytes, rows) = (folder_len_bytes(&folder), rows(&folder));
        let last_used = modified(IDENTITY).max(modified(TIMING));
        let record = recorded(&folder);
        found.push((record, StoredIdentity { id, folder, bytes, rows, last_used, differences: Vec::new() }));
    }
    found.sort_by(|(_, a), (_, b)| b.last_used.cmp(&a.last_used).then_with(|| a.id.cmp(&b.id)));
    let latest = found.iter().find_map(|(record, _)| record.clone());
    let compared = ours.or(latest.as_ref());
    let described = found.into_iter().map(|(record, mut identity)| {
        identity.differences = match (compared, record) {
            (Some(compared), Some(record)) => compared.differences(&record),
            _ => vec!["what it is made of is not recorded".to_owned()],
        };
        identity
    });
    Ok(described.collect())
}

fn rows(folder: &Path) -> Option<u64> {
    let stores = KINDS.into_iter().filter(|kind| folder.join(kind.name()).is_dir());
    let len = |kind: KeyKind| Options::new().open_reader(folder, kind.name()).and_then(|reader| reader.len()).ok();
    stores.map(len).sum()
}

fn prune(
    module: &Path,
    identities: Vec<StoredIdentity>,
    mut remove: impl FnMut(&StoredIdentity) -> bool,
) -> Result<Pruned> {
    finish(module)?;
    let mut pruned = Pruned::default();
    let (chosen, others): (Vec<_>, Vec<_>) = identities.into_iter().partition(|identity| remove(identity));
    for identity in chosen {
        match take(&identity.folder)? {
            None => pruned.removed.push(identity),
            Some(why) => pruned.kept.push((identity, why)),
        }
    }
    if !pruned.removed.is_empty() {
        // There is room again.
        for folder in others.iter().chain(pruned.kept.iter().map(|(identity, _)| identity)).map(|other| &other.folder) {
            let _not_there = std::fs::remove_file(folder.join(FULL));
        }
    }
    Ok(pruned)
}

fn is_id(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// Removes what an earlier call had taken away from its place when it was interrupted.
fn finish(module: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(module) else { return Ok(()) };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_away = path.extension().is_some_and(|extension| extension == AWAY)
            && path.file_stem().is_some_and(|stem| is_id(&stem.to_string_lossy()));
        if is_away && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            std::fs::remove_dir_all(&path).map_err(|error| Error::io("remove", &path, error))?;
        }
    }
    Ok(())
}

/// Removes an identity's folder, or says why it stays.
fn take(folder: &Path) -> Result<Option<String>> {
    if is_open(folder) {
        return Ok(Some("a handle of this process has it open".to_owned()));
    }
    let list = |folder: &Path| {
        let entries = std::fs::read_dir(folder).map_err(|error| Error::io("list", folder, error))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        names.collect::<std::io::Result<Vec<String>>>().map_err(|error| Error::io("list", folder, error))
    };
    for name in list(folder)? {
        let is_ours = [IDENTITY, TIMING, FULL].contains(&name.as_str())
            || name.ends_with(".part")
            || KINDS.iter().any(|kind| kind.name() == name);
        if !is_ours {
            return Ok(Some(format!("{name} in it is no file of tensorcask")));
        }
    }
    // Held until the folder is away from its place.
    let mut locks = Vec::new();
    for lanes in KINDS.iter().map(|kind| folder.join(kind.name()).join("lanes")).filter(|lanes| lanes.is_dir()) {
        for name in list(&lanes)?.iter().filter(|name| name.ends_with(".lock")) {
            let path = lanes.join(name);
            let lock = File::open(&path).map_err(|error| Error::io("open the lock file", &path, error))?;
            if lock.try_lock().is_err() {
                return Ok(Some("a writer has it open".to_owned()));
            }
            locks.push(lock);
        }
    }
    let away = folder.with_extension(AWAY);
    std::fs::rename(folder, &away).map_err(|error| Error::io("rename", folder, error))?;
    std::fs::remove_dir_all(&away).map_err(|error| Error::io("remove", &away, error))?;
    Ok(None)
}
