//! Batches of rows whose shapes differ.

use pyo3::prelude::*;
use tensorcask_cache::layer::{self, Block, fill_padded, padded_shape};

use crate::errors::{CallResult, of_python};
use crate::tensors::memory;
use crate::tensors::tensor::PyTensor;

/// Stacks host tensors of one dtype and rank, each padded with `value` at the end of its dimensions, in page-locked
/// memory if `pinned`.
pub(crate) fn pad(rows: &[PyTensor], value: f64, pinned: bool) -> CallResult<PyTensor> {
    let refused = || layer::Error::invalid("rows of this dtype cannot be padded");
    let Some(dtype) = rows.first().and_then(|row| row.kind().dtype) else { return Err(refused()) };
    let block = |row| Some(Block { bytes: memory::bytes(row)?, shape: row.shape() });
    let blocks = rows.iter().map(block).collect::<Option<Vec<_>>>().ok_or_else(refused)?;
    let shape = padded_shape(&blocks);
    let mut batch = Python::attach(|py| PyTensor::empty(py, dtype, &shape, pinned).map_err(of_python))?;
    fill_padded(&blocks, dtype, value, memory::bytes_mut(&mut batch).ok_or_else(refused)?)?;
    Ok(batch)
}
