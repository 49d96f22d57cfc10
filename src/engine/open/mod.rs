//! Opening: what is on disk is looked at, recovered, and published. There is no manifest to read; the sealed footers
//! and the commit frames say everything. Opening moves files and unlinks none but those that this store derives or that
//! hold nothing.

pub(crate) mod inventory;
pub(crate) mod missing;
pub(crate) mod recover;
pub(crate) mod salvage;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::files::identity::{self, Recorded};
use crate::engine::files::locks::{take_lane, wait_for_open_lock};
use crate::engine::files::quarantine::{MissingIds, move_away, note_missing, told};
use crate::engine::files::replace::not_files;
use crate::engine::files::sync_log::AllMarks;
use crate::engine::findings::{Findings, findings};
use crate::engine::open::inventory::{Inventory, Listing, Loaded, list, load};
use crate::engine::open::recover::{Judged, judge, recover_active};
use crate::engine::options::{Lane as LaneChoice, Options, Recovery};
use crate::engine::report::OpenReport;
use crate::engine::runs::build::{is_of_store, memory_run, open_run, remembered_live, uncovered};
use crate::engine::state::{Core, LoadedRun};
use crate::engine::write::lane::Lane;
use crate::error::{Error, Result};
use crate::index::run::Run;
use crate::io::{Durability, FileKind, LockGuard, Storage};
use crate::names::{self, SegmentId};
use crate::segment::reader::Segment;
use crate::segment::writer::StoreIdentity;

/// A clock that is behind what it sees by more is worth a word.
const MOST_CLOCK_SKEW: Duration = Duration::from_secs(60);

/// What is on disk, looked at and sorted out.
struct Found {
    core: Core,
    recorded: Recorded,
    listing: Listing,
    inventory: Inventory,
    runs: Runs,
    missing: Vec<MissingIds>,
}

/// Index runs as they lie on disk.
#[derive(Default)]
struct Runs {
    /// Of this store.
    own: Vec<(SegmentId, Run)>,
    /// Damaged ones, which may be removed.
    damaged: Vec<SegmentId>,
    /// Those of another store, or a newer version: not this store's to remove.
    foreign: usize,
    /// Those that this user may not read.
    unreadable: Vec<Error>,
}

impl Runs {
    /// Those of the store of `core`.
    fn of_store(mut self, core: &Core) -> Self {
        let all = self.own.len();
        self.own.retain(|(_, run)| is_of_store(core, run));
        self.foreign += all - self.own.len();
        self
    }

    /// Segments that they cover, and their rows.
    fn covered(&self) -> Vec<(SegmentId, u64)> {
        let covered = self.own.iter().flat_map(|(_, run)| run.covered());
        covered.map(|covered| (SegmentId { lane: covered.lane, sequence: covered.sequence }, covered.rows)).collect()
    }
}

/// Looks at everything and changes nothing. `invent` makes the identity of a store that is not there yet.
fn look(
    storage: Arc<dyn Storage>,
    options: Options,
    read_only: bool,
    invent: impl FnOnce(&Options) -> Option<StoreIdentity>,
) -> Result<Found> {
    // Before the segments: what a run covers was sealed before the run was made.
    let runs = read_runs(&*storage)?;
    let listing = list(&*storage)?;
    let loaded: Loaded = load(&*storage, &listing.sealed)?;
    let recorded = match identity::read(&*storage) {
        // A reader takes what segments say. A writer would put another file in its place.
        Err(error) if read_only && error.is_denied() => Recorded::Damaged(error),
        recorded => recorded?,
    };
    let identity = identity::find(&*storage, &recorded, &loaded, &listing.active);
    let identity = identity.or_else(|| invent(&options)).ok_or_else(|| {
        Error::io(
            "open the store in",
            storage.describe(Path::new("")),
            std::io::Error::new(std::io::ErrorKind::NotFound, "no store has been written there"),
        )
    })?;
    let core = Core::new(storage, options, identity, read_only)?;
    let inventory = Inventory::take(&core, &listing, loaded)?;
    let runs = runs.of_store(&core);
    let missing = missing::missing(&core, &inventory, &listing, &runs.covered())?;
    Ok(Found { core, recorded, listing, inventory, runs, missing })
}

