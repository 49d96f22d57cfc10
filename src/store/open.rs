//! Opening: what is on disk is looked at, recovered, and published. There is no manifest to read; the sealed footers
//! and the commit frames say everything.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::aside::{clear, set_aside_unless_file};
use super::core::{Core, LoadedRun};
use super::gather::in_shares;
use super::lane::Lane;
use super::maintain::{is_of_store, memory_run, open_run, remembered_live, uncovered};
use super::marks::Marks;
use super::options::{Lane as LaneChoice, Options, Recovery};
use super::recover::recover_active;
use super::report::{OpenReport, Quarantined};
use super::salvage;
use crate::checksum::crc32;
use crate::error::{Error, Result};
use crate::io::{Durability, FileKind, LockGuard, Storage};
use crate::key::HashSeed;
use crate::names::{self, SegmentId, SegmentName};
use crate::segment::layout::{FORMAT_VERSION, SEEDED_VERSION};
use crate::segment::reader::Segment;
use crate::segment::scan::read_front;
use crate::segment::writer::StoreIdentity;

/// Where a new store keeps what it is called.
const IDENTITY: &str = "store.json";
/// How long to wait for another process that is opening the same store.
const OPEN_PATIENCE: Duration = Duration::from_secs(60);

/// A clock that is behind what it sees by more is worth a word.
const MOST_CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Names in the segments folder.
#[derive(Debug, Default)]
struct Listing {
    sealed: Vec<SegmentId>,
    active: Vec<SegmentId>,
    temporary: Vec<String>,
    /// Names of segments that stand for no file of a writer's: folders, pipes, links that are not to be written through.
    not_files: Vec<String>,
}

/// The contents of `store.json`.
#[derive(serde::Serialize, serde::Deserialize)]
struct IdentityFile {
    format: u32,
    store: uuid::Uuid,
    hash: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash_seed: Option<HashSeed>,
    /// Of what every version has, so that a newer one is told from a damaged one.
    crc32: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seed_crc32: Option<u32>,
}

impl IdentityFile {
    fn checksum(&self) -> u32 {
        crc32(format!("{} {} {}", self.format, self.store, self.hash).as_bytes())
    }

    /// The checksum of the seed, from version 2 on.
    fn seed_checksum(&self) -> Option<u32> {
        self.hash_seed.map(|seed| crc32(format!("{} {}", self.store, String::from(seed)).as_bytes()))
    }
}

/// Sealed segments, and the files that do not check out.
#[derive(Debug, Default)]
struct Loaded {
    segments: Vec<Arc<Segment>>,
    damaged: Vec<(SegmentId, Error)>,
}

fn list(storage: &dyn Storage) -> Result<Listing> {
    let mut listing = Listing::default();
    for entry in storage.list(Path::new(names::SEGMENTS))? {
        match names::parse_segment(&entry.name) {
            SegmentName::Foreign => {}
            SegmentName::Active(_) | SegmentName::Temporary if entry.kind != FileKind::File => {
                listing.not_files.push(entry.name);
            }
            _ if !entry.kind.is_file() => listing.not_files.push(entry.name),
            SegmentName::Sealed(id) => listing.sealed.push(id),
            SegmentName::Active(id) => listing.active.push(id),
            SegmentName::Temporary => listing.temporary.push(entry.name),
        }
    }
    Ok(listing)
}

