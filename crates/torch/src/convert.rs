//! Conversion between libtorch's tensors and bytes, with their kinds and shapes.

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::error::{invalid, torch};
use crate::memory;
use tensorcask::Dtype;

/// The dtype of a kind. libtorch's quantized kinds and the complex kinds other than `ComplexFloat` have none.
pub(crate) const fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Bool => Dtype::Bool,
        Kind::Uint8 => Dtype::U8,
        Kind::Int8 => Dtype::I8,
        Kind::Int16 => Dtype::I16,
        Kind::Int => Dtype::I32,
        Kind::Int64 => Dtype::I64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::ComplexFloat => Dtype::C64,
        Kind::Float8e5m2 => Dtype::F8E5M2,
        Kind::Float8e4m3fn => Dtype::F8E4M3,
        Kind::Float8e5m2fnuz => Dtype::F8E5M2Fnuz,
        Kind::Float8e4m3fnuz => Dtype::F8E4M3Fnuz,
        Kind::ComplexHalf | Kind::ComplexDouble | Kind::QInt8 | Kind::QUInt8 | Kind::QInt32 => return None,
    })
}

/// The kind of a dtype. `tch` has no kinds for unsigned integers wider than a byte, and none for packed floats.
pub(crate) const fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::Bool => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::C64 => Kind::ComplexFloat,
        Dtype::F8E5M2 => Kind::Float8e5m2,
        Dtype::F8E4M3 => Kind::Float8e4m3fn,
        Dtype::F8E5M2Fnuz => Kind::Float8e5m2fnuz,
        Dtype::F8E4M3Fnuz => Kind::Float8e4m3fnuz,
        _ => return None,
    })
}

/// The shape as `usize`.
pub(crate) fn shape_of(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect()
}

/// The kind of a tensor.
pub(crate) fn kind(tensor: &Tensor) -> Result<Kind> {
    tensor.f_kind().map_err(torch("read the kind of a tensor"))
}

/// The shape as `i64`.
fn dims(shape: &[usize]) -> Result<Vec<i64>> {
    shape.iter().map(|&dim| i64::try_from(dim)).collect::<Result<_, _>>().map_err(|_| invalid("a dimension overflows"))
}

/// The tensor on the CPU, dense, contiguous and detached; a shallow clone if it is all that already. Waits for the
/// device.
pub(crate) fn host(tensor: &Tensor) -> Result<Tensor> {
    host_of_any_layout(tensor)?.f_contiguous().map_err(torch("copy a tensor to the CPU"))
}

/// [`host`], but keeps the present order of elements.
pub(crate) fn host_of_any_layout(tensor: &Tensor) -> Result<Tensor> {
    let action = "copy a tensor to the CPU";
    let kind = kind(tensor)?;
    if matches!(kind, Kind::QInt8 | Kind::QUInt8 | Kind::QInt32) {
        return Err(invalid(format!("a {kind:?} tensor's bytes do not tell its scale: pass tensor.dequantize()")));
    }
    let mut host = tensor.f_detach().map_err(torch(action))?;
    if host.is_sparse() || host.is_mkldnn() {
        host = host.f_to_dense(None::<Kind>, false).map_err(torch(action))?;
    }
    if host.device() != Device::Cpu {
        host = host.f_to_device(Device::Cpu).map_err(torch(action))?;
    }
    // Conjugation and negation may be pending, and are then not in the bytes.
    host = host.f_resolve_conj().map_err(torch(action))?;
    host.f_resolve_neg().map_err(torch(action))
}

/// A dense and detached copy on the same device, which shares no memory.
pub(crate) fn own(tensor: &Tensor) -> Result<Tensor> {
    let action = "copy a tensor";
    let mut tensor = tensor.f_detach().map_err(torch(action))?;
    if tensor.is_sparse() || tensor.is_mkldnn() {
        tensor = tensor.f_to_dense(None::<Kind>, false).map_err(torch(action))?;
    }
    let kind = kind(&tensor)?;
    tensor.f_to_device_(tensor.device(), kind, false, true).map_err(torch(action))
}

/// An uninitialised tensor on the CPU.
pub(crate) fn empty(kind: Kind, shape: &[usize]) -> Result<Tensor> {
    Tensor::f_empty(dims(shape)?, (kind, Device::Cpu)).map_err(torch("allocate a tensor"))
}

/// The dtype of a tensor that can be stored as it is.
pub(crate) fn stored_dtype(tensor: &Tensor) -> Result<Dtype> {
    let kind = kind(tensor)?;
    dtype_of(kind).ok_or_else(|| {
        invalid(format!("tensors of kind {kind:?} cannot be stored: convert the output, for example with dequantize()"))
    })
}

/// Copies a `tch` tensor from any device to a stored tensor.
///
/// # Errors
/// [`crate::Error::Invalid`] for kinds that cannot be stored.
pub fn to_stored(tensor: &Tensor) -> Result<tensorcask::Tensor> {
    let host = host(tensor)?;
    Ok(tensorcask::Tensor::new(stored_dtype(&host)?, &shape_of(&host), memory::bytes(&host)?.to_vec())?)
}