impl Found {
    /// What [`Recovery::Strict`] refuses: damage that is seen without a walk of active segments, and files that are left
    /// out or missing.
    fn refuse(&self) -> Result<()> {
        if self.core.options.recovery != Recovery::Strict {
            return Ok(());
        }
        let found = &self.inventory;
        let fronts = found.segments.iter().filter_map(|segment| segment.front_damage());
        let files = found.damaged.iter().chain(&found.damaged_replaced).chain(&found.foreign).chain(&found.unreadable);
        let files = files.map(|(_, error)| error).chain(self.runs.unreadable.first());
        if let Recorded::Damaged(error) = &self.recorded {
            return Err(error.clone());
        }
        if let Some(error) = files.chain(fronts).next() {
            return Err(error.clone());
        }
        if let Some((id, why)) = found.strays.first() {
            return Err(Error::corrupt(self.core.storage.describe(&names::temporary_segment(*id)), 0, why.clone()));
        }
        if let Some((_, name)) = self.listing.not_files.first() {
            let path = self.core.storage.describe(&Path::new(names::SEGMENTS).join(name));
            return Err(Error::corrupt(path, 0, "it is no file that a writer of this store made"));
        }
        let known = findings(&self.core)?.missing;
        let new = self.missing.iter().map(|missing| missing.describe(&*self.core.storage));
        known.into_iter().chain(new).next().map_or(Ok(()), |missing| Err(missing.error()))
    }

    /// Active segments of `lane`, whose writer is gone, and what they turned out to be.
    fn judge(&self, lane: u16) -> Result<Vec<(SegmentId, Judged)>> {
        let foreign: HashSet<SegmentId> = self.inventory.foreign.iter().map(|(id, _)| *id).collect();
        let own = self.listing.active.iter().filter(|id| !foreign.contains(id)).chain(&self.inventory.hidden);
        let own = own.filter(|id| id.lane == lane);
        let judge = |id| judge(&self.core, id).map(|judged| (id, judged.behind(&self.core, &self.inventory, id)));
        let judged = own.map(|id| judge(*id)).collect::<Result<Vec<_>>>()?;
        if self.core.options.recovery == Recovery::Strict
            && let Some(error) = judged.iter().find_map(|(_, judged)| judged.damage())
        {
            return Err(error.clone());
        }
        Ok(judged)
    }

    /// Publishes the segments, and notes the files that are left where they are.
    fn publish(&self) {
        let core = &self.core;
        let mut known = core.known.lock();
        self.inventory.foreign.iter().for_each(|(id, error)| known.leave_foreign(*id, error));
        self.inventory.hidden.iter().for_each(|id| known.follow_hidden(*id));
        for (id, why) in &self.inventory.strays {
            known.leave_not_file(core.storage.describe(&names::temporary_segment(*id)), why.clone());
        }
        for segment in &self.inventory.segments {
            core.saw_stamp(segment.seal.last_stamp);
        }
        drop(known);
        // A writer is about to write anew those whose front is damaged.
        let served = |segment: &&Arc<Segment>| core.read_only || segment.front_damage().is_none();
        let segments = self.inventory.segments.iter().filter(served).map(|segment| (segment.id, Arc::clone(segment)));
        core.change_view(|view| view.segments.extend(segments.clone()));
    }
}

