//! `tch` as a [`Framework`].

use tch::{Cuda, Device, Kind, Tensor};
use tensorcask::Dtype;
use tensorcask_cache::Ids;
use tensorcask_cache::layer::{Framework, IntoIds, View, natural};

use crate::convert::{self, dtype_of, empty, kind, kind_of, shape_of};
use crate::error::{Result, invalid, torch};
use crate::fingerprint::Variables;
use crate::{memory, tensors};

/// The tensor library `tch`.
#[derive(Debug, Clone, Copy)]
pub struct Torch;

/// The options that are specific to `tch`: see [`crate::WrapModules::pinned`].
#[derive(Debug, Clone, Copy, Default)]
pub struct TorchSettings {
    pub(crate) pinned: bool,
}

/// Copies a stored tensor to CPU memory of libtorch.
///
/// # Errors
/// [`crate::Error::Invalid`] for dtypes that `tch` has no kind for.
pub fn from_stored(tensor: &tensorcask::Tensor) -> Result<Tensor> {
    Torch::from_stored(tensor)
}

/// A batch in host memory while it is filled. No other tensor shares its memory.
#[derive(Debug)]
pub struct Buffer(Tensor);

impl Framework for Torch {
    type Tensor = Tensor;
    type Buffer = Buffer;
    type Bytes<'a> = &'a [u8];
    type Device = Device;
    type Variables = Variables;
    type Settings = TorchSettings;

    const HOST: Device = Device::Cpu;

    fn dtype(tensor: &Tensor) -> Result<Option<Dtype>> {
        kind(tensor).map(dtype_of)
    }

    fn key_name(tensor: &Tensor) -> Result<String> {
        kind(tensor).map(|kind| format!("{kind:?}"))
    }

    fn shape(tensor: &Tensor) -> Vec<usize> {
        shape_of(tensor)
    }

    fn batch_len(tensor: &Tensor) -> Option<usize> {
        tensor.size().first().map(|&first| usize::try_from(first).unwrap_or(0))
    }

    fn device(tensor: &Tensor) -> Device {
        tensor.device()
    }

    fn holds(dtype: Dtype) -> bool {
        kind_of(dtype).is_some()
    }

    /// Compressed layouts (CSR, BSR) are not reported as sparse, but have no strides.
    fn is_dense(tensor: &Tensor) -> bool {
        !tensor.defined() || memory::is_strided(tensor) || tensor.is_mkldnn()
    }

    fn share(tensor: &Tensor) -> Tensor {
        tensor.shallow_clone()
    }

    fn own(tensor: &Tensor) -> Result<Tensor> {
        convert::own(tensor)
    }

    fn detach(tensor: &Tensor) -> Result<Tensor> {
        tensor.f_detach().map_err(torch("detach an output"))
    }

    /// Copies synchronously; on MPS this waits for the device as well.
    fn to_device(tensor: &Tensor, device: Device) -> Result<Tensor> {
        tensor.f_to_device(device).map_err(torch("copy an output to a device"))
    }

    fn deliver(tensor: &Tensor, device: Device, settings: &TorchSettings) -> Result<Tensor> {
        if !settings.pinned {
            return Self::to_device(tensor, device);
        }
        let action = "copy an output to a device";
        let pinned = match tensor.device() {
            Device::Cpu => tensor.f_pin_memory(Device::Cuda(0)).map_err(torch("pin an output"))?,
            _ => tensor.shallow_clone(),
        };
        let kind = pinned.f_kind().map_err(torch(action))?;
        // A copy to the CPU is synchronous, as the caller would otherwise read before it has ended.
        let arrived = pinned.f_to_device_(device, kind, device.is_cuda(), false).map_err(torch(action))?;
        if device == Device::Cpu {
            arrived.f_pin_memory(Device::Cuda(0)).map_err(torch("pin an output"))
        } else {
            Ok(arrived)
        }
    }

    fn host(tensor: &Tensor) -> Result<Tensor> {
        convert::host(tensor)
    }

    fn host_of_any_layout(tensor: &Tensor) -> Result<Tensor> {
        convert::host_of_any_layout(tensor)
    }

    fn bytes(host: &Tensor) -> Result<&[u8]> {
        memory::bytes(host)
    }

    fn view(host: &Tensor) -> Result<View<&[u8]>> {
        memory::view(host)
    }

    fn buffer(dtype: Dtype, shape: &[usize]) -> Result<Buffer> {
        let kind = kind_of(dtype).ok_or_else(|| invalid(format!("libtorch has no kind for {dtype} through tch")))?;
        empty(kind, shape).map(Buffer)
    }

