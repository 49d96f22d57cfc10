//! Decides which waiting batches are written as one.

use std::collections::HashMap;
use std::sync::Arc;

use crate::engine::rows::row::QueuedBatch;
use crate::schema::RowSchema;

/// Divides the waiting batches into groups of one structure, ordered so that the newest row of every key comes last.
/// Expected O(rows).
pub(crate) fn groups(waiting: &[QueuedBatch], most_bytes: usize) -> Vec<Vec<&QueuedBatch>> {
    let mixed = waiting.windows(2).any(|pair| match pair {
        [(_, a), (_, b)] => a.columns.schema != b.columns.schema,
        _ => false,
    });
    let mut groups: Vec<(Vec<&QueuedBatch>, usize)> = Vec::new();
    // The newest group of each structure (structures are interned), and the newest group with each hash.
    let mut newest: HashMap<*const RowSchema, usize> = HashMap::new();
    let mut holders: HashMap<u64, usize> = HashMap::new();
    for item in waiting {
        let (_, pending) = item;
        let structure = Arc::as_ptr(&pending.columns.schema);
        let held_later = |group: usize| pending.hashes.iter().any(|hash| holders.get(hash) > Some(&group));
        // The newest group of the same structure, unless it is full or a later group has one of the keys.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::write::schemas::Schemas;
    use crate::engine::write::testing::batch;
    use crate::value::Value;

    const SEVERAL: usize = 10_000;

    fn ids(waiting: &[QueuedBatch], most_bytes: usize) -> Vec<Vec<u32>> {
        groups(waiting, most_bytes).into_iter().map(|group| group.into_iter().map(|(id, _)| *id).collect()).collect()
    }

    #[test]
    fn batches_of_one_structure_are_joined_up_to_the_bound() {
        let mut schemas = Schemas::default();
        let mut int = |id, keys: &[u64]| batch(&mut schemas, id, keys, &Value::Int(1));
        let waiting = [int(0, &[1, 2]), int(1, &[3]), int(2, &[1]), int(3, &[4, 5, 6, 7, 8])];
        assert_eq!(ids(&waiting, SEVERAL), [[0, 1, 2, 3]]);
        assert_eq!(ids(&waiting, 400), [vec![0, 1, 2], vec![3]]);
        assert_eq!(ids(&waiting, 1), [[0], [1], [2], [3]]);
        assert!(ids(&[], SEVERAL).is_empty());
    }

    #[test]
    fn structures_are_written_apart_and_no_key_gets_behind_its_newer_row() {
        let mut schemas = Schemas::default();
        let (int, text) = (Value::Int(1), Value::Str("a".into()));
        let mut of = |id, keys: &[u64], value| batch(&mut schemas, id, keys, value);
        let apart = [of(0, &[1], &int), of(1, &[2], &text), of(2, &[3], &int), of(3, &[4], &text)];
        assert_eq!(ids(&apart, SEVERAL), [[0, 2], [1, 3]]);
        // Key 2 was put as text in between: joined with batch 0, its newest row would be written first.
        let between = [of(0, &[1], &int), of(1, &[2], &text), of(2, &[2], &int), of(3, &[1], &int)];
        assert_eq!(ids(&between, SEVERAL), [vec![0], vec![1], vec![2, 3]]);
    }
}