/// Opens for reading: nothing is locked, and nothing changed.
pub(crate) fn open_reader(storage: Arc<dyn Storage>, options: Options) -> Result<(Arc<Core>, OpenReport)> {
    let start = Instant::now();
    let mut report = OpenReport::default();
    let found = look(storage, options, true, |_| None)?;
    found.refuse()?;
    found.publish();
    let Found { core, recorded, listing, inventory, runs, missing } = found;
    let mut known = core.known.lock();
    known.miss(missing);
    for segment in &inventory.segments {
        if let Some(error) = segment.front_damage() {
            known.leave(error, segment.seal.rows, Some(0));
        }
    }
    if let Recorded::Damaged(error) = &recorded {
        known.leave(error, 0, Some(0));
    }
    drop(known);
    use_runs(&core, runs, None, &mut report)?;
    index_uncovered(&core, &mut report)?;
    let before = core.delta.len();
    let mut known = core.known.lock();
    inventory.replaced.iter().for_each(|segment| known.bad(segment.id));
    inventory.damaged_replaced.iter().for_each(|(id, _)| known.bad(*id));
    for (id, error) in inventory.damaged.into_iter().chain(inventory.unreadable) {
        core.leave_damaged(&mut known, id, &error)?;
    }
    drop(known);
    core.refresh()?;
    report.rows_recovered = core.delta.len().saturating_sub(before) as u64;
    finish_report(&core, &listing, &mut report, start)?;
    Ok((Arc::new(core), report))
}

/// Opens for writing: takes a lane, recovers it, and cleans up what was left half done.
pub(crate) fn open_writer(storage: Arc<dyn Storage>, options: Options) -> Result<(Arc<Core>, Lane, OpenReport)> {
    let start = Instant::now();
    let mut report = OpenReport::default();
    check_network(&*storage, &options)?;
    refuse_damage(&storage, &options)?;
    if let Err(error @ Error::NewerFormat { .. }) = identity::read(&*storage) {
        // Before anything is made.
        return Err(error);
    }
    make_folders(&*storage, &options)?;
    let (number, lock) = take_lane(&*storage, options.lane)?;
    let opening = wait_for_open_lock(&*storage)?;
    let found =
        look(storage, options, false, |options| Some(StoreIdentity::new(options.hash_bits, options.hash_seed)))?;
    found.refuse()?;
    let judged = found.judge(number)?;
    // From here on, files are changed.
    let mut lane = new_lane(&found, number, lock)?;
    settle_identity(&found)?;
    found.publish();
    let mut empty = unfinished(&found, &mut lane)?;
    let Found { core, listing, inventory, runs, missing, .. } = found;
    let hidden: Vec<SegmentId> = inventory.hidden.iter().filter(|id| id.lane == number).copied().collect();
    note_set_aside(&core, &mut lane, &listing)?;
    set_aside(&core, &mut lane, inventory)?;
    use_runs(&core, runs, Some(number), &mut report)?;
    index_uncovered(&core, &mut report)?;
    let own: Vec<SegmentId> = listing.active.iter().filter(|id| id.lane == number).copied().collect();
    own.into_iter().chain(hidden).for_each(|id| core.known.lock().own(id));
    for (id, judged) in judged {
        recover_active(&core, &mut lane, id, judged, (&mut report, &mut empty))?;
    }
    for missing in missing {
        note_missing(&core, &missing, false)?;
    }
    lane.open_marks(&core)?;
    // Only now: their numbers are known to be void.
    empty.iter().try_for_each(|path| core.storage.remove(path))?;
    drop(opening);
    core.refresh()?;
    lane.last_stamp = lane.last_stamp.max(core.newest_stamp());
    finish_report(&core, &listing, &mut report, start)?;
    Ok((Arc::new(core), lane, report))
}

