//! Tables of Arrow columns: one column may hold keys, the others become values.

use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, SchemaRef, UInt64Type};
use tensorcask::{Dtype, Key, KeyKind};

use super::columns::{fixed, values};
use super::elements::Refusal;
use super::input::InputFile;
use super::segment::{COLUMN, Checksums, LEAF_COLUMN, TIME_COLUMN};
use super::source::{CHUNK_BYTES, CHUNK_ROWS, Chunk, Chunks, Rows, Source, check_value_len, tensor_len_bytes};
use super::tree::Tree;
use crate::failure::Failure;

/// Record batches in order.
pub(crate) type Batches<'a> = Box<dyn Iterator<Item = Result<RecordBatch, Failure>> + 'a>;

/// A file of record batches.
pub(crate) trait Tables {
    /// The file.
    fn file(&self) -> &InputFile;
    /// Its columns.
    fn schema(&self) -> SchemaRef;
    /// The record batches, with these columns only.
    fn batches(&self, columns: &[usize]) -> Result<Batches<'_>, Failure>;
}

/// The columns that an import selects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The only column whose cells become values; `None` for all columns.
    pub tensor: Option<&'a str>,
    /// The column of keys.
    pub key_column: Option<&'a str>,
    /// Whether a column called `key` holds the keys by default.
    pub default_key: bool,
    pub key_kind: Option<KeyKind>,
}

/// The role of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The keys.
    Key,
    /// A leaf of the values.
    Value,
    /// The row checksums of a segment.
    Checksum,
    /// The commit timestamps of the rows of a segment.
    Time,
    /// Not imported, but covered by the row checksums.
    Checked,
}

/// A column that is read.
#[derive(Debug)]
struct Column {
    /// Its position in the schema.
    at: usize,
    field: Field,
    role: Role,
}

/// A table whose rows become values.
pub(crate) struct Table<T> {
    tables: T,
    /// The columns that are read, in the order of the schema.
    columns: Vec<Column>,
    key_kind: Option<KeyKind>,
    tree: Tree,
    checksums: Option<Checksums>,
}

impl<T: Tables> Table<T> {
    /// Chooses the columns.
    pub(crate) fn new(tables: T, wanted: Wanted<'_>) -> Result<Self, Failure> {
        let schema = tables.schema();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let list = || names.join(", ");
        let file = tables.file();
        let find = |option: &str, name: &str| match names.iter().filter(|found| **found == name).count() {
            0 => Err(file.refuse(format!("there is no column {name:?} for {option}; there are {}", list()))),
            1 => Ok(names.iter().position(|found| *found == name)),
            _ => Err(file.refuse(format!("there are several columns {name:?}: give each its own name"))),
        };
        let key_at = match wanted.key_column {
            Some(name) => find("--key-column", name)?,
            None if names.contains(&"key") => find("--key-column", "key")?,
            None => None,
        };
        if key_at.is_some() && !wanted.default_key && wanted.key_column.is_none() {
            return Err(
                file.refuse("it has a column \"key\" of keys: leave out --keys and --first-key, or rename the column")
            );
        }
        let checksums = Checksums::of(&schema);
        let only = wanted.tensor.map(|name| find("--tensor", name)).transpose()?.flatten();
        let role = |at: usize, field: &Field| match (only, Some(at) == key_at) {
            (_, true) => Some(Role::Key),
            _ if checksums.is_some() && field.name() == COLUMN => Some(Role::Checksum),
            _ if checksums.is_some() && field.name() == TIME_COLUMN => Some(Role::Time),
            _ if checksums.is_some() && field.name() == LEAF_COLUMN => None,
            (Some(only), _) if at != only => checksums.map(|_| Role::Checked),
            _ => Some(Role::Value),
        };
        let fields = schema.fields().iter().enumerate();
        let columns: Vec<Column> = fields
            .filter_map(|(at, field)| Some(Column { at, field: Field::clone(field), role: role(at, field)? }))
            .collect();
        let keys = columns.iter().find(|column| column.role == Role::Key);
        let kind = keys.map(|column| key_kind(column.field.data_type(), wanted.key_kind)).transpose();
        let key_kind = kind.map_err(|why| file.refuse(format!("the column of keys {why}")))?;
        let value_names: Vec<&str> = columns
            .iter()
            .filter(|column| column.role == Role::Value)
            .map(|column| column.field.name().as_str())
            .collect();
        let tree = match only {
            Some(_) => Tree::Leaf(0),
            None => Tree::of(&schema, &value_names).map_err(|why| file.refuse(why))?,
        };
        // An export of empty lists has a header, but no columns of values.
        if value_names.is_empty() && !schema.metadata().contains_key("tensorcask") {
            return Err(file.refuse(format!("there is no column of values; the columns are {}", list())));
        }
        Ok(Self { tables, columns, key_kind, tree, checksums })
    }

