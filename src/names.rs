//! Makes and parses every file name of a store. No other module does.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The file that names the store.
pub(crate) const IDENTITY: &str = "store.json";
/// The folder of segments.
pub(crate) const SEGMENTS: &str = "segments";
/// The folder of merged index runs.
pub(crate) const RUNS: &str = "runs";
/// The folder of lane locks.
pub(crate) const LANES: &str = "lanes";
/// The folder that damaged files are moved to.
pub const QUARANTINE: &str = "quarantine";
/// The lock, in the folder of lane locks, under which a store is opened.
pub const OPEN_LOCK: &str = "open.lock";
/// The lock in the same folder under which segments are rewritten.
pub(crate) const COMPACT_LOCK: &str = "compact.lock";

const SEALED_SUFFIX: &str = ".arrow";
const ACTIVE_SUFFIX: &str = ".arrow.open";
const RUN_SUFFIX: &str = ".run";
const ROW_MAPS_SUFFIX: &str = ".moved";
const NOTE_SUFFIX: &str = ".json";
const MISSING_PREFIX: &str = "missing-";
const LEFT_PREFIX: &str = "left-";
/// The suffix of files that are written in one go and renamed when they are complete.
pub(crate) const TEMPORARY_SUFFIX: &str = ".tmp";

/// Identifies a segment (or run) of a store: the lane that wrote it, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SegmentId {
    /// The writer lane.
    pub lane: u16,
    /// Counts up within the lane.
    pub sequence: u64,
}

/// As in its file names.
impl std::fmt::Display for SegmentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.stem())
    }
}

impl SegmentId {
    /// Sequence numbers are below this: a lane that makes a thousand a second reaches it after 8,000 years. A file with
    /// a greater number is not ours, and must not use up the numbers before it.
    pub(crate) const MOST_SEQUENCE: u64 = 1 << 48;

    /// The number after all of `taken`; `None` if none is left.
    pub(crate) fn next_sequence(taken: impl Iterator<Item = u64>) -> Option<u64> {
        let newest = taken.filter(|sequence| *sequence < Self::MOST_SEQUENCE).max().unwrap_or(0);
        Some(newest + 1).filter(|next| *next < Self::MOST_SEQUENCE)
    }

    /// The error of a lane that has given out all its numbers.
    pub(crate) fn exhausted(lane: u16) -> Error {
        let limit = Self::MOST_SEQUENCE;
        Error::TooLarge { what: format!("the number of the next file of lane {lane}"), found: limit, limit: limit - 1 }
    }

    fn stem(self) -> String {
        format!("{:04}-{:010}", self.lane, self.sequence)
    }

    fn parse(stem: &str) -> Option<Self> {
        let (lane, sequence) = stem.split_once('-')?;
        let id = Self { lane: lane.parse().ok()?, sequence: sequence.parse().ok()? };
        // Only one spelling is valid, so that two names never mean one segment.
        (id.stem() == stem).then_some(id)
    }
}

/// The kind of a name in the segments folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentName {
    /// A sealed segment.
    Sealed(SegmentId),
    /// A segment that is being appended to.
    Active(SegmentId),
    /// A segment that was being written to replace others when its writer stopped.
    Temporary(SegmentId),
    /// Not ours.
    Foreign,
}

/// Parses a name in the segments folder.
pub(crate) fn parse_segment(name: &str) -> SegmentName {
    if let Some(id) = name.strip_suffix(ACTIVE_SUFFIX).and_then(SegmentId::parse) {
        SegmentName::Active(id)
    } else if let Some(id) = name.strip_suffix(SEALED_SUFFIX).and_then(SegmentId::parse) {
        SegmentName::Sealed(id)
    } else {
        let stem = name.strip_suffix(TEMPORARY_SUFFIX).and_then(|name| name.strip_suffix(SEALED_SUFFIX));
        stem.and_then(SegmentId::parse).map_or(SegmentName::Foreign, SegmentName::Temporary)
    }
}

/// Path of a sealed segment, relative to the store's folder.
pub(crate) fn sealed(id: SegmentId) -> PathBuf {
    Path::new(SEGMENTS).join(id.stem() + SEALED_SUFFIX)
}

