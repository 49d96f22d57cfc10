//! The structures of the rows in a store.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::engine::report::SchemaUse;
use crate::engine::rows::row::Source;
use crate::engine::state::State;
use crate::error::Result;
use crate::names::SegmentId;
use crate::schema::{RowSchema, Schema};

#[derive(Default)]
struct Count {
    rows: u64,
    segments: HashSet<SegmentId>,
}

/// Each structure of values once, most rows first. O(segments, and batches that are not sealed).
pub(crate) fn schemas(state: &State) -> Result<Vec<SchemaUse>> {
    state.check_fork()?;
    let batches = state.memtable().sorted();
    let version = state.versions().load_full();
    let mut counts: HashMap<Arc<RowSchema>, Count> = HashMap::new();
    let mut add = |schema: &Arc<RowSchema>, rows: u64, segment: Option<SegmentId>| {
        if !schema.is_tombstones() && rows > 0 {
            let count = counts.entry(Arc::clone(schema)).or_default();
            count.rows += rows;
            count.segments.extend(segment);
        }
    };
    for segment in version.segments().values() {
        add(segment.schema(), segment.seal.rows, Some(segment.id));
    }
    for (_, batch) in batches {
        match &batch.source {
            Source::Pending(pending) => add(&pending.columns.schema, pending.columns.rows as u64, None),
            // One entry for each batch of an active segment; sealed ones were counted above.
            Source::Committed { segment, batch, first: 0 } if !version.segments().contains_key(segment) => {
                add(&batch.columns.schema, batch.columns.rows as u64, Some(*segment));
            }
            Source::Committed { .. } | Source::Sealed(_) => {}
        }
    }
    let mut all: Vec<SchemaUse> = counts
        .into_iter()
        .map(|(schema, count)| SchemaUse {
            schema: Schema::of_rows(&schema),
            rows: count.rows,
            segments: count.segments.len(),
        })
        .collect();
    all.sort_by_cached_key(|used| (std::cmp::Reverse(used.rows), used.schema.to_string()));
    Ok(all)
}
