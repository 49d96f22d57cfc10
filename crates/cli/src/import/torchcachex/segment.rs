//! A segment of torchcachex: an Arrow IPC file, whose rows become values.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use tensorcask::{Bytes, Dtype, Key, Tensor, Value};

use super::layout::{Kind, Layout};
use crate::failure::Failure;
use crate::import::arrow_file::ArrowFile;
use crate::import::elements::{Refusal, elements};
use crate::import::input::InputFile;
use crate::import::source::Rows;
use crate::import::table::{Tables, parts};

/// An open segment.
pub(super) struct Segment {
    file: ArrowFile,
    pub layout: Layout,
}

/// The elements and shapes of a tensor in each row of a batch.
struct Cells {
    dtype: Dtype,
    /// The elements of all rows, one row after the other.
    data: Bytes,
    /// Where the elements of each row begin, and where the last ones end.
    offsets: Vec<usize>,
    /// `None` where the cell is null, or its elements do not fit its shape.
    shapes: Vec<Option<Vec<usize>>>,
}

/// Rows with their keys.
pub(super) struct Batch {
    pub keys: Vec<Key>,
    cells: Vec<Cells>,
    kind: Kind,
    names: Vec<String>,
    lists: bool,
}

/// The segments in a folder by their numbers, the oldest first.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let segments = folder.join("segments");
    let entries = std::fs::read_dir(&segments).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Failure::input(format!(
            "{} has no folder `segments`: give the folder of a cache of torchcachex, <cache_dir>/<module_id>",
            folder.display()
        )),
        _ => Failure::io(&segments, &error),
    })?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Failure::io(&segments, &error))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix("segment_")?.strip_suffix(".arrow")?.parse::<u64>().ok());
        // tensorcask.compat.torchcachex links the segments of its store under such names, in the same folder.
        let is_ours = std::fs::read_link(&path).is_ok_and(|target| target.parent() == Some(Path::new("")));
        if let Some(number) = number.filter(|_| !is_ours) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

impl Segment {
    /// Opens a segment and recognises its layout.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let file = ArrowFile::open(Arc::new(InputFile::open(path)?))?;
        let layout = Layout::of(&file.schema()).map_err(|why| file.file().refuse(why))?;
        Ok(Self { file, layout })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.file.file().path
    }

    /// The rows in batches of bounded size. Sequences become lists if `lists` is set, and tuples otherwise.
    pub(super) fn batches(&self, lists: bool) -> Result<impl Iterator<Item = Result<Batch, Failure>>, Failure> {
        let positions = self.layout.positions();
        let batches = self.file.batches(&positions)?.flat_map(|batch| match batch {
            Ok(batch) => parts(&batch).into_iter().map(Ok).collect::<Vec<_>>(),
            Err(failure) => vec![Err(failure)],
        });
        let mut first = 0;
        Ok(batches.map(move |part| {
            let part = part?;
            let batch = self.batch(&part, &positions, lists).map_err(|refusal| {
                let row = refusal.row.map(|row| format!("row {}: ", first + row)).unwrap_or_default();
                self.file.file().refuse(format!("{row}{}", refusal.why))
            });
            first += part.num_rows();
            batch
        }))
    }

    fn batch(&self, batch: &RecordBatch, positions: &[usize], lists: bool) -> Result<Batch, Refusal> {
        let column = |at: usize| {
            let place = positions.iter().position(|position| *position == at);
            let found = place.and_then(|place| batch.columns().get(place));
            found.ok_or_else(|| Refusal::from("a column is missing in a part of the file".to_owned()))
        };
        let tensors = &self.layout.tensors;
        Ok(Batch {
            keys: keys(column(self.layout.key)?)?,
            cells: tensors.iter().map(|of| cells(column(of.data)?, column(of.shape)?)).collect::<Result<_, _>>()?,
            kind: self.layout.kind.clone(),
            names: tensors.iter().map(|of| of.name.clone()).collect(),
            lists,
        })
    }
}

impl Batch {
    /// The value of a row; `None` if a part of it is missing.
    pub(super) fn value(&self, row: usize) -> Option<Value> {
        let tensors = self.cells.iter().map(|cells| cells.tensor(row)).collect::<Option<Vec<_>>>()?;
        let mut values = tensors.into_iter().map(Value::Tensor);
        match self.kind {
            Kind::Tensor => values.next(),
            Kind::Dict => Some(Value::Map(self.names.iter().cloned().zip(values).collect())),
            Kind::Sequence if self.lists => Some(Value::List(values.collect())),
            Kind::Sequence => Some(Value::Tuple(values.collect())),
        }
    }

