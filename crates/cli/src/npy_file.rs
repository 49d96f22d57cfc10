//! Writes `.npy` files.

use std::io::{Seek, SeekFrom};
use std::path::Path;

use tensorcask::{Dtype, Tensor};

use crate::failure::Failure;
use crate::new_file::NewFile;

/// Bytes of magic, version and header length before a header of version 1.0.
const LEAD_LEN_BYTES: usize = 10;

/// numpy's name of a dtype, if it has one.
fn type_name(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::Bool => "|b1",
        Dtype::U8 => "|u1",
        Dtype::I8 => "|i1",
        Dtype::U16 => "<u2",
        Dtype::I16 => "<i2",
        Dtype::U32 => "<u4",
        Dtype::I32 => "<i4",
        Dtype::U64 => "<u8",
        Dtype::I64 => "<i8",
        Dtype::F16 => "<f2",
        Dtype::F32 => "<f4",
        Dtype::F64 => "<f8",
        Dtype::C64 => "<c8",
        _ => return None,
    })
}

/// The magic and the header of an array of `rows` times `shape` elements. Its length does not depend on the number of
/// rows, so it can be written first and replaced once the rows are counted.
fn header(dtype: Dtype, rows: Option<u64>, shape: &[usize]) -> Result<Vec<u8>, Failure> {
    let name = type_name(dtype).ok_or_else(|| {
        let widened = if dtype == Dtype::BF16 { ", or with --f16-as-f32" } else { "" };
        Failure::input(format!("numpy has no {dtype}: export to Arrow or safetensors{widened}"))
    })?;
    let text = |rows: Option<u64>| {
        let dims = rows.into_iter().chain(shape.iter().map(|dim| *dim as u64));
        let dims: String = dims.map(|dim| format!("{dim}, ")).collect();
        format!("{{'descr': '{name}', 'fortran_order': False, 'shape': ({dims}), }}")
    };
    // The header ends with a newline, at a multiple of 64 bytes.
    let len = (LEAD_LEN_BYTES + text(rows.map(|_| u64::MAX)).len() + 1).next_multiple_of(64) - LEAD_LEN_BYTES;
    let len_field = u16::try_from(len).map_err(|_| Failure::input("the shape is too long for a .npy header".into()))?;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend_from_slice(&len_field.to_le_bytes());
    header.extend_from_slice(text(rows).as_bytes());
    header.resize(LEAD_LEN_BYTES + len - 1, b' ');
    header.push(b'\n');
    Ok(header)
}

/// Writes one tensor as a `.npy` file.
pub(crate) fn write_one(path: &Path, tensor: &Tensor) -> Result<(), Failure> {
    let header = header(tensor.dtype(), None, tensor.shape())?;
    let mut file = NewFile::create(path)?;
    file.put(&header)?;
    file.put(tensor.data())?;
    file.finish()
}

/// Writes an array row by row; the number of rows is written at the end.
pub(crate) struct RowsWriter {
    file: NewFile,
    dtype: Dtype,
    shape: Vec<usize>,
    rows: u64,
}

impl RowsWriter {
    /// An array of rows of `shape`.
    pub(crate) fn create(path: &Path, dtype: Dtype, shape: &[usize]) -> Result<Self, Failure> {
        let header = header(dtype, Some(0), shape)?;
        let mut file = NewFile::create(path)?;
        file.check_seekable()?;
        file.put(&header)?;
        Ok(Self { file, dtype, shape: shape.to_vec(), rows: 0 })
    }

    /// The dtype and shape of each row.
    pub(crate) fn row(&self) -> (Dtype, &[usize]) {
        (self.dtype, &self.shape)
    }

    /// Appends a row, which must have the dtype and shape of the array.
    pub(crate) fn push(&mut self, row: &Tensor) -> Result<(), Failure> {
        self.rows += 1;
        self.file.put(row.data())
    }

    /// Writes the header with the number of rows. The caller then calls [`NewFile::finish`].
    pub(crate) fn done(mut self) -> Result<NewFile, Failure> {
        let header = header(self.dtype, Some(self.rows), &self.shape)?;
        self.file.seek(SeekFrom::Start(0)).map_err(|error| self.file.failure(&error))?;
        self.file.put(&header)?;
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_header_does_not_depend_on_the_row_count() {
        for rank in 0..=32 {
            for dim in [0, 1, 9, 10, 1 << 20, usize::MAX] {
                let shape = vec![dim; rank];
                let len = header(Dtype::F32, Some(0), &shape).unwrap().len();
                assert!(len.is_multiple_of(64));
                for rows in (0..20).map(|digits| 10_u64.pow(digits)).chain([u64::MAX]) {
                    let header = header(Dtype::F32, Some(rows), &shape).unwrap();
                    assert_eq!((header.len(), header.last()), (len, Some(&b'\n')), "{rows} × {shape:?}");
                }
                assert!(header(Dtype::F32, None, &shape).unwrap().len().is_multiple_of(64));
            }
        }
    }
}
