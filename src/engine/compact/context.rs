//! What compaction works on.

use std::sync::Arc;

use crate::engine::state::State;
use crate::engine::write::queue::Queue;
use crate::engine::write::writer::Writer;

/// An open store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub state: &'a Arc<State>,
    pub writer: &'a Writer,
    pub lane: u16,
    /// Says when the store closes.
    pub queue: &'a Queue,
}
