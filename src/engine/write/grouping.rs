//! Which batches that wait are written as one.

use std::collections::HashMap;
use std::sync::Arc;

use crate::engine::rows::row::QueuedBatch;
use crate::schema::RowSchema;

/// Cuts what waits into groups of one structure, in an order in which the newest row of every key comes last. Expected
/// O(rows).
pub(crate) fn groups(waiting: &[QueuedBatch], most_bytes: usize) -> Vec<Vec<&QueuedBatch>> {
    let mixed = waiting.windows(2).any(|pair| match pair {
        [(_, a), (_, b)] => a.columns.schema != b.columns.schema,
        _ => false,
    });
    let mut groups: Vec<(Vec<&QueuedBatch>, usize)> = Vec::new();
    // The newest group of each structure, of which there is one instance, and the newest group that holds each hash.
    let mut newest: HashMap<*const RowSchema, usize> = HashMap::new();
    let mut holders: HashMap<u64, usize> = HashMap::new();
    for item in waiting {
        let (_, pending) = item;
        let structure = Arc::as_ptr(&pending.columns.schema);
        let held_later = |group: usize| pending.hashes.iter().any(|hash| holders.get(hash) > Some(&group));
        // The newest group of the same structure, unless it is full, or a later group holds one of the keys.
        let same = newest.get(&structure).copied();
        let has_room =
            |group: usize| groups.get(group).is_some_and(|(_, len_bytes)| len_bytes + pending.len_bytes <= most_bytes);
        let position = same.filter(|group| has_room(*group) && !held_later(*group)).unwrap_or(groups.len());
        if position == groups.len() {
            groups.push((Vec::new(), 0));
            newest.insert(structure, position);
        }
        if let Some((items, len_bytes)) = groups.get_mut(position) {
            items.push(item);
            *len_bytes += pending.len_bytes;
        }
        if mixed {
            holders.extend(pending.hashes.iter().map(|hash| (*hash, position)));
        }
    }
    groups.into_iter().map(|(items, _)| items).collect()
}
