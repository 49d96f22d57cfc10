//! Host tensors as a [`Framework`].

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use tensorcask::{Dtype, Tensor};

use super::elements;
use crate::error::{Error, Result, invalid};
use crate::framework::{Framework, Variables, View, key_name};
use crate::keys::ids::{Ids, IntoIds, natural};
use crate::layer::{Adapter, Cached};

/// Tensors of [`tensorcask`] itself.
#[derive(Debug, Clone, Copy)]
pub struct Host;

/// A batch while it is filled.
#[derive(Debug)]
pub struct Buffer {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// The number of rows of a batch, and the bytes per row.
///
/// # Errors
/// [`Error::Invalid`] if elements are packed and a row ends within a byte.
fn rows_and_len_bytes(tensor: &Tensor) -> Result<(usize, usize)> {
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    let (rows, of_row) = shape.split_first().map_or((1, shape), |(rows, of_row)| (*rows, of_row));
    match dtype.tensor_len_bytes(of_row) {
        Some(row) => Ok((rows, row)),
        None if rows == 0 => Ok((0, 0)),
        None => Err(invalid(format!(
            "the packed elements of rows of shape {of_row:?} of a {dtype} tensor do not fill whole bytes: pad them"
        ))),
    }
}

impl Framework for Host {
    type Tensor = Tensor;
    type Buffer = Buffer;
    type Bytes<'a> = &'a [u8];
    type Device = ();
    type Variables = NoVariables;
    type Settings = ();

    const HOST: Self::Device = ();

    fn dtype(tensor: &Tensor) -> Result<Option<Dtype>> {
        Ok(Some(tensor.dtype()))
    }

    fn key_name(tensor: &Tensor) -> Result<String> {
        Ok(key_name(tensor.dtype()).to_owned())
    }

    fn shape(tensor: &Tensor) -> Vec<usize> {
        tensor.shape().to_vec()
    }

    fn batch_len(tensor: &Tensor) -> Option<usize> {
        tensor.shape().first().copied()
    }

    fn device(_tensor: &Tensor) {}

    fn share(tensor: &Tensor) -> Tensor {
        tensor.clone()
    }

    /// Tensors are immutable, so that a handle can be shared.
    fn own(tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn to_device(tensor: &Tensor, _device: ()) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn host(tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn bytes(tensor: &Tensor) -> Result<&[u8]> {
        Ok(tensor.data())
    }

    fn to_bytes(tensor: &Tensor) -> Result<Bytes> {
        Ok(tensor.data().clone())
    }

    fn view(tensor: &Tensor) -> Result<View<&[u8]>> {
        let (rows, row) = rows_and_len_bytes(tensor)?;
        // The view has one byte per element, so that packed elements need no special case.
        Ok(View { bytes: tensor.data().as_ref(), width: 1, sizes: vec![rows, row], strides: vec![row, 1] })
    }

    fn buffer(dtype: Dtype, shape: &[usize]) -> Result<Buffer> {
        let len = dtype.tensor_len_bytes(shape);
        let len = len.ok_or_else(|| invalid(format!("a {dtype} tensor cannot have shape {shape:?}")))?;
        Ok(Buffer { dtype, shape: shape.to_vec(), bytes: vec![0; len] })
    }

    fn buffer_bytes(buffer: &Buffer) -> Result<&[u8]> {
        Ok(&buffer.bytes)
    }

    fn buffer_bytes_mut(buffer: &mut Buffer) -> Result<&mut [u8]> {
        Ok(&mut buffer.bytes)
    }

    fn finish(buffer: Buffer) -> Result<Tensor> {
        Ok(Tensor::new(buffer.dtype, &buffer.shape, buffer.bytes)?)
    }

    fn from_stored(tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn select(tensor: &Tensor, positions: &[usize]) -> Result<Tensor> {
        let (rows, row) = rows_and_len_bytes(tensor)?;
        let mut bytes = Vec::with_capacity(positions.len() * row);
        for &at in positions {
            let range = at * row..(at + 1) * row;
            let of_row = tensor.data().get(range).filter(|_| at < rows);
            bytes.extend_from_slice(of_row.ok_or_else(|| invalid(format!("row {at} of {rows} was chosen")))?);
        }
        let shape: Vec<usize> =
            std::iter::once(positions.len()).chain(tensor.shape().iter().skip(1).copied()).collect();
        Ok(Tensor::new(tensor.dtype(), &shape, bytes)?)
    }

    fn row(batch: &Tensor, at: usize, _device: ()) -> Result<Tensor> {
        let row = Self::select(batch, &[at])?;
        Ok(Tensor::new(row.dtype(), row.shape().get(1..).unwrap_or_default(), row.data().clone())?)
    }

    fn stack(rows: &[Tensor]) -> Result<Tensor> {
        let Some(first) = rows.first() else { return Err(invalid("no rows to stack")) };
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(first.shape().iter().copied()).collect();
        let bytes = rows.iter().map(|row| row.data().as_ref()).collect::<Vec<&[u8]>>().concat();
        Ok(Tensor::new(first.dtype(), &shape, bytes)?)
    }

    fn pad(rows: &[Tensor], value: f64) -> Result<Tensor> {
        elements::pad(rows, value)
    }

    fn difference(a: &Tensor, b: &Tensor, relative: f64, absolute: f64) -> Result<Option<String>> {
        elements::difference(a, b, relative, absolute)
    }

    fn len_bytes(tensor: &Tensor) -> usize {
        tensor.data().len()
    }
}

impl Adapter for Host {
    type Module = Cached<Self>;
}

/// Functions have no variables. Weights that they use are passed to [`crate::layer::CacheOptions::fingerprint`].
#[derive(Debug, Clone, Copy, Default)]
pub struct NoVariables;

impl Variables for NoVariables {
    fn is_empty(&self) -> bool {
        true
    }

    fn check_frozen(&self) -> Result<()> {
        Ok(())
    }

    fn sign(&self, _samples: usize) -> u64 {
        0
    }

    fn describe(&mut self) {}

    fn fingerprint(&self) -> Result<BTreeMap<String, String>> {
        Ok(BTreeMap::new())
    }

    fn save(&self, _path: &Path) -> Result<()> {
        Err(invalid("a wrapped function has no variables: save the weights that it uses yourself"))
    }

    fn load(&self, _path: &Path) -> Result<()> {
        Err(invalid("a wrapped function has no variables: load the weights that it uses yourself, and wrap it again"))
    }
}

crate::conversions!(Host, Tensor);

impl IntoIds<Host> for &Tensor {
    fn into_ids(self) -> Result<Ids> {
        let fits = self.shape().len() == 1 && self.dtype() != Dtype::Bool;
        let integers = elements::integers(self).filter(|_| fits);
        let integers = integers.ok_or_else(|| {
            Error::invalid(format!(
                "ids are a {} tensor of shape {:?}: pass a one-dimensional tensor of integers",
                self.dtype(),
                self.shape()
            ))
        })?;
        integers.into_iter().map(natural).collect::<Result<_>>().map(Ids::Int)
    }
}
