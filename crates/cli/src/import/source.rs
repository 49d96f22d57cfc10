//! The interface of input files: keys and rows in order, in chunks of bounded size.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tensorcask::{Bytes, Dtype, Key, KeyKind, Tensor, Value};

use super::array::Array;
use super::key_array::KeyArray;
use super::safetensors::{Named, TensorFile};
use crate::failure::Failure;

/// The size of a chunk in bytes; a larger row is a chunk of its own.
pub(crate) const CHUNK_BYTES: usize = 4 << 20;
/// The most rows of a chunk.
pub(crate) const CHUNK_ROWS: usize = 32_768;
/// Tensors of this size or more are put one by one, without a copy.
const LARGE_BYTES: usize = 1 << 20;

/// The number of rows of `len_bytes` in a chunk.
pub(crate) fn chunk_rows(len_bytes: usize) -> usize {
    (CHUNK_BYTES / len_bytes.max(1)).clamp(1, CHUNK_ROWS)
}

/// The rows of a chunk.
#[derive(Debug)]
pub(crate) enum Rows {
    /// A tensor for each row, stored consecutively.
    Tensors { dtype: Dtype, shape: Vec<usize>, data: Bytes },
    /// Values of any structure.
    Values(Vec<Value>),
}

/// Rows with their keys, if the input has them.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub keys: Option<Vec<Key>>,
    pub len: usize,
    pub rows: Rows,
}

/// The size of the tensors in a value, in bytes.
pub(crate) fn tensor_len_bytes(value: &Value) -> usize {
    match value {
        Value::Tensor(tensor) => tensor.data().len(),
        Value::List(items) | Value::Tuple(items) => items.iter().map(tensor_len_bytes).sum(),
        Value::Map(items) => items.iter().map(|(_, item)| tensor_len_bytes(item)).sum(),
        _ => 0,
    }
}

/// Refuses a value that is larger than the limit.
pub(crate) fn check_value_len(path: &Path, len_bytes: usize, most_bytes: usize) -> Result<(), Failure> {
    if len_bytes <= most_bytes {
        return Ok(());
    }
    Err(Failure::input(format!(
        "{}: a value is {len_bytes} bytes long, more than {most_bytes}: give a larger --max-value-bytes",
        path.display()
    )))
}

/// Chunks in order.
pub(crate) type Chunks<'a> = Box<dyn Iterator<Item = Result<Chunk, Failure>> + 'a>;

/// An input file.
pub(crate) trait Source {
    /// Its path.
    fn path(&self) -> &Path;

    /// Checks the whole file, so that no row of a wrong file is put. Returns the number of rows.
    /// No value may be larger than `most_value_bytes`.
    fn check(&mut self, most_value_bytes: usize) -> Result<u64, Failure>;

    /// The kind of its keys, if it has keys.
    fn key_kind(&self) -> Option<KeyKind>;

    /// Calls `each` with its keys, in batches.
    fn keys(&self, each: &mut dyn FnMut(Vec<Key>) -> Result<(), Failure>) -> Result<(), Failure>;

    /// Its rows.
    fn chunks(&self) -> Result<Chunks<'_>, Failure>;

    /// A description of its rows, which must be equal for all files of an import; `None` if files may differ.
    fn structure(&self) -> Option<String>;

    /// The dtypes of its tensors.
    fn dtypes(&self) -> Vec<Dtype>;

    /// Its metadata.
    fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

/// Arrays whose rows become values: one array, or several, whose rows become maps.
pub(crate) struct Arrays {
    pub path: PathBuf,
    /// The arrays with their names.
    pub arrays: Vec<(String, Array)>,
    /// Whether rows become maps.
    pub maps: bool,
    /// The keys.
    pub keys: Option<KeyArray>,
    /// The metadata of the file.
    pub metadata: BTreeMap<String, String>,
}

impl Arrays {
    fn rows(&self) -> usize {
        self.arrays.first().map_or(0, |(_, array)| array.rows())
    }

    fn row_len_bytes(&self) -> usize {
        self.arrays.iter().map(|(_, array)| array.row_len_bytes()).sum()
    }

    fn chunk(&self, first: usize, len: usize) -> Result<Chunk, Failure> {
        let keys = self.keys.as_ref().map(|keys| keys.read(first, len)).transpose()?;
        if let (false, [(_, array)]) = (self.maps, self.arrays.as_slice()) {
            let rows =
                Rows::Tensors { dtype: array.dtype, shape: array.row_shape().to_vec(), data: array.read(first, len)? };
            return Ok(Chunk { keys, len, rows });
        }
        let mut maps = vec![Vec::with_capacity(self.arrays.len()); len];
        for (name, array) in &self.arrays {
            let (data, width) = (array.read(first, len)?, array.row_len_bytes());
            for (at, map) in maps.iter_mut().enumerate() {
                let row = data.slice(at * width..(at + 1) * width);
                map.push((name.clone(), Tensor::new(array.dtype, array.row_shape(), row)?.into()));
            }
        }
        Ok(Chunk { keys, len, rows: Rows::Values(maps.into_iter().map(Value::Map).collect()) })
    }
}

impl Source for Arrays {
    fn path(&self) -> &Path {
        &self.path
    }

