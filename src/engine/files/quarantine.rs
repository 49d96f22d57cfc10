//! The quarantine folder: files that opening moved away, and notes on them. Every opening reports the notes until they
//! are acknowledged or the folder is emptied. The store never deletes anything in it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::engine::files::replace::{free_place, list_if_exists, replace_file};
use crate::engine::report::{Missing, Quarantined};
use crate::error::{Error, Result};
use crate::io::{Durability, Storage};
use crate::names::{self, QuarantineName, SegmentId};

/// A note, as JSON beside the file that it describes.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Note {
    /// Where the file was, is, or should be, relative to the store's folder.
    path: PathBuf,
    why: String,
    #[serde(default)]
    rows_saved: u64,
    /// `None` if unknown.
    #[serde(default)]
    rows_lost: Option<u64>,
    /// The number of consecutive missing segments, starting with this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    segments: Option<u64>,
    #[serde(default)]
    acknowledged: bool,
}

impl Note {
    fn read(storage: &dyn Storage, name: &str) -> Option<Self> {
        const MOST_BYTES: u64 = 1 << 16;
        let file = storage.open(&Path::new(names::QUARANTINE).join(name), 0).ok()?;
        let bytes = file.bytes(0, file.len_bytes().ok()?.min(MOST_BYTES) as usize).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn write(&self, storage: &dyn Storage, path: &Path, durability: Durability) -> Result<()> {
        let json = serde_json::to_vec(self).map_err(|error| Error::invalid(format!("a note: {error}")))?;
        replace_file(storage, path, &json, durability)
    }

    fn quarantined(&self, storage: &dyn Storage, moved_to: Option<PathBuf>) -> Quarantined {
        Quarantined {
            path: storage.describe(&self.path),
            moved_to,
            why: self.why.clone(),
            rows_saved: self.rows_saved,
            rows_lost: self.rows_lost,
        }
    }
}

/// Missing segments: consecutive numbers of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MissingIds {
    pub first: SegmentId,
    /// The last number.
    pub last: u64,
    pub rows: Option<u64>,
    pub why: String,
}

impl MissingIds {
    /// The segments as a report lists them.
    pub(crate) fn describe(&self, storage: &dyn Storage) -> Missing {
        Missing {
            path: storage.describe(&names::sealed(self.first)),
            segments: (self.last - self.first.sequence).saturating_add(1),
            rows: self.rows,
            why: self.why.clone(),
        }
    }

    /// Whether `id` is one of these segments.
    pub(crate) fn contains(&self, id: SegmentId) -> bool {
        id.lane == self.first.lane && (self.first.sequence..=self.last).contains(&id.sequence)
    }
}

/// The contents of the quarantine folder.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Files that were moved there and are not acknowledged.
    pub files: Vec<Quarantined>,
    /// Segments found missing whose loss is not acknowledged. They may be back.
    pub missing: Vec<MissingIds>,
    /// Segments found missing whose loss is acknowledged.
    pub missing_acknowledged: Vec<MissingIds>,
    /// Names of segment files left in place whose damage is acknowledged.
    pub left_acknowledged: HashSet<PathBuf>,
    /// Segments whose files are in quarantine, or were until somebody removed them.
    pub segments: Vec<SegmentId>,
    /// The number of files, without notes.
    pub file_count: usize,
}

/// Reads the quarantine folder. A missing folder has no notes. O(files in it).
///
/// # Errors
/// IO errors.
pub(crate) fn told(storage: &dyn Storage) -> Result<Told> {
    let entries = list_if_exists(storage, names::QUARANTINE)?;
    let mut told = Told::default();
    for entry in &entries {
        told.segments.extend(names::parse_quarantined(&entry.name));
        match names::parse_quarantine(&entry.name) {
            QuarantineName::Temporary | QuarantineName::NoteOn(_) => {}
            QuarantineName::File => {
                told.file_count += 1;
                told.add_file(storage, &entry.name);
            }
            QuarantineName::MissingNote => told.add_missing(storage, &entry.name),
            QuarantineName::LeftNote => {
                let note = Note::read(storage, &entry.name).filter(|note| note.acknowledged);
                told.left_acknowledged.extend(note.map(|note| note.path));
            }
        }
    }
    Ok(told)
}

