//! What compaction works on.

use std::sync::Arc;

use crate::engine::state::State;
use crate::engine::write::writer::Writer;
use crate::error::Result;

/// An open store.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub state: &'a Arc<State>,
    pub writer: &'a Writer,
    pub lane: u16,
    /// Fails when compaction is to stop.
    pub stop: &'a dyn Fn() -> Result<()>,
}
