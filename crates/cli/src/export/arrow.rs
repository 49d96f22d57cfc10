//! Values as one Arrow IPC file or stream: a column of keys and a column per leaf, as in a store's segments.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::ipc::writer::{FileWriter, StreamWriter};
use indicatif::ProgressBar;

use super::columns::{Columns, Refused};
use super::rows::Rows;
use super::written::{Written, nothing};
use crate::failure::Failure;
use crate::new_file::NewFile;

/// How values are laid out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Nested lists, without extension types.
    pub plain: bool,
    /// An IPC stream instead of a file.
    pub stream: bool,
}

enum Writer {
    File(FileWriter<NewFile>),
    Stream(StreamWriter<NewFile>),
}

impl Writer {
    fn create(path: &Path, layout: Layout, schema: &Schema) -> Result<Self, Failure> {
        let file = NewFile::create(path)?;
        let writer = if layout.stream {
            StreamWriter::try_new(file, schema).map(Self::Stream)
        } else {
            FileWriter::try_new(file, schema).map(Self::File)
        };
        writer.map_err(|error| failure(path, error))
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        match self {
            Self::File(writer) => writer.write(batch),
            Self::Stream(writer) => writer.write(batch),
        }
    }

    /// Writes the footer. The caller then calls [`NewFile::finish`].
    fn done(self) -> Result<NewFile, ArrowError> {
        match self {
            Self::File(writer) => writer.into_inner(),
            Self::Stream(writer) => writer.into_inner(),
        }
    }
}

/// Converts an error of the writer; an IO error keeps its kind.
fn failure(path: &Path, error: ArrowError) -> Failure {
    match error {
        ArrowError::IoError(_, error) => Failure::io(path, &error),
        error => Failure::input(format!("{}: {error}", path.display())),
    }
}

/// Writes all values to `path`. When a column turns out to have rows of several shapes, the export starts again with
/// that column as lists.
pub(crate) fn write(
    path: &Path,
    layout: Layout,
    rows: &dyn Fn() -> Result<Rows, Failure>,
    bar: &ProgressBar,
) -> Result<Written, Failure> {
    let mut ragged = HashSet::new();
    loop {
        bar.set_position(0);
        let columns = Columns::new(layout.plain, ragged.clone());
        match write_all(path, layout, columns, rows()?, bar) {
            Ok(written) => return Ok(written),
            Err(Refused::Ragged(name)) if ragged.insert(name.clone()) => {}
            Err(Refused::Ragged(name)) => {
                return Err(Failure::input(format!("{name} has rows of several shapes: select some with --prefix")));
            }
            Err(Refused::Failure(failure)) => return Err(failure),
        }
    }
}

fn write_all(
    path: &Path,
    layout: Layout,
    mut columns: Columns,
    mut rows: Rows,
    bar: &ProgressBar,
) -> Result<Written, Refused> {
    let mut writer: Option<(Writer, Arc<Schema>)> = None;
    let mut count = 0;
    loop {
        let values = rows.next()?;
        if values.is_empty() {
            break;
        }
        let batch = columns.batch(&values)?;
        let (writer, schema) = match &mut writer {
            Some(writer) => writer,
            None => writer.insert((Writer::create(path, layout, &batch.schema())?, batch.schema())),
        };
        if *schema != batch.schema() {
            return Err(Failure::input(
                "the values differ in structure or dtype, but an Arrow file has one schema: select some with --prefix"
                    .into(),
            )
            .into());
        }
        writer.write(&batch).map_err(|error| failure(path, error))?;
        count += values.len() as u64;
        bar.inc(values.len() as u64);
    }
    let (writer, _) = writer.ok_or_else(nothing)?;
    let file = writer.done().map_err(|error| failure(path, error))?;
    let replaced = file.replaces();
    file.finish()?;
    Ok(Written { rows: count, replaced, shapes_lost: columns.shapes_lost() })
}