    fn buffer_bytes(buffer: &Buffer) -> Result<&[u8]> {
        memory::bytes(&buffer.0)
    }

    fn buffer_bytes_mut(buffer: &mut Buffer) -> Result<&mut [u8]> {
        memory::bytes_mut(&mut buffer.0)
    }

    fn finish(buffer: Buffer) -> Result<Tensor> {
        Ok(buffer.0)
    }

    fn select(tensor: &Tensor, positions: &[usize]) -> Result<Tensor> {
        tensors::select_rows(tensor, positions)
    }

    fn row(batch: &Tensor, at: usize, device: Device) -> Result<Tensor> {
        let action = "hold rows on a device";
        let row = batch.f_get(i64::try_from(at).unwrap_or(i64::MAX)).map_err(torch(action))?;
        let kind = row.f_kind().map_err(torch(action))?;
        row.f_detach().and_then(|row| row.f_to_device_(device, kind, false, true)).map_err(torch(action))
    }

    fn stack(rows: &[Tensor]) -> Result<Tensor> {
        Tensor::f_stack(rows, 0).map_err(torch("gather rows that are held"))
    }

    fn pad(rows: &[Tensor], value: f64) -> Result<Tensor> {
        tensors::padded(rows, value)
    }

    fn difference(a: &Tensor, b: &Tensor, relative: f64, absolute: f64) -> Result<Option<String>> {
        tensors::difference(a, b, relative, absolute)
    }

    fn as_real(host: &Tensor) -> Result<Option<Tensor>> {
        if !matches!(kind(host)?, Kind::ComplexHalf | Kind::ComplexDouble) {
            return Ok(None);
        }
        let real = host.f_view_as_real().and_then(|real| real.f_contiguous());
        real.map(Some).map_err(torch("view a complex tensor"))
    }

    fn from_real(real: Tensor) -> Result<Tensor> {
        // Down-casting may have produced BF16, which has no complex kind.
        let real = if kind(&real)? == Kind::BFloat16 { real.f_to_kind(Kind::Float) } else { Ok(real) };
        real.and_then(|real| real.f_view_as_complex()).map_err(torch("view a complex tensor"))
    }

    fn without_gradients<T>(run: impl FnOnce() -> T) -> T {
        let _guard = tch::no_grad_guard();
        run()
    }

    fn as_recorded<T>(records: bool, run: impl FnOnce() -> T) -> T {
        if records { tch::with_grad(run) } else { tch::no_grad(run) }
    }

    /// `tch` does not expose the flag, so a tensor is tested.
    fn records_gradients() -> bool {
        let leaf = Tensor::from_slice(&[0.0_f32]).set_requires_grad(true);
        (&leaf + 1.0).requires_grad()
    }

    fn is_recorded(tensor: &Tensor) -> Result<bool> {
        // Recording may be off, which shows only in the result of an operation.
        let is_leaf = tensor.defined() && tensor.requires_grad();
        Ok(is_leaf && tensor.f_alias().map_err(torch("look at an input"))?.requires_grad())
    }

    fn check_settings(settings: &TorchSettings) -> Result<()> {
        if settings.pinned && !Cuda::is_available() {
            return Err(invalid("pinned output buffers need CUDA, and there is no CUDA device: leave `pinned` off"));
        }
        Ok(())
    }

    fn len_bytes(tensor: &Tensor) -> usize {
        tensor.numel() * tensor.f_kind().map_or(0, Kind::elt_size_in_bytes)
    }
}

tensorcask_cache::conversions!(Torch, Tensor);

/// One-dimensional tensors of any integer kind.
impl IntoIds<Torch> for &Tensor {
    fn into_ids(self) -> Result<Ids> {
        let host = convert::host(self)?;
        let integers = matches!(kind(&host)?, Kind::Uint8 | Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64);
        if host.dim() != 1 || !integers {
            return Err(invalid(format!(
                "ids are a {:?} tensor of shape {:?}: pass a one-dimensional Int64 tensor, or one of another integer \
                 kind",
                kind(&host)?,
                host.size()
            )));
        }
        let wide = host.f_to_kind(Kind::Int64).map_err(torch("widen ids"))?;
        let number = |bytes: &[u8; 8]| natural(i64::from_le_bytes(*bytes));
        memory::bytes(&wide)?.as_chunks().0.iter().map(number).collect::<Result<_>>().map(Ids::Int)
    }
}