/// Path of an active segment.
pub(crate) fn active(id: SegmentId) -> PathBuf {
    Path::new(SEGMENTS).join(id.stem() + ACTIVE_SUFFIX)
}

/// Path of a segment that is written in one go and renamed to its sealed name when it is complete.
pub(crate) fn temporary_segment(id: SegmentId) -> PathBuf {
    Path::new(SEGMENTS).join(id.stem() + SEALED_SUFFIX + TEMPORARY_SUFFIX)
}

/// Path of a run.
pub(crate) fn run(id: SegmentId) -> PathBuf {
    Path::new(RUNS).join(id.stem() + RUN_SUFFIX)
}

/// Path of a run that is being built.
pub(crate) fn temporary_run(id: SegmentId) -> PathBuf {
    Path::new(RUNS).join(id.stem() + RUN_SUFFIX + TEMPORARY_SUFFIX)
}

/// Parses a name in the runs folder as that of a run.
pub(crate) fn parse_run(name: &str) -> Option<SegmentId> {
    name.strip_suffix(RUN_SUFFIX).and_then(SegmentId::parse)
}

/// Parses a name in the runs folder as that of an unfinished run.
pub(crate) fn parse_temporary_run(name: &str) -> Option<SegmentId> {
    name.strip_suffix(TEMPORARY_SUFFIX).and_then(parse_run)
}

/// Parses a name in the runs folder as that of an unfinished run, or of unfinished row maps of a segment.
pub(crate) fn parse_unfinished(name: &str) -> Option<SegmentId> {
    let whole = name.strip_suffix(TEMPORARY_SUFFIX)?;
    parse_run(whole).or_else(|| parse_row_maps(whole))
}

/// Path of the row maps of segment `id`, which map the rows of the segments that it replaces.
pub(crate) fn row_maps(id: SegmentId) -> PathBuf {
    Path::new(RUNS).join(id.stem() + ROW_MAPS_SUFFIX)
}

/// Parses a name in the runs folder as that of a segment's row maps.
pub(crate) fn parse_row_maps(name: &str) -> Option<SegmentId> {
    name.strip_suffix(ROW_MAPS_SUFFIX).and_then(SegmentId::parse)
}

/// Path of a lane's lock file.
pub(crate) fn lane_lock(lane: u16) -> PathBuf {
    Path::new(LANES).join(format!("{lane:04}.lock"))
}

/// Path of a file whose positions are locked while keys are computed.
pub(crate) fn lease_lock(file: usize) -> PathBuf {
    Path::new(LANES).join(format!("leases-{file:02}.lock"))
}

/// Parses a name in the lanes folder as that of a file of leases.
fn parse_lease_lock(name: &str) -> Option<usize> {
    let file = name.strip_prefix("leases-")?.strip_suffix(".lock")?.parse().ok()?;
    (lease_lock(file).file_name()? == name).then_some(file)
}

/// Parses a name in the lanes folder as that of a lane's lock file.
pub(crate) fn parse_lane_lock(name: &str) -> Option<u16> {
    name.strip_suffix(".lock")?.parse().ok()
}

/// Path of a lane's sync log.
pub(crate) fn sync_log(lane: u16) -> PathBuf {
    Path::new(LANES).join(format!("{lane:04}.synced"))
}

/// Path of a sync log that is being rewritten.
pub(crate) fn temporary_sync_log(lane: u16) -> PathBuf {
    Path::new(LANES).join(format!("{lane:04}.synced{TEMPORARY_SUFFIX}"))
}

/// Parses a name in the lanes folder as that of a lane's sync log.
pub(crate) fn parse_sync_log(name: &str) -> Option<u16> {
    let lane = name.strip_suffix(".synced")?.parse().ok()?;
    (sync_log(lane).file_name()? == name).then_some(lane)
}

/// Path of a lane's history: the ids of its writers.
pub(crate) fn history(lane: u16) -> PathBuf {
    Path::new(LANES).join(format!("{lane:04}.history"))
}

/// Parses a name in the lanes folder as that of a lane's history.
pub(crate) fn parse_history(name: &str) -> Option<u16> {
    let lane = name.strip_suffix(".history")?.parse().ok()?;
    (history(lane).file_name()? == name).then_some(lane)
}

