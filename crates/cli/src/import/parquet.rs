//! Parquet files.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::arrow_file::guarded;
use super::input::{Format, InputFile};
use super::source::chunk_rows;
use super::table::{Batches, Tables};
use crate::failure::Failure;

/// A Parquet file.
#[derive(Debug)]
pub(crate) struct ParquetFile {
    file: Arc<InputFile>,
    metadata: ArrowReaderMetadata,
}

impl ParquetFile {
    /// Reads the footer.
    pub(crate) fn open(file: Arc<InputFile>) -> Result<Self, Failure> {
        let start = file.start(4)?;
        if start.starts_with(b"PARE") {
            return Err(file.refuse("it is an encrypted Parquet file: decrypt it first"));
        }
        if !start.starts_with(b"PAR1") {
            return Err(file.not_a(Format::Parquet));
        }
        let handle = file.stream()?;
        let metadata = guarded(|| {
            let loaded = ArrowReaderMetadata::load(&handle, ArrowReaderOptions::new());
            loaded.map_err(|error| format!("it is damaged or truncated: {error}"))
        });
        let metadata = metadata.map_err(|why| file.refuse(why))?;
        Ok(Self { file, metadata })
    }

    /// The number of rows per batch, so that a batch is about a chunk by the sizes in the footer.
    fn batch_rows(&self) -> usize {
        let groups = self.metadata.metadata().row_groups();
        let rows: i64 = groups.iter().map(|group| group.num_rows()).sum();
        let bytes: i64 = groups.iter().map(|group| group.total_byte_size()).sum();
        chunk_rows(usize::try_from(bytes / rows.max(1)).unwrap_or(usize::MAX)).min(8192)
    }
}

impl Tables for ParquetFile {
    fn file(&self) -> &InputFile {
        &self.file
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(self.metadata.schema())
    }

    fn batches(&self, columns: &[usize]) -> Result<Batches<'_>, Failure> {
        let handle = self.file.stream()?;
        let reader = guarded(|| {
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(handle, self.metadata.clone());
            let mask = ProjectionMask::roots(builder.parquet_schema(), columns.iter().copied());
            let reader = builder.with_projection(mask).with_batch_size(self.batch_rows()).build();
            reader.map_err(|error| error.to_string())
        });
        let mut reader = reader.map_err(|why| self.file.refuse(why))?;
        Ok(Box::new(std::iter::from_fn(move || {
            let next = guarded(|| reader.next().transpose().map_err(|error| error.to_string()));
            next.map_err(|why| self.file.refuse(format!("it is damaged, or its encoding is not supported: {why}")))
                .transpose()
        })))
    }
}
