//! Opening examines what is on disk, recovers it, and publishes it. There is no manifest: the sealed footers and the
//! commit frames hold all metadata. Opening moves files; it unlinks only derived files and files without rows.
//!
//! [`look`] examines the folder ([`inventory`], [`identity`], [`missing`], [`index_runs`], [`moved_rows`]) and changes
//! nothing; then [`set_aside`], [`salvage`] and [`recover`] act, in an order in which a crash loses nothing.

pub(crate) mod identity;
pub(crate) mod index_runs;
pub(crate) mod inventory;
pub(crate) mod look;
pub(crate) mod missing;
mod moved_rows;
pub(crate) mod recover;
pub(crate) mod salvage;
pub(crate) mod set_aside;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::files::identity::{Recorded, read};
use crate::engine::files::listing::{Listing, not_files};
use crate::engine::files::locks::{take_lane, wait_for_open_lock};
use crate::engine::files::quarantine::note_missing;
use crate::engine::files::sync_log::SyncLogs;
use crate::engine::findings::{Findings, findings};
use crate::engine::follow::{leave_damaged, refresh};
use crate::engine::observe::{self, Operation, Span};
use crate::engine::open::identity::settle_identity;
use crate::engine::open::index_runs::{index_uncovered, use_runs};
use crate::engine::open::inventory::Inventory;
use crate::engine::open::look::{Found, check_exists, look};
use crate::engine::open::missing::free_numbers;
use crate::engine::open::recover::recover_active;
use crate::engine::open::set_aside::{note_set_aside, set_aside, unfinished};
use crate::engine::options::{Lane as LaneChoice, Options, Recovery};
use crate::engine::report::OpenReport;
use crate::engine::state::State;
use crate::engine::write::lane::Lane;
use crate::error::{Error, Result};
use crate::io::{Durability, LockGuard, Storage};
use crate::names::{self, SegmentId};
use crate::segment::writer::StoreIdentity;

/// A clock that is further behind the store's timestamps is reported.
const MOST_CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Opens for reading. Locks nothing and changes nothing.
pub(crate) fn open_reader(storage: Arc<dyn Storage>, options: Options) -> Result<(Arc<State>, OpenReport)> {
    let (start, span) = (Instant::now(), Span::begin(Operation::Open));
    let mut report = OpenReport::default();
    let found = look(storage, options, true, |_| None)?;
    found.refuse()?;
    found.publish();
    note_what_stays(&found);
    let Found { state, listing, inventory, runs, missing, .. } = found;
    state.registry().lock().miss(missing);
    use_runs(&state, runs, None, &mut report)?;
    index_uncovered(&state, &mut report)?;
    let before = state.memtable().len();
    serve_damaged(&state, inventory)?;
    refresh(&state)?;
    report.rows_recovered = state.memtable().len().saturating_sub(before) as u64;
    finish_report(&state, &listing, &mut report, (start, &span))?;
    Ok((Arc::new(state), report))
}

/// Opens for writing: acquires a lane, recovers it, and cleans up unfinished work.
pub(crate) fn open_writer(storage: Arc<dyn Storage>, options: Options) -> Result<(Arc<State>, Lane, OpenReport)> {
    let (start, span) = (Instant::now(), Span::begin(Operation::Open));
    let mut report = OpenReport::default();
    check_before_anything_is_made(&storage, &options)?;
    make_folders(&*storage, &options)?;
    let (number, lock) = take_lane(&*storage, options.lane)?;
    let opening = wait_for_open_lock(&*storage)?;
    let found = look(storage, options, false, invent)?;
    found.refuse()?;
    let judged = found.judge(number)?;
    // From here on, files are changed.
    let mut lane = new_lane(&found, number, lock)?;
    settle_identity(&found.state, &found.recorded, &found.inventory)?;
    found.publish();
    let mut empty = unfinished(&found, &mut lane)?;
    let Found { state, listing, inventory, runs, missing, .. } = found;
    let own = own_files(&listing, &inventory, number);
    note_set_aside(&state, &mut lane, &listing)?;
    set_aside(&state, &mut lane, inventory)?;
    use_runs(&state, runs, Some(number), &mut report)?;
    index_uncovered(&state, &mut report)?;
    own.into_iter().for_each(|id| state.registry().lock().own(id));
    {
        let span = state.metrics().begin(Operation::Recover);
        for (id, judged) in judged {
            recover_active(&state, &mut lane, id, judged, (&mut report, &mut empty))?;
        }
        span.record("rows", report.rows_recovered);
    }
    let durability = state.options().durability;
    missing.iter().try_for_each(|missing| note_missing(state.storage(), durability, missing, false))?;
    lane.open_sync_log(&state)?;
    remove_empty(&state, &empty)?;
    drop(opening);
    refresh(&state)?;
    lane.saw(state.clock().newest());
    finish_report(&state, &listing, &mut report, (start, &span))?;
    Ok((Arc::new(state), lane, report))
}