/// With [`Recovery::Strict`], looks at a store that is there before anything is made in its folder: so that what is
/// refused leaves nothing behind, not even a lock file.
fn refuse_damage(storage: &Arc<dyn Storage>, options: &Options) -> Result<()> {
    if options.recovery != Recovery::Strict {
        return Ok(());
    }
    let found = match look(Arc::clone(storage), options.clone(), true, |_| None) {
        Ok(found) => found,
        // There is no store yet.
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    found.refuse()?;
    found.publish();
    if let LaneChoice::Number(number) = options.lane {
        // The lane's own segments are judged more closely than those that others may be writing.
        found.judge(number)?;
        let mut known = found.core.known.lock();
        found.listing.active.iter().filter(|id| id.lane == number).for_each(|id| known.own(*id));
    }
    found.core.refresh().map(drop)
}

fn new_lane(found: &Found, number: u16, lock: Box<dyn LockGuard>) -> Result<Lane> {
    let Found { core, listing, inventory, runs, .. } = found;
    Ok(Lane {
        number,
        numbers: missing::FreeNumbers::find(core, number, inventory, listing, &runs.covered())?,
        last_stamp: 0,
        actives: Vec::new(),
        sealing: None,
        unsynced: Vec::new(),
        marks: None,
        voids: AllMarks::voids(&*core.storage, number)?,
        sealed: Vec::new(),
        names_dirty: true,
        lock,
    })
}

/// Sees to it that `store.json` names the store. A damaged one is set aside. Where it names another store than all the
/// segments, it is the file that was exchanged: then nothing is written.
fn settle_identity(found: &Found) -> Result<()> {
    let core = &found.core;
    match &found.recorded {
        Recorded::Identity(..) => {}
        Recorded::Absent => identity::write(&*core.storage, core.identity, None, core.options.durability)?,
        Recorded::Damaged(error) => {
            move_away(core, Path::new(names::IDENTITY), &error.to_string(), (0, Some(0)), false)?;
            identity::write(&*core.storage, core.identity, None, core.options.durability)?;
        }
    }
    if let (true, Some((_, error))) = (found.inventory.is_all_foreign(), found.inventory.foreign.first()) {
        core.refuse_writes(Error::ReadOnly {
            why: format!(
                "no segment in its folder is of the store that {} names ({error}): put the right {} back, or move the \
                 segments away",
                core.storage.describe(Path::new(names::IDENTITY)).display(),
                names::IDENTITY,
            ),
        });
    }
    Ok(())
}

/// Segments that the lane's former writer had begun to write in the place of others: they hold nothing that is not there
/// still.
fn unfinished(found: &Found, lane: &mut Lane) -> Result<Vec<PathBuf>> {
    let is_stray = |id: &SegmentId| found.inventory.strays.iter().any(|(stray, _)| stray == id);
    let own = found.listing.temporary.iter().filter(|id| id.lane == lane.number && !is_stray(id));
    let own: Vec<SegmentId> = own.copied().collect();
    own.iter().try_for_each(|id| lane.void(&found.core, *id))?;
    Ok(own.into_iter().map(names::temporary_segment).collect())
}

/// Notes that the numbers of files that earlier openings moved away are void: one that was stopped halfway did not.
fn note_set_aside(core: &Core, lane: &mut Lane, listing: &Listing) -> Result<()> {
    let there: HashSet<SegmentId> = listing.ids().collect();
    let noted = AllMarks::read(&*core.storage)?;
    let lanes = there.iter().map(|id| id.lane);
    let noted: HashSet<(SegmentId, bool)> = noted.segments(&core.identity.store, lanes).into_iter().collect();
    let moved = told(&*core.storage)?.segments.into_iter().filter(|id| !there.contains(id));
    let mut new = moved.filter(|id| !noted.contains(&(*id, true)));
    new.try_for_each(|id| lane.void(core, id))
}

/// Moves away what is damaged, after its whole rows were saved, and what others replace; leaves what may not be read.
fn set_aside(core: &Core, lane: &mut Lane, found: Inventory) -> Result<()> {
    for (id, error) in &found.unreadable {
        core.leave_damaged(&mut core.known.lock(), *id, error)?;
    }
    for segment in &found.replaced {
        move_away(
            core,
            &names::sealed(segment.id),
            "another segment replaces it",
            (segment.seal.rows, Some(0)),
            false,
        )?;
    }
    for (id, error) in &found.damaged_replaced {
        core.known.lock().bad(*id);
        move_away(core, &names::sealed(*id), &format!("another segment replaces it: {error}"), (0, Some(0)), false)?;
    }
    for (id, error) in &found.damaged {
        salvage::quarantine(core, lane, *id, &names::sealed(*id), error)?;
    }
    for segment in &found.segments {
        if let Some(error) = segment.front_damage() {
            salvage::quarantine(core, lane, segment.id, &names::sealed(segment.id), error)?;
        }
    }
    Ok(())
}

fn finish_report(core: &Core, listing: &Listing, report: &mut OpenReport, start: Instant) -> Result<()> {
    for (path, why) in not_files(&*core.storage, listing)? {
        core.known.lock().leave_not_file(core.storage.describe(&path), why);
    }
    let Findings { files, missing } = findings(core)?;
    (report.quarantined, report.missing) = (files, missing);
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
    Ok(())
}

fn check_network(storage: &dyn Storage, options: &Options) -> Result<()> {
    if let (Some(name), false) = (storage.network()?, options.allow_network) {
        return Err(Error::ReadOnly {
            why: format!(
                "{} lies on {name}, a network file system whose locks and maps may not hold what they promise: use a \
                 local disk, Reader::open, or Options::allow_network(true)",
                storage.describe(Path::new("")).display()
            ),
        });
    }
    Ok(())
}

fn make_folders(storage: &dyn Storage, options: &Options) -> Result<()> {
    storage.create_dir(Path::new(""))?;
    for folder in [names::SEGMENTS, names::RUNS, names::LANES, names::QUARANTINE] {
        storage.create_dir(Path::new(folder))?;
    }
    if options.durability > Durability::Buffered { storage.sync_dir(Path::new("")) } else { Ok(()) }
}

/// Opens all runs, of whichever store. O(runs).
fn read_runs(storage: &dyn Storage) -> Result<Runs> {
    let entries = match storage.list(Path::new(names::RUNS)) {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => return Ok(Runs::default()),
        Err(error) => return Err(error),
    };
    let mut runs = Runs::default();
    for id in entries.iter().filter(|entry| entry.kind.is_file()).filter_map(|entry| names::parse_run(&entry.name)) {
        match open_run(storage, &names::run(id)) {
            Ok(run) => runs.own.push((id, run)),
            Err(Error::NewerFormat { .. }) => runs.foreign += 1,
            Err(Error::Corrupt { .. }) => runs.damaged.push(id),
            Err(error) if error.is_denied() => runs.unreadable.push(error),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(runs)
}

/// Publishes the runs that fit the segments, the largest first, none overlapping; drops the others, those of `lane` from
/// disk.
fn use_runs(core: &Core, runs: Runs, lane: Option<u16>, report: &mut OpenReport) -> Result<()> {
    let segments = core.view.load().segments.clone();
    let mut fitting: Vec<LoadedRun> = Vec::new();
    let mut useless: Vec<SegmentId> = runs.damaged;
    for (id, run) in runs.own {
        let covered = run.covered().iter().map(|covered| {
            let segment = segments.get(&SegmentId { lane: covered.lane, sequence: covered.sequence })?;
            (segment.seal.crc == covered.seal_crc && segment.seal.rows == covered.rows).then(|| Arc::clone(segment))
        });
        match covered.collect::<Option<Vec<_>>>() {
            Some(segments) => fitting.push(LoadedRun::new(run, Some(id), segments)),
            None => useless.push(id),
        }
    }
    report.runs_dropped = useless.len() + runs.foreign + runs.unreadable.len();
    report.notes.extend(runs.unreadable.iter().map(|error| format!("left out: {error}")));
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
    remove_unfinished_runs(core, lane)?;
    let live =
        chosen.iter().find_map(|run| remembered_live(&run.run, chosen.iter().flat_map(|run| run.segments.iter())));
    if !chosen.is_empty() {
        core.live.set(live);
    }
    core.change_view(|view| view.runs = chosen.clone());
    Ok(())
}

/// Runs that the lane's former writer had begun to build.
fn remove_unfinished_runs(core: &Core, lane: Option<u16>) -> Result<()> {
    let Some(lane) = lane else { return Ok(()) };
    for entry in core.storage.list(Path::new(names::RUNS))? {
        let is_own = names::parse_temporary_run(&entry.name).is_some_and(|id| id.lane == lane);
        if is_own && entry.kind == FileKind::File {
            core.storage.remove(&Path::new(names::RUNS).join(&entry.name))?;
        }
    }
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
