//! Arrays in files, read row by row: in C or Fortran order, and in either byte order.

use std::sync::Arc;

use tensorcask::{Bytes, Dtype, MAX_RANK};

use super::input::InputFile;
use crate::failure::Failure;

/// The largest row in bytes that a segment can hold.
const MOST_ROW_BYTES: usize = i32::MAX as usize;

/// An array of elements in a file.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    /// Its name in messages: empty, or `, in the array "name"`.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The shape, rows first.
    pub shape: Vec<usize>,
    /// Whether it is in Fortran order: the first index changes fastest.
    pub fortran: bool,
    /// Whether elements are big-endian.
    pub big_endian: bool,
    /// The file that holds the elements.
    pub file: Arc<InputFile>,
    /// The offset of the first element in the file.
    pub offset: u64,
}

impl Array {
    /// The number of rows: the first dimension.
    pub(crate) fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or_default()
    }

    /// The shape of a row.
    pub(crate) fn row_shape(&self) -> &[usize] {
        self.shape.get(1..).unwrap_or_default()
    }

    /// The size of a row in bytes; valid after [`Array::check_rows`].
    pub(crate) fn row_len_bytes(&self) -> usize {
        self.dtype.tensor_len_bytes(self.row_shape()).unwrap_or_default()
    }

    /// Checks that a store can hold the rows, and that booleans are valid.
    pub(crate) fn check_rows(&self) -> Result<(), Failure> {
        let refuse = |what: String| Err(self.file.refuse(format!("{what}{}", self.name)));
        if self.shape.is_empty() {
            return refuse("it has no dimensions, and so no rows: its shape is ()".into());
        }
        let row = self.row_shape();
        if row.len() > MAX_RANK {
            return refuse(format!(
                "rows have {} dimensions, but a value has at most {MAX_RANK}: the shape is {:?}",
                row.len(),
                self.shape
            ));
        }
        match self.dtype.tensor_len_bytes(row) {
            Some(len_bytes) if len_bytes <= MOST_ROW_BYTES => {}
            Some(len_bytes) => return refuse(format!("rows are {len_bytes} bytes long, more than {MOST_ROW_BYTES}")),
            None => {
                return refuse(format!(
                    "rows of dtype {} and shape {row:?} do not fill whole bytes, or are too large",
                    self.dtype
                ));
            }
        }
        self.check_bools()
    }

    /// Checks that booleans are 0 or 1: programs disagree about other bytes.
    fn check_bools(&self) -> Result<(), Failure> {
        if self.dtype != Dtype::Bool {
            return Ok(());
        }
        let len_bytes = self.dtype.tensor_len_bytes(&self.shape).unwrap_or_default();
        let mut at = 0;
        while at < len_bytes {
            let block = self.file.copy(self.offset + at as u64, (len_bytes - at).min(1 << 20))?;
            if let Some((position, byte)) = block.iter().enumerate().find(|(_, byte)| **byte > 1) {
                return Err(self.file.refuse(format!(
                    "boolean {} has the byte {byte}, expected 0 or 1{}: convert it, or import the bytes with --dtype \
                     U8",
                    at + position,
                    self.name
                )));
            }
            at += block.len();
        }
        Ok(())
    }

    /// Reads `rows` rows from `first` on, as little-endian elements in row-major order.
    pub(crate) fn read(&self, first: usize, rows: usize) -> Result<Bytes, Failure> {
        let width = self.row_len_bytes();
        let unit = if self.dtype == Dtype::C64 { 4 } else { self.dtype.bits().div_ceil(8) };
        // C and Fortran order are the same if at most one dimension is longer than 1.
        if self.fortran && self.shape.iter().filter(|dim| **dim != 1).count() > 1 {
            let mut bytes = self.gather(first, rows)?;
            swap(&mut bytes, unit, self.big_endian);
            return Ok(bytes.into());
        }
        let offset = self.offset + (first * width) as u64;
        if self.big_endian && unit > 1 {
            let mut bytes = self.file.copy(offset, rows * width)?;
            swap(&mut bytes, unit, true);
            return Ok(bytes.into());
        }
        self.file.bytes(offset, rows * width)
    }

    /// Reads rows of an array in Fortran order: the elements of the rows are contiguous within each column.
    fn gather(&self, first: usize, rows: usize) -> Result<Vec<u8>, Failure> {
        let size = self.dtype.bits() / 8;
        let shape = self.row_shape();
        let columns: usize = shape.iter().product();
        let mut out = vec![0; rows * columns * size];
        let mut part = vec![0; rows * size];
        // The index of the column within a row, and the stride of each dimension of a row.
        let mut index = vec![0_usize; shape.len()];
        let mut steps = vec![1_usize; shape.len()];
        for axis in (0..shape.len().saturating_sub(1)).rev() {
            let step = steps.get(axis + 1).copied().unwrap_or(1) * shape.get(axis + 1).copied().unwrap_or(1);
            if let Some(own) = steps.get_mut(axis) {
                *own = step;
            }
        }
        for column in 0..columns {
            let offset = self.offset + ((column * self.rows() + first) * size) as u64;
            self.file.read_into(offset, &mut part)?;
            let place: usize = index.iter().zip(&steps).map(|(index, step)| index * step).sum();
            let targets =
                out.chunks_exact_mut(columns * size).filter_map(|row| row.get_mut(place * size..)?.get_mut(..size));
            targets.zip(part.chunks_exact(size)).for_each(|(target, element)| target.copy_from_slice(element));
            // The next column: the first index changes fastest.
            for (index, dim) in index.iter_mut().zip(shape) {
                *index += 1;
                if *index < *dim {
                    break;
                }
                *index = 0;
            }
        }
        Ok(out)
    }
}

/// Reverses the bytes of each element, if they are big-endian.
fn swap(bytes: &mut [u8], unit: usize, big_endian: bool) {
    if big_endian && unit > 1 {
        bytes.chunks_exact_mut(unit).for_each(<[u8]>::reverse);
    }
}