/// The identity of a store that does not exist yet.
fn invent(options: &Options) -> Option<StoreIdentity> {
    Some(StoreIdentity::new(options.hash_bits, options.hash_seed))
}

fn check_before_anything_is_made(storage: &Arc<dyn Storage>, options: &Options) -> Result<()> {
    check_network(&**storage, options)?;
    refuse_damage(storage, options)?;
    if !options.create {
        check_exists(&**storage)?;
    }
    match read(&**storage) {
        Err(error @ Error::NewerFormat { .. }) => Err(error),
        _ => Ok(()),
    }
}

/// Notes the damage that a reader leaves in place.
fn note_what_stays(found: &Found) {
    let mut known = found.state.registry().lock();
    for segment in &found.inventory.segments {
        if let Some(error) = segment.front_damage() {
            known.leave(error, segment.seal.rows, Some(0));
        }
    }
    if let Recorded::Damaged(error) = &found.recorded {
        known.leave(error, 0, Some(0));
    }
}

/// For a reader: serves the readable rows of damaged segments, except segments that others replace.
fn serve_damaged(state: &State, inventory: Inventory) -> Result<()> {
    let mut known = state.registry().lock();
    inventory.damaged_replaced.iter().for_each(|(id, _)| known.bad(*id));
    for (id, error) in inventory.damaged.into_iter().chain(inventory.unreadable) {
        leave_damaged(state, &mut known, id, &error)?;
    }
    Ok(())
}

/// The active files that the writer of `lane` takes over.
fn own_files(listing: &Listing, inventory: &Inventory, lane: u16) -> Vec<SegmentId> {
    listing.active.iter().chain(&inventory.hidden).filter(|id| id.lane == lane).copied().collect()
}

/// Removes files without rows. Call it only after the sync log has recorded their numbers as void.
fn remove_empty(state: &State, empty: &[PathBuf]) -> Result<()> {
    empty.iter().try_for_each(|path| state.storage().remove(path))
}

/// With [`Recovery::Strict`], examines an existing store before anything is created in its folder, so that a refused
/// open leaves nothing behind, not even a lock file.
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
        // The lane's own segments are checked more closely than those that others may be writing.
        found.judge(number)?;
        let mut known = found.state.registry().lock();
        found.listing.active.iter().filter(|id| id.lane == number).for_each(|id| known.own(*id));
    }
    refresh(&found.state).map(drop)
}

fn new_lane(found: &Found, number: u16, lock: Box<dyn LockGuard>) -> Result<Lane> {
    let Found { state, listing, inventory, runs, .. } = found;
    let numbers = free_numbers(&found.numbers, number, inventory, listing, &runs.covered());
    Ok(Lane::new(number, lock, numbers, SyncLogs::voids(state.storage(), number)?))
}

fn finish_report(
    state: &State,
    listing: &Listing,
    report: &mut OpenReport,
    (start, span): (Instant, &Span),
) -> Result<()> {
    for (path, why) in not_files(state.storage(), listing)? {
        state.registry().lock().leave_not_file(state.storage().describe(&path), why);
    }
    let Findings { files, missing, .. } = findings(state)?;
    (report.quarantined, report.missing) = (files, missing);
    let version = state.versions().load();
    report.segments = version.segments().len();
    report.runs = version.runs().len();
    report.rows = version.segments().values().map(|segment| segment.seal.rows).sum::<u64>() + report.rows_recovered;
    let behind = state.clock().behind();
    if behind > MOST_CLOCK_SKEW {
        report.notes.push(format!(
            "the clock of this machine is {} s behind the newest row of the store: set it right; what is put until then \
             gets times after that row's",
            behind.as_secs()
        ));
    }
    let quarantine = if state.options().caps.disk_bytes.is_some() { state.usage()?.quarantine } else { 0 };
    if quarantine > 0 {
        report.notes.push(format!(
            "files in quarantine take {quarantine} bytes of the cap, and are never removed: look at them, and move them \
             away"
        ));
    }
    report.elapsed = start.elapsed();
    span.record("rows", report.rows);
    span.record("segments", report.segments as u64);
    state.metrics().instruments().took(Operation::Open, report.elapsed);
    if !report.quarantined.is_empty() || !report.missing.is_empty() {
        let store = state.storage().describe(Path::new(""));
        observe::opened_without(&store, report.quarantined.len(), report.missing.len());
    }
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
