//! The inputs of a compaction.

use std::sync::Arc;

use crate::engine::state::State;
use crate::engine::write::writer::Writer;
use crate::error::Result;

/// The open store that is compacted.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub state: &'a Arc<State>,
    pub writer: &'a Writer,
    pub lane: u16,
    /// Returns an error when compaction should stop.
    pub stop: &'a dyn Fn() -> Result<()>,
}