    /// Whether nothing of a row is missing.
    pub(super) fn is_complete(&self, row: usize) -> bool {
        self.cells.iter().all(|cells| cells.shapes.get(row).is_some_and(Option::is_some))
    }

    /// The values of some rows, all of them complete.
    pub(super) fn rows(&self, rows: &[usize]) -> Rows {
        if let (Kind::Tensor, [cells]) = (&self.kind, self.cells.as_slice())
            && rows.len() == self.keys.len()
            && let Some(rows) = cells.alike()
        {
            return rows;
        }
        Rows::Values(rows.iter().filter_map(|row| self.value(*row)).collect())
    }
}

impl Cells {
    fn tensor(&self, row: usize) -> Option<Tensor> {
        let shape = self.shapes.get(row)?.as_ref()?;
        let (from, to) = (self.offsets.get(row)?, self.offsets.get(row + 1)?);
        let width = self.dtype.bits() / 8;
        Tensor::new(self.dtype, shape, self.data.slice(from * width..to * width)).ok()
    }

    /// All rows as they lie there, if they have one shape.
    fn alike(&self) -> Option<Rows> {
        let shape = self.shapes.first()?.as_ref()?;
        let alike = self.shapes.iter().all(|other| other.as_ref() == Some(shape));
        alike.then(|| Rows::Tensors { dtype: self.dtype, shape: shape.clone(), data: self.data.clone() })
    }
}

/// The elements of a column of lists, and where those of each row begin and end.
fn flat(column: &ArrayRef) -> Option<(ArrayRef, Vec<usize>)> {
    let (values, offsets): (&ArrayRef, Vec<usize>) = if let Some(list) = column.as_list_opt::<i32>() {
        (list.values(), list.value_offsets().iter().filter_map(|at| usize::try_from(*at).ok()).collect())
    } else {
        let list = column.as_list_opt::<i64>()?;
        (list.values(), list.value_offsets().iter().filter_map(|at| usize::try_from(*at).ok()).collect())
    };
    let (first, last) = (*offsets.first()?, *offsets.last()?);
    Some((values.slice(first, last.checked_sub(first)?), offsets.into_iter().map(|at| at - first).collect()))
}

fn cells(data: &ArrayRef, shape: &ArrayRef) -> Result<Cells, Refusal> {
    let wrong = |what: &str| Refusal::from(format!("{what} of a tensor cannot be read"));
    let (values, offsets) = flat(data).ok_or_else(|| wrong("the elements"))?;
    let (dtype, bytes) = elements(&values)?.ok_or_else(|| wrong("the elements"))?;
    let (dims, dim_offsets) = flat(shape).ok_or_else(|| wrong("the shape"))?;
    let dims = cast(&dims, &DataType::Int64).map_err(|_| wrong("the shape"))?;
    let dims: Vec<Option<usize>> = dims
        .as_primitive::<arrow::datatypes::Int64Type>()
        .iter()
        .map(|dim| dim.and_then(|dim| usize::try_from(dim).ok()))
        .collect();
    let of_row = |row: usize| -> Option<Vec<usize>> {
        if data.is_null(row) || shape.is_null(row) {
            return None;
        }
        let dims = dims.get(*dim_offsets.get(row)?..*dim_offsets.get(row + 1)?)?;
        let dims = dims.iter().copied().collect::<Option<Vec<_>>>()?;
        let count = offsets.get(row + 1)?.checked_sub(*offsets.get(row)?)?;
        let fits = dims.iter().try_fold(1_usize, |count, dim| count.checked_mul(*dim)) == Some(count);
        fits.then_some(dims)
    };
    Ok(Cells { dtype, data: bytes, shapes: (0..data.len()).map(of_row).collect(), offsets })
}

fn keys(column: &ArrayRef) -> Result<Vec<Key>, Refusal> {
    let texts = cast(column, &DataType::LargeUtf8).map_err(|error| Refusal::from(error.to_string()))?;
    let texts = texts.as_string::<i64>();
    let key = |(row, text): (usize, Option<&str>)| {
        let refuse = |why: String| Refusal { row: Some(row), why };
        let key = Key::Str(text.ok_or_else(|| refuse("the key is null".into()))?.to_owned());
        crate::key::check_len(&key).map(|()| key).map_err(refuse)
    };
    texts.iter().enumerate().map(key).collect()
}