    fn batches(&self) -> Result<Batches<'_>, Failure> {
        let columns: Vec<usize> = self.columns.iter().map(|column| column.at).collect();
        self.tables.batches(&columns)
    }

    fn refuse(&self, column: &str, first: u64, refusal: &Refusal) -> Failure {
        let row = refusal.row.map(|row| format!(", row {}", first + row as u64)).unwrap_or_default();
        self.tables.file().refuse(format!("column {column:?}{row}: {}", refusal.why))
    }

    /// Compares the row checksums, if the file is a segment.
    fn check_rows(&self, batch: &RecordBatch, first: u64) -> Result<(), Failure> {
        let Some(checksums) = self.checksums else { return Ok(()) };
        let (mut key, mut times, mut stored, mut leaves) = (None, None, None, Vec::new());
        for (column, Column { field, role, .. }) in batch.columns().iter().zip(&self.columns) {
            match role {
                Role::Checksum => stored = Some(column),
                Role::Time => times = Some(column),
                _ if field.name() == "key" => key = Some(column),
                _ => leaves.push(column),
            }
        }
        let first_damaged = |(key, stored)| checksums.first_damaged((times, key), &leaves, stored);
        let damaged = key.zip(stored).map_or(Some(0), first_damaged);
        match damaged {
            Some(row) => Err(Failure::damaged(format!(
                "{}: row {} is damaged: its checksum does not match; open or export its store to recover the other \
                 rows",
                self.path().display(),
                first + row as u64
            ))),
            None => Ok(()),
        }
    }

    /// The rows of a batch that starts at row `first` of the file.
    fn chunk(&self, batch: &RecordBatch, first: u64) -> Result<Chunk, Failure> {
        self.check_rows(batch, first)?;
        let mut keys = None;
        let mut leaves = Vec::with_capacity(self.columns.len());
        for (place, Column { field, role, .. }) in self.columns.iter().enumerate() {
            let fail = |refusal: Refusal| self.refuse(field.name(), first, &refusal);
            let Some(column) = batch.columns().get(place) else {
                return Err(fail(Refusal::from("it is missing in a part of the file".to_owned())));
            };
            match (role, self.key_kind) {
                (Role::Key, Some(kind)) => keys = Some(column_keys(column, kind).map_err(fail)?),
                (Role::Value, _) => leaves.push((field, decoded(column).map_err(fail)?)),
                _ => {}
            }
        }
        let len = batch.num_rows();
        if let (Tree::Leaf(0), [(field, column)]) = (&self.tree, leaves.as_slice())
            && !field.metadata().contains_key("codec")
        {
            let fail = |refusal: Refusal| self.refuse(field.name(), first, &refusal);
            if let Some(found) = fixed(field, column).map_err(fail)? {
                if found.dtype == Dtype::Bool && found.data.iter().any(|byte| *byte > 1) {
                    return Err(fail(Refusal::from("a boolean is neither 0 nor 1: convert it".to_owned())));
                }
                let rows = Rows::Tensors { dtype: found.dtype, shape: found.shape, data: found.data };
                return Ok(Chunk { keys, len, rows });
            }
        }
        let mut cells = Vec::with_capacity(leaves.len());
        for (field, column) in &leaves {
            let found = values(field, column).map_err(|refusal| self.refuse(field.name(), first, &refusal))?;
            cells.push(found.into_iter());
        }
        let rows = Rows::Values((0..len).map(|_| self.tree.next(&mut cells)).collect());
        Ok(Chunk { keys, len, rows })
    }
}

impl<T: Tables> Source for Table<T> {
    fn path(&self) -> &Path {
        &self.tables.file().path
    }

    fn check(&mut self, most_value_bytes: usize) -> Result<u64, Failure> {
        let mut rows = 0;
        for chunk in self.chunks()? {
            let Chunk { len, rows: found, .. } = chunk?;
            let longest = match &found {
                Rows::Tensors { data, .. } => data.len() / len.max(1),
                Rows::Values(values) => values.iter().map(tensor_len_bytes).max().unwrap_or_default(),
            };
            check_value_len(self.path(), longest, most_value_bytes)?;
            rows += len as u64;
        }
        Ok(rows)
    }

    fn key_kind(&self) -> Option<KeyKind> {
        self.key_kind
    }

    fn keys(&self, each: &mut dyn FnMut(Vec<Key>) -> Result<(), Failure>) -> Result<(), Failure> {
        let column = self.columns.iter().find(|column| column.role == Role::Key);
        let Some((Column { at, field, .. }, kind)) = column.zip(self.key_kind) else { return Ok(()) };
        let mut first = 0;
        for batch in self.tables.batches(&[*at])? {
            let batch = batch?;
            for part in parts(&batch) {
                let Some(column) = part.columns().first() else { continue };
                each(column_keys(column, kind).map_err(|refusal| self.refuse(field.name(), first, &refusal))?)?;
                first += part.num_rows() as u64;
            }
        }
        Ok(())
    }

