//! Copies a live store. The copy is a store of its own, with the identity of the source: its segments name it.
//!
//! A reader is opened on the source, and what it shows is copied: its sealed segments ([`files`]), and the committed
//! prefixes of active ones. So the copy is as consistent as the reader: opening and following handle writers and
//! compaction that work meanwhile. If a segment is removed before it was linked or read, a new reader is opened; the
//! files that are in the copy already are kept, and those that the last reader does not show are removed in the end.
//!
//! Sealed segments are linked, since published files are never changed. The numbers of segments that are not in the
//! copy are void there, so that none counts as missing. Before the copy gets its name it is opened, and must be whole.

mod files;
pub(crate) mod folder;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::checksum::segment_seed;
use crate::engine::backup::files::{Copy, copy_active, copy_run, copy_sealed, copy_whole};
use crate::engine::files::history::History;
use crate::engine::files::identity;
use crate::engine::files::replace::list_if_exists;
use crate::engine::files::sync_log::{SyncLog, SyncRecord, synced};
use crate::engine::open::open_reader;
use crate::engine::options::{Backup, Options, Recovery};
use crate::engine::read::verify::verify;
use crate::engine::report::{BackupReport, OpenReport, Quarantined};
use crate::engine::state::State;
use crate::engine::state::versions::Version;
use crate::error::{Error, Result};
use crate::io::{Durability, Storage};
use crate::names::{self, SegmentId, SegmentName};

/// How many readers are opened, one after another, if segments are removed while they are copied.
const READERS: usize = 100;

/// Copies the store on `source`, opened with `options`, to the empty storage `target`. `progress` is called with the
/// bytes done and the total. O(segments) for linked segments, else O(bytes).
///
/// # Errors
/// Those of opening, IO errors; [`Error::Corrupt`] or [`Error::MissingSegment`] if the store has lost rows, unless
/// `backup` allows it; [`Error::Invalid`] if the copy differs from what was read.
pub(crate) fn backup(
    source: &Arc<dyn Storage>,
    target: &Arc<dyn Storage>,
    (options, backup): (&Options, &Backup),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<BackupReport> {
    let start = Instant::now();
    check_empty(&**target)?;
    for folder in ["", names::SEGMENTS, names::RUNS, names::LANES, names::QUARANTINE] {
        target.create_dir(Path::new(folder))?;
    }
    let options = reading(options);
    let mut copied = Copied { copy: Copy { source, target, link: backup.link }, sealed: BTreeMap::new() };
    let mut report = BackupReport::default();
    for attempt in 1.. {
        let (state, opened) = open_reader(Arc::clone(source), options.clone())?;
        if let (Some(error), false) = (first_loss(&opened), backup.damaged) {
            return Err(error);
        }
        let in_place = damaged_files(&state, &opened.quarantined);
        (report.left_out, report.missing) = (lost(&opened).cloned().collect(), opened.missing);
        match copied.take_sealed(&state, progress) {
            Err(error) if error.is_not_found() && attempt < READERS => continue,
            taken => taken?,
        }
        copied.finish(&state, &in_place, &mut report)?;
        break;
    }
    check(target, &options, backup, &mut report)?;
    report.elapsed = start.elapsed();
    Ok(report)
}

/// The options with which source and copy are read.
fn reading(options: &Options) -> Options {
    let options = options.clone().recovery(Recovery::Quiet).refresh_interval(Duration::MAX);
    options.value_cache_bytes(0)
}

fn check_empty(target: &dyn Storage) -> Result<()> {
    match target.list(Path::new("")) {
        Err(error) if !error.is_not_found() => Err(error),
        Ok(entries) if !entries.is_empty() => {
            let taken = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "it is not empty");
            Err(Error::io("copy a store to", target.describe(Path::new("")), taken))
        }
        _ => Ok(()),
    }
}

/// The files that may have rows that are not served.
fn lost(opened: &OpenReport) -> impl Iterator<Item = &Quarantined> {
    opened.quarantined.iter().filter(|file| file.rows_lost != Some(0))
}

/// The error of the first loss that opening found, if there is any.
pub(crate) fn first_loss(opened: &OpenReport) -> Option<Error> {
    let file = lost(opened).next().map(|file| Error::corrupt(&file.path, 0, file.why.clone()));
    file.or_else(|| opened.missing.first().map(|missing| missing.error()))
}

/// The rows that a reader shows, including superseded ones.
fn rows_shown(state: &State) -> u64 {
    let sealed: u64 = state.versions().load().segments().values().map(|segment| segment.seal.rows).sum();
    sealed + state.registry().lock().followed().map(|followed| followed.rows).sum::<u64>()
}

