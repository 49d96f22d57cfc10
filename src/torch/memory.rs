//! The bytes of a tensor on the CPU: the only unsafe code of the torch layer.
#![expect(unsafe_code, reason = "libtorch hands out the address of a tensor's elements as a raw pointer")]

use tch::{Device, Tensor};
use torch_sys::{
    at_data_ptr, at_device, at_dim, at_is_contiguous, at_is_mkldnn, at_is_sparse, at_scalar_type, at_shape, at_stride,
};

use super::error::{invalid, torch};
use crate::error::Result;

/// Bytes of all elements, if the tensor is a plain block of memory on the CPU.
fn block_len_bytes(tensor: &Tensor) -> Result<usize> {
    if !tensor.defined() {
        return Err(invalid("a tensor is undefined: pass a tensor that was made"));
    }
    let kind = tensor.f_kind().map_err(torch("read the kind of a tensor"))?;
    if tensor.device() != Device::Cpu || tensor.is_sparse() || tensor.is_mkldnn() || !tensor.is_contiguous() {
        return Err(invalid(format!(
            "the bytes of a {kind:?} tensor on {:?} were asked for: it has to be a dense contiguous tensor on the CPU",
            tensor.device()
        )));
    }
    tensor
        .numel()
        .checked_mul(kind.elt_size_in_bytes())
        .filter(|&len| isize::try_from(len).is_ok())
        .ok_or_else(|| invalid("the size of a tensor overflows"))
}

/// The elements of a dense contiguous CPU tensor, as bytes. Nothing is copied.
///
/// # Errors
/// [`crate::Error::Invalid`] for any other tensor.
pub(super) fn bytes(tensor: &Tensor) -> Result<&[u8]> {
    let len = block_len_bytes(tensor)?;
    let address = tensor.data_ptr();
    if len == 0 || address.is_null() {
        return Ok(&[]);
    }
    // SAFETY: a contiguous CPU tensor of `numel` elements owns `len` readable bytes from its data pointer on, for as
    // long as the tensor lives, which the borrow holds; `u8` needs no alignment. Writing to the same storage from
    // another thread meanwhile, through a shallow clone, is a race in libtorch itself, and its users must not.
    Ok(unsafe { std::slice::from_raw_parts(address.cast::<u8>().cast_const(), len) })
}

/// What tells whether a tensor was written to or exchanged, handed to `mix`: its count of writes, kind, device and sizes,
/// and strides and address if it is dense. Returns the bytes of one on the CPU that has up to `small` elements.
///
/// This runs for every variable at every call of a module. The methods of `tch` look for an error after each call into
/// libtorch and allocate for sizes and for strides; here the last call finds the errors of all, and `room` is used again.
pub(super) fn look<'a>(
    tensor: &'a Tensor,
    small: usize,
    room: &mut Vec<i64>,
    mut mix: impl FnMut(u64),
) -> Option<&'a [u8]> {
    let raw = tensor.as_ptr().cast_mut();
    // SAFETY: the borrow keeps the tensor alive, and these calls only read what describes it.
    let (kind, device, dims, dense) = unsafe {
        let dense = at_is_sparse(raw) == 0 && at_is_mkldnn(raw) == 0;
        (at_scalar_type(raw), at_device(raw), at_dim(raw), dense)
    };
    // A failed `at_dim` is the greatest number there is.
    let known = dims.checked_mul(2).unwrap_or(0);
    room.clear();
    room.resize(known, 0);
    let (mut address, mut contiguous) = (std::ptr::null_mut(), false);
    if let Some((sizes, strides)) = room.split_at_mut_checked(dims) {
        // SAFETY: as above; each of the two has room for the `dims` numbers that are written to it.
        unsafe {
            at_shape(raw, sizes.as_mut_ptr());
            if dense {
                at_stride(raw, strides.as_mut_ptr());
                (address, contiguous) = (at_data_ptr(raw), at_is_contiguous(raw) == 1);
            }
        }
    }
    // Also fails, and forgets the error, if one of the calls above did.
    let version = tensor.f_internal_version();
    mix(version.as_ref().map_or(0, |version| version.cast_unsigned()));
    mix(u64::from(kind.cast_unsigned()) << 32 | u64::from(device.cast_unsigned()));
    room.iter().for_each(|&part| mix(part.cast_unsigned()));
    mix(address.addr() as u64);
    let sizes = room.get(..dims).unwrap_or_default();
    let numel = sizes.iter().try_fold(1_usize, |numel, &size| numel.checked_mul(usize::try_from(size).ok()?))?;
    if !dense || numel > small {
        return None;
    }
    if version.is_err() {
        // A tensor whose writes are not counted, or one that cannot be described.
        return bytes(tensor).ok();
    }
    if tensor.device() != Device::Cpu || !contiguous || address.is_null() {
        return None;
    }
    let len = numel.checked_mul(tensor.f_kind().ok()?.elt_size_in_bytes())?;
    // SAFETY: as in `bytes`: dense, contiguous, on the CPU, and none of the calls that said so failed.
    Some(unsafe { std::slice::from_raw_parts(address.cast::<u8>().cast_const(), len) })
}

/// The elements of a dense contiguous CPU tensor, as bytes to be written. Only for tensors that this crate made and
/// has not handed out.
///
/// # Errors
/// [`crate::Error::Invalid`] for any other tensor.
pub(super) fn bytes_mut(tensor: &mut Tensor) -> Result<&mut [u8]> {
    let len = block_len_bytes(tensor)?;
    let address = tensor.data_ptr();
    if len == 0 || address.is_null() {
        return Ok(&mut []);
    }
    // SAFETY: as in `bytes`; the tensor was made by the caller, so nothing else refers to its storage, and the
    // exclusive borrow holds that. Memory that libtorch allocated holds some bytes, whichever they are.
    Ok(unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), len) })
}