    fn chunks(&self) -> Result<Chunks<'_>, Failure> {
        let mut first = 0;
        let chunks = self.batches()?.flat_map(|batch| match batch {
            Ok(batch) => parts(&batch).into_iter().map(Ok).collect::<Vec<_>>(),
            Err(failure) => vec![Err(failure)],
        });
        Ok(Box::new(chunks.map(move |part| {
            let part = part?;
            let chunk = self.chunk(&part, first);
            first += part.num_rows() as u64;
            chunk
        })))
    }

    fn structure(&self) -> Option<String> {
        let columns = self.columns.iter().map(|Column { field, .. }| {
            let dtype = field.metadata().get("dtype").map(|dtype| format!(" as {dtype}")).unwrap_or_default();
            format!("{} {}{dtype}", field.name(), field.data_type())
        });
        Some(columns.collect::<Vec<_>>().join(", "))
    }

    fn dtypes(&self) -> Vec<Dtype> {
        self.columns
            .iter()
            .filter(|column| column.role == Role::Value)
            .flat_map(|column| super::columns::dtypes(&column.field))
            .collect()
    }
}

/// Splits a batch into parts of bounded size.
pub(super) fn parts(batch: &RecordBatch) -> Vec<RecordBatch> {
    let rows = batch.num_rows();
    let len_bytes: usize =
        batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or_default()).sum();
    let row_len_bytes = (len_bytes / rows.max(1)).max(1);
    let step = (CHUNK_BYTES / row_len_bytes).clamp(1, CHUNK_ROWS);
    (0..rows).step_by(step).map(|first| batch.slice(first, step.min(rows - first))).collect()
}

/// A column with dictionary and run-end encoding removed.
fn decoded(column: &ArrayRef) -> Result<ArrayRef, Refusal> {
    match column.data_type() {
        DataType::Dictionary(_, values) => cast(column, values).map_err(|error| Refusal::from(error.to_string())),
        DataType::RunEndEncoded(_, values) => {
            cast(column, values.data_type()).map_err(|error| Refusal::from(error.to_string()))
        }
        _ => Ok(ArrayRef::clone(column)),
    }
}

/// The kind of keys in a column of `data_type`: `wanted` if that is given and the column can be read so.
fn key_kind(data_type: &DataType, wanted: Option<KeyKind>) -> Result<KeyKind, String> {
    let natural = match data_type {
        DataType::Dictionary(_, values) => key_kind(values, None)?,
        data_type if data_type.is_integer() => KeyKind::U64,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => KeyKind::Str,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            KeyKind::Bytes
        }
        other => {
            return Err(format!(
                "is of type {other}, but keys are strings, unsigned integers or bytes: choose one with --key-column"
            ));
        }
    };
    match (wanted.unwrap_or(natural), natural) {
        (kind, natural) if kind == natural => Ok(kind),
        (kind @ KeyKind::Str, KeyKind::U64) | (kind @ KeyKind::U64, KeyKind::Str) => Ok(kind),
        (kind, natural) => {
            Err(format!("holds {} keys, to which --key-kind {} does not apply", natural.name(), kind.name()))
        }
    }
}

/// The keys in a column.
fn column_keys(column: &ArrayRef, kind: KeyKind) -> Result<Vec<Key>, Refusal> {
    let column = decoded(column)?;
    if let Some(nulls) = column.logical_nulls().filter(|nulls| nulls.null_count() > 0) {
        let row = (0..column.len()).find(|row| nulls.is_null(*row));
        return Err(Refusal { row, why: "the key is null".into() });
    }
    let fail = |error: arrow::error::ArrowError| Refusal::from(error.to_string());
    let keys: Vec<Result<Key, String>> = match column.data_type() {
        DataType::UInt64 => {
            column.as_primitive::<UInt64Type>().values().iter().map(|n| Ok(number_key(*n, kind))).collect()
        }
        data_type if data_type.is_integer() => {
            let wide = cast(&column, &DataType::Int64).map_err(fail)?;
            let key = |n: &i64| {
                let number =
                    u64::try_from(*n).map_err(|_| format!("{n} cannot be a key: keys are unsigned integers"))?;
                Ok(number_key(number, kind))
            };
            wide.as_primitive::<Int64Type>().values().iter().map(key).collect()
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            let texts = cast(&column, &DataType::LargeUtf8).map_err(fail)?;
            let key = |text: &str| {
                let why = |why: String| format!("{text:?} cannot be a key: {}", why.replacen("its keys", "keys", 1));
                crate::key::parse(text, kind).map_err(why)
            };
            texts.as_string::<i64>().iter().flatten().map(key).collect()
        }
        _ => {
            let bytes = cast(&column, &DataType::LargeBinary).map_err(fail)?;
            bytes.as_binary::<i64>().iter().flatten().map(|bytes| Ok(Key::Bytes(bytes.to_vec()))).collect()
        }
    };
    let checked = keys.into_iter().enumerate().map(|(row, key)| {
        let key = key.and_then(|key| crate::key::check_len(&key).map(|()| key));
        key.map_err(|why| Refusal { row: Some(row), why })
    });
    checked.collect()
}

fn number_key(number: u64, kind: KeyKind) -> Key {
    if kind == KeyKind::Str { Key::Str(number.to_string()) } else { Key::U64(number) }
}