/// Opens segments, many of them on a few threads.
fn load(storage: &dyn Storage, sealed: &[SegmentId]) -> Result<Loaded> {
    /// Segments that take longer to open than a thread to start.
    const WORTH_A_THREAD: usize = 32;
    let opened = in_shares(sealed, WORTH_A_THREAD, |id| (*id, Segment::open(storage, &names::sealed(*id), *id)));
    let mut loaded = Loaded::default();
    for (id, segment) in opened {
        match segment {
            Ok(segment) => loaded.segments.push(Arc::new(segment)),
            Err(error @ Error::Corrupt { .. }) => loaded.damaged.push((id, error)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(loaded)
}

/// What the identity file says; `None` if it is missing or damaged.
fn read_identity(storage: &dyn Storage) -> Result<Option<StoreIdentity>> {
    let file = match storage.open(Path::new(IDENTITY), 0) {
        Ok(file) => file,
        Err(error) if error.is_not_found() || error.is_no_file() => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = usize::try_from(file.len_bytes()?).unwrap_or(usize::MAX).min(4096);
    let Ok(found) = serde_json::from_slice::<IdentityFile>(&file.bytes(0, len)?) else { return Ok(None) };
    if found.crc32 != found.checksum() {
        return Ok(None);
    }
    if found.format > FORMAT_VERSION {
        let path = storage.describe(Path::new(IDENTITY));
        return Err(Error::NewerFormat { path, found: found.format, supported: FORMAT_VERSION });
    }
    let is_seeded = found.format >= SEEDED_VERSION;
    if found.hash_seed.is_some() != is_seeded || found.seed_crc32 != found.seed_checksum() {
        return Ok(None);
    }
    let hash_seed = found.hash_seed.map_or(0, |seed| seed.0);
    Ok(Some(StoreIdentity { store: found.store, hash_id: found.hash, hash_seed, format: found.format }))
}

/// The identity of the store: what its file says, or, if that is no use, any segment.
fn find_identity(
    storage: &dyn Storage,
    segments: &[Arc<Segment>],
    active: &[SegmentId],
) -> Result<Option<StoreIdentity>> {
    if let Some(identity) = read_identity(storage)? {
        return Ok(Some(identity));
    }
    if let Some(segment) = segments.first() {
        return Ok(Some(StoreIdentity::of(&segment.front.header)));
    }
    for &id in active {
        let path = names::active(id);
        if let Ok(file) = storage.open(&path, 0)
            && let Ok(front) = read_front(&path, &*file, id)
        {
            return Ok(Some(StoreIdentity::of(&front.header)));
        }
    }
    Ok(None)
}

fn write_identity(storage: &dyn Storage, identity: StoreIdentity, durability: Durability) -> Result<()> {
    let StoreIdentity { store, hash_id: hash, format, .. } = identity;
    let mut contents =
        IdentityFile { format, store, hash, hash_seed: identity.recorded_seed(), crc32: 0, seed_crc32: None };
    (contents.crc32, contents.seed_crc32) = (contents.checksum(), contents.seed_checksum());
    let json = serde_json::to_vec(&contents).map_err(|error| Error::invalid(format!("identity: {error}")))?;
    let temporary = PathBuf::from(format!("{IDENTITY}.tmp"));
    clear(storage, &temporary)?;
    let mut file = storage.create(&temporary)?;
    file.append(&[std::io::IoSlice::new(&json)])?;
    file.sync(durability)?;
    set_aside_unless_file(storage, Path::new(IDENTITY))?;
    storage.rename(&temporary, Path::new(IDENTITY))?;
    if durability > Durability::Buffered { storage.sync_dir(Path::new("")) } else { Ok(()) }
}

/// Opens for reading: nothing is locked, and nothing changed.
pub(crate) fn open_reader(storage: Arc<dyn Storage>, options: Options) -> Result<(Arc<Core>, OpenReport)> {
    let start = Instant::now();
    let mut report = OpenReport::default();
    let listing = list(&*storage)?;
    let loaded = load(&*storage, &listing.sealed)?;
    let identity = find_identity(&*storage, &loaded.segments, &listing.active)?.ok_or_else(|| {
        Error::io(
            "open the store in",
            storage.describe(Path::new("")),
            std::io::Error::new(std::io::ErrorKind::NotFound, "no store has been written there"),
        )
    })?;
    let core = Core::new(storage, options, identity, true)?;
    note_not_files(&core, &listing, &mut report)?;
    for (id, error) in loaded.damaged {
        if core.options.recovery == Recovery::Strict {
            return Err(error);
        }
        core.known.lock().bad(id);
        report.quarantined.push(Quarantined {
            path: core.storage.describe(&names::sealed(id)),
            moved_to: None,
            why: error.to_string(),
            rows_saved: 0,
        });
    }
    publish_segments(&core, loaded.segments, &mut report)?;
    load_runs(&core, None, &mut report)?;
    index_uncovered(&core, &mut report)?;
    let before = core.delta.len();
    core.refresh()?;
    report.rows_recovered = core.delta.len().saturating_sub(before) as u64;
    finish_report(&core, &mut report, start);
    Ok((Arc::new(core), report))
}

/// Opens for writing: takes a lane, recovers it, and cleans up what was left half done.
pub(crate) fn open_writer(storage: Arc<dyn Storage>, options: Options) -> Result<(Arc<Core>, Lane, OpenReport)> {
    let start = Instant::now();
    let mut report = OpenReport::default();
    make_folders(&storage, &options)?;
    let (number, lock) = take_lane(&*storage, options.lane)?;
    let opening = wait_for_open_lock(&*storage)?;
    let listing = list(&*storage)?;
    let mut loaded = load(&*storage, &listing.sealed)?;
    let identity = match find_identity(&*storage, &loaded.segments, &listing.active)? {
        Some(identity) => identity,
        None => StoreIdentity::new(options.hash_bits, options.hash_seed),
    };
    let not_files = names_of_no_file(&*storage)?;
    if read_identity(&*storage)?.is_none() {
        write_identity(&*storage, identity, options.durability)?;
    }
    let core = Core::new(storage, options, identity, false)?;
    report.notes.extend(not_files);
    note_not_files(&core, &listing, &mut report)?;
    let mut lane = Lane {
        number,
        next_sequence: next_sequence(&core, number, &listing)?,
        last_stamp: 0,
        actives: Vec::new(),
        sealing: None,
        unsynced: Vec::new(),
        marks: None,
        names_dirty: true,
        _lock: lock,
    };
    discard_replaced(&core, &mut loaded, &mut report)?;
    discard_temporaries(&core, number, &listing)?;
    let damaged = std::mem::take(&mut loaded.damaged);
    if let (Recovery::Strict, Some((_, error))) = (core.options.recovery, damaged.first()) {
        return Err(error.clone());
    }
    publish_segments(&core, loaded.segments, &mut report)?;
    for (id, error) in damaged {
        salvage::quarantine(&core, &mut lane, id, &names::sealed(id), &error, &mut report)?;
    }
    load_runs(&core, Some(number), &mut report)?;
    index_uncovered(&core, &mut report)?;
    // An active file beside a sealed one of its name is a copy from elsewhere: sealing renames.
    for id in listing.active.iter().filter(|id| id.lane == number && !listing.sealed.contains(id)) {
        recover_active(&core, &mut lane, *id, &mut report)?;
    }
    // A new file is synced, so it is only made where marks have to be kept or none is there.
    lane.marks = if lane.actives.is_empty() { Marks::reopen(&*core.storage, number)? } else { None };
    if lane.marks.is_none() {
        lane.write_marks(&core)?;
    }
    drop(opening);
    core.refresh()?;
    lane.last_stamp = lane.last_stamp.max(core.newest_stamp());
    finish_report(&core, &mut report, start);
    Ok((Arc::new(core), lane, report))
}

fn finish_report(core: &Core, report: &mut OpenReport, start: Instant) {
    report.quarantined.extend(core.known.lock().in_place());
    let view = core.view.load();
    report.segments = view.segments.len();
    report.runs = view.runs.len();
    report.rows = view.segments.values().map(|segment| segment.seal.rows).sum::<u64>() + report.rows_recovered;
    let behind = core.clock_behind();
    if behind > MOST_CLOCK_SKEW {
        report.notes.push(format!(
            "the clock of this machine is {} s behind the newest row of the store: set it right; what is put until then \
             gets times after that row's",
            behind.as_secs()
        ));
    }
    report.elapsed = start.elapsed();
}

fn make_folders(storage: &Arc<dyn Storage>, options: &Options) -> Result<()> {
    storage.create_dir(Path::new(""))?;
    if let (Some(name), false) = (storage.network()?, options.allow_network) {
        return Err(Error::ReadOnly {
            why: format!(
                "{} lies on {name}, a network file system whose locks and maps may not hold what they promise: use a \
                 local disk, Reader::open, or Options::allow_network(true)",
                storage.describe(Path::new("")).display()
            ),
        });
    }
    for folder in [names::SEGMENTS, names::RUNS, names::LANES, names::QUARANTINE] {
        storage.create_dir(Path::new(folder))?;
    }
    if options.durability > Durability::Buffered { storage.sync_dir(Path::new("")) } else { Ok(()) }
}

fn take_lane(storage: &dyn Storage, choice: LaneChoice) -> Result<(u16, Box<dyn LockGuard>)> {
    let candidates = match choice {
        LaneChoice::Number(number) => number..=number,
        LaneChoice::Auto => 0..=u16::MAX,
    };
    for number in candidates.clone() {
        match storage.try_lock(&names::lane_lock(number)) {
            Ok(Some(lock)) => return Ok((number, lock)),
            Ok(None) => {}
            // Nobody can lock such a lane.
            Err(error) if error.is_no_file() && choice == LaneChoice::Auto => {}
            Err(error) => return Err(error),
        }
    }
    let lane = *candidates.start();
    Err(Error::LaneBusy { lane, path: storage.describe(&names::lane_lock(lane)) })
}

/// Opening is done by one process at a time, so that two cannot both invent the store's identity or move one damaged
/// file.
fn wait_for_open_lock(storage: &dyn Storage) -> Result<Box<dyn LockGuard>> {
    let path = Path::new(names::LANES).join("open.lock");
    let start = Instant::now();
    loop {
        if let Some(lock) = storage.try_lock(&path)? {
            return Ok(lock);
        }
        if start.elapsed() > OPEN_PATIENCE {
            let error = std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "another process has been opening the store for a minute",
            );
            return Err(Error::io("lock", storage.describe(&path), error));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn next_sequence(core: &Core, lane: u16, listing: &Listing) -> Result<u64> {
    let quarantined = core.storage.list(Path::new(names::QUARANTINE))?;
    let quarantined = quarantined.iter().filter_map(|entry| names::parse_quarantined(&entry.name));
    let replaced = core.view.load();
    let replaced = replaced.segments.values().flat_map(|segment| segment.replaces.iter().copied());
    let not_files = listing.not_files.iter().filter_map(|name| names::parse_quarantined(name));
    let taken = listing.sealed.iter().chain(&listing.active).copied().chain(quarantined).chain(replaced);
    let taken = taken.chain(not_files).filter(|id| id.lane == lane).map(|id| id.sequence);
    SegmentId::next_sequence(taken).ok_or_else(|| Error::no_sequence(lane))
}

/// Says of what has a segment's name, or a run's, and is no file of the store's that it was left out.
fn note_not_files(core: &Core, listing: &Listing, report: &mut OpenReport) -> Result<()> {
    let runs = match core.storage.list(Path::new(names::RUNS)) {
        Err(error) if error.is_not_found() => Vec::new(),
        entries => entries?,
    };
    let runs = runs.into_iter().filter(|entry| !entry.kind.is_file() && names::parse_run(&entry.name).is_some());
    let segments = listing.not_files.iter().map(|name| Path::new(names::SEGMENTS).join(name));
    for path in segments.chain(runs.map(|entry| Path::new(names::RUNS).join(entry.name))) {
        let path = core.storage.describe(&path);
        report.notes.push(format!("left out {}, which is no file that a writer of this store made", path.display()));
    }
    Ok(())
}

/// Says of what has the name of `store.json` or of a lane's marks or lock, and is no file, that it is none.
fn names_of_no_file(storage: &dyn Storage) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let lanes = storage.list(Path::new(names::LANES))?.into_iter();
    let lanes = lanes.map(|entry| (Path::new(names::LANES).join(entry.name), Some(entry.kind)));
    for (path, kind) in lanes.chain([(PathBuf::from(IDENTITY), storage.kind(Path::new(IDENTITY))?)]) {
        if let Some(kind) = kind.filter(|kind| !kind.is_file()) {
            let path = storage.describe(&path);
            notes.push(format!("{} is {}, and was not used as the file of its name", path.display(), kind.name()));
        }
    }
    Ok(notes)
}

/// A sealed segment that names others as replaced makes them garbage, whatever state they are in.
fn discard_replaced(core: &Core, loaded: &mut Loaded, report: &mut OpenReport) -> Result<()> {
    let replaced: HashSet<SegmentId> =
        loaded.segments.iter().flat_map(|segment| segment.replaces.iter().copied()).collect();
    if replaced.is_empty() {
        return Ok(());
    }
    for segment in loaded.segments.iter().filter(|segment| replaced.contains(&segment.id)) {
        core.storage.remove(&names::sealed(segment.id))?;
    }
    loaded.segments.retain(|segment| !replaced.contains(&segment.id));
    for (id, error) in loaded.damaged.iter().filter(|(id, _)| replaced.contains(id)) {
        salvage::move_away(core, &names::sealed(*id), error, 0, report)?;
    }
    loaded.damaged.retain(|(id, _)| !replaced.contains(id));
    Ok(())
}

fn discard_temporaries(core: &Core, lane: u16, listing: &Listing) -> Result<()> {
    let own = format!("{lane:04}-");
    for name in listing.temporary.iter().filter(|name| name.starts_with(&own)) {
        core.storage.remove(&Path::new(names::SEGMENTS).join(name))?;
    }
    for entry in core.storage.list(Path::new(names::RUNS))? {
        let own = names::parse_temporary_run(&entry.name).is_some_and(|id| id.lane == lane);
        if own && entry.kind == FileKind::File {
            core.storage.remove(&Path::new(names::RUNS).join(&entry.name))?;
        }
    }
    Ok(())
}

/// Publishes segments of this store; others are reported and left out.
fn publish_segments(core: &Core, segments: Vec<Arc<Segment>>, report: &mut OpenReport) -> Result<()> {
    let replaced: HashSet<SegmentId> = segments.iter().flat_map(|segment| segment.replaces.iter().copied()).collect();
    let mut whole = Vec::with_capacity(segments.len());
    for segment in segments {
        match core.check_belongs(&segment.front, segment.described()) {
            Ok(()) if replaced.contains(&segment.id) => {}
            Ok(()) => {
                core.saw_stamp(segment.seal.last_stamp);
                whole.push(segment);
            }
            Err(error) if core.options.recovery == Recovery::Strict => return Err(error),
            Err(error) => {
                core.known.lock().bad(segment.id);
                report.notes.push(format!("left out: {error}"));
            }
        }
    }
    core.change_view(|view| view.segments.extend(whole.iter().map(|segment| (segment.id, Arc::clone(segment)))));
    Ok(())
}

/// Publishes the runs that fit the segments, the largest first, none overlapping; drops the others.
fn load_runs(core: &Core, lane: Option<u16>, report: &mut OpenReport) -> Result<()> {
    let entries = match core.storage.list(Path::new(names::RUNS)) {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    let segments = core.view.load().segments.clone();
    let mut fitting: Vec<LoadedRun> = Vec::new();
    let mut useless: Vec<SegmentId> = Vec::new();
    for id in entries.iter().filter(|entry| entry.kind.is_file()).filter_map(|entry| names::parse_run(&entry.name)) {
        let run = match open_run(core, &names::run(id)) {
            Ok(run) if is_of_store(core, &run) => run,
            Ok(_) | Err(Error::Corrupt { .. } | Error::NewerFormat { .. }) => {
                useless.push(id);
                continue;
            }
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        };
        let covered = run.covered().iter().map(|covered| {
            let segment = segments.get(&SegmentId { lane: covered.lane, sequence: covered.sequence })?;
            (segment.seal.crc == covered.seal_crc && segment.seal.rows == covered.rows).then(|| Arc::clone(segment))
        });
        match covered.collect::<Option<Vec<_>>>() {
            Some(segments) => fitting.push(LoadedRun::new(run, Some(id), segments)),
            None => useless.push(id),
        }
    }
    report.runs_dropped = useless.len();
    fitting.sort_by_key(|run| std::cmp::Reverse(run.run.keys()));
    let mut taken: HashSet<SegmentId> = HashSet::new();
    let mut chosen = Vec::new();
    for run in fitting {
        if run.segments.iter().any(|segment| taken.contains(&segment.id)) {
            // Whole, but another one covers its rows: lanes merge each other's segments.
            useless.extend(run.name);
        } else {
            taken.extend(run.segments.iter().map(|segment| segment.id));
            chosen.push(Arc::new(run));
        }
    }
    for id in useless.into_iter().filter(|id| Some(id.lane) == lane) {
        core.storage.remove(&names::run(id))?;
    }
    let live =
        chosen.iter().find_map(|run| remembered_live(&run.run, chosen.iter().flat_map(|run| run.segments.iter())));
    if !chosen.is_empty() {
        core.live.set(live);
    }
    core.change_view(|view| view.runs = chosen.clone());
    Ok(())
}

/// Indexes sealed rows that no run covers: in the delta, or, if they are too many for it, in a run in memory that the
/// next merge writes down.
fn index_uncovered(core: &Core, report: &mut OpenReport) -> Result<()> {
    let view = core.view.load_full();
    let fresh = uncovered(&view);
    let rows: u64 = fresh.iter().map(|segment| u64::from(segment.rows())).sum();
    report.rows_indexed = rows;
    if rows as usize <= core.options.delta_keys {
        return fresh.iter().try_for_each(|segment| core.admit_segment(segment));
    }
    let covers_all = view.runs.is_empty();
    let run = memory_run(core, fresh, covers_all)?;
    core.live.set(remembered_live(&run.run, run.segments.iter()).filter(|_| covers_all));
    let run = Arc::new(run);
    core.change_view(|view| view.runs.push(Arc::clone(&run)));
    Ok(())
}