    fn check(&mut self, most_value_bytes: usize) -> Result<u64, Failure> {
        let rows = self.rows();
        for (name, array) in &self.arrays {
            array.check_rows()?;
            if array.rows() != rows {
                let shapes: Vec<String> =
                    self.arrays.iter().map(|(name, array)| format!("{name} {:?}", array.shape)).collect();
                return Err(array.file.refuse(format!(
                    "the arrays differ in their number of rows, {name:?} has {}: choose one with --tensor; there are \
                     {}",
                    array.rows(),
                    shapes.join(", ")
                )));
            }
        }
        check_value_len(&self.path, self.row_len_bytes(), most_value_bytes)?;
        match &self.keys {
            Some(keys) if keys.check()? != rows as u64 => Err(keys.array.file.refuse(format!(
                "expected {rows} keys for {rows} rows, found {}{}",
                keys.array.rows(),
                keys.array.name
            ))),
            _ => Ok(rows as u64),
        }
    }

    fn key_kind(&self) -> Option<KeyKind> {
        self.keys.as_ref().map(|keys| keys.kind)
    }

    fn keys(&self, each: &mut dyn FnMut(Vec<Key>) -> Result<(), Failure>) -> Result<(), Failure> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let step = chunk_rows(keys.array.row_len_bytes());
        (0..keys.array.rows())
            .step_by(step)
            .try_for_each(|first| each(keys.read(first, step.min(keys.array.rows() - first))?))
    }

    fn chunks(&self) -> Result<Chunks<'_>, Failure> {
        let width = self.row_len_bytes();
        let keys = self.keys.as_ref().map_or(0, |keys| keys.array.row_len_bytes());
        let (rows, step) = (self.rows(), chunk_rows(width + keys));
        Ok(Box::new((0..rows).step_by(step).map(move |first| self.chunk(first, step.min(rows - first)))))
    }

    fn structure(&self) -> Option<String> {
        let arrays = self.arrays.iter().map(|(name, array)| {
            let name = if self.maps { format!("{name} ") } else { String::new() };
            format!("{name}{}{:?}", array.dtype, array.row_shape())
        });
        Some(arrays.collect::<Vec<_>>().join(", "))
    }

    fn dtypes(&self) -> Vec<Dtype> {
        self.arrays.iter().map(|(_, array)| array.dtype).collect()
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.clone()
    }
}

/// Tensors that become values under their names.
impl Source for TensorFile {
    fn path(&self) -> &Path {
        &self.file.path
    }

    fn check(&mut self, most_value_bytes: usize) -> Result<u64, Failure> {
        let longest = self.tensors.iter().map(|tensor| tensor.len_bytes).max().unwrap_or_default();
        check_value_len(&self.file.path, longest, most_value_bytes)?;
        Self::check(self).map(|()| self.tensors.len() as u64)
    }

    fn key_kind(&self) -> Option<KeyKind> {
        Some(self.kind)
    }

    fn keys(&self, each: &mut dyn FnMut(Vec<Key>) -> Result<(), Failure>) -> Result<(), Failure> {
        let keys = |tensors: &[Named]| tensors.iter().map(|tensor| self.key(tensor)).collect::<Result<_, _>>();
        self.tensors.chunks(1024).try_for_each(|tensors| each(keys(tensors)?))
    }

    fn chunks(&self) -> Result<Chunks<'_>, Failure> {
        Ok(Box::new(NamedChunks { of: self, next: 0 }))
    }

    fn structure(&self) -> Option<String> {
        None
    }

    fn dtypes(&self) -> Vec<Dtype> {
        let mut dtypes: Vec<Dtype> = self.tensors.iter().map(|tensor| tensor.dtype).collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        dtypes
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.clone()
    }
}

struct NamedChunks<'a> {
    of: &'a TensorFile,
    next: usize,
}

impl NamedChunks<'_> {
    fn chunk(&mut self) -> Result<Option<Chunk>, Failure> {
        let rest = self.of.tensors.get(self.next..).unwrap_or_default();
        let Some(first) = rest.first() else { return Ok(None) };
        if first.len_bytes >= LARGE_BYTES {
            self.next += 1;
            let data = self.of.file.bytes(first.offset, first.len_bytes)?;
            let rows = Rows::Tensors { dtype: first.dtype, shape: first.shape.clone(), data };
            return Ok(Some(Chunk { keys: Some(vec![self.of.key(first)?]), len: 1, rows }));
        }
        let (mut keys, mut values, mut len_bytes) = (Vec::new(), Vec::new(), 0);
        for tensor in rest.iter().take_while(|tensor| tensor.len_bytes < LARGE_BYTES) {
            let data = self.of.file.bytes(tensor.offset, tensor.len_bytes)?;
            values.push(Tensor::new(tensor.dtype, &tensor.shape, data)?.into());
            keys.push(self.of.key(tensor)?);
            len_bytes += tensor.len_bytes + tensor.name.len();
            if len_bytes >= CHUNK_BYTES || values.len() >= CHUNK_ROWS {
                break;
            }
        }
        self.next += values.len();
        Ok(Some(Chunk { keys: Some(keys), len: values.len(), rows: Rows::Values(values) }))
    }
}

impl Iterator for NamedChunks<'_> {
    type Item = Result<Chunk, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        self.chunk().transpose()
    }
}
