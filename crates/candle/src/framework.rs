//! candle as a [`Framework`].

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, Device, Storage, Tensor};
use tensorcask::Dtype;
use tensorcask_cache::host::Host;
use tensorcask_cache::layer::{Framework, IntoIds, View, key_name};
use tensorcask_cache::{Error, Ids, Result};

use crate::convert::{self, HostBytes, candle, dtype_of, elements_mut, storage_bytes, to_stored, zeros};
use crate::variables::Variables;

/// The tensor library candle.
#[derive(Debug, Clone, Copy)]
pub struct Candle;

/// Copies a stored tensor to host memory of candle.
///
/// # Errors
/// [`Error::Invalid`] for dtypes that candle does not have.
pub fn from_stored(tensor: &tensorcask::Tensor) -> Result<Tensor> {
    Candle::from_stored(tensor)
}

/// A batch in host memory while it is filled.
#[derive(Debug)]
pub struct Buffer {
    elements: CpuStorage,
    shape: Vec<usize>,
}

/// Copies a tensor to a storage of its own, on the same device.
fn copied(tensor: &Tensor) -> Result<Tensor> {
    tensor.force_contiguous().map(|copy| copy.detach()).map_err(candle("copy a tensor"))
}

impl Framework for Candle {
    type Tensor = Tensor;
    type Buffer = Buffer;
    type Bytes<'a> = HostBytes<'a>;
    type Device = Device;
    type Variables = Variables;
    type Settings = ();

    const HOST: Device = Device::Cpu;

    fn dtype(tensor: &Tensor) -> Result<Option<Dtype>> {
        Ok(dtype_of(tensor.dtype()))
    }

    fn key_name(tensor: &Tensor) -> Result<String> {
        let dtype = tensor.dtype();
        Ok(dtype_of(dtype).map_or_else(|| dtype.as_str(), key_name).to_owned())
    }

    fn shape(tensor: &Tensor) -> Vec<usize> {
        tensor.dims().to_vec()
    }

    fn batch_len(tensor: &Tensor) -> Option<usize> {
        tensor.dims().first().copied()
    }

    fn device(tensor: &Tensor) -> Device {
        tensor.device().clone()
    }

    fn holds(dtype: Dtype) -> bool {
        convert::holds(dtype)
    }

    fn share(tensor: &Tensor) -> Tensor {
        tensor.clone()
    }

    fn own(tensor: &Tensor) -> Result<Tensor> {
        copied(tensor)
    }

    fn detach(tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.detach())
    }

    fn to_device(tensor: &Tensor, device: Device) -> Result<Tensor> {
        tensor.to_device(&device).map_err(candle("copy an output to a device"))
    }

    fn host(tensor: &Tensor) -> Result<Tensor> {
        convert::host(tensor)
    }

    fn host_of_any_layout(tensor: &Tensor) -> Result<Tensor> {
        convert::host_of_any_layout(tensor)
    }

    fn bytes(host: &Tensor) -> Result<HostBytes<'_>> {
        HostBytes::of(host)
    }

    /// Holds a read lock on the storage. A tensor that is passed twice in a call is locked twice, so no writer may
    /// queue in between.
    fn view(host: &Tensor) -> Result<View<HostBytes<'_>>> {
        let bytes = HostBytes::of(host)?;
        let (sizes, strides) = (host.dims().to_vec(), host.stride().to_vec());
        Ok(View { bytes, width: host.dtype().size_in_bytes(), sizes, strides })
    }

    fn buffer(dtype: Dtype, shape: &[usize]) -> Result<Buffer> {
        let len = shape.iter().try_fold(1_usize, |len, &dim| len.checked_mul(dim));
        let len = len.ok_or_else(|| Error::invalid("the size of a tensor overflows"))?;
        let elements =
            zeros(dtype, len).ok_or_else(|| Error::invalid(format!("candle has no dtype for {dtype} tensors")))?;
        Ok(Buffer { elements, shape: shape.to_vec() })
    }

    fn buffer_bytes(buffer: &Buffer) -> Result<&[u8]> {
        storage_bytes(&buffer.elements)
    }

    fn buffer_bytes_mut(buffer: &mut Buffer) -> Result<&mut [u8]> {
        elements_mut(&mut buffer.elements)
            .ok_or_else(|| Error::invalid("a buffer of packed elements cannot be written"))
    }

    fn finish(buffer: Buffer) -> Result<Tensor> {
        Ok(Tensor::from_storage(Storage::Cpu(buffer.elements), buffer.shape, BackpropOp::none(), false))
    }

    fn select(tensor: &Tensor, positions: &[usize]) -> Result<Tensor> {
        let index: Vec<i64> = positions.iter().map(|&at| i64::try_from(at).unwrap_or(i64::MAX)).collect();
        let select = || {
            let index = Tensor::from_vec(index, positions.len(), tensor.device())?;
            tensor.contiguous()?.index_select(&index, 0)
        };
        select().map_err(candle("select rows of a batch"))
    }

    fn row(batch: &Tensor, at: usize, device: Device) -> Result<Tensor> {
        let row = batch.get(at).map_err(candle("take a row of a batch"))?;
        Self::to_device(&copied(&row)?, device)
    }

    fn stack(rows: &[Tensor]) -> Result<Tensor> {
        let batch = Tensor::stack(rows, 0).map_err(candle("gather rows that are held"))?;
        // For a single row, candle returns a view.
        if rows.len() == 1 { copied(&batch) } else { Ok(batch) }
    }

    fn pad(rows: &[Tensor], value: f64) -> Result<Tensor> {
        from_stored(&Host::pad(&rows.iter().map(to_stored).collect::<Result<Vec<_>>>()?, value)?)
    }

    fn difference(a: &Tensor, b: &Tensor, relative: f64, absolute: f64) -> Result<Option<String>> {
        Host::difference(&to_stored(a)?, &to_stored(b)?, relative, absolute)
    }

    /// candle has no switch for recording: every operation on a variable is recorded.
    fn records_gradients() -> bool {
        true
    }

    fn is_recorded(tensor: &Tensor) -> Result<bool> {
        Ok(tensor.track_op())
    }

    fn len_bytes(tensor: &Tensor) -> usize {
        tensor.elem_count() * tensor.dtype().size_in_bytes()
    }
}

tensorcask_cache::conversions!(Candle, Tensor);

/// One-dimensional tensors of any integer dtype.
impl IntoIds<Candle> for &Tensor {
    fn into_ids(self) -> Result<Ids> {
        IntoIds::<Host>::into_ids(&to_stored(self)?)
    }
}