/// The copy as far as it is made.
struct Copied<'a> {
    copy: Copy<'a>,
    /// Sealed segments, and whether each was linked.
    sealed: BTreeMap<SegmentId, bool>,
}

/// An active segment of the source: its id, and the length of its committed prefix.
type Prefix = (SegmentId, u64);

impl Copied<'_> {
    /// Copies the sealed segments that `state` shows.
    ///
    /// # Errors
    /// [`Error::Io`] of kind `NotFound` if one of them was removed meanwhile.
    fn take_sealed(&mut self, state: &State, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let version = state.versions().load_full();
        let total: u64 = version.segments().values().map(|segment| segment.len_bytes).sum();
        let mut done = 0;
        for segment in version.segments().values() {
            if !self.sealed.contains_key(&segment.id) {
                let linked = copy_sealed(self.copy, segment)?;
                self.sealed.insert(segment.id, linked);
            }
            done += segment.len_bytes;
            progress(done, total);
        }
        Ok(())
    }

    /// Copies what is not sealed, and the files of the store besides its segments. Its identity comes last.
    fn finish(&mut self, state: &State, damaged: &[PathBuf], report: &mut BackupReport) -> Result<()> {
        let (version, target) = (state.versions().load_full(), &**self.copy.target);
        for (id, linked) in &self.sealed {
            match version.segments().get(id) {
                Some(segment) => {
                    report.bytes += segment.len_bytes;
                    report.segments_linked += usize::from(*linked);
                    report.bytes_copied += if *linked { 0 } else { segment.len_bytes };
                }
                // An earlier reader showed it; another segment has replaced it since.
                None => target.remove(&names::sealed(*id))?,
            }
        }
        report.segments = version.segments().len();
        report.rows = rows_shown(state);
        self.copy_damaged(state, damaged, report)?;
        let prefixes = self.copy_actives(state, damaged)?;
        let active_bytes: u64 = prefixes.iter().map(|(_, len_bytes)| len_bytes).sum();
        report.bytes += active_bytes;
        report.bytes_copied += active_bytes;
        write_lanes(state, target, &version, (&prefixes, damaged))?;
        version.runs().iter().try_for_each(|run| copy_run(self.copy, run))?;
        copy_whole(self.copy, Path::new(names::METADATA))?;
        identity::write(target, state.identity().recorded(), state.identity().key_kind(), Durability::SyncData)?;
        let folders = [names::SEGMENTS, names::RUNS, names::LANES, names::QUARANTINE, ""];
        folders.iter().try_for_each(|folder| target.sync_dir(Path::new(folder)))
    }

    /// Copies the committed prefixes of active segments, except `damaged` files.
    fn copy_actives(&self, state: &State, damaged: &[PathBuf]) -> Result<Vec<Prefix>> {
        let mut prefixes = Vec::new();
        let known = state.registry().lock();
        for followed in known.followed().filter(|followed| followed.rows > 0) {
            let id = followed.front.header.id();
            if !damaged.contains(&names::active(id)) {
                copy_active(&**self.copy.target, &*followed.file, id, followed.end_offset)?;
                prefixes.push((id, followed.end_offset));
            }
        }
        Ok(prefixes)
    }

    /// Copies damaged files as they are: their readable rows are served from where they are. If rows are lost, copies
    /// the quarantine folder too, so that the copy reports the same losses.
    fn copy_damaged(&self, state: &State, damaged: &[PathBuf], report: &BackupReport) -> Result<()> {
        let mut files = damaged.to_vec();
        if !(report.left_out.is_empty() && report.missing.is_empty()) {
            let entries = list_if_exists(state.storage(), names::QUARANTINE)?.into_iter();
            let entries = entries.filter(|entry| entry.kind.is_file());
            files.extend(entries.map(|entry| Path::new(names::QUARANTINE).join(entry.name)));
        }
        for path in files {
            // A segment of which only the front is damaged was copied with the others.
            if self.copy.target.kind(&path)?.is_none() {
                copy_whole(self.copy, &path)?;
            }
        }
        Ok(())
    }
}

/// The segment files among those that were left in place, relative to the store's folder.
fn damaged_files(state: &State, left: &[Quarantined]) -> Vec<PathBuf> {
    let folder = state.storage().describe(Path::new(""));
    let in_place = left.iter().filter(|file| file.moved_to.is_none());
    let paths = in_place.filter_map(|file| file.path.strip_prefix(&folder).ok());
    paths.filter(|path| segment_of(path).is_some()).map(Path::to_path_buf).collect()
}