impl Told {
    fn add_file(&mut self, storage: &dyn Storage, name: &str) {
        let path = Path::new(names::QUARANTINE).join(name);
        let moved_to = Some(storage.describe(&path));
        let note = names::note(Path::new(name));
        match Note::read(storage, &note.to_string_lossy()) {
            Some(note) if note.acknowledged => {}
            Some(note) => self.files.push(note.quarantined(storage, moved_to)),
            None => self.files.push(Quarantined {
                path: storage.describe(&path),
                moved_to,
                why: "it was set aside, and no note says why".into(),
                rows_saved: 0,
                rows_lost: None,
            }),
        }
    }

    fn add_missing(&mut self, storage: &dyn Storage, name: &str) {
        let Some(note) = Note::read(storage, name) else { return };
        let file_name = note.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let names::SegmentName::Sealed(first) = names::parse_segment(&file_name) else { return };
        let last = first.sequence.saturating_add(note.segments.unwrap_or(1).saturating_sub(1));
        let missing = MissingIds { first, last, rows: note.rows_lost, why: note.why };
        if note.acknowledged { self.missing_acknowledged.push(missing) } else { self.missing.push(missing) }
    }
}

/// Moves the file at `path` to quarantine, under a free name, with a note. The note is written first, so that a crash
/// in between leaves the file where it was.
///
/// # Errors
/// IO errors.
pub(crate) fn move_away(
    storage: &dyn Storage,
    durability: Durability,
    path: &Path,
    why: &str,
    (rows_saved, rows_lost): (u64, Option<u64>),
    acknowledged: bool,
) -> Result<Quarantined> {
    let target = free_place(storage, path)?;
    let note = Note { path: path.into(), why: why.into(), rows_saved, rows_lost, segments: None, acknowledged };
    note.write(storage, &names::note(&target), durability)?;
    storage.rename(path, &target)?;
    if durability > Durability::Buffered {
        storage.sync_dir(Path::new(names::QUARANTINE))?;
        storage.sync_dir(path.parent().unwrap_or(Path::new("")))?;
    }
    Ok(note.quarantined(storage, Some(storage.describe(&target))))
}

/// Writes a note on missing segments.
///
/// # Errors
/// IO errors.
pub(crate) fn note_missing(
    storage: &dyn Storage,
    durability: Durability,
    missing: &MissingIds,
    acknowledged: bool,
) -> Result<()> {
    let note = Note {
        path: names::sealed(missing.first),
        why: missing.why.clone(),
        rows_saved: 0,
        rows_lost: missing.rows,
        segments: Some((missing.last - missing.first.sequence).saturating_add(1)),
        acknowledged,
    };
    note.write(storage, &names::missing_note(missing.first), durability)
}

/// Acknowledges everything that the folder reports, and the files `left` in place. Returns how many things were
/// acknowledged.
///
/// # Errors
/// IO errors.
pub(crate) fn acknowledge(
    storage: &dyn Storage,
    durability: Durability,
    told: &Told,
    left: &[Quarantined],
) -> Result<usize> {
    let folder = storage.describe(Path::new(""));
    let relative = |path: &Path| path.strip_prefix(&folder).unwrap_or(path).to_path_buf();
    let note_on = |file: &Quarantined| Note {
        path: relative(&file.path),
        why: file.why.clone(),
        rows_saved: file.rows_saved,
        rows_lost: file.rows_lost,
        segments: None,
        acknowledged: true,
    };
    for file in &told.files {
        let Some(moved_to) = &file.moved_to else { continue };
        note_on(file).write(storage, &names::note(&relative(moved_to)), durability)?;
    }
    for missing in &told.missing {
        note_missing(storage, durability, missing, true)?;
    }
    for file in left {
        let name = file.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        note_on(file).write(storage, &names::left_note(&name), durability)?;
    }
    Ok(told.files.len() + told.missing.len() + left.len())
}