/// Path of the mark of a lane's writer.
pub(crate) fn writer_mark(lane: u16, writer: &uuid::Uuid) -> PathBuf {
    Path::new(LANES).join(format!("{lane:04}-{}.writer", writer.simple()))
}

/// Parses a name in the lanes folder as the mark of a lane's writer.
pub(crate) fn parse_writer_mark(name: &str) -> Option<(u16, uuid::Uuid)> {
    let (lane, writer) = name.strip_suffix(".writer")?.split_once('-')?;
    let (lane, writer) = (lane.parse().ok()?, uuid::Uuid::try_parse(writer).ok()?);
    (writer_mark(lane, &writer).file_name()? == name).then_some((lane, writer))
}

/// Path of the note on a quarantined file.
pub(crate) fn note(quarantined: &Path) -> PathBuf {
    let mut path = quarantined.as_os_str().to_owned();
    path.push(NOTE_SUFFIX);
    path.into()
}

/// Path of the note on missing segments; the first of them is `id`.
pub(crate) fn missing_note(id: SegmentId) -> PathBuf {
    Path::new(QUARANTINE).join(format!("{MISSING_PREFIX}{}{NOTE_SUFFIX}", id.stem()))
}

/// Path of the note on the file called `name`, which was left in place.
pub(crate) fn left_note(name: &str) -> PathBuf {
    Path::new(QUARANTINE).join(format!("{LEFT_PREFIX}{name}{NOTE_SUFFIX}"))
}

/// The kind of a name in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum QuarantineName<'a> {
    /// A file that was moved there.
    File,
    /// The note on the file of this name there.
    NoteOn(&'a str),
    /// A note on segments that are missing.
    MissingNote,
    /// A note on a file that was left in place.
    LeftNote,
    /// A note that was being written.
    Temporary,
}

/// Parses a name in quarantine.
pub(crate) fn parse_quarantine(name: &str) -> QuarantineName<'_> {
    if name.strip_suffix(TEMPORARY_SUFFIX).is_some_and(|name| name.ends_with(NOTE_SUFFIX)) {
        return QuarantineName::Temporary;
    }
    match name.strip_suffix(NOTE_SUFFIX) {
        None => QuarantineName::File,
        // The identity file has the suffix of a note.
        Some(_) if name == IDENTITY => QuarantineName::File,
        Some(stem) if stem.strip_prefix(MISSING_PREFIX).and_then(SegmentId::parse).is_some() => {
            QuarantineName::MissingNote
        }
        Some(stem) if stem.starts_with(LEFT_PREFIX) => QuarantineName::LeftNote,
        Some(on) => QuarantineName::NoteOn(on),
    }
}

/// Path in quarantine for the `attempt`-th file called `name`.
pub(crate) fn quarantined(name: &str, attempt: u32) -> PathBuf {
    let name = if attempt == 0 { name.to_owned() } else { format!("{name}.{attempt}") };
    Path::new(QUARANTINE).join(name)
}

/// The segment that a file in quarantine was, by its name.
pub(crate) fn parse_quarantined(name: &str) -> Option<SegmentId> {
    let stem = name.split_once(SEALED_SUFFIX).map_or(name, |(stem, _)| stem);
    SegmentId::parse(stem)
}

/// Named texts from imported files, which the command line tool writes.
pub(crate) const METADATA: &str = "metadata.json";

/// The folders of a store.
pub const FOLDERS: [&str; 4] = [SEGMENTS, RUNS, LANES, QUARANTINE];

/// Whether writers make files of this name in `folder` of a store, or in the store's own folder (`""`). Always false
/// for quarantine.
pub fn is_file_of_store(folder: &str, name: &str) -> bool {
    let is = |path: PathBuf| path.file_name().is_some_and(|file| file == name);
    match folder {
        "" => [IDENTITY, METADATA].contains(&name) || name.strip_suffix(TEMPORARY_SUFFIX) == Some(IDENTITY),
        SEGMENTS => parse_segment(name) != SegmentName::Foreign,
        RUNS => {
            let whole = name.strip_suffix(TEMPORARY_SUFFIX).unwrap_or(name);
            parse_run(whole).or_else(|| parse_row_maps(whole)).is_some()
        }
        LANES => {
            let log = name.strip_suffix(TEMPORARY_SUFFIX).unwrap_or(name);
            [OPEN_LOCK, COMPACT_LOCK].contains(&name)
                || parse_lease_lock(name).is_some()
                || parse_lane_lock(name).is_some_and(|lane| is(lane_lock(lane)))
                || parse_sync_log(log).or_else(|| parse_history(log)).is_some()
                || parse_writer_mark(name).is_some()
        }
        _ => false,
    }
}