/// The segment whose file is at `path`.
fn segment_of(path: &Path) -> Option<SegmentId> {
    let name = path.strip_prefix(names::SEGMENTS).ok()?.to_str()?;
    match names::parse_segment(name) {
        SegmentName::Sealed(id) | SegmentName::Active(id) | SegmentName::Temporary(id) => Some(id),
        SegmentName::Foreign => None,
    }
}

/// Writes the sync logs and histories of all lanes. Numbers without a segment are void, unless their segments are
/// missing in the source.
fn write_lanes(
    state: &State,
    target: &dyn Storage,
    version: &Version,
    (prefixes, damaged): (&[Prefix], &[PathBuf]),
) -> Result<()> {
    let store = state.identity().store();
    let mut numbers: BTreeMap<u16, BTreeSet<u64>> = BTreeMap::new();
    let damaged: Vec<SegmentId> = damaged.iter().filter_map(|path| segment_of(path)).collect();
    let unsealed = prefixes.iter().map(|(id, _)| *id).chain(damaged.iter().copied());
    for id in version.segments().keys().copied().chain(unsealed).filter(|id| id.sequence < SegmentId::MOST_SEQUENCE) {
        numbers.entry(id.lane).or_default().insert(id.sequence);
    }
    let replaced = version.segments().values().flat_map(|segment| segment.replaces.iter().copied());
    let replaced: HashSet<SegmentId> = replaced.collect();
    let missing = state.registry().lock().missing().to_vec();
    for (lane, there) in numbers {
        let mut records = Vec::new();
        let newest = there.last().copied().unwrap_or(0);
        let mut next = 1;
        for &sequence in &there {
            let between = (next..sequence).map(|sequence| SegmentId { lane, sequence });
            let void = between.filter(|id| !replaced.contains(id) && !missing.iter().any(|gap| gap.contains(*id)));
            records.extend(void.map(|id| SyncRecord::void(store, id)));
            next = sequence + 1;
        }
        let seed = |id| segment_seed(store.as_bytes(), id);
        // Without a log, all of an active segment may have been synced, and nothing is known of a damaged file.
        let intact = prefixes.iter().map(|(id, len_bytes)| (*id, *len_bytes, *len_bytes));
        let whole = damaged.iter().map(|id| (*id, 0, u64::MAX - 1));
        for (id, unless_known, most) in intact.chain(whole).filter(|(id, ..)| id.lane == lane) {
            // What its writer had not synced may have holes, which the next writer looks for.
            let len_bytes = synced(state.storage(), seed(id), id)?.unwrap_or(unless_known).min(most);
            records.extend((len_bytes > 0).then(|| SyncRecord { sequence: id.sequence, len_bytes, seed: seed(id) }));
        }
        if let Some(segment) = version.segments().get(&SegmentId { lane, sequence: newest }) {
            records.push(SyncRecord { sequence: newest, len_bytes: segment.len_bytes, seed: seed(segment.id) });
        }
        drop(SyncLog::create(target, lane, &records, Durability::SyncData)?);
        if let Some(history) = History::read(state.storage(), lane)? {
            history.copy_to(target, lane)?;
        }
    }
    Ok(())
}

/// Opens the copy, which must be whole unless the source is not. Index runs that are of no use there are removed.
fn check(target: &Arc<dyn Storage>, options: &Options, backup: &Backup, report: &mut BackupReport) -> Result<()> {
    let (mut state, mut opened) = open_reader(Arc::clone(target), options.clone())?;
    if opened.runs_dropped > 0 {
        for entry in target.list(Path::new(names::RUNS))? {
            target.remove(&Path::new(names::RUNS).join(entry.name))?;
        }
        target.sync_dir(Path::new(names::RUNS))?;
        (state, opened) = open_reader(Arc::clone(target), options.clone())?;
    }
    if let (Some(error), false) = (first_loss(&opened), backup.damaged) {
        return Err(error);
    }
    let found = rows_shown(&state);
    if found != report.rows && !backup.damaged {
        return Err(Error::invalid(format!(
            "the copy has {found} rows, but {} were copied: another program changes its folder",
            report.rows
        )));
    }
    if !backup.verify {
        return Ok(());
    }
    let verified = verify(&state, &mut |_, _| {})?;
    report.rows_verified = Some(verified.rows);
    match verified.damage.into_iter().find(|damage| damage.rows > 0) {
        Some(damage) if !backup.damaged => Err(Error::corrupt(damage.path, 0, damage.what)),
        _ => Ok(()),
    }
}
