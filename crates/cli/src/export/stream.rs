//! All values of a store as a stream of record batches.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchReader};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use tensorcask::{KeyKind, Reader};

use super::columns::{Columns, Refused};
use super::rows::Rows;
use crate::failure::Failure;

/// The keys and values of a store, as [`export`](crate) writes them to an Arrow file: a column of keys, and a column for
/// each leaf of the values. Batches have about 8 MiB.
pub struct Batches {
    rows: Rows,
    columns: Columns,
    schema: SchemaRef,
    first: Option<RecordBatch>,
}

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// The columns whose tensors differ in shape from row to row.
fn ragged(reader: &Reader) -> Result<HashSet<String>, Failure> {
    let mut shapes: HashMap<String, Option<Vec<usize>>> = HashMap::new();
    let mut ragged = HashSet::new();
    for used in reader.schemas()? {
        for leaf in used.schema.leaves().iter().filter(|leaf| leaf.is_tensor()) {
            let shape = leaf.shape().map(<[usize]>::to_vec);
            let first = shapes.entry(leaf.path().to_owned()).or_insert_with(|| shape.clone());
            if shape.is_none() || *first != shape {
                ragged.insert(leaf.path().to_owned());
            }
        }
    }
    Ok(ragged)
}

impl Batches {
    /// Reads the first batch, which determines the schema.
    ///
    /// # Errors
    /// The message of a failure to read, or of values that have no common schema.
    pub fn new(reader: &Reader) -> Result<Self, String> {
        Self::start(reader).map_err(|failure| failure.to_string())
    }

    fn start(reader: &Reader) -> Result<Self, Failure> {
        let mut rows = Rows::new(reader.clone(), Box::new(reader.keys()), false);
        let mut columns = Columns::for_tables(ragged(reader)?);
        let values = rows.next()?;
        let (schema, first) = if values.is_empty() {
            let keys = match reader.key_kind() {
                Some(KeyKind::U64) => DataType::UInt64,
                Some(KeyKind::Bytes) => DataType::Binary,
                _ => DataType::Utf8,
            };
            (Arc::new(Schema::new(vec![Field::new("key", keys, false)])), None)
        } else {
            let batch = columns.batch(&values).map_err(failure)?;
            (batch.schema(), Some(batch))
        };
        Ok(Self { rows, columns, schema, first })
    }

    fn read(&mut self) -> Result<Option<RecordBatch>, Failure> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let values = self.rows.next()?;
        if values.is_empty() {
            return Ok(None);
        }
        let batch = self.columns.batch(&values).map_err(failure)?;
        if batch.schema() != self.schema {
            return Err(Failure::input("the values differ in structure or dtype, but a stream has one schema".into()));
        }
        Ok(Some(batch))
    }
}

fn failure(refused: Refused) -> Failure {
    match refused {
        Refused::Failure(failure) => failure,
        Refused::Ragged(name) => Failure::input(format!("{name} has rows of several shapes, put while it was read")),
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().map_err(|failure| ArrowError::ExternalError(failure.to_string().into())).transpose()
    }
}

impl RecordBatchReader for Batches {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}
