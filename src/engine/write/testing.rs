//! Batches for tests.

use std::sync::{Arc, OnceLock};

use crate::codec::Codec;
use crate::engine::rows::row::{BatchId, PendingBatch, QueuedBatch};
use crate::engine::write::schemas::Schemas;
use crate::key::{KeyHasher, KeyKind, KeyRef};
use crate::schema::derive;
use crate::segment::build::ColumnsBuilder;
use crate::value::{AsValue, Value};

/// A batch of rows that all have `value`.
pub(crate) fn batch(schemas: &mut Schemas, id: BatchId, keys: &[u64], value: &Value) -> QueuedBatch {
    let view = value.as_value();
    let (schema, leaves) = derive(&view, KeyKind::U64, None, Codec::None).unwrap();
    let mut rows = ColumnsBuilder::new(schemas.intern(schema), Codec::None).unwrap();
    keys.iter().for_each(|key| rows.push(KeyRef::U64(*key), &leaves).unwrap());
    let columns = rows.finish();
    let hashes = columns.hashes(KeyHasher::default());
    (id, Arc::new(PendingBatch { columns, hashes, len_bytes: 100 * keys.len(), written: OnceLock::new() }))
}
