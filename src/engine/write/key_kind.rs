//! The kind of keys, which the first put fixes.

use std::path::Path;

use crate::engine::files::identity::{self, Recorded};
use crate::engine::files::locks::wait_for_open_lock;
use crate::engine::follow::refresh;
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::key::KeyKind;
use crate::names;

/// Fixes the kind of the store's keys at its first write, for all lanes: until one of them has committed a row, they
/// agree on the kind through `store.json`.
///
/// # Errors
/// [`Error::KeyKind`] if it is another; IO errors.
pub(crate) fn claim_key_kind(state: &State, kind: KeyKind) -> Result<()> {
    if let Some(fixed) = state.identity().key_kind() {
        return fixed.expect(kind);
    }
    let _opening = wait_for_open_lock(state.storage())?;
    // Another lane may have committed rows since this handle was opened.
    refresh(state)?;
    if let Some(fixed) = state.identity().key_kind() {
        return fixed.expect(kind);
    }
    match identity::read(state.storage())? {
        Recorded::Identity(identity, _) if identity != state.identity().recorded() => Err(Error::ReadOnly {
            why: format!(
                "{} was exchanged since: it names store {}, not {}",
                state.storage().describe(Path::new(names::IDENTITY)).display(),
                identity.store,
                state.identity().store()
            ),
        }),
        Recorded::Identity(_, Some(fixed)) => {
            state.identity().fix_key_kind(fixed)?;
            fixed.expect(kind)
        }
        _ => {
            identity::write(state.storage(), state.identity().recorded(), Some(kind), state.options().durability)?;
            state.identity().fix_key_kind(kind)
        }
    }
}