/// Checks that a module id can name a folder.
///
/// # Errors
/// [`Error::Invalid`] if it is empty, longer than 200 bytes, starts with a dot, or holds path separators or control
/// characters.
pub fn check_module_id(module_id: &str) -> Result<()> {
    let problem = if module_id.is_empty() {
        "is empty"
    } else if module_id.len() > 200 {
        "is longer than 200 bytes"
    } else if module_id.starts_with('.') {
        "starts with a dot"
    } else if module_id.chars().any(|c| c == '/' || c == '\\' || c.is_control()) {
        "holds a path separator or a control character"
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!(
        "the module id {module_id:?} {problem}; it names one folder: use letters, digits, '-', '_' and '.', such as \
         \"vit-b16-imagenet\""
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_not_used_up_by_a_name() {
        let next = |taken: &[u64]| SegmentId::next_sequence(taken.iter().copied());
        assert_eq!((next(&[]), next(&[7, u64::MAX, 1 << 48, 3])), (Some(1), Some(8)));
        assert_eq!((next(&[(1 << 48) - 2]), next(&[(1 << 48) - 1])), (Some((1 << 48) - 1), None));
    }

    #[test]
    fn names_round_trip() {
        for id in [SegmentId { lane: 0, sequence: 12 }, SegmentId { lane: u16::MAX, sequence: u64::MAX }] {
            let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            assert_eq!(parse_segment(&name(sealed(id))), SegmentName::Sealed(id));
            assert_eq!(parse_segment(&name(active(id))), SegmentName::Active(id));
            assert_eq!(parse_segment(&name(temporary_segment(id))), SegmentName::Temporary(id));
            assert_eq!(parse_run(&name(run(id))), Some(id));
            assert_eq!(parse_temporary_run(&name(temporary_run(id))), Some(id));
        }
        assert_eq!(sealed(SegmentId { lane: 0, sequence: 12 }).to_str(), Some("segments/0000-0000000012.arrow"));
        for foreign in
            ["x.arrow", "0-1.arrow", "0000-000000001.arrow", "0000-0000000001.arrow.bak", "0000-notes.tmp", ""]
        {
            assert_eq!(parse_segment(foreign), SegmentName::Foreign, "{foreign}");
        }
    }

    #[test]
    fn files_of_ours_are_told_from_others() {
        let id = SegmentId { lane: 3, sequence: 12 };
        let made = [
            sealed(id),
            active(id),
            temporary_segment(id),
            run(id),
            temporary_run(id),
            lane_lock(3),
            sync_log(3),
            temporary_sync_log(3),
            Path::new(LANES).join(OPEN_LOCK),
            lease_lock(3),
            IDENTITY.into(),
            METADATA.into(),
        ];
        for path in made {
            let [folder, name] = [path.parent(), path.file_name().map(Path::new)].map(|p| p.unwrap().to_str().unwrap());
            assert!(is_file_of_store(folder, name), "{path:?}");
            for other in ["", SEGMENTS, RUNS, LANES, QUARANTINE].into_iter().filter(|other| *other != folder) {
                assert!(!is_file_of_store(other, name), "{other} {path:?}");
            }
            assert!(!is_file_of_store(folder, &format!("{name}~")));
        }
        assert!(!is_file_of_store(LANES, "3.lock") && !is_file_of_store(LANES, "notes.lock"));
    }

    #[test]
    fn module_ids_are_checked() {
        for bad in ["", ".", "..", "a/b", "a\\b", "a\0b", ".hidden"] {
            assert!(check_module_id(bad).is_err(), "{bad:?}");
        }
        assert!(check_module_id("vit-b16 (größe L)").is_ok());
    }
}
