//! The shapes of a leaf, row by row.

use crate::engine::read::rows::{queries, with_rows};
use crate::engine::rows::decode::{StoredLeaf, no_such_leaf};
use crate::engine::rows::row::Row;
use crate::engine::state::State;
use crate::error::Result;
use crate::key::Keys;
use crate::schema::leaf_at;

/// The shape of the leaf at `path` of each key; `None` for keys that do not exist. Reads no values: the dimensions are
/// in the structure of a batch, which has a checksum of its own.
pub(crate) fn shapes(state: &State, keys: Keys<'_>, path: &str) -> Result<Vec<Option<Vec<usize>>>> {
    let Some(queries) = queries(state, keys)? else { return Ok(vec![None; keys.len()]) };
    with_rows(state, &queries, |located| {
        if let Some((at, error)) = located.errors.into_iter().next() {
            return Err(keys.item_error(at, error));
        }
        let shape = |(at, row): (usize, &Option<Row<'_>>)| {
            let Some(row) = row else { return Ok(None) };
            let schema = row.schema();
            let leaf = leaf_at(&schema.tree, path).ok_or_else(|| no_such_leaf(schema, path));
            let stored = leaf.and_then(|leaf| StoredLeaf::of(row, leaf));
            stored.map(|stored| Some(stored.shape.into_owned())).map_err(|error| keys.item_error(at, error))
        };
        located.rows.iter().enumerate().map(shape).collect()
    })?
}
