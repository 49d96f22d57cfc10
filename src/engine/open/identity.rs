//! Finds the store's identity: in `store.json`, or in its segments.

use std::collections::HashMap;
use std::path::Path;

use crate::engine::files::identity::{self, Recorded};
use crate::engine::files::quarantine::move_away;
use crate::engine::open::inventory::{Inventory, Loaded};
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::io::Storage;
use crate::names::{self, SegmentId};
use crate::segment::scan::read_front;
use crate::segment::writer::StoreIdentity;

/// The identity of the store: that of `store.json`; without it, that of most sealed segments (in a tie, the first by
/// name); else that of the first active segment, or of the first damaged one that still has it. `None` if there is no
/// store.
pub(crate) fn find_identity(
    storage: &dyn Storage,
    recorded: &Recorded,
    loaded: &Loaded,
    active: &[SegmentId],
) -> Option<StoreIdentity> {
    if let Recorded::Identity(identity, _) = recorded {
        return Some(*identity);
    }
    let mut votes: HashMap<StoreIdentity, (usize, std::cmp::Reverse<usize>)> = HashMap::new();
    for (position, segment) in loaded.segments.iter().enumerate() {
        votes.entry(StoreIdentity::of(&segment.front.header)).or_insert((0, std::cmp::Reverse(position))).0 += 1;
    }
    let most = votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(identity, _)| identity);
    most.or_else(|| {
        active.iter().find_map(|&id| {
            let path = names::active(id);
            let front = read_front(&path, &*storage.open(&path, 0).ok()?, id).ok()?;
            Some(StoreIdentity::of(&front.header))
        })
    })
    .or_else(|| {
        loaded.damaged.iter().find_map(|&(id, _)| {
            let path = names::sealed(id);
            let front = read_front(&path, &*storage.open(&path, 0).ok()?, id).ok()?;
            Some(StoreIdentity::of(&front.header))
        })
    })
}

/// Ensures that `store.json` names the store. A damaged one is set aside. If it names another store than all segments
/// do, the file was exchanged, and nothing is written.
pub(crate) fn settle_identity(state: &State, recorded: &Recorded, inventory: &Inventory) -> Result<()> {
    let (storage, durability, named) = (state.storage(), state.options().durability, state.identity().recorded());
    match recorded {
        Recorded::Identity(..) => {}
        Recorded::Absent => identity::write(storage, named, None, durability)?,
        Recorded::Damaged(error) => {
            move_away(storage, durability, Path::new(names::IDENTITY), &error.to_string(), (0, Some(0)), false)?;
            identity::write(storage, named, None, durability)?;
        }
    }
    if let (true, Some((_, error))) = (inventory.is_all_foreign(), inventory.foreign.first()) {
        state.access().refuse_writes(Error::ReadOnly {
            why: format!(
                "no segment in its folder is of the store that {} names ({error}): put the right {} back, or move the \
                 segments away",
                state.storage().describe(Path::new(names::IDENTITY)).display(),
                names::IDENTITY,
            ),
        });
    }
    Ok(())
}
